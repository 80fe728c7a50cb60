//! A journal read from its file: at a cost that grows with what is read, whole events only, and never a signal.

mod family;

use std::sync::atomic::Ordering::SeqCst;

use headcount::{Cursor, ErrorKind, Kind, Observer, Wait};

use family::registry::{self, journal};
use family::{Place, alone, fork, is_root, skip};

/// How many bytes this process has read so far, by the kernel's count.
fn bytes_read() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").expect("/proc/self/io");
    io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok()).expect("rchar")
}

const RECORD: usize = 128 / 8;
const HEAD: usize = 152 / 8;

/// Makes a registry of a process of its own, so that this one may observe it.
fn made_by_another(place: &Place, records: u32) {
    let mut master = fork(|_| {
        let master = place.options().journal_records(records).open().expect("open");
        master.leave(Wait::Timeout).expect("leave").run(|_| {});
        0
    });
    master.ended_well();
}

/// Writes `head` events, of which the ring keeps the last ones.
fn forge(place: &Place, records: usize, head: u64) {
    let words = registry::words(&place.registry());
    let start = journal(words);
    for seq in head.saturating_sub(records as u64) + 1..=head {
        let at = start + (seq as usize - 1) % records * RECORD;
        words[at].store(seq, SeqCst);
        words[at + 1].store(seq * 3, SeqCst);
        words[at + 6].store(u64::from(Kind::WorkerStarted.code()), SeqCst);
    }
    words[HEAD].store(head, SeqCst);
}

#[test]
fn a_million_records_are_read_once() {
    let _alone = alone();
    const RECORDS: usize = 1 << 20;
    let place = Place::new();
    made_by_another(&place, RECORDS as u32);
    // The ring has turned: it begins in the middle of the file.
    let head = RECORDS as u64 + 300_000;
    forge(&place, RECORDS, head);
    let observer = Observer::open(&place.registry()).expect("observe");
    let mut cursor = Cursor::oldest();
    let (before, mut next) = (bytes_read(), 300_001);
    loop {
        let batch = observer.events(&mut cursor, 4096).expect("read");
        assert_eq!(batch.lost, 0);
        if batch.events.is_empty() {
            break;
        }
        for event in batch.events {
            assert_eq!((event.seq, event.generation), (next, next * 3));
            next += 1;
        }
    }
    assert_eq!(next, head + 1);
    let read = bytes_read() - before;
    let all = RECORDS as u64 * 128;
    assert!((all..all + all / 100).contains(&read), "{read} bytes read of {all}");
    // And nothing new costs next to nothing.
    let before = bytes_read();
    assert!(observer.events(&mut cursor, usize::MAX).expect("read").events.is_empty());
    observer.snapshot().expect("a snapshot");
    assert!(bytes_read() - before < 20_000, "{}", bytes_read() - before);
}

#[test]
fn the_end_of_the_ring_is_no_end() {
    let _alone = alone();
    let place = Place::new();
    made_by_another(&place, 64);
    let observer = Observer::open(&place.registry()).expect("observe");
    forge(&place, 64, 100);
    let seqs = |cursor: &mut Cursor, limit| {
        let batch = observer.events(cursor, limit).expect("read");
        (batch.lost, batch.events.iter().map(|e| e.seq).collect::<Vec<_>>())
    };
    let mut cursor = Cursor::oldest();
    assert_eq!(seqs(&mut cursor, 40), (0, (37..=76).collect()));
    assert_eq!(seqs(&mut cursor, usize::MAX), (0, (77..=100).collect()));
    assert_eq!(seqs(&mut cursor, usize::MAX), (0, vec![]));
    let mut cursor = Cursor::at(30);
    assert_eq!(seqs(&mut cursor, 2), (7, vec![37, 38]));
    assert_eq!(cursor.next_seq(), 39);
    // One that is no event, or not of this number, is lost by itself.
    let words = registry::words(&place.registry());
    words[journal(words) + (50 - 1) * RECORD].store(7, SeqCst);
    words[journal(words) + (52 - 1) * RECORD + 6].store(99, SeqCst);
    let mut cursor = Cursor::at(49);
    assert_eq!(seqs(&mut cursor, 4), (2, vec![49, 51]));
    assert_eq!(cursor.next_seq(), 53);
}

#[test]
fn a_head_that_cannot_be_costs_a_bounded_time() {
    let _alone = alone();
    let place = Place::new();
    made_by_another(&place, 64);
    let observer = Observer::open(&place.registry()).expect("observe");
    let words = registry::words(&place.registry());
    for head in [u64::MAX, u64::MAX - 1, 1 << 63, 1 << 40] {
        words[HEAD].store(head, SeqCst);
        for next in [0, 1, head / 2, head - 1, head] {
            let before = bytes_read();
            let batch = observer.events(&mut Cursor::at(next), usize::MAX).expect("read");
            assert!(batch.events.is_empty(), "{head} from {next}");
            assert!(bytes_read() - before < 20_000);
        }
    }
}

/// Events that a writer is in the middle of overwriting are told as lost, never with half of their fields.
#[test]
fn what_is_overwritten_while_it_is_read_is_lost_and_never_half_read() {
    let _alone = alone();
    const LAST: u64 = 2_000_000;
    let place = Place::new();
    made_by_another(&place, 64);
    let words = registry::words(&place.registry());
    let start = journal(words);
    words[HEAD].store(0, SeqCst);
    // As the library writes them, only faster.
    let mut writer = fork(|line| {
        line.expect("begin");
        for seq in 1..=LAST {
            let record = &words[start + (seq as usize - 1) % 64 * RECORD..][..RECORD];
            record[0].store(0, SeqCst);
            record[1..6].iter().for_each(|word| word.store(seq * 3, SeqCst));
            // In the other half, which is another line of the processor's cache.
            record[13].store(seq, SeqCst);
            record[6].store(u64::from(Kind::WorkerStarted.code()), SeqCst);
            record[0].store(seq, SeqCst);
            words[HEAD].store(seq, SeqCst);
        }
        0
    });
    let observer = Observer::open(&place.registry()).expect("observe");
    let (mut told, mut lost, mut cursor) = (0, 0, Cursor::at(1));
    writer.say("begin");
    while cursor.next_seq() <= LAST {
        let before = cursor.next_seq();
        let batch = observer.events(&mut cursor, usize::MAX).expect("read");
        assert_eq!(batch.lost + batch.events.len() as u64, cursor.next_seq() - before);
        for event in &batch.events {
            let fields = [event.generation, event.time_ns, event.boot_ns, event.heartbeat_ns, event.detail];
            assert_eq!((fields, event.reporter_pid), ([event.seq * 3; 5], event.seq as u32), "{event:?}");
        }
        (told, lost) = (told + batch.events.len() as u64, lost + batch.lost);
    }
    assert_eq!(told + lost, LAST);
    assert!(told > 1000 && lost > 1000, "{told} told, {lost} lost: they did not meet");
    writer.ended_well();
}

#[test]
fn a_file_that_is_cut_off_is_an_error() {
    let _alone = alone();
    let place = Place::new();
    made_by_another(&place, 256);
    forge(&place, 256, 200);
    let observer = Observer::open(&place.registry()).expect("observe");
    let file = std::fs::OpenOptions::new().write(true).open(place.registry()).expect("open");
    for len in [12_000, 4096, 160, 0] {
        file.set_len(len).expect("cut");
        let error = observer.events(&mut Cursor::at(1), usize::MAX).expect_err("it is not all there");
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("cut short"), "{error}");
    }
}

#[test]
fn a_reader_without_rights_reads_the_same() {
    let _alone = alone();
    if !is_root() {
        return skip("only root can become somebody else");
    }
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    std::fs::set_permissions(place.folder(), std::fs::Permissions::from_mode(0o755))
        .expect("open the folder");
    made_by_another(&place, 64);
    forge(&place, 64, 100);
    let mut nobody = fork(|_| {
        family::become_nobody();
        let observer = Observer::open(&place.registry()).expect("everybody may read it");
        assert_eq!(observer.newest_seq().expect("read"), 100);
        assert_eq!(observer.events(&mut Cursor::oldest(), usize::MAX).expect("read").events.len(), 64);
        0
    });
    nobody.ended_well();
}
