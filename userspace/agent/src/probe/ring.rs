//! Reading the rings: waiting, and draining in batches merged by time.
//!
//! Owns the rings' read side, of the old programs' rings, too, as long as those are read on (module `handover`), and the user side of
//! the counters. When to look at the rings is decided in [`pace`](super::pace). Never interprets a record but for the time in its
//! header.

use std::{collections::BTreeMap, io, mem, os::fd::AsFd as _, sync::Arc, task::Poll};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, RingBuf},
};
use kwitness_abi::{Budget, Counters, Header, LostOf, RecordKind};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    capability::MEMORY_CHARGES,
    choice::AttachedProgram,
    counters::CountersView,
    error::{ProbeError, Result},
    handover::{self, OldPrograms, Overlap},
    loader::Attached,
    log::LogReader,
    pace::{Drained, Next, Pace, ReaderWaits},
    pins::{self, Old, Unpinned},
    positions::Positions,
    report::Capabilities,
    stats::{self, ProgramStats},
    tracker::Tracker,
};

/// The rings' names; a record of an earlier ring wins a tie of times.
const RINGS: [&str; 4] = ["LIFECYCLE", "OWN_WRITES", "FORKS", TASKS];
/// The ring that wakes its reader only while that waits.
const TASKS: &str = "TASKS";
/// The rings before this one wake their reader for each first record; see [`pace`](super::pace).
const FIRST_QUIET_RING: usize = 2;

/// [`Budget`] as the value of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct BudgetValue(Budget);

// SAFETY: `repr(C)`, integers only, without padding.
unsafe impl aya::Pod for BudgetValue {}

/// [`LostOf`] as the key of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct LostOfKey(LostOf);

// SAFETY: `repr(C)`, integers only, without padding.
unsafe impl aya::Pod for LostOfKey {}

/// How far the kernel had written into the rings at some moment.
#[derive(Clone, Copy, Debug)]
pub struct Produced {
    positions: [u64; RINGS.len()],
    /// Whether the rings were those of old programs.
    of_old: bool,
}

/// Which programs and maps, of all that were loaded since the boot: the kernel's number of their lifecycle ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SetId(pub u32);

/// A ring at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingState {
    /// Its name.
    pub name: &'static str,
    /// How many bytes it has.
    pub size: u32,
    /// How many of them hold what has not been read yet.
    pub used: u64,
    /// Records read from it.
    pub records: u64,
}

/// What the programs of one set write to, and what the kernel says of them.
struct Source {
    set: SetId,
    rings: [AsyncFd<RingBuf<MapData>>; RINGS.len()],
    positions: [Positions; RINGS.len()],
    sizes: [u32; RINGS.len()],
    records: [u64; RINGS.len()],
    pace: Pace,
    counters: CountersView,
    budgets: HashMap<MapData, u64, BudgetValue>,
    lost: HashMap<MapData, LostOfKey, u64>,
    programs: Vec<AttachedProgram>,
}

/// The programs of this process, while those of another layout are read on.
struct Successor {
    source: Source,
    old: Old,
    overlap: Overlap,
}

/// The programs run and their records are read. Dropping it detaches and unloads everything that is not pinned.
pub struct Running {
    /// What is read.
    source: Source,
    next: Option<Successor>,
    /// How far the rings had been written that were read from the handover on.
    handed_over: Option<[u64; RINGS.len()]>,
    tracker: Tracker,
    capabilities: Capabilities,
    /// Keeps other daemons away from what is pinned.
    pinned: std::result::Result<pins::Set, Unpinned>,
    /// Holds the links that are not pinned.
    _ebpf: Ebpf,
    _log: Option<LogReader>,
}

impl Source {
    /// What is read of these maps. Within a tokio runtime.
    fn new(mut map: impl FnMut(&str) -> Result<Map>, programs: Vec<AttachedProgram>) -> Result<Self> {
        let [first, second, third, fourth] = RINGS.map(|name| -> Result<_> {
            let map = map(name)?;
            let (size, number) = described(&map).map_err(|source| map_error(name, source))?;
            let ring = RingBuf::try_from(map).map_err(|source| map_error(name, source))?;
            let positions = Positions::map(ring.as_fd()).map_err(ProbeError::Register)?;
            // SAFETY: the ring owns its descriptor, which stays open and the same until the `AsyncFd` is dropped.
            let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
                .map_err(|error| ProbeError::Register(error.into()))?;
            Ok((ring, positions, size, number))
        });
        let (first, second, third, fourth) = (first?, second?, third?, fourth?);
        let sizes = [first.2, second.2, third.2, fourth.2];
        let counters = CountersView::new(map("COUNTERS")?);
        let budgets = HashMap::try_from(map("BUDGETS")?);
        let lost = HashMap::try_from(map("LOST")?);
        let reader_waits = ReaderWaits::new(map("READER_WAITS")?);
        Ok(Self {
            set: SetId(first.3),
            rings: [first.0, second.0, third.0, fourth.0],
            positions: [first.1, second.1, third.1, fourth.1],
            sizes,
            records: [0; RINGS.len()],
            pace: Pace::new(reader_waits.map_err(|source| map_error("READER_WAITS", source))?)
                .map_err(ProbeError::Register)?,
            counters: counters.map_err(|source| map_error("COUNTERS", source))?,
            budgets: budgets.map_err(|source| map_error("BUDGETS", source))?,
            lost: lost.map_err(|source| map_error("LOST", source))?,
            programs,
        })
    }

    fn produced(&self) -> [u64; RINGS.len()] {
        self.positions.each_ref().map(Positions::produced)
    }
}

impl Attached {
    /// Opens the rings for reading. Within a tokio runtime.
    pub fn run(self) -> Result<Running> {
        Running::new(self)
    }
}

impl Running {
    fn new(attached: Attached) -> Result<Self> {
        let Attached { mut ebpf, capabilities, log, programs, pinned, replaces, new: _ } = attached;
        let log = LogReader::start(&mut ebpf, log)?;
        let source = Source::new(|name| take(&mut ebpf, name), programs)?;
        let tracker = Tracker::new(|name| take(&mut ebpf, name))?;
        let (source, next) = match replaces {
            None => (source, None),
            Some((OldPrograms { old, programs }, overlap)) => {
                let read = Source::new(|name| handover::map(old.paths(), name), programs)?;
                (read, Some(Successor { source, old, overlap }))
            }
        };
        Ok(Self { source, next, handed_over: None, tracker, capabilities, pinned, _ebpf: ebpf, _log: log })
    }

    /// Waits until it is time to drain (see the module `pace`). Cancelling it loses nothing.
    pub async fn readable(&mut self) -> io::Result<()> {
        let Source { rings, pace, .. } = &mut self.source;
        match pace.next() {
            Next::Drain => {
                tokio::task::yield_now().await;
                return Ok(());
            }
            Next::Rest { closed_until, until } => {
                pace.sleep_until(closed_until).await?;
                pace.open();
                if until > closed_until {
                    tokio::select! {
                        biased;
                        slept = pace.sleep_until(until) => slept?,
                        ready = any_readable(rings) => ready?,
                    }
                    pace.rested();
                    return Ok(());
                }
                pace.rested();
            }
            Next::Wait => {}
        }
        pace.waits().set();
        // What was recorded before that wakes no reader: a last look.
        let [.., tasks] = rings;
        if Merging::new(tasks.get_mut()).head_time().is_none() {
            any_readable(rings).await?;
        }
        pace.waits().reset();
        Ok(())
    }

    /// Whether the reader waits in [`readable`](Self::readable), for an observer in another thread.
    pub fn reader_waits(&self) -> Arc<ReaderWaits> {
        Arc::clone(self.source.pace.waits())
    }

    /// Hands out at most `budget` records, merged by their time: of two that are there, the earlier comes first, and so does
    /// what was recorded before it in another ring. The exception is a record behind one that is still being written on
    /// another CPU: that holds back its own ring only.
    pub fn drain(&mut self, budget: usize, mut take: impl FnMut(&[u8])) -> Drained {
        let mut heads = self.source.rings.each_mut().map(|ring| Merging::new(ring.get_mut()));
        let mut drained = Drained { records: 0, more: false };
        let mut urgent = 0;
        while let Some(index) = earliest(&mut heads) {
            if drained.records == budget {
                drained.more = true;
                break;
            }
            heads[index].take(&mut take);
            self.source.records[index] += 1;
            drained.records += 1;
            urgent += usize::from(index < FIRST_QUIET_RING);
        }
        self.source.pace.drained(drained, urgent);
        drained
    }

    /// From now on, another daemon may go on with what is pinned. As long as old programs are read on, that is theirs.
    pub fn may_be_adopted(&mut self) {
        if self.next.is_none() {
            self.complete();
        }
    }

    fn complete(&mut self) {
        if let Ok(set) = &mut self.pinned
            && let Err(error) = set.complete()
        {
            // It goes with this daemon.
            tracing::warn!(%error, "the next daemon cannot adopt the pinned programs");
        }
    }

    /// Since when old programs are read on beside the new ones; none if they are not.
    pub fn overlap(&self) -> Option<Overlap> {
        self.next.as_ref().map(|next| next.overlap)
    }

    /// From now on, the new programs are read, from their first record on; the old ones are removed. Without old ones, nothing
    /// happens.
    pub fn hand_over(&mut self) {
        let Some(Successor { source, old, .. }) = self.next.take() else { return };
        self.handed_over = Some(source.produced());
        self.source = source;
        // In this order: a crash in between leaves two sets that are whole, and the next daemon adopts the one that is its own.
        self.complete();
        let set = old.paths().to_string();
        match old.remove() {
            Ok(()) => tracing::info!(set, "removed the previous programs"),
            Err(error) => tracing::warn!(set, %error, "cannot remove the previous programs"),
        }
    }

    /// The set whose records are handed out, then, as long as they are not, the new programs'.
    pub fn sets(&self) -> Vec<SetId> {
        [&self.source]
            .into_iter()
            .chain(self.next.as_ref().map(|next| &next.source))
            .map(|source| source.set)
            .collect()
    }

    /// How far the kernel has written by now.
    pub fn produced(&self) -> Produced {
        Produced { positions: self.source.produced(), of_old: self.next.is_some() }
    }

    /// Whether all that the kernel had written by then has been handed out. What it had written into rings that are read no longer,
    /// and that was not, it had written into the others, too, before the handover.
    pub fn has_drained(&self, until: &Produced) -> bool {
        let until = match (until.of_old, self.handed_over) {
            (true, Some(handed_over)) => handed_over,
            _ => until.positions,
        };
        self.source.positions.iter().zip(until).all(|(ring, until)| ring.consumed() >= until)
    }

    /// The rings.
    pub fn rings(&self) -> impl Iterator<Item = RingState> {
        let of = move |index: usize| RingState {
            name: RINGS[index],
            size: self.source.sizes[index],
            used: self.source.positions[index]
                .produced()
                .saturating_sub(self.source.positions[index].consumed()),
            records: self.source.records[index],
        };
        (0..RINGS.len()).map(of)
    }

    /// What the kernel side could not deliver since it was loaded, summed over all CPUs.
    pub fn counters(&self) -> Counters {
        self.source.counters.sum()
    }

    /// Of the lost records in [`counters`](Self::counters), how many of each kind were a container's, by its
    /// [`container_number`](kwitness_abi::container_number). One that has given way to others is missing, and counts from zero when
    /// it comes back.
    pub fn lost_by_container(&self) -> io::Result<BTreeMap<u32, BTreeMap<RecordKind, u64>>> {
        let mut by_container: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for entry in self.source.lost.iter() {
            let (LostOfKey(LostOf { container, kind }), count) = entry.map_err(io::Error::other)?;
            if let Some(kind) = u16::try_from(kind).ok().and_then(RecordKind::from_u16) {
                by_container.entry(container).or_default().insert(kind, count);
            }
        }
        Ok(by_container)
    }

    /// How many writes to each cgroup's limit files were only counted since it was loaded, see [`Budget`]. A cgroup that has
    /// given way to others is missing, and counts from zero when it comes back.
    pub fn suppressed_writes(&self) -> io::Result<BTreeMap<u64, u64>> {
        let mut suppressed = BTreeMap::new();
        for entry in self.source.budgets.iter() {
            let (cgroup, BudgetValue(budget)) = entry.map_err(io::Error::other)?;
            if budget.suppressed > 0 {
                suppressed.insert(cgroup, budget.suppressed);
            }
        }
        Ok(suppressed)
    }

    /// How often the kernel did not run a capability's program because that, or for a classic tracepoint any of its type, was
    /// already running on the CPU: interrupted, or preempted (see [`Tracepoints`](super::capability::Tracepoints)). By the
    /// capability's name. At most so many records were not made: the program might have had nothing to report. Charges of memory
    /// are left out: there the next one finds what a skipped one would have.
    pub fn skipped(&self) -> BTreeMap<&'static str, u64> {
        let mut skipped = BTreeMap::new();
        for program in self.source.programs.iter().filter(|program| program.capability != MEMORY_CHARGES) {
            if let Some(misses) = program.stats.recursion_misses().filter(|misses| *misses > 0) {
                *skipped.entry(program.capability).or_default() += misses;
            }
        }
        skipped
    }

    /// The tracked set, for whoever scans.
    pub fn tracker(&self) -> Tracker {
        self.tracker.clone()
    }

    /// What serves each capability.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// How often each attached program ran, and what the kernel says about it.
    pub fn program_stats(&self) -> Vec<ProgramStats> {
        let are_counted = stats::are_counted();
        self.source.programs.iter().map(|program| program.stats.read(are_counted)).collect()
    }
}

/// Waits until a ring's descriptor is readable.
async fn any_readable(rings: &[AsyncFd<RingBuf<MapData>>; RINGS.len()]) -> io::Result<()> {
    std::future::poll_fn(|context| {
        let mut any = Poll::Pending;
        for ring in rings {
            // Readiness is cleared before the drain: a record that comes in between sets it again.
            if let Poll::Ready(ready) = ring.poll_read_ready(context) {
                ready?.clear_ready();
                any = Poll::Ready(Ok(()));
            }
        }
        any
    })
    .await
}

/// The bytes of a ring, for those of an earlier daemon's may differ from this one's settings; and the kernel's number of it.
fn described(map: &Map) -> std::result::Result<(u32, u32), MapError> {
    let Map::RingBuf(ring) = map else { return Err(MapError::ElementNotFound) };
    ring.info().map(|info| (info.max_entries(), info.id()))
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name).ok_or_else(|| map_error(name, MapError::ElementNotFound))
}

fn map_error(name: &str, source: MapError) -> ProbeError {
    ProbeError::Map { map: name.to_owned(), source }
}

/// A ring, with the time of its next record once that was looked at.
struct Merging<'a> {
    ring: &'a mut RingBuf<MapData>,
    head: Option<u64>,
}

impl<'a> Merging<'a> {
    fn new(ring: &'a mut RingBuf<MapData>) -> Self {
        Self { ring, head: None }
    }

    /// The time of the next record, if there is one.
    fn head_time(&mut self) -> Option<u64> {
        if self.head.is_none() {
            let item = self.ring.next()?;
            self.head = Some(ktime(&item));
            // A record is consumed when its item is dropped: not yet.
            mem::forget(item);
        }
        self.head
    }

    /// Hands out the next record and consumes it.
    fn take(&mut self, take: &mut impl FnMut(&[u8])) {
        self.head = None;
        if let Some(item) = self.ring.next() {
            take(&item);
        }
    }
}

/// Which ring's next record is the earliest.
fn earliest(heads: &mut [Merging<'_>; RINGS.len()]) -> Option<usize> {
    // A ring that was empty when it was looked at may have got an earlier record by the time that a later one showed up
    // in another ring: once something was found, the empty ones are looked at again.
    let found = heads.iter_mut().filter_map(Merging::head_time).count();
    let times = heads.each_mut().map(|head| (found > 0).then(|| head.head_time()).flatten());
    let times = times.into_iter().enumerate();
    times.filter_map(|(index, time)| Some((time?, index))).min().map(|(_, index)| index)
}

/// The time in a record's header; a record too short for one goes first, to be rejected by the decoder.
fn ktime(record: &[u8]) -> u64 {
    const { assert!(mem::offset_of!(Header, ktime) == 0) };
    record.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}
