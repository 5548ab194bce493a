//! Which levels are sampled when, on a tree of plain files.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::MemoryLevels::{All, Changed};
use super::*;
use crate::cgroupfs::CgroupFs;

const LIMIT: u64 = 1 << 20;

fn set(root: &Path, name: &str, usage: u64) -> MemoryLevel {
    let directory = root.join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("memory.max"), LIMIT.to_string()).unwrap();
    fs::write(directory.join("memory.current"), usage.to_string()).unwrap();
    let cgroup = CgroupId(fs::metadata(&directory).unwrap().ino());
    MemoryLevel { cgroup, path: format!("/{name}").into(), above: 0, limit: None }
}

fn sampler(root: &Path) -> Sampler {
    Sampler::new(MemoryFiles::V2(CgroupFs::at(root)), LimitNotices::new().ok(), Arc::default())
}

fn usages(samples: &[MemorySample]) -> Vec<u64> {
    samples.iter().map(|sample| sample.usage).collect()
}

#[test]
fn the_first_sample_is_handed_on_and_each_that_stands_otherwise_than_the_one_before_or_than_the_core() {
    let root = tempfile::tempdir().unwrap();
    let mut sampler = sampler(root.path());
    let now = Instant::now();
    let levels = vec![set(root.path(), "a", 0)];
    sampler.refresh(All(levels.clone()), now);
    assert_eq!(usages(&sampler.take_due(now)), [0]);
    let mut later = now;
    let samples = [
        (10, 0, false),
        (LIMIT, 0, true),
        (LIMIT - 1, 3, false),
        (20, 3, true),
        (30, 0, false),
        (40, 1, true),
    ];
    for (usage, above, handed_on) in samples {
        set(root.path(), "a", usage);
        later += LONGEST;
        let levels = levels.iter().map(|level| MemoryLevel { above, ..level.clone() });
        sampler.refresh(All(levels.collect()), later);
        let taken = usages(&sampler.take_due(later));
        assert_eq!(taken, if handed_on { vec![usage] } else { vec![] }, "{usage}");
    }
    assert!(sampler.take_due(later).is_empty(), "nothing is due");
}

#[test]
fn a_level_that_is_gone_is_not_sampled_any_more() {
    let root = tempfile::tempdir().unwrap();
    let mut sampler = sampler(root.path());
    let now = Instant::now();
    sampler.refresh(All(vec![set(root.path(), "a", 0), set(root.path(), "b", 0)]), now);
    fs::remove_dir_all(root.path().join("a")).unwrap();
    assert_eq!(sampler.take_due(now).len(), 1, "its directory is gone already");
    sampler.refresh(All(Vec::new()), now);
    assert!(sampler.levels.is_empty() && sampler.queue.is_empty());
    assert_eq!(sampler.counted.counters()[2].1, 0, "that is no failure");
}

#[test]
fn what_has_changed_is_taken_and_all_else_stays() {
    let root = tempfile::tempdir().unwrap();
    let mut sampler = sampler(root.path());
    let now = Instant::now();
    let [a, b, c] = ["a", "b", "c"].map(|name| set(root.path(), name, 0));
    let [of_a, of_b, of_c] = [&a, &b, &c].map(|level| level.cgroup);
    sampler.refresh(All(vec![a, b]), now);
    sampler.refresh(Changed(vec![(of_c, Some(c)), (of_a, None), (CgroupId(u64::MAX), None)]), now);
    let sampled: BTreeSet<_> = sampler.take_due(now).iter().map(|sample| sample.cgroup).collect();
    assert_eq!(sampled, [of_b, of_c].into());
    assert_eq!((sampler.levels.len(), sampler.queue.len()), (2, 2));
}

#[test]
fn a_level_that_reaches_its_limit_is_due_at_once_unless_it_is_known_to_be_above_all() {
    let root = tempfile::tempdir().unwrap();
    let mut sampler = sampler(root.path());
    let now = Instant::now();
    let level = set(root.path(), "a", 0);
    let events = root.path().join("a/memory.events.local");
    fs::write(&events, "max 0\n").unwrap();
    sampler.refresh(All(vec![level.clone()]), now);
    assert_eq!(usages(&sampler.take_due(now)), [0]);
    let calm = sampler.next_due().unwrap();
    set(root.path(), "a", LIMIT);
    fs::write(&events, "max 1\n").unwrap();
    sampler.wait(now + LONGEST);
    let due = sampler.next_due().unwrap();
    assert!((now + SHORTEST..calm).contains(&due), "{:?}", due - now);
    assert_eq!(usages(&sampler.take_due(due)), [LIMIT]);
    let calm = sampler.next_due();
    fs::write(&events, "max 2\n").unwrap();
    sampler.wait(now);
    assert_eq!(sampler.next_due(), calm, "that would be nothing new");
    assert_eq!(sampler.counted.counters()[3..], [("pressure_notices", 1), ("pressure_watches_failed", 0)]);
    sampler.refresh(All(Vec::new()), now);
    sampler.noticed(level.cgroup, now);
    assert_eq!(sampler.next_due(), None, "it is gone");
}

#[test]
fn no_more_files_are_read_than_allowed_and_the_rest_is_counted() {
    let root = tempfile::tempdir().unwrap();
    let mut sampler = sampler(root.path());
    let now = Instant::now();
    let count = FILES_PER_REFRESH / FILES + 7;
    let levels: Vec<_> = (0..count).map(|index| set(root.path(), &index.to_string(), LIMIT)).collect();
    sampler.refresh(All(levels.clone()), now);
    assert_eq!(sampler.take_due(now).len() as u64, FILES_PER_REFRESH / FILES);
    assert_eq!(sampler.next_due(), None, "it waits for the next second");
    assert_eq!(sampler.counted.counters()[1].1, 7);
    sampler.refresh(All(levels), now);
    assert_eq!(sampler.next_due(), None, "what has changed in this one allows no more");
    sampler.refill();
    assert_eq!(sampler.take_due(now).len(), 7);
}

#[test]
fn a_level_without_a_limit_is_left_alone_until_the_core_has_one_for_it() {
    let root = tempfile::tempdir().unwrap();
    let mut sampler = sampler(root.path());
    let now = Instant::now();
    let level = MemoryLevel { limit: Some(Bound::Unlimited), ..set(root.path(), "a", LIMIT) };
    fs::write(root.path().join("a/memory.max"), "max").unwrap();
    sampler.refresh(All(vec![level.clone()]), now);
    assert_eq!(usages(&sampler.take_due(now)), [0]);
    assert!(sampler.next_due().unwrap() > now + LONGEST);
    let later = now + 2 * LONGEST;
    sampler.refresh(All(vec![level.clone()]), later);
    assert!(sampler.take_due(later).is_empty());
    fs::write(root.path().join("a/memory.max"), LIMIT.to_string()).unwrap();
    sampler.refresh(All(vec![MemoryLevel { limit: Some(Bound::At(LIMIT)), ..level }]), later);
    assert_eq!(usages(&sampler.take_due(later)), [LIMIT]);
    assert!(sampler.next_due().unwrap() < later + LONGEST);
}

#[test]
fn a_level_without_a_limit_is_sampled_if_the_core_does_not_know_of_limits() {
    let root = tempfile::tempdir().unwrap();
    let mut sampler = sampler(root.path());
    let now = Instant::now();
    let level = set(root.path(), "a", LIMIT);
    fs::write(root.path().join("a/memory.max"), "max").unwrap();
    sampler.refresh(All(vec![level]), now);
    assert_eq!(usages(&sampler.take_due(now)), [0]);
    fs::write(root.path().join("a/memory.max"), LIMIT.to_string()).unwrap();
    assert_eq!(usages(&sampler.take_due(now + LONGEST)), [LIMIT]);
}

#[test]
fn files_that_are_not_there_are_looked_for_ever_less_often() {
    let root = tempfile::tempdir().unwrap();
    let mut sampler = sampler(root.path());
    let (began, level) = (Instant::now(), set(root.path(), "a", LIMIT));
    fs::remove_file(root.path().join("a/memory.max")).unwrap();
    sampler.refresh(All(vec![level]), began);
    let mut now = began;
    let mut pauses = Vec::new();
    for _ in 0..6 {
        assert!(sampler.take_due(now).is_empty());
        let next = sampler.next_due().unwrap();
        pauses.push(next - now);
        now = next;
    }
    assert!(pauses.is_sorted() && pauses[0] <= LONGEST && pauses[5] <= RARELY, "{pauses:?}");
    assert!(pauses[5] > RARELY * 7 / 8, "{pauses:?}");
    set(root.path(), "a", LIMIT);
    assert_eq!(usages(&sampler.take_due(now)), [LIMIT]);
}

#[test]
fn however_many_levels_have_no_files_few_of_them_are_due_in_a_second() {
    let root = tempfile::tempdir().unwrap();
    let mut sampler = sampler(root.path());
    let (began, second) = (Instant::now(), Duration::from_secs(1));
    // Twice as many as may be looked at once in the usual time.
    let count = 2 * RARELY.as_secs() * u64::from(RARE_PER_SECOND);
    let level = |id| MemoryLevel { cgroup: CgroupId(id), path: "/a".into(), above: 0, limit: None };
    sampler.refresh(All((1..=count).map(level).collect()), began);
    let mut now = began;
    let looks = |sampler: &mut Sampler, now: &mut Instant, seconds: u64| {
        let before = sampler.counted.counters()[0].1;
        for _ in 0..seconds {
            sampler.refill();
            assert!(sampler.take_due(*now).is_empty());
            *now += second;
        }
        sampler.counted.counters()[0].1 - before
    };
    // All of them once, and then in turns.
    looks(&mut sampler, &mut now, 4 * RARELY.as_secs());
    assert_eq!(u64::from(sampler.rare), count);
    let turn = 2 * RARELY.as_secs();
    let looked = looks(&mut sampler, &mut now, turn);
    assert!((count / 2..=count + count / 2).contains(&looked), "{looked} in {turn} s");
    sampler.refresh(All(Vec::new()), now);
    assert_eq!(sampler.rare, 0);
}

#[test]
fn times_of_levels_come_together_and_none_is_much_earlier() {
    for pause in [Duration::from_millis(250), LONGEST, RARELY] {
        let dues = (0..1000).map(|millis| aligned(Duration::from_millis(millis) + pause, pause));
        let dues: Vec<_> = dues.collect();
        for (millis, due) in (0..).zip(&dues) {
            let whole = Duration::from_millis(millis) + 2 * pause;
            assert!((whole - pause / 8..=whole).contains(due), "{pause:?} {millis} {due:?}");
        }
        let different: BTreeSet<_> = dues.into_iter().collect();
        let most = Duration::from_secs(1).as_millis() * 16 / pause.as_millis() + 2;
        assert!(different.len() as u128 <= most, "{pause:?}: {}", different.len());
    }
}
