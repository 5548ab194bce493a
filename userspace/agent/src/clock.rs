//! The two clocks: `CLOCK_BOOTTIME`, which the kernel stamps records with, and the wall clock, which people read.
//!
//! Owns reading both and the conversion. The difference between them changes only when the wall clock is stepped (slewing moves
//! both alike), so it is kept until a reading contradicts it, and each kernel time is converted with the difference that held
//! then. A time therefore converts to the same wall-clock time whenever it is converted.

use std::sync::{PoisonError, RwLock};

use kwitness_core::model::KernelTime;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use kwitness_api::Timestamp;

/// Steps of the wall clock that are remembered. When more happen, the oldest go, and times before them convert with the oldest
/// that is left.
const STEPS_MAX: usize = 1024;
/// How far a reading may contradict the known difference without being a step: what NTP corrects between two reads of the clocks.
const TOLERANCE: i64 = 1_000;

/// The steps of the wall clock, oldest first. A property of the machine, hence one for the process.
static STEPS: RwLock<Vec<Step>> = RwLock::new(Vec::new());

/// From this time on, the wall clock is so far ahead of boot time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Step {
    from: KernelTime,
    /// Wall clock minus boot time, in nanoseconds.
    offset: i64,
}

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    now: KernelTime,
    /// The last step before that moment.
    step: Step,
}

/// The steps that this process knows of, for the next one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History(Vec<Step>);

impl History {
    /// The steps so far.
    pub fn get() -> Self {
        Self(STEPS.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Times before now convert as they did then. A step since is found by the next reading.
    pub fn restore(mut self) {
        let mut steps = STEPS.write().unwrap_or_else(PoisonError::into_inner);
        if !self.0.is_empty() {
            self.0.drain(..self.0.len().saturating_sub(STEPS_MAX));
            *steps = self.0;
        }
    }
}

impl Clock {
    /// Reads boot time and wall clock.
    pub fn read() -> Self {
        let reading = Reading::take();
        let now = KernelTime(reading.after.unsigned_abs());
        let known = STEPS.read().unwrap_or_else(PoisonError::into_inner).last().copied();
        if let Some(step) = known.filter(|step| reading.agrees(step.offset)) {
            return Self { now, step };
        }
        let mut steps = STEPS.write().unwrap_or_else(PoisonError::into_inner);
        Self { now, step: step(&mut steps, reading) }
    }

    /// Has the step before a moment that an earlier process read known to this one.
    pub fn restore(self) {
        let mut steps = STEPS.write().unwrap_or_else(PoisonError::into_inner);
        if steps.last().is_none_or(|last| last.from < self.step.from) {
            remember(&mut steps, self.step);
        }
    }

    /// The moment of the reading.
    pub fn now(self) -> KernelTime {
        self.now
    }

    /// The wall clock's time of a kernel time.
    pub fn wall(self, at: KernelTime) -> Timestamp {
        let offset = if at >= self.step.from {
            self.step.offset
        } else {
            offset_at(&STEPS.read().unwrap_or_else(PoisonError::into_inner), at)
        };
        let at = i64::try_from(at.0).unwrap_or(i64::MAX);
        Timestamp::from_unix_nanos(at.saturating_add(offset))
    }

    /// The kernel time at which the wall clock showed a time: the last such moment if it was set back since; when it was set, for a
    /// time that it was set past; 0 for what was before the boot.
    pub fn kernel(self, time: Timestamp) -> KernelTime {
        let steps = STEPS.read().unwrap_or_else(PoisonError::into_inner);
        let steps = if steps.is_empty() { std::slice::from_ref(&self.step) } else { &steps[..] };
        kernel_at(steps, self.now, time.to_unix_nanos())
    }
}

/// The wall clock, and boot time right before and after.
#[derive(Clone, Copy, Debug)]
struct Reading {
    before: i64,
    wall: i64,
    after: i64,
}

impl Reading {
    fn take() -> Self {
        let before = nanos(ClockId::CLOCK_BOOTTIME);
        let wall = nanos(ClockId::CLOCK_REALTIME);
        Self { before, wall, after: nanos(ClockId::CLOCK_BOOTTIME) }
    }

    fn agrees(self, offset: i64) -> bool {
        (self.wall - self.after - TOLERANCE..=self.wall - self.before + TOLERANCE).contains(&offset)
    }

    fn offset(self) -> i64 {
        self.wall - self.before.midpoint(self.after)
    }

    /// The one that took the least time of a few: its offset is the most exact.
    fn best() -> Self {
        let readings = (0..8).map(|_| Self::take());
        readings.min_by_key(|reading| reading.after - reading.before).unwrap_or_else(Self::take)
    }
}

/// The step that a reading shows, unless another thread has found it already.
fn step(steps: &mut Vec<Step>, reading: Reading) -> Step {
    if let Some(last) = steps.last().filter(|last| reading.agrees(last.offset)) {
        return *last;
    }
    let step = Step { from: KernelTime(reading.before.unsigned_abs()), offset: Reading::best().offset() };
    remember(steps, step);
    step
}

fn remember(steps: &mut Vec<Step>, step: Step) {
    if steps.len() == STEPS_MAX {
        steps.remove(0);
    }
    steps.push(step);
}

/// The first step stands for all that was before it.
fn offset_at(steps: &[Step], at: KernelTime) -> i64 {
    let later = steps.partition_point(|step| step.from <= at);
    steps.get(later.saturating_sub(1)).map_or(0, |step| step.offset)
}

/// See [`Clock::kernel`].
fn kernel_at(steps: &[Step], now: KernelTime, wall: i64) -> KernelTime {
    let nanos = |at: KernelTime| i64::try_from(at.0).unwrap_or(i64::MAX);
    let by = |step: &Step| wall.saturating_sub(step.offset);
    let mut until = nanos(now);
    for (index, step) in steps.iter().enumerate().rev() {
        let from = if index == 0 { 0 } else { nanos(step.from) };
        if (from..=until).contains(&by(step)) {
            return KernelTime(by(step).unsigned_abs());
        }
        until = from;
    }
    if let Some(last) = steps.last().filter(|last| by(last) > nanos(now)) {
        // It is still to come.
        return KernelTime(by(last).unsigned_abs());
    }
    let is_set_past = |pair: &&[Step]| {
        let set = nanos(pair[1].from);
        by(&pair[0]) >= set && by(&pair[1]) < set
    };
    steps.windows(2).rev().find(is_set_past).map_or(KernelTime(0), |pair| pair[1].from)
}

/// Both clocks exist on every kernel that runs the probes, and reading one fails for no other reason.
fn nanos(id: ClockId) -> i64 {
    clock_gettime(id).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_convert_both_ways() {
        let clock = Clock::read();
        assert_eq!(clock.kernel(clock.wall(clock.now())), clock.now());
        assert_eq!(clock.kernel(Timestamp::default()), KernelTime(0));
        let wall = clock.wall(clock.now()).to_unix_nanos();
        let system = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
        assert!((system as i64 - wall).abs() < 1_000_000_000, "{wall} {system}");
    }

    #[test]
    fn a_time_always_converts_to_the_same() {
        let at = KernelTime(1_000);
        let first = Clock::read().wall(at);
        for _ in 0..10_000 {
            assert_eq!(Clock::read().wall(at), first);
        }
    }

    #[test]
    fn a_step_of_the_wall_clock_moves_what_comes_later_and_nothing_before() {
        let mut steps = vec![Step { from: KernelTime(100), offset: 1_000_000 }];
        let agreeing = Reading { before: 200, wall: 1_000_210, after: 220 };
        assert_eq!(step(&mut steps, agreeing).offset, 1_000_000);
        assert_eq!(steps.len(), 1);
        let stepped = Reading { before: 300, wall: 9_000_310, after: 320 };
        step(&mut steps, stepped);
        assert_eq!((steps.len(), steps[1].from), (2, KernelTime(300)));
        assert_eq!(offset_at(&steps, KernelTime(299)), 1_000_000);
        assert_eq!(offset_at(&steps, KernelTime(50)), 1_000_000, "the oldest that is known");
        assert_eq!(offset_at(&steps, KernelTime(300)), steps[1].offset);
    }

    #[test]
    fn a_time_converts_by_the_step_in_which_it_was_shown() {
        let step = |from, offset| Step { from: KernelTime(from), offset };
        let now = KernelTime(900);
        let at = |steps: &[Step], wall| kernel_at(steps, now, wall).0;
        // It was one hour late, so to speak, until it was set at 300.
        let forward = [step(100, 1_000), step(300, 5_000)];
        assert_eq!(at(&forward, 1_250), 250, "a file that was written before");
        assert_eq!(at(&forward, 5_310), 310);
        assert_eq!(at(&forward, 4_000), 300, "no clock showed that");
        assert_eq!(at(&forward, 6_000), 1_000, "it is still to come");
        assert_eq!(at(&forward, 500), 0, "before the boot");
        assert_eq!(at(&forward, 1_050), 50, "before the first that is known");
        let back = [step(100, 5_000), step(300, 1_000)];
        assert_eq!(at(&back, 5_250), 250);
        assert_eq!(at(&back, 1_400), 400);
        let twice = [step(100, 1_000), step(300, 1_100), step(500, 1_050)];
        assert_eq!(at(&twice, 1_550), 500, "shown twice, at 450 and again");
        assert_eq!(at(&twice, 1_350), 300, "set past");
        for steps in [&forward[..], &back, &twice] {
            for shown in [0, 99, 100, 299, 300, 301, 500, 900] {
                let wall = i64::try_from(shown).unwrap() + offset_at(steps, KernelTime(shown));
                let found = KernelTime(at(steps, wall));
                assert_eq!(found.0 as i64 + offset_at(steps, found), wall, "{shown} {steps:?}");
            }
        }
    }
}
