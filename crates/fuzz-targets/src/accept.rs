//! The header `Accept` of a request for the status, which anybody may send.

use headcount_report::Format;

pub(crate) fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for fixed in [None, Some(Format::Html), Some(Format::Json), Some(Format::Prometheus)] {
        let format = Format::negotiate(fixed, &text);
        assert!(fixed.is_none_or(|fixed| format == fixed || fixed == Format::Html && format == Format::Json));
    }
    if let Some(format) = Format::from_name(&text) {
        assert_eq!(format.name(), text);
    }
}
