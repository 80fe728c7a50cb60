//! Who has ended a lease, as the members' own write-ahead logs say. In versions of etcd without the fix of its issue 15247, a leader
//! that stood still and was deposed meanwhile can end leases that the next leader has extended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use prost::Message;

/// A record of the log.
#[derive(Clone, PartialEq, Message)]
struct Framed {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(bytes = "vec", optional, tag = "3")]
    data: Option<Vec<u8>>,
}

/// One of them is an entry of raft,
const ENTRY: i64 = 2;

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
    #[prost(bytes = "vec", optional, tag = "4")]
    data: Option<Vec<u8>>,
}

/// which has a request.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, optional, tag = "9")]
    revoke: Option<Revoke>,
    #[prost(message, optional, tag = "100")]
    header: Option<Header>,
}

#[derive(Clone, PartialEq, Message)]
struct Revoke {
    #[prost(int64, tag = "1")]
    lease: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(uint64, tag = "1")]
    id: u64,
}

/// That somebody has asked for a lease to be ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Asked {
    lease: i64,
    term: u64,
    index: u64,
    /// The end of the number of the member that has asked.
    member: u16,
}

/// What the members' logs say.
#[derive(Debug, Default)]
pub struct Members {
    /// All that were asked for.
    asked: BTreeSet<Asked>,
    /// Who has led in which term, since when: the end of its number. An etcd that was set back goes through terms again: the last one
    /// counts.
    leaders: BTreeMap<u64, (SystemTime, u16)>,
    /// When a client has asked a member to end a lease.
    clients: Vec<(u16, SystemTime)>,
    /// How far each log was read, and the end of its member's number.
    read: BTreeMap<PathBuf, (u64, Option<u16>)>,
}

/// Of a lease.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is etcd's issue 15247, for certain: what proves it.
    Known(String),
    /// It is not proved: what is known.
    Open(String),
}

impl Members {
    /// Reads them, each from its folder.
    pub fn read<'a>(&mut self, folders: impl Iterator<Item = &'a Path>) {
        self.asked.clear();
        for folder in folders {
            let logs = fs::read_dir(folder.join("data/member/wal")).into_iter().flatten().flatten();
            for log in
                logs.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "wal"))
            {
                // One that is being replaced is read next time.
                entries(&fs::read(log).unwrap_or_default(), |entry| self.entry(&entry));
            }
            let log = folder.join("etcd.log");
            let (from, own) = self.read.get(&log).copied().unwrap_or((0, None));
            let mut new = Vec::new();
            let done = File::open(&log).and_then(|mut file| {
                file.seek(SeekFrom::Start(from))?;
                file.read_to_end(&mut new)
            });
            // Only whole lines; what there is none of yet comes later.
            let whole =
                done.map_or(0, |_| new.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
            let own = self.log(&String::from_utf8_lossy(&new[..whole]), own);
            self.read.insert(log, (from + whole as u64, own));
        }
    }

    fn entry(&mut self, entry: &Entry) {
        let request = entry.data.as_deref().and_then(|data| Request::decode(data).ok());
        let Some(Request { revoke: Some(revoke), header: Some(header) }) = request else { return };
        // A member's requests have numbers that begin with the end of its own.
        let member = (header.id >> 48) as u16;
        self.asked.insert(Asked { lease: revoke.lease, term: entry.term, index: entry.index, member });
    }

    /// `own`: whose it is, if that was said before. If it is known now.
    fn log(&mut self, text: &str, mut own: Option<u16>) -> Option<u16> {
        for line in text.lines() {
            if let Some((_, rest)) = line.split_once("\"local-member-id\":\"") {
                own = rest.split('"').next().and_then(number);
            }
            if let Some((before, after)) = line.split_once(" became leader at term ") {
                let who = before.rsplit('"').next().and_then(number);
                let term =
                    after.split(|c: char| !c.is_ascii_digit()).next().and_then(|term| term.parse().ok());
                let Some(((term, who), since)) = term.zip(who).zip(time_of(line)) else { continue };
                let led = self.leaders.entry(term).or_insert((since, who));
                *led = (*led).max((since, who));
            }
            if line.contains("/etcdserverpb.Lease/LeaseRevoke") {
                self.clients.extend(own.zip(time_of(line)));
            }
        }
        own
    }

    fn is_deposed(&self, asked: &Asked) -> bool {
        let has_led = self.leaders.range(..asked.term).any(|(_, (_, who))| *who == asked.member);
        has_led && self.leaders.get(&asked.term).is_some_and(|(_, leader)| *leader != asked.member)
    }

    /// Who has ended this lease, which was heard of at this time.
    pub fn verdict(&self, lease: i64, at: SystemTime) -> Verdict {
        // The first one counts: the others find it gone.
        let Some(asked) =
            self.asked.iter().filter(|asked| asked.lease == lease).min_by_key(|asked| asked.index)
        else {
            return Verdict::Open("no member's log says who has ended it".to_owned());
        };
        let Asked { term, index, member, .. } = asked;
        let leader = self.leaders.get(term).map_or("unknown".to_owned(), |(_, who)| format!("…{who:04x}"));
        let text = format!(
            "member …{member:04x} asked for its end (term {term}, index {index}), when the leader was {leader}"
        );
        let near = |time: &SystemTime| {
            let apart =
                at.duration_since(*time).or_else(|_| time.duration_since(at)).unwrap_or(Duration::MAX);
            apart < Duration::from_secs(3)
        };
        if self.clients.iter().any(|(who, time)| who == member && near(time)) {
            return Verdict::Open(format!("{text}; a client may have asked it to"));
        }
        match self.is_deposed(asked) {
            true => Verdict::Known(text),
            false => Verdict::Open(text),
        }
    }
}

fn number(hex: &str) -> Option<u16> {
    u64::from_str_radix(hex, 16).ok().map(|number| number as u16)
}

fn time_of(line: &str) -> Option<SystemTime> {
    let (_, rest) = line.split_once("\"ts\":\"")?;
    let time: jiff::Timestamp = rest.split('"').next()?.parse().ok()?;
    Some(time.into())
}

/// The entries of a log, up to where it ends or is being written.
fn entries(mut log: &[u8], mut each: impl FnMut(Entry)) {
    while let Some((head, rest)) = log.split_first_chunk::<8>() {
        let head = u64::from_le_bytes(*head);
        // Its highest byte says how much was added for the next one to begin at a multiple of 8.
        let length = (head & 0x00ff_ffff_ffff_ffff) as usize;
        let padding = if head >> 63 == 1 { ((head >> 56) & 7) as usize } else { 0 };
        if length == 0 || rest.len() < length + padding {
            return;
        }
        let Ok(framed) = Framed::decode(&rest[..length]) else { return };
        if let (ENTRY, Some(Ok(entry))) = (framed.kind, framed.data.as_deref().map(Entry::decode)) {
            each(entry);
        }
        log = &rest[length + padding..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wal(term: u64, index: u64, member: u64, lease: i64) -> Vec<u8> {
        let request =
            Request { revoke: Some(Revoke { lease }), header: Some(Header { id: member << 48 | 5 }) };
        let entry = Entry { term, index, data: Some(request.encode_to_vec()) };
        let record = Framed { kind: ENTRY, data: Some(entry.encode_to_vec()) }.encode_to_vec();
        let padding = (8 - record.len() % 8) % 8;
        let head = record.len() as u64 | if padding > 0 { (0x80 | padding as u64) << 56 } else { 0 };
        [&head.to_le_bytes()[..], &record, &vec![0; padding]].concat()
    }

    fn members(logs: &[u8], text: &str) -> Members {
        let mut members = Members::default();
        entries(logs, |entry| members.entry(&entry));
        members.log(text, None);
        members
    }

    /// The second term 5 is that of an etcd which was set back.
    const LOG: &str = concat!(
        "{\"ts\":\"2026-11-26T20:00:00.000Z\",\"msg\":\"xx0a0a became leader at term 3\"}\n",
        "{\"ts\":\"2026-11-26T20:00:01.000Z\",\"msg\":\"1110a0a became leader at term 4\"}\n",
        "{\"ts\":\"2026-11-26T20:00:03.000Z\",\"msg\":\"2220b0b became leader at term 5\"}\n",
        "{\"ts\":\"2026-11-26T20:00:02.000Z\",\"msg\":\"1110a0a became leader at term 5\"}\n",
    );

    #[test]
    fn whoever_led_and_leads_no_more_is_found() {
        let now = SystemTime::now();
        let logs = [wal(4, 7, 0x0a0a, 1), wal(5, 8, 0x0a0a, 2), wal(5, 9, 0x0b0b, 3), vec![0; 64]].concat();
        let members = members(&logs, LOG);
        assert_eq!(members.asked.len(), 3);
        assert!(matches!(members.verdict(1, now), Verdict::Open(_)), "it led");
        assert!(matches!(members.verdict(2, now), Verdict::Known(_)));
        assert!(matches!(members.verdict(3, now), Verdict::Open(_)));
        assert!(matches!(members.verdict(4, now), Verdict::Open(_)), "nothing is known");
    }

    #[test]
    fn what_a_client_may_have_asked_for_is_not_proved() {
        let at = "2026-11-26T21:00:00.000Z";
        let text = format!(
            "{LOG}{{\"local-member-id\":\"1110a0a\"}}\n{{\"ts\":\"{at}\",\"response type\":\"/etcdserverpb.Lease/LeaseRevoke\"}}\n"
        );
        let members = members(&wal(5, 8, 0x0a0a, 2), &text);
        let at: SystemTime = at.parse::<jiff::Timestamp>().expect("a time").into();
        assert!(matches!(members.verdict(2, at), Verdict::Open(_)));
        assert!(matches!(members.verdict(2, at + Duration::from_secs(60)), Verdict::Known(_)));
    }
}
