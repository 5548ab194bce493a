//! Writes to limit files and what reading them back makes of them.

mod verdicts;

use std::collections::HashMap;
use std::sync::Arc;

use kwitness_core::limits::{LimitTracker, initial};
use kwitness_core::model::{
    Action, Actor, Basis, Bound, Caller, CgroupId, CgroupIndex, CgroupInfo, CpuMax, Fact, KernelEvent,
    KernelTime, Kind, LevelRole, LimitChange, LimitFile, LimitWrite, LimitsAnswer, Observation, Output,
    PathText, PodNames, PodRef, PodUid, QosClass, Reading, Scan, ScanReason, ScannedCgroup, Value, WriteHook,
    WritePhase, WriteResult, WrittenValue,
};

const POD: CgroupId = CgroupId(7);
const EINVAL: i32 = 22;

#[derive(Default)]
struct Map(HashMap<CgroupId, CgroupInfo>);

impl CgroupIndex for Map {
    fn info(&self, cgroup: CgroupId) -> Option<CgroupInfo> {
        self.0.get(&cgroup).cloned()
    }
}

/// More than these tests follow.
const CGROUPS: usize = 1024;

struct Fixture {
    limits: LimitTracker,
    index: Map,
    output: Output,
    now: u64,
}

impl Fixture {
    /// A pod whose making was seen.
    fn new() -> Self {
        let mut fixture = Self::unseen();
        fixture.kernel(Fact::Mkdir {
            parent: CgroupId(1),
            path: PathText::Full("/kubepods/podu".into()),
            root: false,
            beyond_share: false,
            actor: Actor { pid: 1, comm: "kubelet".into() },
        });
        fixture
    }

    /// A pod of which is not known what its files say.
    fn unseen() -> Self {
        let place = CgroupInfo {
            role: LevelRole::Pod,
            path: "/kubepods/podu".into(),
            subject: None,
            pod: Some(PodNames::unnamed(PodRef { uid: PodUid("u".into()), qos: QosClass::Guaranteed })),
            exists: true,
        };
        let index = Map([(POD, place)].into());
        Self { limits: LimitTracker::new(CGROUPS), index, output: Output::default(), now: 0 }
    }

    fn observe(&mut self, observation: &Observation) {
        self.limits.observe(observation, &self.index, &mut self.output);
    }

    fn kernel(&mut self, fact: Fact) -> KernelTime {
        self.now += 10;
        let at = KernelTime(self.now);
        self.observe(&Observation::Kernel(KernelEvent { at, cgroup: POD, fact }));
        at
    }

    fn phase(
        &mut self,
        limit_file: LimitFile,
        value: Option<&str>,
        phase: WritePhase,
        began: u64,
    ) -> KernelTime {
        let value = value.map(|text| WrittenValue { text: text.into(), truncated: false });
        let writer = Caller { pid: Some(5), tid: Some(5), comm: Some("runc".into()), ..Caller::default() };
        let began = Some(KernelTime(began));
        self.kernel(Fact::LimitWrite(Box::new(LimitWrite {
            limit_file,
            phase,
            value,
            writer,
            began,
            seen_by: WriteHook::Fentry,
        })))
    }

    fn write(&mut self, limit_file: LimitFile, value: &str) -> KernelTime {
        let began = self.now;
        let phase = WritePhase::Returned { result: WriteResult::Accepted, at: None };
        self.phase(limit_file, Some(value), phase, began)
    }

    fn refused(&mut self, limit_file: LimitFile, value: &str) {
        let began = self.now;
        let phase = WritePhase::Returned { result: WriteResult::Refused { errno: EINVAL }, at: None };
        self.phase(limit_file, Some(value), phase, began);
    }

    /// Reading that began after all that has been observed.
    fn read(&mut self, whole: bool, readings: &[(LimitFile, Reading)]) {
        self.now += 10;
        self.read_begun_at(self.now, whole, readings);
    }

    fn read_begun_at(&mut self, began: u64, whole: bool, readings: &[(LimitFile, Reading)]) {
        self.observe(&Observation::LimitsRead(LimitsAnswer {
            cgroup: POD,
            path: Some("/kubepods/podu".into()),
            began: KernelTime(began),
            ended: KernelTime(began + 1),
            gone: false,
            whole,
            readings: readings.to_vec(),
        }));
    }

    fn changes(&mut self) -> Vec<LimitChange> {
        self.output
            .events
            .drain(..)
            .map(|event| match event.kind {
                Kind::LimitChanged(changed) => {
                    let basis = if changed.write.is_some() { Basis::LimitWrite } else { Basis::LimitRead };
                    assert_eq!(event.basis, basis);
                    *changed
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// Which files are to be read; none: all.
    fn requested_reads(&mut self) -> Vec<Option<LimitFile>> {
        self.output
            .actions
            .drain(..)
            .map(|action| match action {
                Action::ReadLimits(read) => {
                    assert_eq!((read.cgroup, read.path.as_deref()), (POD, Some("/kubepods/podu")));
                    read.limit_file
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }
}

fn bytes(bytes: u64) -> Reading {
    Reading::Is(Value::Bound(Bound::At(bytes)))
}

fn unlimited() -> Reading {
    Reading::Is(Value::Bound(Bound::Unlimited))
}

fn old_and_new(changes: &[LimitChange]) -> Vec<(Reading, Reading, bool)> {
    changes.iter().map(|changed| (changed.old.clone(), changed.new.clone(), changed.read_back)).collect()
}

#[test]
fn a_write_is_reported_with_what_the_file_says_then() {
    let mut fixture = Fixture::new();
    fixture.write(LimitFile::MemoryMax, "5000");
    assert_eq!(fixture.requested_reads(), [Some(LimitFile::MemoryMax)]);
    assert_eq!(fixture.changes(), [], "not before it was read");
    fixture.read(false, &[(LimitFile::MemoryMax, bytes(4096))]);
    let changes = fixture.changes();
    assert_eq!(old_and_new(&changes), [(unlimited(), bytes(4096), true)], "a new cgroup has no limit");
    let changed = &changes[0];
    assert_eq!((changed.path.as_deref(), changed.role), (Some("/kubepods/podu"), Some(LevelRole::Pod)));
    let write = changed.write.as_ref().unwrap();
    assert_eq!(&*write.value.as_ref().unwrap().text, "5000");
    assert_eq!((write.writer.pid, write.result), (Some(5), WriteResult::Accepted));
}

#[test]
fn a_burst_is_reported_write_by_write() {
    let mut fixture = Fixture::new();
    for value in ["1", "2", "2", "3"] {
        fixture.write(LimitFile::PidsMax, value);
    }
    assert_eq!(fixture.requested_reads(), [Some(LimitFile::PidsMax)], "one reading for all");
    fixture.read(false, &[(LimitFile::PidsMax, bytes(3))]);
    assert_eq!(
        old_and_new(&fixture.changes()),
        [(unlimited(), bytes(1), false), (bytes(1), bytes(2), false), (bytes(2), bytes(3), true)]
    );
    assert_eq!(fixture.limits.counters().unchanged, 1);
}

#[test]
fn a_write_after_the_reading_began_is_read_again() {
    let mut fixture = Fixture::new();
    let first = fixture.write(LimitFile::PidsMax, "1");
    fixture.requested_reads();
    fixture.write(LimitFile::PidsMax, "2");
    assert_eq!(fixture.requested_reads(), []);
    fixture.read_begun_at(first.0 + 1, false, &[(LimitFile::PidsMax, bytes(2))]);
    assert_eq!(fixture.requested_reads(), [Some(LimitFile::PidsMax)]);
    fixture.read(false, &[(LimitFile::PidsMax, bytes(2))]);
    assert_eq!(fixture.requested_reads(), []);
    let changes = fixture.changes();
    assert_eq!(changes.last().unwrap().new, bytes(2));
    assert!(changes.iter().all(|changed| changed.write.is_some()), "nothing is found that was seen");
}

#[test]
fn a_refused_write_is_reported_with_its_errno() {
    let mut fixture = Fixture::new();
    fixture.refused(LimitFile::CpuMax, "410000 100000");
    let before = initial(LimitFile::CpuMax).map_or(Reading::Absent, Reading::Is);
    fixture.read(false, &[(LimitFile::CpuMax, before.clone())]);
    let changes = fixture.changes();
    assert_eq!(old_and_new(&changes), [(before.clone(), before, true)]);
    assert_eq!(changes[0].write.as_ref().unwrap().result, WriteResult::Refused { errno: EINVAL });
    let attempts = fixture.limits.attempts(POD, LimitFile::CpuMax, &fixture.index);
    assert_eq!(attempts[0].result, WriteResult::Refused { errno: EINVAL });
    assert_eq!(&*attempts[0].writer.as_ref().unwrap().comm, "runc");
}

/// runc writes both files of a huge page's size. A container's burst keeps its quota from being lowered; a node's own group cannot
/// be given a controller while real-time tasks are above.
#[test]
fn each_file_of_a_limit_and_each_refusal_is_reported_by_itself() {
    let mut fixture = Fixture::new();
    for file in ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"] {
        let file = file.parse().unwrap();
        fixture.write(file, "4194304");
        fixture.read(false, &[(file, bytes(4 << 20))]);
        let changes = fixture.changes();
        assert_eq!(changes.iter().map(|changed| changed.limit_file).collect::<Vec<_>>(), [file]);
        assert_eq!(changes[0].new, bytes(4 << 20));
    }
    for (file, value) in [
        (LimitFile::CpuMaxBurst, "30000"),
        (LimitFile::CpuMax, "50000 100000"),
        (LimitFile::CgroupSubtreeControl, "+cpu"),
    ] {
        fixture.refused(file, value);
        let before = initial(file).map_or(Reading::Absent, Reading::Is);
        fixture.read(false, &[(file, before)]);
        let changes = fixture.changes();
        let [refused] = &changes[..] else { panic!("{file}: {changes:?}") };
        assert_eq!((refused.limit_file, &refused.old), (file, &refused.new));
        let write = refused.write.as_ref().unwrap();
        assert_eq!(write.result, WriteResult::Refused { errno: EINVAL });
        assert_eq!(write.value.as_ref().map(|value| &*value.text), Some(value), "{file}");
    }
}

#[test]
fn more_writes_than_are_kept_are_counted_with_the_last() {
    let mut fixture = Fixture::new();
    let count = LimitTracker::PENDING + 10;
    for value in 1..=count {
        fixture.write(LimitFile::PidsMax, &value.to_string());
    }
    fixture.read(false, &[(LimitFile::PidsMax, bytes(count as u64))]);
    let changes = fixture.changes();
    assert_eq!(changes.len(), LimitTracker::PENDING);
    assert_eq!(
        (&changes[LimitTracker::PENDING - 1].new, changes[LimitTracker::PENDING - 1].coalesced),
        (&bytes(count as u64), 10)
    );
    assert_eq!(fixture.limits.counters().coalesced, 10);
}

#[test]
fn a_cgroup_that_vanishes_before_it_is_read_is_named() {
    let mut fixture = Fixture::new();
    fixture.write(LimitFile::MemoryMax, "4096");
    fixture.requested_reads();
    fixture.kernel(Fact::Rmdir { actor: Actor { pid: 1, comm: "kubelet".into() } });
    assert_eq!(old_and_new(&fixture.changes()), [(unlimited(), Reading::Gone, true)]);
    fixture.read(false, &[(LimitFile::MemoryMax, Reading::Gone)]);
    assert_eq!(fixture.changes(), [], "once");
}

fn scan(reason: ScanReason) -> Observation {
    let cgroup = ScannedCgroup {
        id: POD,
        parent: CgroupId(1),
        path: "/kubepods/podu".into(),
        beyond_share: false,
        populated: None,
        processes: Vec::new(),
    };
    let empty = Scan::empty(reason, KernelTime(1));
    Observation::Scan(Scan { ended: KernelTime(2), cgroups: vec![cgroup], ..empty })
}

#[test]
fn what_was_not_seen_is_found() {
    let mut fixture = Fixture::unseen();
    fixture.observe(&scan(ScanReason::Initial));
    assert_eq!(fixture.requested_reads(), [None]);
    fixture.read(true, &[(LimitFile::MemoryMax, bytes(4096)), (LimitFile::PidsMax, unlimited())]);
    assert_eq!(fixture.changes(), [], "the first look is no change");

    fixture.observe(&scan(ScanReason::Repair));
    assert_eq!(fixture.requested_reads(), [None]);
    let quota = Reading::Is(Value::Cpu(CpuMax { quota: Bound::At(1000), period: 100_000 }));
    fixture.read(true, &[(LimitFile::MemoryMax, bytes(8192)), (LimitFile::CpuMax, quota.clone())]);
    let changes = fixture.changes();
    assert_eq!(
        old_and_new(&changes),
        [
            (bytes(4096), bytes(8192), true),
            (Reading::Absent, quota, true),
            (unlimited(), Reading::Absent, true)
        ],
        "a controller was enabled, another disabled"
    );
    assert!(changes.iter().all(|changed| changed.write.is_none()));
    assert_eq!(fixture.limits.counters().found, 3);
}

#[test]
fn what_changed_unseen_after_a_reading_began_is_found_by_another() {
    let mut fixture = Fixture::unseen();
    fixture.observe(&scan(ScanReason::Initial));
    assert_eq!(fixture.requested_reads(), [None]);
    // A loss, and its scan, while that reading is under way.
    fixture.observe(&scan(ScanReason::Repair));
    assert_eq!(fixture.requested_reads(), []);
    fixture.read_begun_at(1, true, &[(LimitFile::MemoryMax, bytes(4096))]);
    assert_eq!(fixture.requested_reads(), [None]);
    fixture.read_begun_at(3, true, &[(LimitFile::MemoryMax, bytes(8192))]);
    assert_eq!(old_and_new(&fixture.changes()), [(bytes(4096), bytes(8192), true)]);
    assert_eq!(fixture.requested_reads(), [], "it began after the scan");
}

#[test]
fn a_new_cgroup_without_a_controller_has_not_changed() {
    let mut fixture = Fixture::new();
    fixture.kernel(Fact::LimitWritesSuppressed(500));
    assert_eq!(fixture.requested_reads(), [None]);
    fixture.read(true, &[(LimitFile::PidsMax, bytes(9))]);
    let changes = fixture.changes();
    assert_eq!(old_and_new(&changes), [(unlimited(), bytes(9), true)]);
    assert_eq!(changes[0].coalesced, 500, "the writes that it stands for");
}

#[test]
fn what_a_write_that_has_not_returned_has_set_is_not_found() {
    let mut fixture = Fixture::new();
    fixture.phase(LimitFile::MemoryMax, Some("4096"), WritePhase::Began, 1);
    let running = fixture.limits.attempts(POD, LimitFile::MemoryMax, &fixture.index);
    assert_eq!((running.len(), running[0].ended), (1, None));
    fixture.read(true, &[(LimitFile::MemoryMax, bytes(4096))]);
    assert_eq!(fixture.changes(), []);
    let phase = WritePhase::Returned { result: WriteResult::Accepted, at: None };
    fixture.phase(LimitFile::MemoryMax, Some("4096"), phase, 1);
    fixture.read(false, &[(LimitFile::MemoryMax, bytes(4096))]);
    let changes = fixture.changes();
    assert_eq!(old_and_new(&changes), [(unlimited(), bytes(4096), true)]);
    assert!(changes[0].write.is_some());
}

fn tick(fixture: &mut Fixture, after: u64) {
    let at = KernelTime(fixture.now + after);
    fixture.observe(&Observation::Tick { at });
    fixture.now = at.0;
}

#[test]
fn a_write_that_is_not_seen_to_return_is_reported_all_the_same() {
    let mut fixture = Fixture::new();
    fixture.phase(LimitFile::MemoryMax, Some("4096"), WritePhase::Began, 1);
    tick(&mut fixture, LimitTracker::RETURNS_WITHIN - 1);
    assert_eq!(fixture.requested_reads(), []);
    tick(&mut fixture, 1);
    assert_eq!(fixture.requested_reads(), [Some(LimitFile::MemoryMax)]);
    fixture.read(false, &[(LimitFile::MemoryMax, bytes(4096))]);
    let changes = fixture.changes();
    assert_eq!(old_and_new(&changes), [(unlimited(), bytes(4096), true)]);
    let write = changes[0].write.as_ref().unwrap();
    assert_eq!(
        (write.result, write.returned, write.began),
        (WriteResult::Unknown, None, Some(KernelTime(1)))
    );
    assert_eq!(fixture.limits.counters().unreturned, 1);

    // It blocks no other any more: an unseen change is found.
    fixture.read(true, &[(LimitFile::MemoryMax, bytes(8192))]);
    let changes = fixture.changes();
    assert_eq!(old_and_new(&changes), [(bytes(4096), bytes(8192), true)]);
    assert!(changes[0].write.is_none());

    // And should it return after all, that is no news.
    let phase = WritePhase::Returned { result: WriteResult::Accepted, at: None };
    fixture.phase(LimitFile::MemoryMax, Some("4096"), phase, 1);
    fixture.read(false, &[(LimitFile::MemoryMax, bytes(8192))]);
    assert_eq!(fixture.changes(), []);
    tick(&mut fixture, 2 * LimitTracker::RETURNS_WITHIN);
    assert_eq!(
        (fixture.requested_reads(), fixture.limits.counters().unreturned),
        (vec![Some(LimitFile::MemoryMax)], 1)
    );
}

#[test]
fn a_write_that_is_not_seen_to_return_before_its_cgroup_goes_is_reported() {
    let mut fixture = Fixture::new();
    fixture.phase(LimitFile::MemoryMax, Some("4096"), WritePhase::Began, 1);
    fixture.kernel(Fact::Rmdir { actor: Actor { pid: 1, comm: "runc".into() } });
    let changes = fixture.changes();
    assert_eq!(old_and_new(&changes), [(unlimited(), Reading::Gone, true)]);
    assert_eq!(fixture.limits.counters().unreturned, 1);
    tick(&mut fixture, LimitTracker::RETURNS_WITHIN);
    assert_eq!((fixture.requested_reads(), fixture.limits.counters().unreturned), (vec![], 1));
}

#[test]
fn of_more_writes_at_once_than_are_kept_the_oldest_is_given_up() {
    let mut fixture = Fixture::new();
    for began in 1..=LimitTracker::RUNNING as u64 {
        fixture.phase(LimitFile::MemoryMax, Some("4096"), WritePhase::Began, began);
    }
    assert_eq!(fixture.requested_reads(), []);
    fixture.phase(LimitFile::MemoryMax, Some("8192"), WritePhase::Began, 100);
    assert_eq!(fixture.requested_reads(), [Some(LimitFile::MemoryMax)]);
    fixture.read(false, &[(LimitFile::MemoryMax, bytes(4096))]);
    let changes = fixture.changes();
    assert_eq!(old_and_new(&changes), [(unlimited(), bytes(4096), true)]);
    assert_eq!(changes[0].write.as_ref().unwrap().began, Some(KernelTime(1)));
    assert_eq!(fixture.limits.counters().unreturned, 1);
}

#[test]
fn writes_whose_text_was_not_seen_are_reported_as_one() {
    let mut fixture = Fixture::new();
    for _ in 0..3 {
        let phase = WritePhase::Returned { result: WriteResult::Accepted, at: None };
        fixture.phase(LimitFile::PidsMax, None, phase, 1);
    }
    fixture.read(false, &[(LimitFile::PidsMax, bytes(3))]);
    let changes = fixture.changes();
    assert_eq!(old_and_new(&changes), [(unlimited(), bytes(3), true)]);
    assert_eq!(changes[0].coalesced, 2);
}

/// As fanotify shows that a runtime has frozen a cgroup and thawed it.
#[test]
fn writes_whose_text_was_not_seen_and_that_changed_nothing_are_no_change() {
    let mut fixture = Fixture::new();
    for _ in 0..2 {
        let phase = WritePhase::Returned { result: WriteResult::Accepted, at: None };
        fixture.phase(LimitFile::CgroupFreeze, None, phase, 1);
    }
    let thawed = || Reading::Is(Value::Number(0));
    fixture.read(false, &[(LimitFile::CgroupFreeze, thawed())]);
    assert_eq!(fixture.changes(), []);
    assert_eq!(fixture.limits.counters().unchanged, 1);
}

#[test]
fn a_write_whose_outcome_is_not_known_is_reported_if_it_changed_the_file() {
    let mut fixture = Fixture::new();
    let phase = WritePhase::Returned { result: WriteResult::Unknown, at: None };
    fixture.phase(LimitFile::PidsMax, None, phase, 1);
    fixture.read(false, &[(LimitFile::PidsMax, unlimited())]);
    assert_eq!(fixture.changes(), [], "a refused write, for all that is known");
    fixture.phase(LimitFile::PidsMax, None, phase, 1);
    fixture.read(false, &[(LimitFile::PidsMax, bytes(3))]);
    let changes = fixture.changes();
    assert_eq!(old_and_new(&changes), [(unlimited(), bytes(3), true)]);
    assert_eq!(changes[0].write.as_ref().unwrap().result, WriteResult::Unknown);
}

#[test]
fn an_unknown_cgroup_is_looked_for() {
    let mut fixture = Fixture::unseen();
    fixture.index.0.clear();
    fixture.write(LimitFile::MemoryMax, "4096");
    let Some(Action::ReadLimits(read)) = fixture.output.actions.pop() else { panic!() };
    assert_eq!(read.path, None);
    fixture.read(false, &[(LimitFile::MemoryMax, bytes(4096))]);
    let changes = fixture.changes();
    assert!(matches!(changes[0].old, Reading::Unknown(_)), "{:?}", changes[0].old);
    assert_eq!(changes[0].path, Some(Arc::from("/kubepods/podu")), "as the reader found it");
}

#[test]
fn what_a_new_cgroup_says_can_be_read_by_its_format() {
    for limit_file in LimitFile::all() {
        let Some(value) = initial(limit_file) else { continue };
        let text = value.to_string();
        assert_eq!(Value::parse(limit_file.format(), &text), Ok(value), "{limit_file}");
    }
}
