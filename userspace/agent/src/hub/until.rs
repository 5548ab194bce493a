//! The journal up to the newest event of one moment, read at another, while it goes on.
//!
//! What is read stays, whatever the journal gives up meanwhile, unless the reader falls behind the oldest event of all. What has left it
//! before it was read is not among it, as with any other reader; a place whose events were given up says whose they were, unless that is
//! no longer known exactly.
//!
//! Never holds the journal's lock for longer than a batch takes.

use std::sync::Arc;

use kwitness_core::journal::{Cursor, GivenUp, Piece};
use kwitness_core::model::CgroupId;

use super::Hub;
use super::entry::Entry;
use super::watcher::BATCH;

/// What is to be read.
#[derive(Debug)]
pub(crate) struct JournalUntil {
    hub: Arc<Hub>,
    /// The number of the last event.
    last: u64,
}

/// What has been read of it: each number after the first one is in one of the pieces.
#[derive(Debug)]
pub(super) struct Pieces {
    /// The number before the first.
    pub(super) after: u64,
    pub(super) pieces: Vec<Piece<Entry, CgroupId>>,
    next: Cursor,
}

impl JournalUntil {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        let last = hub.window.look(|journal, _| journal.last_seq());
        Self { hub, last }
    }

    pub(super) fn pieces(&self) -> Pieces {
        let mut pieces = self.begin();
        while self.read_on(&mut pieces) {}
        pieces
    }

    fn begin(&self) -> Pieces {
        let next = self.hub.window.look(|journal, _| journal.start()).min(Cursor::after(self.last));
        Pieces { after: next.seq(), pieces: Vec::new(), next }
    }

    /// The next batch; false: there is none.
    fn read_on(&self, pieces: &mut Pieces) -> bool {
        if pieces.next.seq() >= self.last {
            return false;
        }
        let read = self.hub.window.read(pieces.next, BATCH, |entry, _| entry);
        if let Some(missed) = read.missed {
            // So have those before.
            pieces.pieces.clear();
            pieces.after = missed.last.min(self.last);
        }
        pieces.next = read.next;
        pieces.pieces.extend(read.pieces.into_iter().filter_map(|piece| match piece {
            Piece::Item(seq, _) => (seq <= self.last).then_some(piece),
            Piece::GivenUp(of) => (of.first <= self.last).then(|| Piece::GivenUp(until(of, self.last))),
        }));
        true
    }
}

/// As much of it as comes up to a number. Of a part, it may not be known whose how many were.
fn until(mut of: GivenUp<CgroupId>, last: u64) -> GivenUp<CgroupId> {
    of.last = of.last.min(last);
    let count = of.last + 1 - of.first;
    if of.of.iter().map(|(_, count)| count).sum::<u64>() != count {
        let owner = match of.of[..] {
            [(owner, _)] => owner,
            _ => None,
        };
        of.of = vec![(owner, count)];
    }
    of
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    /// The first and the last number of each piece, and whether they were given up.
    fn seen(pieces: &Pieces) -> Vec<(u64, u64, bool)> {
        let of = |piece: &Piece<Entry, CgroupId>| match piece {
            Piece::Item(seq, _) => (*seq, *seq, false),
            Piece::GivenUp(of) => {
                assert_eq!(of.of.iter().map(|(_, count)| count).sum::<u64>(), of.last + 1 - of.first);
                (of.first, of.last, true)
            }
        };
        pieces.pieces.iter().map(of).collect()
    }

    /// Each number from the first to the last is in one piece.
    fn check_whole(pieces: &Pieces, last: u64) {
        let mut before = pieces.after;
        for (first, until, _) in seen(pieces) {
            assert_eq!(first, before + 1);
            before = until;
        }
        assert_eq!(before, last);
    }

    #[test]
    fn what_comes_later_is_not_read() {
        let (hub, mut writer) = hub(1024);
        let of = subject(1, None);
        writer.append((0..3).map(|_| stopped(&of)), clock());
        let until = JournalUntil::new(hub);
        writer.append([stopped(&of)], clock());
        let pieces = until.pieces();
        check_whole(&pieces, 3);
        assert_eq!(pieces.pieces.len(), 3);
    }

    #[test]
    fn what_is_given_up_between_two_batches_leaves_no_hole() {
        let (hub, mut writer) = hub(2048);
        let (storm, other, quiet) = (subject(1, None), subject(2, None), subject(3, None));
        writer.append([created(&quiet)], clock());
        writer.append((0..1000).flat_map(|_| [stopped(&storm), stopped(&other)]), clock());
        let until = JournalUntil::new(hub);
        let mut pieces = until.begin();
        assert!(until.read_on(&mut pieces));
        let read = pieces.pieces.len();
        // What was read is given up by then, what comes next in part, and so are those at the end.
        writer.append((0..1500).flat_map(|_| [stopped(&storm), stopped(&other)]), clock());
        while until.read_on(&mut pieces) {}
        check_whole(&pieces, 2001);
        assert!(seen(&pieces)[..read].iter().all(|(.., given_up)| !given_up), "it stays");
        assert!(seen(&pieces)[read..].iter().any(|(.., given_up)| *given_up));
    }

    #[test]
    fn what_has_left_the_journal_before_it_was_read_is_not_there() {
        let (hub, mut writer) = hub(1024);
        // Events of none: the oldest goes.
        writer.append((0..1000).map(|_| gap()), clock());
        let until = JournalUntil::new(hub);
        let (mut in_part, mut in_full) = (until.begin(), until.begin());
        assert!(until.read_on(&mut in_part) && until.read_on(&mut in_full));
        writer.append((0..900).map(|_| gap()), clock());
        while until.read_on(&mut in_part) {}
        assert_eq!(in_part.after, 876);
        check_whole(&in_part, 1000);
        writer.append((0..900).map(|_| gap()), clock());
        while until.read_on(&mut in_full) {}
        assert_eq!((in_full.after, in_full.pieces.len()), (1000, 0));
    }

    #[test]
    fn of_a_part_only_one_owner_is_known() {
        let given_up = |of: &[(u64, u64)]| {
            let of = of.iter().map(|(owner, count)| (Some(CgroupId(*owner)), *count)).collect();
            GivenUp { first: 5, last: 9, of }
        };
        assert_eq!(until(given_up(&[(1, 2), (2, 3)]), 9).of, given_up(&[(1, 2), (2, 3)]).of);
        assert_eq!(until(given_up(&[(1, 2), (2, 3)]), 7).of, [(None, 3)]);
        assert_eq!(until(given_up(&[(1, 5)]), 7).of, [(Some(CgroupId(1)), 3)]);
    }
}
