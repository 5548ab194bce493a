//! The journal against a list that forgets nothing.

use std::num::NonZeroUsize;

use kwitness_core::journal::{Batch, Cursor, Epoch, Journal, Missed, Position, ResumeError};
use proptest::prelude::*;

fn journal(capacity: usize) -> Journal<u64> {
    Journal::new(Epoch("e1".into()), NonZeroUsize::new(capacity).expect("not zero"))
}

fn filled(capacity: usize, count: u64) -> Journal<u64> {
    let mut journal = journal(capacity);
    for number in 1..=count {
        assert_eq!(journal.push(number), number);
    }
    journal
}

fn read(journal: &Journal<u64>, after: Cursor, max: usize) -> (Option<Missed>, Vec<u64>, Cursor) {
    let Batch { missed, first_seq, items, next } =
        journal.read(after, NonZeroUsize::new(max).expect("not zero"));
    let items: Vec<u64> = items.copied().collect();
    // Each item is its own number here.
    assert!(items.iter().copied().eq(first_seq..first_seq + items.len() as u64));
    (missed, items, next)
}

fn at(epoch: &str, seq: u64) -> Position {
    Position { epoch: Epoch(epoch.into()), seq }
}

#[test]
fn an_empty_journal() {
    let journal = journal(3);
    assert_eq!((journal.first_seq(), journal.last_seq(), journal.position()), (1, 0, at("e1", 0)));
    assert_eq!(journal.start(), journal.end());
    assert_eq!(read(&journal, journal.start(), 9), (None, vec![], journal.end()));
    assert_eq!(journal.resume(&at("e1", 0)), Ok(journal.end()));
}

#[test]
fn numbers_and_the_window() {
    let journal = filled(3, 5);
    assert_eq!((journal.first_seq(), journal.last_seq(), journal.position()), (3, 5, at("e1", 5)));
    assert_eq!(read(&journal, journal.start(), 9).1, [3, 4, 5]);
    assert_eq!(read(&journal, journal.end(), 9).1, [0; 0]);
}

#[test]
fn a_reader_that_resumes_gets_what_followed_or_the_reason_why_not() {
    let journal = filled(3, 5);
    let after = |seq| journal.resume(&at("e1", seq));
    let (missed, items, next) = read(&journal, after(3).expect("there"), 1);
    assert_eq!((missed, items), (None, vec![4]));
    assert_eq!(read(&journal, next, 9).1, [5]);
    // Right before the window: nothing is missed.
    assert_eq!(read(&journal, after(2).expect("there"), 9).0, None);
    let (missed, items, _) = read(&journal, after(0).expect("there"), 9);
    assert_eq!((missed, items), (Some(Missed { first: 1, last: 2 }), vec![3, 4, 5]));

    assert_eq!(after(6), Err(ResumeError::NotYet { requested: 6, last: 5 }));
    let error = journal.resume(&at("e0", 3)).expect_err("another run");
    assert_eq!(error.to_string(), "epoch e0 is over: the daemon was restarted since, its epoch is e1");
}

#[test]
fn a_reader_since_a_time() {
    let mut journal = journal(4);
    // Times, not strictly in order.
    for time in [10, 20, 40, 30, 50] {
        journal.push(time);
    }
    let since = |time| journal.since(|item| *item >= time).seq();
    assert_eq!(since(0), 1, "what the window no longer has is not missed by it");
    assert_eq!(since(30), 2);
    assert_eq!(since(50), 4);
    assert_eq!(since(60), 5);
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Push(u8),
    Read { reader: usize, max: usize },
    Join { reader: usize, seq: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (1_u8..40).prop_map(Op::Push),
        (0_usize..3, 1_usize..30).prop_map(|(reader, max)| Op::Read { reader, max }),
        (0_usize..3, 0_u64..200).prop_map(|(reader, seq)| Op::Join { reader, seq }),
    ]
}

proptest! {
    /// Each reader gets every number after the one it joined at, or learns that it missed it, once, in order.
    #[test]
    fn every_reader_accounts_for_every_number(capacity in 1_usize..50, ops in prop::collection::vec(op(), 0..80)) {
        let mut journal = journal(capacity);
        let mut all: u64 = 0;
        let mut readers = [(journal.end(), 0_u64); 3];
        for op in ops {
            match op {
                Op::Push(count) => {
                    for _ in 0..count {
                        all += 1;
                        prop_assert_eq!(journal.push(all), all);
                    }
                }
                Op::Join { reader, seq } => match journal.resume(&at("e1", seq)) {
                    Ok(cursor) => readers[reader] = (cursor, seq),
                    Err(error) => {
                        prop_assert!(seq > all);
                        prop_assert_eq!(error, ResumeError::NotYet { requested: seq, last: all });
                    }
                },
                Op::Read { reader, max } => {
                    let (cursor, seen) = readers[reader];
                    let (missed, items, next) = read(&journal, cursor, max);
                    let kept = all.saturating_sub(capacity as u64);
                    let expected_missed = (seen < kept).then_some(Missed { first: seen + 1, last: kept });
                    prop_assert_eq!(missed, expected_missed);
                    let first = seen.max(kept) + 1;
                    let last = (first + max as u64 - 1).min(all);
                    prop_assert!(items.iter().copied().eq(first..=last));
                    prop_assert_eq!(next.seq(), last.max(first - 1));
                    readers[reader] = (next, next.seq());
                }
            }
        }
    }
}
