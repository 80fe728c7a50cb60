//! What a terminal shows, as a picture for the documentation.

use anstyle::{Color, RgbColor};
use anstyle_svg::{Palette, Term};

/// A dark theme whose colours can be told apart by those who cannot tell red from green.
const THEME: Palette = Palette([
    RgbColor(0x3b, 0x40, 0x48),
    RgbColor(0xe0, 0x6c, 0x75),
    RgbColor(0x8c, 0xc2, 0x65),
    RgbColor(0xd9, 0xa0, 0x4e),
    RgbColor(0x4d, 0x8f, 0xe0),
    RgbColor(0xc1, 0x62, 0xde),
    RgbColor(0x42, 0xb3, 0xc2),
    RgbColor(0xc8, 0xcc, 0xd4),
    RgbColor(0x73, 0x7b, 0x8a),
    RgbColor(0xff, 0x7b, 0x85),
    RgbColor(0xa5, 0xe0, 0x75),
    RgbColor(0xff, 0xd1, 0x66),
    RgbColor(0x6c, 0xb2, 0xff),
    RgbColor(0xe5, 0x8c, 0xff),
    RgbColor(0x5f, 0xd7, 0xe6),
    RgbColor(0xff, 0xff, 0xff),
]);

/// The picture of a screen, escape sequences included. `title` is for those who cannot see it.
pub fn picture(screen: &str, title: &str) -> String {
    let screen = screen.trim_end_matches('\n');
    assert!(!screen.is_empty(), "nothing to draw");
    let svg = Term::new()
        .palette(THEME)
        .fg_color(Color::Rgb(RgbColor(0xd7, 0xda, 0xe0)))
        .bg_color(Color::Rgb(RgbColor(0x16, 0x18, 0x1d)))
        .min_width_px(0)
        .render_svg(screen);
    let (head, rest) = svg.split_once('\n').expect("the element svg has a line of its own");
    let size: Vec<&str> = head.split('"').map(|part| part.trim_end_matches("px")).collect();
    // Without a viewBox a narrow page would cut the picture off instead of making it smaller.
    let view = format!("<svg role=\"img\" viewBox=\"0 0 {} {}\"", size[1], size[3]);
    assert!(!title.contains(['<', '&']), "{title}");
    format!("{}\n  <title>{title}</title>\n{rest}", head.replacen("<svg", &view, 1))
}
