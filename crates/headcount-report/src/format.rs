//! In which form an HTTP endpoint answers.

use mediatype::{MediaTypeList, Name};

use crate::page::{HTML_CONTENT_TYPE, POLICY};
use crate::prometheus::PROMETHEUS_CONTENT_TYPE;

/// A form of the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// [`crate::StatusDocument`].
    Json,
    /// Metrics.
    Prometheus,
    /// The page.
    Html,
}

impl Format {
    /// All of them; the first is what is answered to who wants nothing in particular.
    pub const ALL: [Format; 3] = [Format::Json, Format::Prometheus, Format::Html];

    /// The form of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Its name in configurations.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Format::Json => "json",
            Format::Prometheus => "prometheus",
            Format::Html => "html",
        }
    }

    /// What an answer in this form says that it is.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Prometheus => PROMETHEUS_CONTENT_TYPE,
            Format::Html => HTML_CONTENT_TYPE,
        }
    }

    /// What goes with an answer in this form, beside its type: true now and not later; another form to another wish at the
    /// same address; nothing for a browser to guess, to frame, or to run that is not the page's own.
    #[must_use]
    pub const fn headers(self) -> [(&'static str, &'static str); 6] {
        let policy = match self {
            Format::Html => POLICY,
            Format::Json | Format::Prometheus => "default-src 'none'; frame-ancestors 'none'",
        };
        [
            ("Cache-Control", "no-store"),
            ("Vary", "Accept"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Content-Security-Policy", policy),
        ]
    }

    /// The form for a request. `fixed` is what the endpoint was told to answer with: only the page, which asks its own
    /// address for JSON, gives way to a wish for that. Otherwise what the request's `Accept` likes best, JSON if it has
    /// no wish that we could fulfil: a status that is refused for a header helps nobody.
    #[must_use]
    pub fn negotiate(fixed: Option<Format>, accept: &str) -> Format {
        match fixed {
            Some(Format::Html) if wish(accept) == Some(Format::Json) => Format::Json,
            Some(format) => format,
            None => wish(accept).unwrap_or(Format::Json),
        }
    }

    /// The form of a media type. `*/*` is no wish.
    fn of(ty: &str, subty: &str) -> Option<Format> {
        match (ty, subty) {
            ("application", "json") => Some(Format::Json),
            ("text", "html") => Some(Format::Html),
            // What Prometheus asks for; it takes the plain one as well.
            ("text", "plain") | ("application", "openmetrics-text") => Some(Format::Prometheus),
            _ => None,
        }
    }
}

/// The best liked of ours; of equals the first.
fn wish(accept: &str) -> Option<Format> {
    const Q: Name<'_> = Name::new_unchecked("q");
    let mut best: Option<(f32, Format)> = None;
    for media in MediaTypeList::new(accept).flatten() {
        let weight =
            mediatype::ReadParams::get_param(&media, Q).map_or(Some(1.0), |q| q.as_str().parse().ok());
        let [ty, subty] = [media.ty, media.subty].map(|name| name.as_str().to_ascii_lowercase());
        let (Some(weight), Some(format)) = (weight, Format::of(&ty, &subty)) else { continue };
        if weight > best.map_or(0.0, |(best, _)| best) {
            best = Some((weight, format));
        }
    }
    best.map(|(_, format)| format)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8";
    const SCRAPER: &str =
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";

    #[test]
    fn without_a_fixed_form_the_request_decides() {
        for (accept, format) in [
            ("", Format::Json),
            ("*/*", Format::Json),
            ("application/json", Format::Json),
            ("image/png", Format::Json),
            (BROWSER, Format::Html),
            (SCRAPER, Format::Prometheus),
            ("text/plain", Format::Prometheus),
            ("text/html;q=0.2, application/json;q=0.7", Format::Json),
            ("TEXT/HTML", Format::Html),
            ("text/html;q=0", Format::Json),
            ("text/html;q=x, ;;, ,text/plain", Format::Prometheus),
            ("\u{0}\u{7f},,,;q=", Format::Json),
        ] {
            assert_eq!(Format::negotiate(None, accept), format, "{accept}");
        }
    }

    #[test]
    fn a_fixed_form_stays_but_for_the_pages_own_requests() {
        assert_eq!(Format::negotiate(Some(Format::Html), "application/json"), Format::Json);
        assert_eq!(Format::negotiate(Some(Format::Html), BROWSER), Format::Html);
        assert_eq!(Format::negotiate(Some(Format::Html), "*/*"), Format::Html);
        assert_eq!(Format::negotiate(Some(Format::Json), BROWSER), Format::Json);
        assert_eq!(Format::negotiate(Some(Format::Prometheus), "application/json"), Format::Prometheus);
    }

    #[test]
    fn names_go_there_and_back() {
        for format in Format::ALL {
            assert_eq!(Format::from_name(format.name()), Some(format));
        }
        assert_eq!(Format::from_name("xml"), None);
    }
}
