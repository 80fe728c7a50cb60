//! How the pictures of the documentation are drawn.

mod svg;

#[test]
fn colours_blocks_and_spaces_are_drawn_in_their_places() {
    let screen = "\x1b[1;31mbold\x1b[0m  <x>\x1b]0;a title\x07\n\x1b[7m rev \x1b[27m\x1b[38;5;208m██▒\x1b[39m\x1b[4mu\x1b[m\x1b[?25h\n\n";
    insta::assert_snapshot!(svg::picture(screen, "two lines"));
}

#[test]
#[should_panic(expected = "nothing to draw")]
fn of_nothing_there_is_no_picture() {
    svg::picture("\n", "nothing");
}
