//! The journal as rows of bytes, so that the next daemon's has the same events of each container, and in the place of others whose they
//! were.
//!
//! ```text
//!  scope      a container, or what else events are of; events refer to it by its place among the scopes
//!  event      as the journal has it
//!  given up   up to which number there are no events, and whose they were
//! ```
//!
//! Each row follows the one before, so that an event needs no number. Where not all of it fits, it is the containers that have most whose
//! oldest events are given up, as in the journal itself.
//!
//! Owns what is in a row. Never knows where rows are kept.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kwitness_api::{EventKind, proto};
use kwitness_core::journal::{GivenUp, Piece};
use kwitness_core::model::{CgroupId, KernelTime, PodNames, Subject};
use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::Writer;
use super::entry::{Entry, NonContainerScope};
use super::names::Gone;
use super::subject::EncodedSubject;
use super::until::{JournalUntil, Pieces};
use super::window::Item as _;

/// What a row begins with.
const SCOPE: u8 = 0;
const EVENT: u8 = 1;
const GIVEN_UP: u8 = 2;

/// The scope of an event of no container, pod or more than that.
const NO_SCOPE: u32 = u32::MAX;

/// The first part of a scope's row. A container's is followed by its encoded message.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ScopeHead {
    Container(Arc<Subject>),
    Pod(Option<PodNames>),
}

/// What of the journal is written.
#[derive(Debug)]
pub(crate) struct Kept {
    pieces: Pieces,
    /// Of containers that have more than fits, how many bytes of events they give up. No container: what is of none.
    excess: HashMap<Option<CgroupId>, usize>,
    bytes: usize,
}

impl Writer {
    /// The journal as it is now, to be read later, by another thread too.
    pub(crate) fn until_now(&self) -> JournalUntil {
        JournalUntil::new(self.hub().clone())
    }

    /// Puts back what an earlier daemon's journal held after this one's place.
    pub(crate) fn restoring(&mut self) -> Restoring<'_> {
        Restoring::new(self)
    }
}

impl JournalUntil {
    /// The journal for the next daemon: as much of it as fits into so many bytes, with so many more for each row.
    pub(crate) fn kept(&self, max: usize, row: usize) -> Kept {
        Kept::of(self.pieces(), max, row)
    }
}

impl Kept {
    fn of(pieces: Pieces, max: usize, row: usize) -> Self {
        let (mut sizes, mut seen, mut other) = (HashMap::<_, usize>::new(), HashSet::new(), 0);
        let mut rows = Rows::default();
        for piece in &pieces.pieces {
            match piece {
                Piece::Item(_, entry) => {
                    let size = sizes.entry(entry.owner()).or_default();
                    let is_new = entry.subject.as_ref().is_some_and(|of| seen.insert(Arc::as_ptr(of)));
                    if is_new || entry.non_container.is_some() {
                        *size += row + rows.scope(entry).len();
                    }
                    *size += row + event_bytes(entry);
                }
                Piece::GivenUp(given_up) => other += row + rows.given_up(given_up).len(),
            }
        }
        let all = sizes.values().sum::<usize>() + other;
        let share = share(sizes.values().copied().collect(), max.saturating_sub(other));
        sizes.retain(|_, size| *size > share);
        sizes.values_mut().for_each(|size| *size -= share);
        let mut kept = Self { pieces, excess: sizes, bytes: all };
        if !kept.excess.is_empty() {
            let mut bytes = 0;
            kept.write(|kept| {
                bytes += row + kept.len();
                true
            });
            kept.bytes = bytes;
        }
        kept
    }

    /// The number before the first one of the rows.
    pub(crate) fn after(&self) -> u64 {
        self.pieces.after
    }

    /// How many bytes the rows have.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Hands out the rows one by one, as long as `put` has room for them. Whether it had.
    pub(crate) fn write(&self, mut put: impl FnMut(&[u8]) -> bool) -> bool {
        let (mut excess, mut rows) = (self.excess.clone(), Rows::default());
        let (mut scopes, mut count) = (HashMap::new(), 0_u32);
        // What is given up here, as long as nothing else comes between: one row.
        let mut run = None::<GivenUp<CgroupId>>;
        let had_room = self.pieces.pieces.iter().all(|piece| {
            if let Piece::Item(seq, entry) = piece
                && let Some(left) = excess.get_mut(&entry.owner()).filter(|left| **left > 0)
            {
                let in_its_place = match &mut run {
                    Some(run) => {
                        add(run, *seq, entry.owner());
                        0
                    }
                    None => {
                        let begun = GivenUp { first: *seq, last: *seq, of: vec![(entry.owner(), 1)] };
                        rows.given_up(run.insert(begun)).len()
                    }
                };
                *left = left.saturating_sub(event_bytes(entry).saturating_sub(in_its_place));
                return true;
            }
            if !run.take().is_none_or(|run| put(rows.given_up(&run))) {
                return false;
            }
            let entry = match piece {
                Piece::Item(_, entry) => entry,
                Piece::GivenUp(given_up) => return put(rows.given_up(given_up)),
            };
            let known = entry.subject.as_ref().and_then(|of| scopes.get(&Arc::as_ptr(of)).copied());
            let scope = match known {
                Some(scope) => scope,
                None if entry.subject.is_none() && entry.non_container.is_none() => NO_SCOPE,
                None => {
                    if !put(rows.scope(entry)) {
                        return false;
                    }
                    if let Some(of) = &entry.subject {
                        scopes.insert(Arc::as_ptr(of), count);
                    }
                    count += 1;
                    count - 1
                }
            };
            put(rows.event(entry, scope))
        });
        had_room && run.is_none_or(|run| put(rows.given_up(&run)))
    }
}

/// One event more that is given up, which follows.
fn add(run: &mut GivenUp<CgroupId>, seq: u64, owner: Option<CgroupId>) {
    run.last = seq;
    match run.of.iter_mut().find(|(of, _)| *of == owner) {
        Some((_, count)) => *count += 1,
        None => run.of.push((owner, 1)),
    }
}

/// The most bytes that each may have, so that all have no more than that together.
fn share(mut sizes: Vec<usize>, max: usize) -> usize {
    sizes.sort_unstable();
    let (mut left, mut count) = (max, sizes.len());
    for size in sizes {
        let share = left / count;
        if size > share {
            return share;
        }
        (left, count) = (left - size, count - 1);
    }
    usize::MAX
}

/// What the row of an event has: its kind, two times, the place of its scope, and the event.
fn event_bytes(entry: &Entry) -> usize {
    size_of::<u8>() + 2 * size_of::<u64>() + size_of::<u32>() + entry.body.len()
}

/// Rows in the making: each takes the place of the one before.
#[derive(Default)]
struct Rows(Vec<u8>);

impl Rows {
    fn begin(&mut self, kind: u8) -> &mut Vec<u8> {
        self.0.clear();
        self.0.push(kind);
        &mut self.0
    }

    fn scope(&mut self, entry: &Entry) -> &[u8] {
        let (head, rest) = match (&entry.subject, &entry.non_container) {
            (Some(of), _) => (ScopeHead::Container(of.subject.clone()), &*of.bytes),
            (None, of) => (ScopeHead::Pod(of.as_ref().and_then(|of| of.pod.clone())), &[][..]),
        };
        let head = serde_json::to_vec(&head).expect("texts, numbers and maps of texts");
        let row = self.begin(SCOPE);
        row.extend_from_slice(&(head.len() as u64).to_ne_bytes());
        row.extend_from_slice(&head);
        row.extend_from_slice(rest);
        row
    }

    fn event(&mut self, entry: &Entry, scope: u32) -> &[u8] {
        let row = self.begin(EVENT);
        row.extend_from_slice(&entry.at.0.to_ne_bytes());
        row.extend_from_slice(&entry.latest_before.0.to_ne_bytes());
        row.extend_from_slice(&scope.to_ne_bytes());
        row.extend_from_slice(&entry.body);
        row
    }

    fn given_up(&mut self, given_up: &GivenUp<CgroupId>) -> &[u8] {
        let row = self.begin(GIVEN_UP);
        row.extend_from_slice(&given_up.last.to_ne_bytes());
        for (owner, count) in &given_up.of {
            row.push(owner.is_some().into());
            row.extend_from_slice(&owner.map_or(0, |owner| owner.0).to_ne_bytes());
            row.extend_from_slice(&count.to_ne_bytes());
        }
        row
    }
}

/// A journal that is put together again.
#[derive(Debug)]
pub(crate) struct Restoring<'a> {
    writer: &'a mut Writer,
    scopes: Vec<Scope>,
    gone: HashMap<CgroupId, Gone>,
}

#[derive(Debug)]
enum Scope {
    Container(Arc<EncodedSubject>),
    Other(NonContainerScope),
}

impl<'a> Restoring<'a> {
    fn new(writer: &'a mut Writer) -> Self {
        Self { writer, scopes: Vec::new(), gone: HashMap::new() }
    }

    /// The next row; none: it is no such row.
    pub(crate) fn row(&mut self, row: &[u8]) -> Option<()> {
        let (kind, mut rest) = row.split_first()?;
        match *kind {
            SCOPE => self.scopes.push(scope(rest)?),
            EVENT => {
                let entry = self.event(&mut rest)?;
                self.writer.restore(entry);
            }
            GIVEN_UP => self.skip(&mut rest)?,
            _ => return None,
        }
        Some(())
    }

    /// There are no more rows.
    pub(crate) fn end(self) {
        let Self { writer, mut gone, .. } = self;
        writer.hub().window.look(|journal, names| {
            // Which of those that left were without names is not known. If the oldest one that is left has them, and not as the first
            // one, none of them comes late.
            gone.retain(|of, _| {
                let oldest = names.of(*of).and_then(|(_, oldest)| journal.get(oldest));
                oldest.is_some_and(|entry| {
                    entry.kind == EventKind::Updated
                        || entry.subject.as_ref().is_some_and(|of| of.subject.facts.is_none())
                })
            });
        });
        writer.hub().window.amend(|names| gone.into_iter().for_each(|(of, gone)| names.had_left(of, gone)));
    }

    fn event(&mut self, rest: &mut &[u8]) -> Option<Entry> {
        let (at, latest_before) = (KernelTime(number(rest)?), KernelTime(number(rest)?));
        let (subject, non_container) = match u32::from_ne_bytes(array(rest)?) {
            NO_SCOPE => (None, None),
            scope => match self.scopes.get(usize::try_from(scope).ok()?)? {
                Scope::Container(of) => (Some(Arc::clone(of)), None),
                Scope::Other(of) => (None, Some(of.clone())),
            },
        };
        let kind = EventKind::of(&proto::Event::decode(*rest).ok()?)?;
        let body = self.writer.body(rest);
        Some(Entry { at, latest_before, kind, body, subject, non_container })
    }

    fn skip(&mut self, rest: &mut &[u8]) -> Option<()> {
        let (first, last) = (self.writer.position().seq.checked_add(1)?, number(rest)?);
        let (mut of, mut left) = (Vec::new(), last.checked_sub(first)?.checked_add(1)?);
        while let Some((is_of_container, numbers)) = rest.split_first() {
            *rest = numbers;
            let (owner, count) = (CgroupId(number(rest)?), number(rest)?);
            left = left.checked_sub(count)?;
            let owner = (*is_of_container == 1).then_some(owner);
            if let Some(owner) = owner {
                let gone = Gone { first, last, count, named: None };
                self.gone.entry(owner).and_modify(|known| *known = known.and(gone)).or_insert(gone);
            }
            of.push((owner, count));
        }
        (left == 0 && self.writer.hub().window.skip(GivenUp { first, last, of })).then_some(())
    }
}

fn scope(mut rest: &[u8]) -> Option<Scope> {
    let length = usize::try_from(number(&mut rest)?).ok()?;
    let (head, message) = rest.split_at_checked(length)?;
    Some(match serde_json::from_slice(head).ok()? {
        ScopeHead::Container(subject) => {
            proto::Event::decode(message).ok()?;
            Scope::Container(Arc::new(EncodedSubject::restored(subject, message)))
        }
        ScopeHead::Pod(pod) => Scope::Other(NonContainerScope { pod }),
    })
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    array(rest).map(u64::from_ne_bytes)
}

fn array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (array, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*array)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use kwitness_core::journal::{Epoch, Position};
    use proptest::prelude::*;

    use super::super::testing::*;
    use super::super::{Capacity, Filter, Hub, Start};
    use super::*;

    fn position(seq: u64) -> Position {
        Position { epoch: Epoch("epoch".into()), seq }
    }

    fn rows(writer: &Writer, max: usize) -> (u64, Vec<Vec<u8>>) {
        let kept = writer.until_now().kept(max, 5);
        let mut rows = Vec::new();
        assert!(kept.write(|row| {
            rows.push(row.to_vec());
            true
        }));
        assert_eq!(kept.bytes(), rows.iter().map(|row| 5 + row.len()).sum::<usize>());
        (kept.after(), rows)
    }

    fn restored(after: u64, rows: &[Vec<u8>], items: usize) -> (Arc<Hub>, Writer) {
        let capacity = Capacity { items: NonZeroUsize::new(items).unwrap(), bytes: 64 << 20 };
        let (hub, mut writer) = Hub::resumed(position(after), KernelTime(0), capacity);
        let mut restoring = writer.restoring();
        rows.iter().for_each(|row| restoring.row(row).unwrap());
        restoring.end();
        (hub, writer)
    }

    /// All that a watcher gets, without the time at which it was put together.
    async fn all(hub: &Arc<Hub>, filter: Filter) -> Vec<proto::Event> {
        let mut events = rest(&mut hub.watch(Start::After(position(0)), false, filter).unwrap()).await;
        for event in events.iter_mut().filter(|event| event.basis() == proto::Basis::Daemon) {
            (event.time, event.kernel_time) = (None, 0);
        }
        events
    }

    #[tokio::test]
    async fn the_next_journal_is_the_same() {
        let (hub, mut writer) = hub(1024);
        let (unnamed, named) = (subject(2, None), subject(2, Some(facts("prod", "web", "nginx"))));
        let quiet = subject(1, Some(facts("prod", "db", "postgres")));
        writer.append([created(&quiet), gap(), created(&unnamed)], clock());
        writer.append((0..5000).map(|_| stopped(&unnamed)), clock());
        writer.append([updated(&named), stopped(&quiet)], clock());
        let (after, rows) = rows(&writer, usize::MAX);
        let (next, mut writer) = restored(after, &rows, 1024);
        assert_eq!(next.position(), hub.position());
        let filters = ["web", "db"].map(|pod| {
            let filter = proto::Filter { pods: vec![pod.into()], ..Default::default() };
            Filter::try_from(filter).unwrap()
        });
        for filter in filters.into_iter().chain([Filter::default()]) {
            assert_eq!(all(&next, filter.clone()).await, all(&hub, filter).await);
        }
        assert_eq!(next.extent().events, hub.extent().events);
        writer.append([stopped(&named)], clock());
        assert_eq!(next.position().seq, hub.position().seq + 1);
    }

    #[tokio::test]
    async fn what_does_not_fit_is_of_those_with_most_and_a_gap_names_them() {
        let (hub, mut writer) = hub(4096);
        let (quiet, storm) = (subject(1, None), subject(2, None));
        writer.append([created(&quiet)], clock());
        writer.append((0..3000).map(|_| stopped(&storm)), clock());
        writer.append([stopped(&quiet)], clock());
        let whole = writer.until_now().kept(usize::MAX, 5).bytes();
        let (after, rows) = rows(&writer, whole / 2);
        let (next, _) = restored(after, &rows, 4096);
        assert_eq!(next.position(), hub.position());
        let events = all(&next, Filter::default()).await;
        assert_eq!((numbers(&events)[0], numbers(&events).last()), (1, Some(&3002)));
        let Some(proto::event::Kind::Gap(gap)) = &events[1].kind else { panic!("{:?}", events[1]) };
        assert_eq!(events[1].container.as_ref().unwrap().id, &*storm.container_id.0);
        assert_eq!(gap.lost["event"] + events.len() as u64 - 1, 3002, "each event or its place");
        assert!(gap.lost["event"] > 1000 && gap.lost["event"] < 2000, "{gap:?}");
    }

    #[tokio::test]
    async fn only_what_was_given_up_without_names_is_still_owed() {
        let named = subject(1, Some(facts("prod", "web", "nginx")));
        let (of_web, other) =
            (proto::Filter { pods: vec!["web".into()], ..Default::default() }, subject(2, None));
        for (before, expected) in [(&named, &[101][..]), (&subject(1, None), &[100, 101])] {
            let (_, mut writer) = hub(1024);
            writer.append((0..100).map(|_| stopped(before)), clock());
            let whole = writer.until_now().kept(usize::MAX, 5).bytes();
            let (after, rows) = rows(&writer, whole / 2);
            let (next, mut writer) = restored(after, &rows, 64);
            // Nothing that came before is left.
            writer.append([updated(&named)], clock());
            writer.append((0..63).map(|_| stopped(&other)), clock());
            let filter = of_web.clone().try_into().unwrap();
            let mut watcher = next.watch(Start::After(position(100)), false, filter).unwrap();
            assert_eq!(numbers(&rest(&mut watcher).await), expected);
        }
    }

    #[test]
    fn a_smaller_journal_gives_up_by_the_same_rule() {
        let (_, mut writer) = hub(4096);
        let (quiet, storm) = (subject(1, None), subject(2, None));
        writer.append([created(&quiet)], clock());
        writer.append((0..3000).map(|_| stopped(&storm)), clock());
        let (after, rows) = rows(&writer, usize::MAX);
        let (next, _) = restored(after, &rows, 1024);
        let extent = next.extent();
        assert_eq!((extent.first_seq, extent.last_seq, extent.events), (1, 3001, 1024));
    }

    proptest! {
        #[test]
        fn shares_are_within_the_bound_and_nobody_gives_up_for_less(
            sizes in prop::collection::vec(0_usize..1000, 1..50),
            max in 0_usize..20_000,
        ) {
            let share = share(sizes.clone(), max);
            let kept: usize = sizes.iter().map(|size| *size.min(&share)).sum();
            prop_assert!(kept <= max);
            if share == usize::MAX {
                prop_assert_eq!(kept, sizes.iter().sum::<usize>());
            } else {
                prop_assert!(kept + sizes.len() > max, "room is left: {kept} of {max}");
            }
        }

        #[test]
        fn no_row_makes_it_panic(row in prop::collection::vec(any::<u8>(), 0..100)) {
            let (_hub, mut writer) = hub(16);
            let mut restoring = writer.restoring();
            for kind in [SCOPE, EVENT, GIVEN_UP] {
                let row: Vec<u8> = [kind].into_iter().chain(row.iter().copied()).collect();
                let _ = restoring.row(&row);
            }
            restoring.end();
        }
    }
}
