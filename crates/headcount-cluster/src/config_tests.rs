use std::fs;

use super::check::is_endpoint;
use super::*;

fn read(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    fs::write(&path, text).unwrap();
    Config::read(&path).map_err(|error| {
        let text = error.to_string();
        assert!(text.starts_with(&path.display().to_string()), "{text}");
        text
    })
}

const CLUSTER: &str = "[cluster]\nname = \"shop\"\nendpoints = [\"http://127.0.0.1:2379\"]\n";

#[test]
fn an_empty_file_is_an_exporter() {
    let config = read("").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!((config.cluster, config.agent.listen), (None, None));
}

#[test]
fn nothing_is_reloaded_for_others_unless_it_is_said() {
    for (text, nginx, other) in [
        ("", false, false),
        ("reload = false", false, false),
        ("reload = true", true, true),
        ("reload = [\"nginx\"]", true, false),
        ("reload = []", false, false),
    ] {
        let reload = read(&format!("[agent]\n{text}\n")).unwrap().agent.reload;
        assert_eq!((reload.allows("nginx"), reload.allows("other")), (nginx, other), "{text}");
        assert_eq!(reload.is_off(), !nginx, "{text}");
    }
}

#[test]
fn what_is_not_said_has_its_default() {
    let cluster = read(CLUSTER).unwrap().cluster.unwrap();
    assert_eq!((cluster.ttl, &*cluster.prefix), (Duration::from_secs(5), "/headcount"));
    assert_eq!(cluster.host, machine_name());
}

#[test]
fn the_example_that_is_installed_is_valid() {
    let text = include_str!("../../../packaging/examples/agent.toml");
    assert_eq!(read(text).unwrap().cluster, None, "nothing is sent anywhere unless it is asked for");
    let all: String =
        text.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line).to_owned() + "\n").collect();
    // It names files that are not here.
    let error = read(&all).unwrap_err();
    assert!(error.contains("cluster.password_file: /etc/headcount/etcd-password: No such file"), "{error}");
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (text, said) in [
        ("[agnet]\n", "unknown field `agnet`"),
        ("[agent]\nsokcet = \"/x\"\n", "unknown field `sokcet`"),
        ("[agent]\nsocket = \"x\"\n", "agent.socket: x is not an absolute path"),
        ("[agent]\nlisten = \"9100\"\n", "listen: \"9100\" is not an address and a port, such as"),
        ("[agent\n", "line 1, column 7: "),
        ("[cluster]\npassword = \"hunter2\"\n", "line 2, column 1: unknown field `password`"),
        ("[agent]\nreload = \"yes\"\n", "true, false or a list of nodes' names was expected"),
        ("[cluster]\nname = \"shop\"\n", "missing field `endpoints`"),
        (&format!("{CLUSTER}ttl = 5\n"), "line 4, column 7: ttl: invalid type: integer `5`"),
        (&format!("{CLUSTER}ttl = \"5 lightyears\"\n"), "ttl: \"5 lightyears\" is not a time"),
        ("hunter2=\n", "line 1, column 9: "),
        (
            "[cluster]\nname = \"x\"\nendpoints = \"http://u:hunter2@h:1\"\n",
            "endpoints: invalid type: a text, expected a sequence",
        ),
        (&format!("{CLUSTER}ttl = \"1s\"\n"), "cluster.ttl: whole seconds, from 2s"),
        (&format!("{CLUSTER}host = \"a/b\"\n"), "cluster.host: \"a/b\" is not a name"),
        (&format!("{CLUSTER}prefix = \"x/\"\n"), "cluster.prefix: \"x/\" must begin with /"),
        (&format!("{CLUSTER}ca = \"/x\"\n"), "need https://"),
        (&format!("{CLUSTER}user = \"x\"\n"), "go together"),
        (&CLUSTER.replace("http:", "https:"), "cluster.ca: https:// needs"),
        (&format!("[agent]\nsocket = \"/{}\"\n", "x".repeat(107)), "has 108 bytes"),
        (&format!("{CLUSTER}prefix = \"/a\\nb\"\n"), "without control characters"),
        (&CLUSTER.replace("http://", ""), "\"127.0.0.1:2379\" is not http://HOST:PORT"),
        (&CLUSTER.replace("127.0.0.1:2379", "root:hunter2@h:2379"), "there is an @ in one"),
        (&CLUSTER.replace("\"http://127.0.0.1:2379\"", ""), "name at least one"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(said), "{text}\n{error}");
        assert!(!error.contains('\n') && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn an_endpoint_is_a_host_and_a_port_and_nothing_besides() {
    for right in ["http://etcd-1:2379", "https://10.0.0.1:1", "http://[::1]:2379", "http://a_b.example:65535"]
    {
        assert!(is_endpoint(right), "{right}");
    }
    for wrong in [
        "http://etcd-1:2379/",
        "http://etcd-1:2379/v3",
        "http://etcd-1",
        "http://:2379",
        "http://::1:2379",
        "http://[::1:2379",
        "http://[x]:2379",
        "http://a b:2379",
        "http://a:0",
        "http://a:+1",
        "http://a:65536",
        "http://a?b:2379",
        "HTTP://a:1",
        "etcd://a:1",
        "http://ä:1",
        "",
    ] {
        assert!(!is_endpoint(wrong), "{wrong}");
    }
}

/// None of them may keep the agent waiting, or fill its memory.
#[test]
fn what_is_no_file_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    for path in [&fifo, folder.path(), Path::new("/dev/zero")] {
        let error = Config::read(path).unwrap_err().to_string();
        assert_eq!(error, format!("{}: it is not a regular file", path.display()));
        let error = read(&format!("{CLUSTER}user = \"u\"\npassword_file = {path:?}\n")).unwrap_err();
        assert!(error.ends_with("it is not a regular file") && error.contains("cluster.password_file: "));
    }
    assert_eq!(Config::read(Path::new("/dev/null")).unwrap(), Config::default());
    std::fs::write(folder.path().join("latin1"), b"# \xe4\n").unwrap();
    let error = Config::read(&folder.path().join("latin1")).unwrap_err().to_string();
    assert!(error.ends_with("it is not text in UTF-8"), "{error}");
}

#[test]
fn what_is_no_secret_or_certificate_is_said_before_it_is_used() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        format!("{path:?}")
    };
    let (empty, cert) = (file("empty", "\n"), file("cert", "-----BEGIN CERTIFICATE-----"));
    let key = file("key", "-----BEGIN PRIVATE KEY-----");
    let locked = file("locked", "-----BEGIN ENCRYPTED PRIVATE KEY-----");
    let tls = CLUSTER.replace("http:", "https:");
    for (text, said) in [
        (format!("{CLUSTER}user = \"u\"\npassword_file = {empty}\n"), "there is no password in it"),
        (format!("{tls}ca = {key}\n"), "key: there is no BEGIN CERTIFICATE in it (PEM)"),
        (format!("{tls}ca = {cert}\ncert = {key}\nkey = {cert}\n"), "cluster.cert: "),
        (
            format!("{tls}ca = {cert}\ncert = {cert}\nkey = {cert}\n"),
            "cert: there is no PRIVATE KEY in it (PEM)",
        ),
        (format!("{tls}ca = {cert}\ncert = {cert}\nkey = {locked}\n"), "is encrypted"),
    ] {
        let error = read(&text).unwrap_err();
        assert!(error.contains(said), "{text}\n{error}");
    }
    read(&format!("{tls}ca = {cert}\ncert = {cert}\nkey = {key}\n")).unwrap();
}

#[test]
fn a_secret_that_everybody_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("password");
    fs::write(&secret, "x").unwrap();
    let text = format!("{CLUSTER}user = \"u\"\npassword_file = {secret:?}\n");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(read(&text).unwrap_err().contains("everybody may read"));
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
    read(&text).unwrap();
}
