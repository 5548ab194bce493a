//! The journal against a list that forgets nothing.

use std::num::NonZeroUsize;

use kwitness_core::journal::{Cursor, Epoch, GivenUp, Journal, Missed, Piece, Position, ResumeError};
use proptest::prelude::*;

/// Items of owners, each its own number.
type Numbers = Journal<u64, char>;

fn journal(capacity: usize) -> Numbers {
    Journal::new(Epoch("e1".into()), NonZeroUsize::new(capacity).expect("not zero"))
}

fn filled(capacity: usize, count: u64) -> Numbers {
    let mut journal = journal(capacity);
    for number in 1..=count {
        assert_eq!(journal.push(number), number);
    }
    journal
}

fn read(journal: &Numbers, after: Cursor, max: usize) -> (Option<Missed>, Vec<u64>, Cursor) {
    let missed = journal.missed(after);
    let mut next = missed.map_or(after, |missed| Cursor::after(missed.last));
    let mut items = Vec::new();
    for piece in journal.after(after).take(max) {
        let Piece::Item(seq, item) = piece else { panic!("{piece:?}: nothing was given up") };
        assert_eq!((*item, seq), (seq, next.seq() + 1));
        items.push(*item);
        next = Cursor::after(seq);
    }
    (missed, items, next)
}

fn given_up<const N: usize>(first: u64, last: u64, of: [(char, u64); N]) -> Piece<&'static u64, char> {
    let of = of.into_iter().map(|(owner, count)| (Some(owner), count)).collect();
    Piece::GivenUp(GivenUp { first, last, of })
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

#[test]
fn what_is_given_up_leaves_its_owners_name() {
    let mut journal = filled(10, 9);
    for (seq, owner) in [(2, 'a'), (3, 'b'), (4, 'a'), (7, 'b')] {
        assert_eq!(journal.give_up(seq, owner), Some(seq));
        assert_eq!(journal.get(seq), None);
        assert_eq!(journal.give_up(seq, owner), None, "it is given up once");
    }
    assert_eq!((journal.len(), journal.first_seq(), journal.oldest()), (5, 1, Some(&1)));
    let pieces = |after| journal.after(Cursor::after(after)).collect::<Vec<_>>();
    let rest = [Piece::Item(5, &5), Piece::Item(6, &6), given_up(7, 7, [('b', 1)]), Piece::Item(8, &8)];
    assert_eq!(pieces(0)[..2], [Piece::Item(1, &1), given_up(2, 4, [('a', 2), ('b', 1)])]);
    assert_eq!(pieces(0)[2..6], rest);
    assert_eq!(pieces(1)[0], given_up(2, 4, [('a', 2), ('b', 1)]));
    assert_eq!(pieces(3)[0], given_up(4, 4, [('a', 1)]));
    assert_eq!(pieces(4)[..4], rest);
    // It may be as young as the first item that is.
    assert_eq!([5, 6].map(|time| journal.since(|item| *item >= time).seq()), [1, 5]);
    assert_eq!(journal.pop_oldest(), Some(1));
    assert_eq!(
        (journal.first_seq(), journal.missed(Cursor::after(1))),
        (2, None),
        "it is known whose it was"
    );
    assert_eq!(journal.pop_oldest(), Some(5));
    assert_eq!(journal.missed(Cursor::after(1)), Some(Missed { first: 2, last: 5 }));
}

#[test]
fn one_owners_items_take_one_place_however_many_were_given_up() {
    let mut journal = filled(100, 50);
    for seq in 51..=100_000 {
        journal.push(seq);
        journal.give_up(seq - 20, 'a');
    }
    assert_eq!(journal.len(), 50);
    assert!(journal.given_up_bytes() < 100 * size_of::<[u64; 3]>(), "{}", journal.given_up_bytes());
    let pieces: Vec<_> = journal.after(Cursor::after(29)).take(2).collect();
    assert_eq!(pieces, [Piece::Item(30, &30), given_up(31, 99_980, [('a', 99_950)])]);
    let from_within = journal.after(Cursor::after(99_970)).next();
    assert_eq!(from_within, Some(given_up(99_971, 99_980, [('a', 10)])));
}

/// What became of a number.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Kept,
    GivenUp,
    Forgotten,
}

proptest! {
    /// Each owner learns what it has lost where it was, whatever was given up, put together and forgotten in between.
    #[test]
    fn every_owner_accounts_for_what_was_given_up(
        ops in prop::collection::vec((0_u8..8, 0_usize..12), 0..1500),
        cursors in prop::collection::vec(0_u64..1500, 8),
    ) {
        let mut journal = journal(4096);
        let mut all: Vec<(char, Fate)> = Vec::new();
        for (op, owner) in ops {
            let owner = char::from(b'a' + owner as u8);
            match op {
                0..=3 => {
                    all.push((owner, Fate::Kept));
                    prop_assert_eq!(journal.push(all.len() as u64), all.len() as u64);
                }
                7 if owner == 'a' => {
                    let kept = all.iter().position(|(_, fate)| *fate == Fate::Kept);
                    prop_assert_eq!(journal.pop_oldest(), kept.map(|index| index as u64 + 1));
                    let forgotten = kept.map_or(all.len(), |index| index + 1);
                    all[..forgotten].iter_mut().for_each(|(_, fate)| *fate = Fate::Forgotten);
                }
                _ => {
                    let oldest = all.iter().position(|item| *item == (owner, Fate::Kept));
                    if let Some(index) = oldest {
                        prop_assert_eq!(journal.give_up(index as u64 + 1, owner), Some(index as u64 + 1));
                        all[index].1 = Fate::GivenUp;
                    }
                }
            }
        }
        let count = all.len() as u64;
        prop_assert_eq!(journal.len(), all.iter().filter(|(_, fate)| *fate == Fate::Kept).count());
        for cursor in cursors.into_iter().map(|cursor| cursor.min(count)) {
            let missed = journal.missed(Cursor::after(cursor));
            let mut next = missed.map_or(cursor, |missed| missed.last) + 1;
            let expected = (cursor..count).take_while(|index| all[*index as usize].1 == Fate::Forgotten).count();
            prop_assert_eq!(next, cursor + expected as u64 + 1);
            for piece in journal.after(Cursor::after(cursor)) {
                match piece {
                    Piece::Item(seq, item) => {
                        prop_assert_eq!((seq, *item, all[seq as usize - 1].1), (next, next, Fate::Kept));
                        next += 1;
                    }
                    Piece::GivenUp(GivenUp { first, last, of }) => {
                        prop_assert_eq!(first, next);
                        let lost = &all[first as usize - 1..last as usize];
                        prop_assert!(lost.iter().all(|(_, fate)| *fate == Fate::GivenUp));
                        prop_assert!(last == count || all[last as usize].1 == Fate::Kept);
                        let whole = cursor == 0 || all[first as usize - 2].1 != Fate::GivenUp;
                        let sum: u64 = of.iter().map(|(_, count)| count).sum();
                        let range = last + 1 - first;
                        prop_assert!(sum >= range && (sum == range || !whole));
                        let mut without_name = of.iter().find(|(owner, _)| owner.is_none()).map_or(0, |(_, count)| *count);
                        for owner in 'a'..'m' {
                            let real = lost.iter().filter(|(of, _)| *of == owner).count() as u64;
                            let reported = of.iter().find(|(of, _)| *of == Some(owner)).map_or(0, |(_, count)| *count);
                            prop_assert!(real <= reported + without_name, "{} of {}: {:?}", real, owner, of);
                            if whole {
                                prop_assert!(reported <= real);
                                without_name -= real - reported;
                            }
                        }
                        next = last + 1;
                    }
                }
            }
            prop_assert_eq!(next, count + 1);
        }
    }
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

#[test]
fn what_was_given_up_elsewhere_is_gone_on_after() {
    let mut journal = Numbers::resumed(at("e1", 5), NonZeroUsize::new(4).expect("not zero"));
    let elsewhere = |first, last, of| GivenUp { first, last, of };
    assert!(!journal.skip(elsewhere(7, 8, vec![(Some('a'), 2)])), "it does not follow");
    assert!(!journal.skip(elsewhere(6, 5, vec![])), "it ends before it begins");
    assert!(journal.skip(elsewhere(6, 7, vec![(Some('a'), 2)])));
    assert!(journal.skip(elsewhere(8, 8, vec![(Some('b'), 1)])));
    assert_eq!((journal.push(1), journal.first_seq(), journal.len()), (9, 6, 1));
    assert!(journal.skip(elsewhere(10, 10, vec![(None, 1)])));
    let pieces: Vec<_> = journal.after(journal.start()).collect();
    let unnamed = Piece::GivenUp(elsewhere(10, 10, vec![(None, 1)]));
    assert_eq!(pieces, [given_up(6, 8, [('a', 2), ('b', 1)]), Piece::Item(9, &1), unnamed]);
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
