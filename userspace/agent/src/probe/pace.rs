//! When to look at the rings: waiting, resting, and what the kernel does meanwhile.
//!
//! Owns the policy of waking up and its timer. Never reads a ring.
//!
//! The cost of an event is the wake-up of its reader (some 20 µs for the process that caused it), not the program (under 1 µs).
//! There are two kinds of rings:
//!
//! | Rings | Records | The kernel wakes the reader | The longest rest |
//! |---|---|---|---|
//! | urgent: `LIFECYCLE`, `OWN_WRITES` | cgroups, first execs, last exits, OOM kills, limit writes | for a record at the reader's position | [`URGENT_REST_MAX`] |
//! | quiet: `TASKS`, `FORKS` | other processes | for a record in `TASKS` while the reader waits; for each once a quarter is full | [`QUIET_REST_MAX`] |
//!
//! ```text
//!                 ┌────── found records ◀─────────────────────────┐
//!                 ▼                                               │
//!  Wait ─record─▶ drain ─▶ Rest, closed ─time─▶ Rest, open ─time, ┴─▶ drain ─ found none ─▶ Wait
//!                          (urgent records      or an urgent record
//!                          wait, too)
//! ```
//!
//! A lone event after a quiet time is delivered at once. After a drain that found something, the reader rests before it waits
//! again, so that a burst costs one wake-up for each rest. The first rest is [`REST_MIN`]; each that ends with records already
//! there doubles the next. A rest is closed as long as urgent records ask for, and open for as long again as quiet ones ask for.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering, fence},
    },
    time::Duration,
};

use aya::maps::{Array, IterableMap as _, Map, MapData, MapError};
use nix::{
    libc::c_void,
    sys::{
        mman::{MapFlags, ProtFlags, mmap, munmap},
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::Instant,
};

/// The first rest after a quiet time.
const REST_MIN: Duration = Duration::from_micros(200);
/// The most that resting adds to the latency of an urgent record.
const URGENT_REST_MAX: Duration = Duration::from_millis(1);
/// The most that resting adds to the latency of a quiet record.
const QUIET_REST_MAX: Duration = Duration::from_millis(4);

/// What a drain did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Records handed out.
    pub records: usize,
    /// Whether the budget ended before the rings did.
    pub more: bool,
}

/// What the reader does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Drain: the last drain left records behind.
    Drain,
    /// Rest; urgent records end it only from `closed_until` on.
    Rest { closed_until: Instant, until: Instant },
    /// Wait for a record.
    Wait,
}

/// When to wait and when to rest, see the module's description.
pub(super) struct Pace {
    /// tokio's own timers are too coarse: they count milliseconds.
    timer: AsyncFd<Timer>,
    waits: Arc<ReaderWaits>,
    schedule: Schedule,
}

impl Pace {
    pub(super) fn new(waits: ReaderWaits) -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = Timer(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?);
        // SAFETY: the timer owns its descriptor, which stays open and the same until the `AsyncFd` is dropped.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        Ok(Self { timer, waits: Arc::new(waits), schedule: Schedule::default() })
    }

    pub(super) fn next(&self) -> Next {
        self.schedule.next
    }

    pub(super) fn waits(&self) -> &Arc<ReaderWaits> {
        &self.waits
    }

    /// What a drain found, and how many of its records came from urgent rings.
    pub(super) fn drained(&mut self, drained: Drained, urgent: usize) {
        self.schedule.drained(drained, urgent, Instant::now());
    }

    /// The closed part of a rest has ended.
    pub(super) fn open(&mut self) {
        self.schedule.opened = Some(Instant::now());
    }

    /// The rest has ended.
    pub(super) fn rested(&mut self) {
        self.schedule.rested = Some(Instant::now());
        self.schedule.next = Next::Wait;
    }

    pub(super) async fn sleep_until(&self, until: Instant) -> io::Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            self.timer.get_ref().0.set(Expiration::OneShot(left.into()), TimerSetTimeFlags::empty())?;
            self.timer.readable().await?.clear_ready();
        }
        Ok(())
    }
}

/// The policy, without a timer.
struct Schedule {
    next: Next,
    urgent_rest: Duration,
    quiet_rest: Duration,
    /// When the closed part of the last rest ended.
    opened: Option<Instant>,
    /// When the last rest ended.
    rested: Option<Instant>,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { next: Next::Wait, urgent_rest: REST_MIN, quiet_rest: REST_MIN, opened: None, rested: None }
    }
}

impl Schedule {
    fn drained(&mut self, Drained { records, more }: Drained, urgent: usize, now: Instant) {
        if more {
            self.next = Next::Drain;
            return;
        }
        if records == 0 {
            return;
        }
        // Records that were there as soon as the last rest ended: the time is not quiet.
        let busy = |end: Option<Instant>| end.is_some_and(|end| now.duration_since(end) < REST_MIN);
        let (mut closed_until, mut until) = (now, now);
        if urgent > 0 {
            self.urgent_rest = next_rest(self.urgent_rest, busy(self.opened), URGENT_REST_MAX);
            closed_until += self.urgent_rest;
        }
        if records > urgent {
            self.quiet_rest = next_rest(self.quiet_rest, busy(self.rested), QUIET_REST_MAX);
            until += self.quiet_rest;
        }
        self.next = Next::Rest { closed_until, until: until.max(closed_until) };
    }
}

fn next_rest(last: Duration, busy: bool, max: Duration) -> Duration {
    if busy { max.min(last * 2) } else { REST_MIN }
}

/// A timer that an [`AsyncFd`] takes.
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// The word in the kernel by which the reader says that it waits, and wants to be woken for a quiet record.
#[derive(Debug)]
pub struct ReaderWaits {
    address: NonNull<c_void>,
}

// SAFETY: what is there is accessed atomically only, and stays where it is until it is dropped.
unsafe impl Send for ReaderWaits {}
// SAFETY: as above.
unsafe impl Sync for ReaderWaits {}

impl ReaderWaits {
    const BYTES: NonZeroUsize = NonZeroUsize::new(size_of::<u32>()).expect("not zero");

    pub(super) fn new(map: Map) -> Result<Self, MapError> {
        let array = Array::<MapData, u32>::try_from(map)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses, of a map that has an element of that size.
        let address =
            unsafe { mmap(None, Self::BYTES, access, MapFlags::MAP_SHARED, array.map().fd().as_fd(), 0) };
        let address = address
            .map_err(|errno| MapError::IoError(io::Error::other(format!("mmap(2) of the map: {errno}"))))?;
        Ok(Self { address })
    }

    /// From now on a quiet record wakes the reader, or the reader's next look at the ring finds it.
    pub(super) fn set(&self) {
        self.word().store(1, Ordering::SeqCst);
        // Between this store and the loads of that look; its other half is the commit in the kernel.
        fence(Ordering::SeqCst);
    }

    /// The reader is awake, and looks by itself.
    pub(super) fn reset(&self) {
        self.word().store(0, Ordering::Relaxed);
    }

    /// Whether the reader waits, and no quiet record has woken it yet.
    pub fn is_set(&self) -> bool {
        self.word().load(Ordering::SeqCst) != 0
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: within the mapping, aligned, and accessed in whole words by the kernel side, too.
        unsafe { self.address.cast().as_ref() }
    }
}

impl Drop for ReaderWaits {
    fn drop(&mut self) {
        // SAFETY: the mapping made above, which is not used any more. It cannot fail with these arguments.
        let _ = unsafe { munmap(self.address, Self::BYTES.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a drain found: in all, and from urgent rings.
    fn found(urgent: usize, quiet: usize) -> (Drained, usize) {
        (Drained { records: urgent + quiet, more: false }, urgent)
    }

    /// How long the schedule rests after a drain at `now`: closed, and in all.
    fn rest(
        schedule: &mut Schedule,
        (drained, urgent): (Drained, usize),
        now: Instant,
    ) -> (Duration, Duration) {
        schedule.drained(drained, urgent, now);
        let Next::Rest { closed_until, until } = schedule.next else { panic!("{:?}", schedule.next) };
        (schedule.opened, schedule.rested, schedule.next) = (Some(closed_until), Some(until), Next::Wait);
        (closed_until - now, until - now)
    }

    #[test]
    fn rests_double_up_to_the_bound_of_their_rings() {
        let (mut schedule, mut now) = (Schedule::default(), Instant::now());
        let mut longest = |drained| {
            for _ in 0..20 {
                now += rest(&mut schedule, drained, now).1;
            }
            let longest = rest(&mut schedule, drained, now);
            now += longest.1 + REST_MIN;
            assert_eq!(rest(&mut schedule, drained, now).1, REST_MIN, "after a quiet time");
            now += Duration::from_secs(1);
            longest
        };
        assert_eq!(longest(found(1, 0)), (URGENT_REST_MAX, URGENT_REST_MAX));
        assert_eq!(longest(found(0, 1)), (Duration::ZERO, QUIET_REST_MAX), "urgent records end it");
        assert_eq!(longest(found(1, 1)).1, QUIET_REST_MAX);
    }

    #[test]
    fn nothing_found_ends_the_rests_and_what_is_left_is_drained_at_once() {
        let (mut schedule, now) = (Schedule::default(), Instant::now());
        rest(&mut schedule, found(0, 1), now);
        schedule.drained(found(0, 0).0, 0, now + REST_MIN);
        assert_eq!(schedule.next, Next::Wait);
        schedule.drained(Drained { records: 5, more: true }, 5, now);
        assert_eq!(schedule.next, Next::Drain);
    }
}
