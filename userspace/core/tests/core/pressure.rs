//! Memory pressure: crossings with hysteresis and a budget, from samples and from the kernel's records; fill rates, and when to
//! sample next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kwitness_abi::{Charge, ChargeSettings};
use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::{
    Basis, Bound, Caller, CgroupId, CgroupIndex, CgroupInfo, Direction, Fact, KernelEvent, KernelTime, Kind,
    LevelRole, MemoryCharge, MemoryLevels, MemorySample, MemorySamples, Observation, Output, Pressure, Scan,
    ScanReason, Thresholds,
};
use kwitness_core::node::Node;
use kwitness_core::pressure::PressureTracker;
use kwitness_core::pressure::sampling::{CALM, FillRate, LONGEST, SHORTEST, ThresholdState, interval};
use proptest::prelude::*;

use crate::common::{POD, container_path, mkdir, pod, runc};

const LIMIT: u64 = 1000;
const SECOND: u64 = 1_000_000_000;
/// Long enough for the whole budget.
const QUIET: u64 = 100 * SECOND;

/// Cgroups by their roles; all exist.
struct Levels(BTreeMap<CgroupId, LevelRole>);

impl CgroupIndex for Levels {
    fn info(&self, cgroup: CgroupId) -> Option<CgroupInfo> {
        let role = *self.0.get(&cgroup)?;
        Some(CgroupInfo { role, path: "/kubepods/x".into(), subject: None, pod: None, exists: true })
    }
}

struct Test {
    tracker: PressureTracker,
    levels: Levels,
    thresholds: Arc<Thresholds>,
    output: Output,
    now: u64,
}

impl Test {
    fn new() -> Self {
        let levels =
            [(1, LevelRole::Pod), (2, LevelRole::Container), (3, LevelRole::Inner), (4, LevelRole::Other)];
        Self {
            tracker: PressureTracker::default(),
            levels: Levels(levels.map(|(cgroup, role)| (CgroupId(cgroup), role)).into()),
            thresholds: Arc::default(),
            output: Output::default(),
            now: QUIET,
        }
    }

    fn sample(&mut self, cgroup: u64, usage: u64, limit: Bound) {
        let (at, cgroup) = (KernelTime(self.now), CgroupId(cgroup));
        let sample = MemorySample { at, cgroup, usage, limit, fill_rate: None };
        let sampled = MemorySamples { thresholds: Arc::clone(&self.thresholds), samples: vec![sample] };
        self.tracker.sampled(&sampled, &self.levels, &mut self.output);
    }

    /// A record of a charge of the pod's memory, by a process of the container, with how many thresholds the pod is above.
    fn charge(&mut self, usage: u64, above: usize, suppressed: u64) {
        let charger = Caller { pid: Some(7), cgroup: Some(CgroupId(2)), ..Caller::default() };
        let earlier = Some((KernelTime(self.now - SECOND / 2), usage.saturating_sub(100)));
        let charger = Some(charger);
        let charge = MemoryCharge { usage, limit: LIMIT, earlier, suppressed, above, charger };
        let at = KernelTime(self.now);
        self.tracker.charged(at, CgroupId(1), &charge, &self.levels, &mut self.output);
    }

    fn tick(&mut self) {
        self.tracker.tick(KernelTime(self.now), &self.levels, &mut self.output);
    }

    fn pressures(&mut self) -> Vec<Pressure> {
        let pressure = |kind| match kind {
            Kind::Pressure(pressure) => *pressure,
            other => panic!("{other:?}"),
        };
        self.output.events.drain(..).map(|event| pressure(event.kind)).collect()
    }

    fn crossings(&mut self) -> Vec<(Direction, u8)> {
        self.pressures().iter().map(|pressure| (pressure.direction, pressure.threshold)).collect()
    }

    /// What follows when usage of the pod, in thousandths of its limit, is that after a quiet time.
    fn crossed(&mut self, usage: u64) -> Vec<(Direction, u8)> {
        self.now += QUIET;
        self.sample(1, usage, Bound::At(LIMIT));
        self.crossings()
    }
}

use Direction::{Down, Up};

/// These thresholds as the kernel's program has them, of pages that are bytes.
fn charge_settings(thresholds: &[u8]) -> ChargeSettings {
    let mut settings =
        ChargeSettings { count: thresholds.len() as u8, hysteresis: 5, floor: 70, ..ChargeSettings::NONE };
    settings.percent[..thresholds.len()].copy_from_slice(thresholds);
    settings
}

#[test]
fn the_levels_that_have_changed_are_named_and_no_others() {
    let (mut node, mut output) = (Node::new(Bounds::default()), Output::default());
    let scan = Scan { cgroups: vec![pod()], ..Scan::empty(ScanReason::Initial, KernelTime(1)) };
    node.observe(Observation::Scan(scan), &mut output);
    let (mut known, all) = node.memory_levels_after(None).unwrap();
    let MemoryLevels::All(all) = all else { panic!("{all:?}") };
    assert_eq!(all.iter().map(|level| level.cgroup.0).collect::<Vec<_>>(), [POD]);
    let inner = format!("{}/inner", container_path(7));
    for (at, cgroup, fact, is_level) in [
        (2, 7, mkdir(POD, &container_path(7)), true),
        (3, 8, mkdir(7, &inner), false),
        (4, 7, Fact::Rmdir { actor: runc() }, false),
    ] {
        let event = KernelEvent { at: KernelTime(at), cgroup: CgroupId(cgroup), fact };
        node.observe(Observation::Kernel(event), &mut output);
        let (revision, levels) = node.memory_levels_after(Some(known)).unwrap();
        let MemoryLevels::Changed(levels) = levels else { panic!("{levels:?}") };
        let named: Vec<_> = levels.iter().map(|(cgroup, level)| (cgroup.0, level.is_some())).collect();
        assert_eq!(named, [(cgroup, is_level)]);
        known = revision;
    }
    assert_eq!(node.memory_levels_after(Some(known)), None);
}

#[test]
fn a_crossing_is_reported_once_by_whichever_shows_it_first() {
    let mut test = Test::new();
    test.charge(910, 2, 0);
    let events: Vec<_> = test.output.events.iter().map(|event| event.basis).collect();
    assert_eq!(events, [Basis::MemoryCharge; 2]);
    for pressure in test.pressures() {
        let charger = pressure.charger.unwrap();
        assert_eq!((charger.process.pid, charger.cgroup_path.as_deref()), (Some(7), Some("/kubepods/x")));
        assert_eq!(pressure.fill_rate, Some(200), "a hundred in half a second");
    }
    assert_eq!(test.tracker.above(CgroupId(1)), 2);
    assert_eq!(test.crossed(920), [], "the sample says the same");
    test.charge(960, 3, 0);
    assert_eq!(test.crossings(), [(Up, 95)]);
    assert_eq!(test.crossed(0), [(Down, 95), (Down, 90), (Down, 80)]);
    test.charge(850, 1, 0);
    assert_eq!(test.crossings(), [(Up, 80)]);
    test.charge(740, 0, 0);
    let [fallen] = &test.pressures()[..] else { panic!("one") };
    assert_eq!((fallen.direction, &fallen.charger), (Down, &None), "no process made it fall");
}

#[test]
fn a_sample_that_is_older_than_the_last_charge_says_nothing() {
    let mut test = Test::new();
    test.charge(800, 1, 0);
    assert_eq!(test.crossings(), [(Up, 80)]);
    test.now -= 1;
    test.sample(1, 0, Bound::At(LIMIT));
    assert_eq!(test.crossings(), []);
    test.now += 1;
    test.sample(1, 0, Bound::At(LIMIT));
    assert_eq!(test.crossings(), [(Down, 80)]);
}

#[test]
fn a_record_says_how_many_thresholds_a_level_is_above_as_far_as_its_usage_allows() {
    let mut test = Test::new();
    test.charge(950, 3, 0);
    test.pressures();
    test.now += QUIET;
    // It has fallen to nothing and risen again, unrecorded: by usage alone, 90 % would count as crossed by the hysteresis.
    test.charge(860, 1, 2);
    assert_eq!(test.crossings(), [(Down, 95), (Down, 90)]);
    test.now += QUIET;
    test.charge(900, 2, 0);
    assert_eq!(test.crossings(), [(Up, 90)]);
    test.now += QUIET;
    test.charge(1000, 7, 0);
    assert_eq!((test.crossings(), test.tracker.above(CgroupId(1))), (vec![(Up, 95)], 3));
}

#[test]
fn what_the_kernel_only_counted_is_counted() {
    let mut test = Test::new();
    test.charge(700, 0, 8);
    assert_eq!(test.crossings(), [], "it has come back to where it was");
    test.charge(800, 1, 6);
    let [pressure] = &test.pressures()[..] else { panic!("one") };
    assert_eq!(pressure.suppressed, 14);
    let counters = test.tracker.counters();
    assert_eq!((counters.crossings, counters.reported), (15, 1));
}

#[test]
fn thresholds_are_crossed_one_by_one_and_back_with_hysteresis() {
    let mut test = Test::new();
    assert_eq!(test.crossed(799), []);
    assert_eq!(test.crossed(800), [(Up, 80)]);
    assert_eq!(test.crossed(750), [], "five percent of the limit below it is still above");
    assert_eq!(test.crossed(899), []);
    assert_eq!(test.crossed(1000), [(Up, 90), (Up, 95)]);
    assert_eq!(test.crossed(899), [(Down, 95)]);
    assert_eq!(test.crossed(950), [(Up, 95)]);
    assert_eq!(test.crossed(0), [(Down, 95), (Down, 90), (Down, 80)]);
}

#[test]
fn a_limit_that_is_raised_or_removed_is_a_way_down() {
    let mut test = Test::new();
    assert_eq!(test.crossed(900).len(), 2);
    test.sample(1, 900, Bound::At(2 * LIMIT));
    assert_eq!(test.crossings(), [(Down, 90), (Down, 80)]);
    assert_eq!(test.crossed(900).len(), 2);
    test.sample(1, 0, Bound::Unlimited);
    assert_eq!(test.crossings(), [(Down, 90), (Down, 80)]);
}

#[test]
fn each_level_is_on_its_own_and_nothing_else_is_one() {
    let mut test = Test::new();
    for (cgroup, crossings) in [(1, 3), (2, 3), (3, 0), (4, 0), (5, 0)] {
        test.sample(cgroup, LIMIT, Bound::At(LIMIT));
        assert_eq!(test.crossings().len(), crossings, "{cgroup}");
    }
}

#[test]
fn what_came_too_fast_is_counted_and_the_state_is_right_in_the_end() {
    let mut test = Test::new();
    for round in 0..100 {
        test.sample(1, if round % 2 == 0 { LIMIT } else { 0 }, Bound::At(LIMIT));
    }
    assert_eq!(test.crossings().len(), 12, "the budget, and time has stood still");
    test.sample(1, LIMIT, Bound::At(LIMIT));
    assert_eq!(test.crossings(), []);
    test.now += SECOND;
    test.tick();
    let first = test.pressures();
    assert_eq!(first.len(), 1, "one a second");
    test.now += 2 * SECOND;
    test.tick();
    let rest = test.crossings();
    let of_first: Vec<_> = first.iter().map(|of| (of.direction, of.threshold)).collect();
    assert_eq!([of_first, rest].concat(), [(Up, 80), (Up, 90), (Up, 95)]);
    assert_eq!(first[0].suppressed, 3 * 101 - 12 - 3);
    let counters = test.tracker.counters();
    assert_eq!((counters.crossings, counters.reported), (3 * 101, 15));
}

#[test]
fn other_thresholds_go_on_from_the_state_that_was_reported() {
    let mut test = Test::new();
    assert_eq!(test.crossed(920), [(Up, 80), (Up, 90)]);
    test.thresholds = Arc::new(Thresholds::new(vec![50, 80, 95], 5).unwrap());
    assert_eq!(test.crossed(960), [(Up, 95)], "80 % was reported, and 50 % with it");
    test.thresholds = Arc::new(Thresholds::new(vec![60], 5).unwrap());
    assert_eq!(test.crossed(100), [(Down, 60)]);
}

#[test]
fn a_removed_level_is_forgotten() {
    let mut test = Test::new();
    assert_eq!(test.crossed(1000).len(), 3);
    let levels = std::mem::replace(&mut test.levels, Levels(BTreeMap::new()));
    test.tick();
    test.levels = levels;
    assert_eq!(test.crossed(1000).len(), 3, "another of its number begins anew");
}

#[test]
fn a_fill_rate_is_that_of_the_last_second() {
    let mut rate = FillRate::default();
    let mut push = |millis: u64, usage: u64| rate.push(KernelTime(millis * 1_000_000), usage);
    assert_eq!(push(0, 0), None);
    assert_eq!(push(500, 500), Some(1000));
    assert_eq!(push(1000, 500), Some(500));
    assert_eq!(push(1500, 250), Some(-250), "compared with the one a second before");
    assert_eq!(push(11_500, 1250), Some(100), "the last one is older than a second");
    assert_eq!(push(11_500, 1251), Some(100), "since the same one");
}

#[test]
fn the_nearer_and_the_faster_the_sooner_is_the_next_sample() {
    let thresholds = Thresholds::default();
    let next = |usage, rate| interval(&thresholds, usage, Bound::At(LIMIT), rate);
    assert_eq!(interval(&thresholds, 5, Bound::Unlimited, Some(1)), LONGEST);
    assert_eq!(next(400, None), Duration::from_secs(2), "8 s to 80 %");
    assert_eq!(next(400, Some(-5)), Duration::from_secs(2));
    assert_eq!(next(400, Some(400)), CALM, "1 s to 80 %");
    assert_eq!(next(400, Some(1_000_000)), SHORTEST);
    assert_eq!(next(799, None), CALM);
    assert_eq!(next(1000, Some(1_000_000)), CALM, "it can only fall");
    assert_eq!(interval(&thresholds, 0, Bound::At(0), Some(1)), CALM);
}

proptest! {
    /// Whoever leaves out the charges that the kernel's program leaves out gets the same events, in the same order.
    #[test]
    fn charges_without_a_record_make_no_event(
        steps in prop::collection::vec((0..120_u64, 0..120_u64), 1..60),
    ) {
        let (mut all, mut some) = (Test::new(), Test::new());
        let settings = charge_settings(&[80, 90, 95]);
        // Near the thresholds, and freed as much as charged: otherwise usage would hardly ever come to one.
        let (mut usage, mut above) = (700, 0);
        for (freed, charged) in steps {
            let before = usage - freed % (usage + 1);
            usage = before + charged;
            // The program forgets nothing of a level that is far below: it passes the band on its way up. A rise that follows a
            // fall within one charge is seen by the next, here one of nothing.
            let charges = [(before, usage), (usage, usage)].map(|(before, after)| Charge { before, after, limit: LIMIT });
            let mut recorded = Vec::new();
            for charge in charges {
                let standing = settings.standing(above, charge);
                if std::mem::replace(&mut above, standing.above) != standing.above {
                    some.now += QUIET;
                    some.charge(standing.usage, standing.above as usize, 0);
                    recorded.extend(some.crossings());
                }
            }
            let mut expected = all.crossed(before);
            expected.extend(all.crossed(usage));
            prop_assert_eq!(recorded, expected);
        }
    }

    /// Crossings that make no record, because the level has made its share of them, are counted by the next one; and the tracker
    /// has the level above as many thresholds as the program has.
    #[test]
    fn suppressed_crossings_add_up(
        steps in prop::collection::vec((0..120_u64, 0..120_u64, any::<bool>()), 1..100),
    ) {
        let mut test = Test::new();
        let settings = charge_settings(&[80, 90, 95]);
        let (mut usage, mut above, mut reported) = (700, 0_u32, 0);
        let (mut crossed, mut counted) = (0, 0);
        for (freed, charged, has_share) in steps {
            let before = usage - freed % (usage + 1);
            usage = before + charged;
            let standing = settings.standing(above, Charge { before, after: usage, limit: LIMIT });
            crossed += u64::from(above.abs_diff(standing.above));
            above = standing.above;
            if above != reported && has_share {
                test.now += QUIET;
                test.charge(standing.usage, above as usize, crossed - u64::from(above.abs_diff(reported)));
                prop_assert_eq!(test.tracker.above(CgroupId(1)), above as usize);
                counted += std::mem::take(&mut crossed);
                reported = above;
            }
        }
        let shown: u64 = test.pressures().iter().map(|pressure| 1 + pressure.suppressed).sum();
        prop_assert_eq!((shown, test.tracker.counters().crossings), (counted, counted));
    }

    /// A level that fell while nothing was charged is found to have fallen by the charges in the band below the thresholds: the
    /// first of them that is looked at, if none is larger than the band.
    #[test]
    fn no_fall_is_missed_on_the_way_up(bottom in 0..749_u64, steps in prop::collection::vec(1..50_u64, 1..200)) {
        let settings = charge_settings(&[80]);
        let (mut usage, mut above) = (bottom, 1);
        for charged in steps {
            let charge = Charge { before: usage, after: usage + charged, limit: LIMIT };
            usage += charged;
            if settings.is_near(charge) {
                above = settings.standing(above, charge).above;
                prop_assert_eq!(above, u32::from(usage >= 800), "first at {}", usage);
            }
        }
    }

    /// With budget for all of it, each threshold is a switch of its own.
    #[test]
    fn crossings_are_those_of_independent_switches(usages in prop::collection::vec(0..1100_u64, 1..60)) {
        let mut test = Test::new();
        let mut switches = [(80_u8, false), (90, false), (95, false)];
        for usage in usages {
            let before = switches;
            for (percent, is_above) in &mut switches {
                let edge = u64::from(if *is_above { *percent - 5 } else { *percent });
                *is_above = usage * 100 >= LIMIT * edge;
            }
            let changed = |wanted: bool| {
                let pairs = before.iter().zip(&switches);
                pairs.filter(move |(was, is)| was.1 != is.1 && is.1 == wanted).map(|(_, is)| is.0).collect::<Vec<_>>()
            };
            let up = changed(true).into_iter().map(|percent| (Up, percent));
            let down = changed(false).into_iter().rev().map(|percent| (Down, percent));
            prop_assert_eq!(test.crossed(usage), up.chain(down).collect::<Vec<_>>());
        }
    }

    /// Whatever the pace: no more events than the budget, none lost uncounted, the right state in the end, and the same events
    /// from a tracker that was written and read in between.
    #[test]
    fn events_are_bounded_and_add_up(
        steps in prop::collection::vec((0..1100_u64, 0..400_u64, any::<bool>()), 1..200),
        written_after in 0..200_usize,
    ) {
        let (mut test, mut other) = (Test::new(), Test::new());
        let mut last = 0;
        for (index, (usage, millis, ticks)) in steps.into_iter().enumerate() {
            if index == written_after {
                let written = serde_json::to_string(&other.tracker).unwrap();
                other.tracker = serde_json::from_str(&written).unwrap();
            }
            for test in [&mut test, &mut other] {
                test.now += millis * 1_000_000;
                test.sample(1, usage, Bound::At(LIMIT));
                if ticks {
                    test.tick();
                }
            }
            last = usage;
        }
        let seconds = (test.now - QUIET) / SECOND;
        prop_assert!(test.output.events.len() as u64 <= 12 + seconds + 1);
        test.now += QUIET;
        test.tick();
        other.now = test.now;
        other.tick();
        let events = test.pressures();
        prop_assert_eq!(&events, &other.pressures());

        let mut above = Vec::new();
        for event in &events {
            match event.direction {
                Up => {
                    prop_assert!(above.last().is_none_or(|highest| *highest < event.threshold));
                    above.push(event.threshold);
                }
                Down => prop_assert_eq!(above.pop(), Some(event.threshold)),
            }
        }
        for percent in [80, 90, 95] {
            let share = last * 100 / LIMIT;
            if share >= percent {
                prop_assert!(above.contains(&u8::try_from(percent).unwrap()));
            } else if share < percent - 5 {
                prop_assert!(!above.contains(&u8::try_from(percent).unwrap()));
            }
        }
        // What was left out is in a later event, or the state came back to what was reported.
        let counters = test.tracker.counters();
        let suppressed: u64 = events.iter().map(|event| event.suppressed).sum();
        prop_assert_eq!(counters.reported, events.len() as u64);
        prop_assert!(counters.crossings >= counters.reported + suppressed);
    }

    #[test]
    fn the_next_sample_comes_before_the_next_threshold(
        usage in 0..2 * LIMIT,
        limit in 0..2 * LIMIT,
        rate in prop::option::of(-LIMIT.cast_signed()..10 * LIMIT.cast_signed()),
    ) {
        let thresholds = Thresholds::default();
        let next = interval(&thresholds, usage, Bound::At(limit), rate);
        prop_assert!((SHORTEST..=LONGEST).contains(&next));
        let Some(rate) = rate.and_then(|rate| u64::try_from(rate).ok()).filter(|rate| *rate > 0) else {
            prop_assert!(next >= CALM);
            return Ok(());
        };
        let until = |percent: u64| (limit * percent / 100).saturating_sub(usage) as f64 / rate as f64;
        if let Some(seconds) = [80, 90, 95].map(until).into_iter().find(|seconds| *seconds > 0.0) {
            prop_assert!(next.as_secs_f64() <= seconds.max(SHORTEST.as_secs_f64()), "{next:?}, {seconds}");
        }
    }

    /// Who leaves out the samples that stand as the one before gets the same events.
    #[test]
    fn samples_that_stand_the_same_make_no_event(usages in prop::collection::vec(700..1000_u64, 1..60)) {
        let (mut all, mut some) = (Test::new(), Test::new());
        let mut last = None;
        for usage in usages {
            let state = ThresholdState::of(&some.thresholds, usage, Bound::At(LIMIT));
            let is_same = last.replace(state) == Some(state);
            let crossings = if is_same { Vec::new() } else { some.crossed(usage) };
            prop_assert_eq!(all.crossed(usage), crossings);
        }
    }

    #[test]
    fn usage_of_any_limit_stands_somewhere(usage in any::<u64>(), limit in any::<u64>(), before in 0..=3_usize) {
        let state = ThresholdState::of(&Thresholds::default(), usage, Bound::At(limit));
        prop_assert!(state.above(before) <= 3);
    }

    #[test]
    fn a_fill_rate_never_panics(samples in prop::collection::vec(any::<(u64, u64)>(), 0..100)) {
        let mut rate = FillRate::default();
        for (at, usage) in samples {
            rate.push(KernelTime(at), usage);
        }
    }
}
