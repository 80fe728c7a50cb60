//! The name of a node that is given none: for the directive, and through the C library for Lua.

/// "nginx", unless the server was started with a configuration file or a prefix of its own: then a name made of that
/// path, so that two servers of one package are two nodes. Another path always gives another name.
#[must_use]
pub fn default_node(arguments: &[Vec<u8>], prefix: &[u8], folder: &[u8]) -> String {
    let (own_prefix, file) = places(arguments);
    if own_prefix.is_none() && file.is_none() {
        return "nginx".to_owned();
    }
    let absolute = |path: &[u8], base: &[u8]| match path.first() {
        Some(b'/') => path.to_vec(),
        _ => [base, path].concat(),
    };
    let prefix = tidy([absolute(prefix, &[folder, b"/"].concat()), b"/".to_vec()].concat());
    let path = tidy(absolute(file.unwrap_or(&prefix), &prefix));
    // The same configuration under two prefixes is two servers.
    let elsewhere = own_prefix.is_some() && !path.starts_with(&prefix);
    let identity = if elsewhere { [&prefix[..], b"\n", &path].concat() } else { path.clone() };

    let plain = path.strip_prefix(b"/").unwrap_or(&path);
    let plain = plain.strip_suffix(b"/").unwrap_or(plain);
    let fit = |&b: &u8| match b {
        b'/' => '-',
        b if b.is_ascii_alphanumeric() || b"._-".contains(&b) => char::from(b),
        _ => '_',
    };
    let name: String = plain.iter().map(fit).collect();
    let is_ambiguous = plain.iter().any(|b| !b.is_ascii_alphanumeric() && !b"._/".contains(b));
    if elsewhere || is_ambiguous || name.len() > 42 {
        return format!("nginx-{}-{:08x}", &name[name.len().saturating_sub(33)..], crc32(&identity));
    }
    format!("nginx-{name}")
}

/// The prefix and the configuration file of a command line, as nginx reads it.
fn places(arguments: &[Vec<u8>]) -> (Option<&[u8]>, Option<&[u8]>) {
    let (mut prefix, mut file) = (None, None);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(letters) = argument.strip_prefix(b"-") else { continue };
        // Several letters may stand together; one that takes a value ends them.
        let Some(at) = letters.iter().position(|b| b"cpgse".contains(b)) else { continue };
        let value = match &letters[at + 1..] {
            [] => rest.next().map(Vec::as_slice),
            value => Some(value),
        };
        match letters[at] {
            b'p' => prefix = value,
            b'c' => file = value,
            _ => {}
        }
    }
    (prefix, file)
}

fn tidy(path: Vec<u8>) -> Vec<u8> {
    let mut tidied: Vec<u8> = Vec::with_capacity(path.len());
    for byte in path {
        tidied.push(byte);
        while tidied.ends_with(b"//") || tidied.ends_with(b"/./") {
            let extra = if tidied.ends_with(b"//") { 1 } else { 2 };
            tidied.truncate(tidied.len() - extra);
        }
    }
    tidied
}

/// CRC-32 as nginx's `ngx_crc32_long`.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}
