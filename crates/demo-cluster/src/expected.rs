//! What each host must be told of an act.

use std::collections::BTreeMap;

use serde_json::Value;

/// Of this host, so many events of this kind.
pub type Expected<'a> = Vec<(&'a str, &'a str, usize)>;

/// Every difference, in words. `said`: what the host `on` was told.
pub fn compare(expected: &Expected<'_>, on: &str, said: &[Value]) -> Vec<String> {
    let mut counts: BTreeMap<(&str, &str), (usize, usize)> = BTreeMap::new();
    for &(host, kind, number) in expected {
        counts.entry((host, kind)).or_default().0 += number;
    }
    for event in said {
        let text = |name: &str| event[name].as_str().unwrap_or_default();
        counts.entry((text("host"), text("kind"))).or_default().1 += 1;
    }
    let differs = counts.into_iter().filter(|(_, (expected, came))| expected != came);
    differs
        .map(|((host, kind), (expected, came))| {
            format!("{on} was told {came} times, and not {expected} times: {kind} of {host}")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_is_too_much_is_said() {
        let event = |kind: &str| serde_json::json!({"host": "a", "kind": kind});
        let expected = vec![("a", "worker_died", 1)];
        assert!(compare(&expected, "b", &[event("worker_died")]).is_empty());
        assert_eq!(compare(&expected, "b", &[]).len(), 1);
        assert_eq!(compare(&expected, "b", &[event("worker_died"), event("host_lost")]).len(), 1);
    }
}
