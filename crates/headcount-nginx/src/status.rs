//! What `headcount_status` answers.

use headcount_core::Snapshot;

/// In which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Prometheus,
    Html,
}

impl Format {
    pub(crate) fn from_name(name: &str) -> Option<Format> {
        match name {
            "json" => Some(Format::Json),
            "prometheus" => Some(Format::Prometheus),
            "html" => Some(Format::Html),
            _ => None,
        }
    }
}

/// The content type and the document.
pub(crate) fn body(format: Format, snapshot: &Snapshot) -> (&'static str, String) {
    match format {
        Format::Json | Format::Prometheus | Format::Html => {
            ("application/json", headcount_ffi::snapshot_json::document(snapshot))
        }
    }
}
