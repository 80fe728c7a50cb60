//! What is wrong is said in a clear line; local work goes on; nothing of others is overwritten or removed.

use std::process::Command;

use etcd_client::{ConnectOptions, Permission};
use testkit::{Etcd, Folder, Signal, chmod, http, permit};

use super::fleet::{Fleet, Host, Server, block_on, host, key};

/// What the agent says, while it serves its own host all the same.
fn says_and_serves(host: &mut Host, what: &[&str]) {
    host.launch();
    for what in what {
        host.agent().says(what);
    }
    http::get(&host.socket(), "/metrics").expect("it answers");
    host.end(Signal::TERM).ended(0);
}

#[test]
fn nobody_answers_at_the_endpoint() {
    let _permit = permit();
    let folder = Folder::new();
    let mut alone = Host::alone(folder.path());
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("its address").to_string();
    for (endpoint, why) in [
        ("127.0.0.1:1", "Connection refused"),
        (address.as_str(), "takes the connection: it does not answer"),
        ("nowhere.invalid:2379", "nowhere.invalid"),
    ] {
        alone.configure(&format!(
            "[cluster]\nname = \"shop\"\nendpoints = [\"http://{endpoint}\"]\nhost = \"a\"\nttl = \"2s\"\n"
        ));
        says_and_serves(&mut alone, &["etcd does not answer", why]);
        alone.cluster(&["status"]).ended(4).complains("etcd does not answer").complains(why);
    }
}

#[test]
fn a_user_needs_rights_for_the_prefix_and_no_more() {
    let _permit = permit();
    let fleet = Fleet::new();
    fleet.client(async |mut etcd| {
        etcd.user_add("root", "root", None).await?;
        etcd.user_grant_role("root", "root").await?;
        for (user, prefix) in [("ours", "/headcount/v1/shop/"), ("other", "/elsewhere/")] {
            etcd.role_add(user).await?;
            etcd.role_grant_permission(user, Permission::read_write(prefix).with_prefix()).await?;
            etcd.user_add(user, "secret", None).await?;
            etcd.user_grant_role(user, user).await?;
        }
        etcd.auth_enable().await
    });
    let password = fleet.folder.at("password");
    super::fleet::write(&password, "secret\n");
    chmod(&password, 0o600);
    let as_user = |user: &str| format!("ttl = \"2s\"\nuser = {user:?}\npassword_file = {password:?}");
    let mut a = fleet.host("a");
    says_and_serves(&mut a, &["etcd does not accept this user"]);
    let mut a = fleet.host_with("a", &as_user("nobody"));
    says_and_serves(&mut a, &["etcd does not accept this user"]);
    let mut a = fleet.host_with("a", &as_user("other"));
    says_and_serves(&mut a, &["permission denied", "needs readwrite on the prefix /headcount/v1/shop/"]);
    a.cluster(&["status"]).ended(4).complains("etcd does not allow it");
    let mut a = fleet.host_with("a", &as_user("ours"));
    let _server = Server::start(&a, 1);
    a.join();
    a.sees_node("a", "serving");
    let said = a.end(Signal::TERM).ended(0).err;
    assert!(!said.contains("secret"), "{said}");
    let all = block_on(async {
        let options = ConnectOptions::new().with_user("root", "root");
        let mut etcd = etcd_client::Client::connect([fleet.etcd.url()], Some(options)).await?;
        Ok(etcd.get("", Some(etcd_client::GetOptions::new().with_all_keys())).await?.kvs().to_vec())
    });
    assert!(all.iter().all(|kv| kv.key().starts_with(b"/headcount/v1/shop/")), "nothing is anywhere else");
}

#[test]
fn values_that_cannot_be_read_are_said_and_left_alone() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = fleet.host("a");
    let strange = [
        (key("hosts/strange"), "\u{1b}[2Jnonsense".to_owned()),
        (key("known/newer"), "{\"v\":7,\"presence\":\"here\"}".to_owned()),
        (key("nodes/a%2Fb/web"), "{}".to_owned()),
        (key("events/b/web/1/00000000000000000001"), "[]".to_owned()),
        (key("later/and/unknown"), "{\"v\":2}".to_owned()),
        ("/somebody/elses".to_owned(), "x".to_owned()),
    ];
    fleet.client(async |mut etcd| {
        for (key, value) in &strange {
            etcd.put(key.as_str(), value.as_str(), None).await?;
        }
        Ok(())
    });
    let _server = Server::start(&a, 1);
    a.join();
    let status = a.sees("its node", |status| {
        (host(status, "a")?["nodes"][0]["state"] == "serving").then(|| status.clone())
    });
    let unreadable = status["unreadable"].as_array().expect("a list").clone();
    assert_eq!(unreadable.len(), 3, "{unreadable:?}");
    a.cluster(&["status"])
        .ended(0)
        .says("hosts/strange is skipped: it is not what headcount writes there")
        .says("known/newer is skipped: it is of version 7, and this headcount knows version 1");
    a.cluster(&["events"]).ended(0).complains("is skipped: it is not what headcount writes there");
    a.cluster(&["wait", "--serving", "--timeout", "0"]).ended(1).complains("cannot be read");
    a.end(Signal::TERM).ended(0);
    for (key, value) in strange {
        let found =
            fleet.client(async |mut etcd| Ok(etcd.get(key.as_str(), None).await?.kvs()[0].value().to_vec()));
        assert_eq!(found, value.as_bytes(), "{key}");
    }
}

#[test]
fn two_hosts_of_one_name_do_not_speak_for_each_other() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = fleet.host("a");
    a.join();
    let pid = a.agent().pid();
    // Another agent of this machine, with a socket and servers of its own.
    let mut same = fleet.host("same");
    let text =
        std::fs::read_to_string(same.config()).expect("our file").replace("host = \"same\"", "host = \"a\"");
    super::fleet::write(&same.config(), &text);
    let _server = Server::start(&same, 1);
    says_and_serves(&mut same, &["there is a host a already", &format!("process {pid} of this machine")]);
    let status = a.status();
    assert_eq!(
        host(&status, "a").expect("it is there")["nodes"].as_array().map(Vec::len),
        Some(0),
        "{status:#}"
    );
    a.end(Signal::TERM).ended(0);
    // An agent of another machine, as its key tells.
    let other =
        r#"{"v":1,"agent":"0.1.0","place":"elsewhere","machine":"db-7","pid":1,"birth":2,"since":1.0}"#;
    fleet.client(async |mut etcd| etcd.put(key("hosts/a"), other, None).await);
    says_and_serves(&mut a, &["there is a host a already: an agent on machine db-7"]);
    let left =
        fleet.client(async |mut etcd| Ok(etcd.get(key("hosts/a"), None).await?.kvs()[0].value().to_vec()));
    assert_eq!(left, other.as_bytes());
}

/// The server got another path, and the registry of its last stop is still there: row 42, a live node before a dead one.
#[test]
fn of_two_nodes_of_one_name_the_one_that_lives_is_told() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = fleet.host("a");
    Server::start_at(&a, "1.registry", 1).stop();
    let second = Server::start_at(&a, "2.registry", 2);
    a.join();
    let serves = |what: &str, workers: u64| {
        a.sees(what, |status| {
            let nodes = host(status, "a")?["nodes"].as_array()?.clone();
            let is_it = nodes.len() == 1 && nodes[0]["state"] == "serving" && nodes[0]["serving"] == workers;
            is_it.then_some(())
        });
    };
    serves("the one that lives", 2);
    let first = Server::start_at(&a, "1.registry", 3);
    second.stop();
    serves("the other one, at once", 3);
    let stopped = |what: &str| {
        a.sees(what, |status| (host(status, "a")?["nodes"][0]["state"] == "stopped").then_some(()));
    };
    first.stop();
    stopped("that none is left");
    let second = Server::start_at(&a, "2.registry", 2);
    serves("the one that lives again", 2);
    second.stop();
    stopped("that none is left again");
    // Each event once, whichever of them was told when.
    let mut told: Vec<_> = a
        .events()
        .iter()
        .filter(|event| event["kind"] == "generation_ended" || event["kind"] == "worker_started")
        .map(|event| (event["kind"].to_string(), event["pid"].to_string(), event["time"].to_string()))
        .collect();
    let all = told.len();
    told.sort();
    told.dedup();
    assert_eq!(told.len(), all, "{told:#?}");
    // The first run of each was over before the host was there, or another node was told.
    assert!(all >= 6, "{told:#?}");
}

fn openssl(folder: &Folder, arguments: &str) {
    let mut command = Command::new("openssl");
    let done = command.args(arguments.split(' ')).current_dir(folder.path()).output().expect("openssl");
    assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// An authority, and a certificate by it.
fn certificates(folder: &Folder, authority: &str, name: &str) {
    if !folder.at(&format!("{authority}.pem")).exists() {
        openssl(
            folder,
            &format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={authority} -keyout {authority}.key -out {authority}.pem"
            ),
        );
    }
    folder.write(
        "extensions",
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n",
    );
    openssl(
        folder,
        &format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ),
    );
    openssl(
        folder,
        &format!(
            "x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -days 2 -extfile extensions -out {name}.pem"
        ),
    );
    chmod(&folder.at(&format!("{name}.key")), 0o600);
}

#[test]
fn certificates_say_who_is_who() {
    let _permit = permit();
    let folder = Folder::new();
    certificates(&folder, "house", "etcd");
    certificates(&folder, "house", "agent");
    certificates(&folder, "strangers", "stranger");
    let file = |what: &str, name: &str| format!("--{what}={}", folder.at(name).display());
    let etcd = Etcd::start_with(&[
        &file("cert-file", "etcd.pem"),
        &file("key-file", "etcd.key"),
        &file("trusted-ca-file", "house.pem"),
        "--client-cert-auth",
    ]);
    let at = |name: &str| folder.at(name).display().to_string();
    let mut alone = Host::alone(&folder.at("host"));
    for (ca, name, why) in [
        ("house", "agent", None),
        (
            "house",
            "stranger",
            Some("etcd wants a certificate, or not this one: see cluster.cert and cluster.key"),
        ),
        ("strangers", "agent", Some("see cluster.ca, and by which name cluster.endpoints has it")),
    ] {
        alone.configure(&format!(
            "[cluster]\nname = \"shop\"\nendpoints = [\"{}\"]\nhost = \"a\"\nttl = \"2s\"\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
            etcd.url(),
            at(&format!("{ca}.pem")),
            at(&format!("{name}.pem")),
            at(&format!("{name}.key"))
        ));
        match why {
            Some(why) => says_and_serves(&mut alone, &[why]),
            None => {
                alone.launch();
                alone.sees_host("a", "here");
                alone.end(Signal::TERM).ended(0).complains("host a has left");
            }
        }
    }
    // What the libraries do not say by themselves.
    let port = etcd.url().rsplit(':').next().expect("a port").to_owned();
    let tls = |cert: &str, key: &str| {
        format!("ca = {:?}\ncert = {:?}\nkey = {:?}\n", at("house.pem"), at(cert), at(key))
    };
    for (scheme, files, why) in [
        ("http", String::new(), "(is it etcd? http or https?)"),
        ("https", tls("agent.pem", "stranger.key"), "keys may not be consistent"),
    ] {
        alone.configure(&format!(
            "[cluster]\nname = \"shop\"\nendpoints = [\"{scheme}://127.0.0.1:{port}\"]\nhost = \"a\"\nttl = \"2s\"\n{files}"
        ));
        alone.cluster(&["status"]).ended(4).complains(why);
    }
}
