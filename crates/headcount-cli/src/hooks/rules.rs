//! What to do on which event: `--on EVENT[,EVENT…]=COMMAND`.

use headcount::Kind;
use serde::Deserialize;

/// Every event, those of the node and `lost` included.
pub const ANY: &str = "any";
/// Events were overwritten before they could be delivered.
pub const LOST: &str = "lost";
/// What follows from the journal and from the kernel's word on who is alive: see `node_event.rs`.
pub const NODE_EVENTS: [&str; 3] = ["node_started", "node_stopped", "node_died"];
/// What the hosts of a cluster tell of themselves.
const HOST_EVENTS: [&str; 3] = ["host_joined", "host_left", "host_lost"];

/// One `--on`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Rule {
    text: String,
    events: Vec<&'static str>,
    /// What to do.
    pub action: Action,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// By `sh -c`.
    Command(String),
    /// To a URL.
    Post(String),
}

impl Rule {
    /// Reads what was given to `--on`.
    pub fn parse(text: &str) -> Result<Rule, String> {
        let rule = Rule::parse_any(text)?;
        rule.must_be_among(&allowed().collect::<Vec<_>>())?;
        Ok(rule)
    }

    /// Whatever its events are about.
    fn parse_any(text: &str) -> Result<Rule, String> {
        let form = "a rule is EVENT[,EVENT…]=COMMAND, as in worker_died=./tell";
        let (events, action) = text.split_once('=').ok_or_else(|| format!("there is no command: {form}"))?;
        let action = action.trim();
        if action.is_empty() {
            return Err(format!("the command is empty: {form}"));
        }
        let events = events.split(',').map(|name| event(name.trim())).collect::<Result<_, _>>()?;
        let is_url = ["http://", "https://"]
            .iter()
            .any(|scheme| action.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
        let action = if is_url {
            let url: ureq::http::Uri = action.parse().map_err(|e| format!("{action:?} is not a URL: {e}"))?;
            if url.host().is_none_or(str::is_empty) {
                return Err(format!("{action:?} is not a URL: it names no host"));
            }
            Action::Post(action.to_owned())
        } else {
            Action::Command(action.to_owned())
        };
        Ok(Rule { text: text.to_owned(), events, action })
    }

    /// Refuses events that are not told here.
    pub fn must_be_among(&self, allowed: &[&'static str]) -> Result<(), String> {
        let other = self.events.iter().find(|event| !allowed.contains(event));
        other.map_or(Ok(()), |other| Err(no_event(other, allowed)))
    }

    /// Whether it is about this event.
    pub fn wants(&self, event: &str) -> bool {
        self.events.iter().any(|&own| own == event || own == ANY)
    }

    /// Tells it from other rules, also in another process: it is in the state file.
    pub fn key(&self) -> String {
        format!("{:016x}", hash([self.text.as_str()]))
    }
}

impl TryFrom<String> for Rule {
    type Error = String;

    fn try_from(text: String) -> Result<Rule, String> {
        Rule::parse_any(&text)
    }
}

/// All names that a rule may have for the nodes of a host.
pub fn allowed() -> impl Iterator<Item = &'static str> {
    Kind::ALL.iter().map(|kind| kind.name()).chain(NODE_EVENTS).chain([LOST, ANY])
}

/// All names that a rule may have for a cluster.
pub fn allowed_for_cluster() -> impl Iterator<Item = &'static str> {
    Kind::ALL.iter().map(|kind| kind.name()).chain(HOST_EVENTS).chain([ANY])
}

fn event(name: &str) -> Result<&'static str, String> {
    let found = allowed().chain(HOST_EVENTS).find(|&known| known == name);
    found.ok_or_else(|| no_event(name, &allowed().collect::<Vec<_>>()))
}

fn no_event(name: &str, allowed: &[&str]) -> String {
    format!("there is no event {name:?}; allowed are {}", allowed.join(", "))
}

/// The text of a rule that another one repeats: the state file could not tell them apart.
pub fn given_twice(rules: &[Rule]) -> Option<&str> {
    rules
        .iter()
        .enumerate()
        .find(|(at, rule)| rules[..*at].contains(rule))
        .map(|(_, rule)| rule.text.as_str())
}

/// FNV-1a over all parts. The standard library's hashers may change with its version, and what is hashed here is
/// looked up again by later ones.
pub fn hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> u64 {
    let bytes = parts.into_iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// What tells a set of rules from another one.
pub fn hash_of(rules: &[Rule]) -> u64 {
    hash(rules.iter().map(|rule| rule.text.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_has_events_and_a_command() {
        let rule = Rule::parse("worker_died, node_died=VAR=1 ./tell --a=b").expect("a rule");
        assert_eq!(rule.action, Action::Command("VAR=1 ./tell --a=b".into()));
        assert!(rule.wants("worker_died") && rule.wants("node_died") && !rule.wants("worker_started"));
    }

    #[test]
    fn any_is_every_event() {
        let rule = Rule::parse("any=true").expect("a rule");
        assert!(allowed().all(|event| rule.wants(event)));
    }

    #[test]
    fn a_url_is_posted_to() {
        for url in ["http://127.0.0.1:8500/v1", "HTTPS://registry.example/hook?a=b"] {
            let rule = Rule::parse(&format!("any={url}")).expect("a rule");
            assert_eq!(rule.action, Action::Post(url.into()));
        }
        assert!(matches!(Rule::parse("any=httpx://x").map(|r| r.action), Ok(Action::Command(_))));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, said) in [
            ("worker_died", "there is no command"),
            ("worker_died= ", "the command is empty"),
            ("worker_gone=x", "no event \"worker_gone\"; allowed are generation_started, "),
            ("=x", "no event \"\""),
            ("worker_died,=x", "no event \"\""),
            ("any=http://", "is not a URL"),
            ("any=http:// x", "is not a URL"),
        ] {
            let error = Rule::parse(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn keys_stay_the_same() {
        // They are in state files that exist.
        assert_eq!(Rule::parse("any=true").expect("a rule").key(), "5bd93443b9120518");
    }

    #[test]
    fn a_rule_given_twice_is_found() {
        let rules = ["any=a", "any=b", "any=a"].map(|text| Rule::parse(text).expect("a rule"));
        assert_eq!((given_twice(&rules), given_twice(&rules[..2])), (Some("any=a"), None));
    }
}
