//! The directive `headcount` of the nginx module, and the command line from which a node without a name gets one.

use std::time::Duration;

use headcount::Options;
use headcount_nginx_conf::{Surroundings, default_node, read};

/// The first line is the directive, the second nginx's prefix, the third the folder it was started in, the rest its
/// arguments.
pub(crate) fn run(bytes: &[u8]) {
    let mut lines = bytes.split(|&byte| byte == b'\n');
    let mut next = || lines.next().unwrap_or_default();
    let (directive, prefix, folder) = (next(), next(), next());
    let arguments: Vec<Vec<u8>> = lines.map(<[u8]>::to_vec).collect();
    // nginx gives the words as bytes, and the module refuses what is no UTF-8.
    let (Ok(directive), Ok(prefix)) = (std::str::from_utf8(directive), std::str::from_utf8(prefix)) else {
        return;
    };
    let words: Vec<String> =
        directive.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();

    let name = default_node(&arguments, prefix.as_bytes(), folder);
    assert!(Options::new(&name).check().is_ok(), "{name:?} is a name");
    let time = |text: &str| {
        let seconds = text.strip_suffix('s').unwrap_or(text).parse().ok()?;
        Some(Duration::from_secs(seconds))
    };
    match read(&words, &Surroundings { prefix, arguments: &arguments, folder, time: &time }) {
        Ok(Some(settings)) => {
            let checked = settings.options().check();
            assert!(checked.is_ok(), "{words:?} was accepted: {checked:?}");
        }
        Ok(None) => assert!(words.first().is_some_and(|word| word.eq_ignore_ascii_case("off")), "{words:?}"),
        Err(why) => assert!(why.starts_with("headcount: "), "{why}"),
    }
}
