//! Where in etcd what is: docs/cluster.md lists them all.

use crate::claims::{Kind, What};

/// The keys of one cluster.
#[derive(Clone, Debug)]
pub struct Keys {
    root: String,
}

/// What a key is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// That a host is there, as long as its lease lasts.
    Host(String),
    /// What is known of a host, also when it is not there.
    Known(String),
    /// The state of a node of a host.
    Node(String, String),
    /// What a host is asked to do with a node, in this rollout.
    Task { host: String, node: String, rollout: String },
    /// An event of a node, or of the host itself.
    Event { host: String, node: Option<String>, registry: String, number: u64 },
}

/// In place of a node's name, where the host itself is meant. No name is written so: an @ in one is written as %40.
const HOST_ITSELF: &str = "@host";
/// Of a host: it has joined; it has left or is lost.
pub(crate) const JOINED: u64 = 1;
pub(crate) const GONE: u64 = 2;

impl Keys {
    /// Those of the cluster of this name.
    #[must_use]
    pub fn new(prefix: &str, cluster: &str) -> Keys {
        Keys { root: format!("{prefix}/v1/{}/", segment(cluster)) }
    }

    /// What they all begin with.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    pub(crate) fn hosts(&self) -> String {
        format!("{}hosts/", self.root)
    }

    pub(crate) fn host(&self, host: &str) -> String {
        self.hosts() + &segment(host)
    }

    pub(crate) fn all_known(&self) -> String {
        format!("{}known/", self.root)
    }

    pub(crate) fn known(&self, host: &str) -> String {
        self.all_known() + &segment(host)
    }

    pub(crate) fn nodes(&self) -> String {
        format!("{}nodes/", self.root)
    }

    pub(crate) fn nodes_of(&self, host: &str) -> String {
        format!("{}{}/", self.nodes(), segment(host))
    }

    pub(crate) fn node(&self, host: &str, node: &str) -> String {
        self.nodes_of(host) + &segment(node)
    }

    pub(crate) fn events(&self) -> String {
        format!("{}events/", self.root)
    }

    pub(crate) fn events_of(&self, host: &str) -> String {
        format!("{}{}/", self.events(), segment(host))
    }

    /// Numbers have so many digits that they are sorted as text is.
    pub(crate) fn event(&self, host: &str, node: &str, registry: &str, number: u64) -> String {
        format!("{}{}/{registry}/{number:020}", self.events_of(host), segment(node))
    }

    /// Each time that a host is there, it has another lease.
    pub(crate) fn host_event(&self, host: &str, lease: i64, number: u64) -> String {
        format!("{}{HOST_ITSELF}/{lease:x}/{number:020}", self.events_of(host))
    }

    /// Which host notes who is lost.
    pub(crate) fn teller(&self) -> String {
        format!("{}roles/@teller", self.root)
    }

    /// Which host delivers for a hook of the whole cluster.
    pub(crate) fn hook_role(&self, hook: &str) -> String {
        format!("{}roles/@hooks/{}", self.root, segment(hook))
    }

    /// How far that has come.
    pub(crate) fn hook(&self, hook: &str) -> String {
        format!("{}hooks/{}", self.root, segment(hook))
    }

    pub(crate) fn tasks(&self) -> String {
        format!("{}tasks/", self.root)
    }

    pub(crate) fn tasks_of(&self, host: &str) -> String {
        format!("{}{}/", self.tasks(), segment(host))
    }

    pub(crate) fn task(&self, host: &str, node: &str, rollout: &str) -> String {
        format!("{}{}/{}", self.tasks_of(host), segment(node), segment(rollout))
    }

    /// The record of the last rollout. No host is written so.
    pub(crate) fn rollout(&self) -> String {
        format!("{}@rollout", self.tasks())
    }

    /// Which nodes it reloads, in parts.
    pub(crate) fn waves(&self, rollout: &str) -> String {
        format!("{}@waves/{}/", self.tasks(), segment(rollout))
    }

    /// One of them. Numbers have so many digits that they are sorted as text is.
    pub(crate) fn wave_part(&self, rollout: &str, number: usize) -> String {
        format!("{}{number:06}", self.waves(rollout))
    }

    /// That somebody goes on with this rollout, as long as the lease lasts.
    pub(crate) fn holder(&self, rollout: &str) -> String {
        format!("{}@holder/{}", self.tasks(), segment(rollout))
    }

    /// All roles, or all locks, and who waits for them.
    pub(crate) fn all_of(&self, kind: Kind) -> String {
        let folder = match kind {
            Kind::Role => "roles",
            Kind::Lock => "locks",
            Kind::Once => "once",
        };
        format!("{}{folder}/", self.root)
    }

    /// Those who have or want this one. The first of them, by their revisions, has it.
    pub(crate) fn queue(&self, what: &What) -> String {
        format!("{}{}/", self.all_of(what.kind), segment(&what.name))
    }

    /// This host's place among them. Each attempt has its own.
    pub(crate) fn place(&self, what: &What, lease: i64, attempt: u64) -> String {
        format!("{}{lease:x}-{attempt}", self.queue(what))
    }

    /// What became of a once.
    pub(crate) fn once(&self, key: &str) -> String {
        self.all_of(Kind::Once) + &segment(key)
    }

    /// Which connection of an agent writes under this lease.
    pub(crate) fn guard(&self, lease: i64) -> String {
        format!("{}claims/{lease:x}", self.root)
    }

    /// Who runs it now.
    pub(crate) fn running(&self, key: &str) -> String {
        format!("{}running/{}", self.root, segment(key))
    }

    /// The name in a key of [`Keys::all_of`], without what comes after it.
    pub(crate) fn name_in(&self, kind: Kind, key: &[u8]) -> Option<String> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.all_of(kind))?;
        let (part, place) = rest.split_once('/').map_or((rest, None), |(part, place)| (part, Some(place)));
        let is_ours = place.is_some() != (kind == Kind::Once) && !part.starts_with('@');
        name(part).filter(|_| is_ours)
    }

    /// What a key is about. `None`: of a later version, or somebody else's.
    pub(crate) fn parse(&self, key: &[u8]) -> Option<Key> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.root)?;
        let parts: Vec<&str> = rest.split('/').collect();
        match parts[..] {
            ["hosts", host] => Some(Key::Host(name(host)?)),
            ["known", host] => Some(Key::Known(name(host)?)),
            ["nodes", host, node] => Some(Key::Node(name(host)?, name(node)?)),
            // No host is written so.
            ["tasks", host, ..] if host.starts_with('@') => None,
            ["tasks", host, node, rollout] => {
                Some(Key::Task { host: name(host)?, node: name(node)?, rollout: name(rollout)? })
            }
            ["events", host, node, registry, number] => Some(Key::Event {
                host: name(host)?,
                node: if node == HOST_ITSELF { None } else { Some(name(node)?) },
                registry: Some(registry.to_owned()).filter(|registry| is_registry(registry))?,
                number: number.parse().ok().filter(|n: &u64| format!("{n:020}") == number)?,
            }),
            _ => None,
        }
    }
}

/// A name as a part of a key: what could end the part, or say something else there, is written as %XX.
fn segment(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b':' | b'+' | b'~' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// No host, node or rollout has a longer name, which commands of hooks are given as well.
const LONGEST_NAME: usize = 255;

/// `None`: nobody's who means well. There is one way to write a name: no two keys are about the same.
fn name(given: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(given.len());
    let mut rest = given.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    let fits = |name: &String| (1..=LONGEST_NAME).contains(&name.len()) && segment(name) == given;
    String::from_utf8(bytes).ok().filter(fits)
}

/// A time or a lease in hexadecimal.
fn is_registry(text: &str) -> bool {
    (1..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_there_and_back() {
        let keys = Keys::new("/headcount", "shop");
        assert_eq!(keys.host("web-1"), "/headcount/v1/shop/hosts/web-1");
        assert_eq!(
            keys.event("web-1", "nginx", "17f", 42),
            "/headcount/v1/shop/events/web-1/nginx/17f/00000000000000000042"
        );
        for name in ["web-1", "a/b", "%", "@host", "Ä ö", "x\ny", ".", "~"] {
            let node = Key::Node(name.to_owned(), name.to_owned());
            assert_eq!(keys.parse(keys.node(name, name).as_bytes()), Some(node));
            assert_eq!(keys.parse(keys.known(name).as_bytes()), Some(Key::Known(name.to_owned())));
            let event = |node: Option<&str>, registry: &str, number| Key::Event {
                host: name.to_owned(),
                node: node.map(str::to_owned),
                registry: registry.to_owned(),
                number,
            };
            assert_eq!(
                keys.parse(keys.event(name, name, "1f", 7).as_bytes()),
                Some(event(Some(name), "1f", 7))
            );
            let task = Key::Task { host: name.to_owned(), node: name.to_owned(), rollout: "7f".to_owned() };
            assert_eq!(keys.parse(keys.task(name, name, "7f").as_bytes()), Some(task));
            for key in [keys.rollout(), keys.holder("7f"), keys.wave_part("7f", 3)] {
                assert_eq!(keys.parse(key.as_bytes()), None, "{key}");
            }
            assert_eq!(keys.parse(keys.host_event(name, 31, GONE).as_bytes()), Some(event(None, "1f", 2)));
        }
    }

    #[test]
    fn who_waits_for_what() {
        let keys = Keys::new("/headcount", "shop");
        let role = What::new(Kind::Role, "cron");
        assert_eq!(keys.place(&role, 0x2a, 3), "/headcount/v1/shop/roles/cron/2a-3");
        assert_eq!(keys.name_in(Kind::Role, keys.place(&role, 1, 1).as_bytes()).as_deref(), Some("cron"));
        assert_eq!(keys.name_in(Kind::Once, keys.once("migrate").as_bytes()).as_deref(), Some("migrate"));
        assert_eq!(keys.running("migrate"), "/headcount/v1/shop/running/migrate");
        for (kind, key) in
            [(Kind::Role, keys.teller()), (Kind::Role, keys.once("x")), (Kind::Once, keys.once("x") + "/y")]
        {
            assert_eq!(keys.name_in(kind, key.as_bytes()), None, "{key}");
        }
    }

    #[test]
    fn what_is_not_ours_is_nothing() {
        let keys = Keys::new("/headcount", "shop");
        for key in [
            &b"/headcount/v1/shopping/hosts/x"[..],
            b"/headcount/v1/shop/hosts/",
            b"/headcount/v1/shop/hosts/%zz",
            b"/headcount/v1/shop/hosts/%",
            b"/headcount/v1/shop/nodes/x",
            b"/headcount/v1/shop/events/a/b/c/not-a-number",
            // The same as others in another way, and what no command could be given.
            b"/headcount/v1/shop/hosts/%61",
            b"/headcount/v1/shop/hosts/%2f",
            b"/headcount/v1/shop/hosts/%+5",
            b"/headcount/v1/shop/hosts/a b",
            b"/headcount/v1/shop/events/a/b/c/7",
            b"/headcount/v1/shop/events/a/b/c/+0000000000000000007",
            b"/headcount/v1/shop/events/a/b/other/00000000000000000007",
            b"/headcount/v1/shop/later/x",
            b"\xff\xfe",
        ] {
            assert_eq!(keys.parse(key), None, "{}", String::from_utf8_lossy(key));
        }
        let long = |length: usize| keys.parse(keys.host(&"x".repeat(length)).as_bytes()).is_some();
        assert!(long(LONGEST_NAME) && !long(LONGEST_NAME + 1));
    }
}
