//! Writes to limit files, by each kind of hook: value, writer, outcome and times; which are reported, which are not, and how often.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use kwitness_abi::RecordKind;
use kwitness_agent::cgroupfs::{CgroupFs, Subtree, Watch};
use kwitness_agent::probe::capability::{HookKind, LIMIT_WRITES};
use kwitness_core::model::{
    CgroupId, Fact, GapCause, KernelEvent, LimitFile, LimitWrite, Observation, WriteHook, WritePhase,
    WriteResult, WrittenValue,
};
use kwitness_tests::environment::find_cgroup2;
use kwitness_tests::prelude::*;
use kwitness_tests::process::cgroup_path;
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;

use crate::child::{Action, Child};
use crate::producer;
use crate::session::{Root, Session};
use crate::{Loaded, Scenario, by_function_hooks};

/// Each with either kind of hook at a function.
const SCENARIOS: &[Scenario] = &[
    ("a_limit_write_is_reported_whole", whole),
    ("a_refused_limit_write_has_its_errno", refused),
    ("only_limits_of_the_tracked_and_of_those_above_are_reported", filtered),
    ("a_value_longer_than_the_record", long_value),
    ("ten_thousand_writes_by_one_lose_no_other", flood),
];

pub fn cases(ctx: &TestContext, loaded: &Arc<Loaded>) -> Vec<Case> {
    let mut cases = by_function_hooks(ctx, loaded, SCENARIOS);
    let shared = Arc::clone(loaded);
    cases.push(Case::new("syscall_reports_a_write_and_a_refusal", move |ctx| {
        let parent = &ctx.environment.cgroup_directory();
        shared.with(HookKind::Syscall, parent, |session| by_syscall(session, parent))
    }));
    let (loaded, shared) = (Arc::clone(loaded), Arc::clone(loaded));
    cases.push(Case::new("fanotify_reports_who_wrote_which_limit", move |ctx| {
        let parent = &ctx.environment.cgroup_directory();
        loaded.with(HookKind::RawTracepoint, parent, |session| noticed(session, parent))
    }));
    let slow = ctx.environment.tier == Tier::Vm && !ctx.environment.long;
    let overflow = Case::new("what_fanotifys_queue_has_no_room_for_is_a_loss", move |ctx| {
        let parent = &ctx.environment.cgroup_directory();
        shared.with(HookKind::RawTracepoint, parent, |session| overflown(session, parent))
    });
    cases.push(overflow.refused(slow.then_some("sixteen thousand writes in an emulated guest")));
    cases
}

/// A root whose children have limits of their own.
pub fn root_with_controllers(parent: &Path, name: &str) -> Result<Root> {
    let root = Root::make(parent, name)?;
    cgroup::write(root.directory(), "cgroup.subtree_control", "+memory +pids")?;
    Ok(root)
}

/// The writes to that cgroup's files that were reported, in order.
fn writes(session: &Session, id: u64) -> Vec<LimitWrite> {
    let facts = session.facts(id).into_iter();
    facts
        .filter_map(|fact| match fact {
            Fact::LimitWrite(write) => Some((**write).clone()),
            _ => None,
        })
        .collect()
}

/// The cgroup that this process is in.
fn own_cgroup() -> Result<CgroupId> {
    let path = cgroup_path(std::process::id())?;
    Ok(CgroupId(cgroup::id(&find_cgroup2()?.0.join(path.trim_start_matches('/')))?))
}

fn whole(session: &mut Session, parent: &Path) -> Result<()> {
    let root = root_with_controllers(parent, "reported")?;
    let container = root.sub("ctr")?;
    cgroup::write(&container, "pids.max", "77\n")?;
    session.settle()?;
    let reported = writes(session, cgroup::id(&container)?);
    let [began, returned] = &reported[..] else { anyhow::bail!("{reported:#?}") };
    ensure!(began.phase == WritePhase::Began, "{began:#?}");
    let WritePhase::Returned { result: WriteResult::Accepted, at: Some(at) } = returned.phase else {
        anyhow::bail!("{returned:#?}");
    };
    ensure!(began.began.is_some_and(|began| began < at), "{reported:#?}");
    ensure!(*returned == LimitWrite { phase: returned.phase, ..began.clone() }, "{reported:#?}");
    ensure!(began.limit_file == LimitFile::PidsMax, "{began:#?}");
    ensure!(began.value == Some(WrittenValue { text: "77".into(), truncated: false }), "{began:#?}");
    let writer = &began.writer;
    let comm = fs::read_to_string("/proc/thread-self/comm")?;
    ensure!(writer.pid == Some(std::process::id()), "{writer:?}");
    ensure!(writer.tid == Some(nix::unistd::gettid().as_raw() as u32), "{writer:?}");
    ensure!(writer.comm.as_deref() == Some(comm.trim_end()), "{writer:?}");
    ensure!(writer.cgroup == Some(own_cgroup()?), "{writer:?}");
    ensure!(writer.start.is_some_and(|start| start.0 > 0), "{writer:?}");
    // The root's own file is a limit, too, and was written when the root was made.
    let of_root = writes(session, root.id()?);
    ensure!(of_root.len() == 2 && of_root[1].limit_file == LimitFile::CgroupSubtreeControl, "{of_root:#?}");
    let value = of_root[1].value.as_ref().map(|value| value.text.as_ref());
    ensure!(value == Some("+memory +pids"), "{of_root:#?}");
    let hook = chosen(session);
    let expected = match hook {
        Some(HookKind::Fentry) => WriteHook::Fentry,
        Some(HookKind::Kprobe) => WriteHook::Kprobe,
        _ => anyhow::bail!("limit writes are seen by {hook:?}"),
    };
    ensure!(began.seen_by == expected, "{began:#?}");
    Ok(())
}

/// The kind of hook that shows limit writes.
fn chosen(session: &mut Session) -> Option<HookKind> {
    let reports = &session.running().capabilities().reports;
    let report = reports.iter().find(|report| report.capability.name == LIMIT_WRITES)?;
    report.chosen.map(|hook| hook.kind)
}

/// Without a program at the function: what fanotify can report, and of which cgroups.
fn noticed(session: &mut Session, parent: &Path) -> Result<()> {
    let (to, mut notices) = tokio::sync::mpsc::channel(64);
    Watch::open(CgroupFs::find(&Subtree::default())?)?.run(session.running().tracker(), to)?;
    let root = Root::make(parent, "noticed")?;
    let beside = Root::make_named(parent, &format!("unnoticed-{}", std::process::id()))?;
    let container = root.sub("ctr")?;
    // A limit that every hierarchy has; one that is not tracked; a file that is no limit; a write that is refused.
    cgroup::write(beside.directory(), "cgroup.freeze", "0")?;
    cgroup::write(&container, "cgroup.max.depth", "7")?;
    ensure!(cgroup::write(&container, "cgroup.freeze", "nonsense").is_err(), "the kernel took it");
    // A truncation gives a notice, whatever becomes of the write; not with 5.10 and 6.1.
    ensure!(fs::write(container.join("cgroup.freeze"), "nonsense").is_err(), "the kernel took it");
    cgroup::write(&container, "cgroup.freeze", "0")?;
    // A notice of the root comes after all of the container.
    cgroup::write(root.directory(), "cgroup.freeze", "0")?;
    let (id, root_id) = (cgroup::id(&container)?, root.id()?);
    let mut reported = Vec::new();
    while !matches!(reported.last(), Some(KernelEvent { cgroup, .. }) if cgroup.0 == root_id) {
        match notices.blocking_recv().context("the watch has ended")? {
            Observation::Kernel(event) => reported.push(event),
            other => anyhow::bail!("{other:#?}"),
        }
    }
    reported.pop();
    // The two may be reported as one.
    ensure!((1..=2).contains(&reported.len()), "{reported:#?}");
    let comm = fs::read_to_string("/proc/self/comm")?;
    for KernelEvent { cgroup, fact, .. } in &reported {
        let Fact::LimitWrite(write) = fact else { anyhow::bail!("{reported:#?}") };
        ensure!(cgroup.0 == id && write.limit_file == LimitFile::CgroupFreeze, "{reported:#?}");
        ensure!(
            write.seen_by == WriteHook::Fanotify && write.value.is_none() && write.began.is_none(),
            "{write:#?}"
        );
        ensure!(write.phase == WritePhase::Returned { result: WriteResult::Unknown, at: None }, "{write:#?}");
        let writer = &write.writer;
        ensure!(writer.pid == Some(std::process::id()) && writer.tid.is_none(), "{writer:?}");
        ensure!(writer.comm.as_deref() == Some(comm.trim_end()), "{writer:?}");
        ensure!(writer.cgroup == Some(own_cgroup()?), "{writer:?}");
    }
    Ok(())
}

/// More writes than fanotify keeps while no process reads: those that came first are reported, and that others were lost.
fn overflown(session: &mut Session, parent: &Path) -> Result<()> {
    // The kernel's own bound, where it does not say.
    const QUEUED: usize = 16_384;
    // Limits that every hierarchy has, and others. Writes by one process to one file may be one notice: hence many files.
    const FILES: [&str; 3] = ["cgroup.freeze", "cgroup.max.depth", "cgroup.max.descendants"];
    let setting = fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events");
    let queued = setting.map_or(Ok(QUEUED), |text| text.trim().parse()).context("the kernel's setting")?;
    let watch = Watch::open(CgroupFs::find(&Subtree::default())?)?;
    let root = Root::make(parent, "overflown")?;
    for group in 0..=queued / FILES.len() {
        let directory = root.sub(&group.to_string())?;
        for (file, text) in FILES.iter().zip(["0", "7", "7"]) {
            cgroup::write(&directory, file, text)?;
        }
        // The rings are not what is to be full.
        while session.drain()? {}
    }
    let (to, mut notices) = tokio::sync::mpsc::channel(64);
    watch.run(session.running().tracker(), to)?;
    let mut reported = 0;
    let loss = loop {
        match notices.blocking_recv().context("the watch has ended")? {
            Observation::Kernel(_) => reported += 1,
            Observation::Lost(loss) => break loss,
            other => anyhow::bail!("{other:#?}"),
        }
    };
    ensure!(loss.cause == GapCause::WatchOverflow && loss.lost.is_empty(), "{loss:?}");
    ensure!(reported > 0, "nothing was reported before");
    Ok(())
}

/// By the system call, which any kernel shows: the one limit that every hierarchy has.
fn by_syscall(session: &mut Session, parent: &Path) -> Result<()> {
    let hook = chosen(session);
    ensure!(hook == Some(HookKind::Syscall), "limit writes are seen by {hook:?}");
    let root = Root::make(parent, "syscall")?;
    let container = root.sub("ctr")?;
    let ordinary = tempfile::NamedTempFile::new().context("make a file")?;
    fs::write(ordinary.path(), "1").context("write to an ordinary file")?;
    cgroup::write(&container, "cgroup.max.depth", "7")?;
    cgroup::write(&container, "cgroup.freeze", "0\n")?;
    ensure!(cgroup::write(&container, "cgroup.freeze", "nonsense").is_err(), "the kernel took it");
    let long = "9".repeat(1000);
    ensure!(cgroup::write(&container, "cgroup.freeze", &long).is_err(), "the kernel took it");
    session.settle()?;
    let reported = writes(session, cgroup::id(&container)?);
    let refused = |errno: Errno| Some(WriteResult::Refused { errno: errno as i32 });
    let seen: Vec<_> = reported
        .iter()
        .map(|write| {
            let value = write.value.as_ref().map(|value| (value.text.len(), value.truncated));
            let result = match write.phase {
                WritePhase::Began => None,
                WritePhase::Returned { result, .. } => Some(result),
            };
            (value, result)
        })
        .collect();
    let whole = |length| Some((length, false));
    let cut = Some((kwitness_abi::VALUE_CAP - 1, true));
    ensure!(
        seen == [
            (whole(1), None),
            (whole(1), Some(WriteResult::Accepted)),
            (whole(8), None),
            (whole(8), refused(Errno::EINVAL)),
            (cut, None),
            (cut, refused(Errno::ERANGE)),
        ],
        "{reported:#?}"
    );
    for write in &reported {
        ensure!(
            write.seen_by == WriteHook::Syscall && write.limit_file == LimitFile::CgroupFreeze,
            "{write:#?}"
        );
        ensure!(write.writer.pid == Some(std::process::id()) && write.began.is_some(), "{write:#?}");
        ensure!(write.writer.cgroup == Some(own_cgroup()?), "{write:#?}");
    }
    Ok(())
}

fn refused(session: &mut Session, parent: &Path) -> Result<()> {
    let root = root_with_controllers(parent, "refused")?;
    let container = root.sub("ctr")?;
    ensure!(fs::write(container.join("memory.max"), "nonsense").is_err(), "the kernel took it");
    session.settle()?;
    let reported = writes(session, cgroup::id(&container)?);
    let phases: Vec<_> = reported.iter().map(|write| write.phase).collect();
    let [WritePhase::Began, WritePhase::Returned { result, .. }] = phases[..] else {
        anyhow::bail!("{reported:#?}");
    };
    ensure!(result == WriteResult::Refused { errno: Errno::EINVAL as i32 }, "{reported:#?}");
    Ok(())
}

fn filtered(session: &mut Session, parent: &Path) -> Result<()> {
    // An untracked cgroup; then a tracked root is made below it.
    let above = Root::make_named(parent, &format!("above-{}", std::process::id()))?;
    let beside = Root::make_named(parent, &format!("beside-{}", std::process::id()))?;
    cgroup::write(above.directory(), "pids.max", "1001")?;
    let tracked = above.sub("kubepods")?;
    cgroup::write(above.directory(), "pids.max", "1002")?;
    cgroup::write(beside.directory(), "pids.max", "1003")?;
    // No limit, and the write that moves a process.
    cgroup::write(&tracked, "cgroup.max.depth", "7")?;
    let child = producer::spawn(above.directory(), "pause")?;
    cgroup::enter(&tracked, child.pid())?;
    cgroup::write(&tracked, "cgroup.freeze", "1")?;
    cgroup::write(&tracked, "cgroup.freeze", "0")?;
    drop(child);
    session.settle()?;
    let values = |id| -> Vec<_> {
        let reported = writes(session, id).into_iter().filter(|write| write.phase == WritePhase::Began);
        reported.map(|write| (write.limit_file, write.value.map(|value| value.text.to_string()))).collect()
    };
    let text = |text: &str| Some(text.to_owned());
    let reported = values(above.id()?);
    ensure!(reported == [(LimitFile::PidsMax, text("1002"))], "{reported:?}");
    ensure!(values(beside.id()?).is_empty(), "{:?}", values(beside.id()?));
    let reported = values(cgroup::id(&tracked)?);
    ensure!(
        reported == [(LimitFile::CgroupFreeze, text("1")), (LimitFile::CgroupFreeze, text("0"))],
        "{reported:?}"
    );
    Ok(())
}

fn long_value(session: &mut Session, parent: &Path) -> Result<()> {
    let root = root_with_controllers(parent, "long")?;
    let container = root.sub("ctr")?;
    let text = "9".repeat(1000);
    ensure!(fs::write(container.join("pids.max"), &text).is_err(), "the kernel took it");
    session.settle()?;
    let reported = writes(session, cgroup::id(&container)?);
    ensure!(reported.len() == 2, "{reported:#?}");
    for write in reported {
        let value = write.value.context("no value")?;
        ensure!(value.truncated && text.starts_with(&*value.text), "{value:?}");
        ensure!(value.text.len() == kwitness_abi::VALUE_CAP - 1, "{value:?}");
    }
    Ok(())
}

fn flood(session: &mut Session, parent: &Path) -> Result<()> {
    let root = root_with_controllers(parent, "flood")?;
    let (noisy, quiet) = (root.sub("noisy")?, root.sub("quiet")?);
    let (noisy_id, quiet_id) = (cgroup::id(&noisy)?, cgroup::id(&quiet)?);
    let before = session.running().counters();
    let skipped_before = skipped(session);
    let file = noisy.join("pids.max");
    let words = [&producer::program()?, producer::ROLE, "write-often", file.to_str().context("a path")?];
    let child = Child::spawn(Some(&noisy), CloneFlags::empty(), Action::Exec(&words))?;
    // One write of the quiet one after each turn of the noisy one.
    for number in 1..=producer::TURNS {
        child.wait_stopped()?;
        cgroup::write(&quiet, "pids.max", number)?;
        child.signal(Signal::SIGCONT)?;
    }
    child.wait()?;
    session.settle()?;
    let counters = session.running().counters();
    let lost_of = |kind: RecordKind| counters.lost[kind.index()] - before.lost[kind.index()];
    let (lost, lost_beginnings) =
        (lost_of(RecordKind::LimitWriteReturned), lost_of(RecordKind::LimitWriteBegan));
    let returned =
        |id| writes(session, id).iter().filter(|write| write.phase != WritePhase::Began).count() as u64;
    let suppressed = counters.suppressed - before.suppressed;
    let (reported, quiet_reported) = (returned(noisy_id), returned(quiet_id));
    // Where the kernel preempts a program, it skips it for others meanwhile, and counts that: a loss that is reported.
    let skipped = skipped(session) - skipped_before;
    println!(
        "of {} writes {reported} were reported, {suppressed} counted, {lost} and {lost_beginnings} beginnings lost, {skipped} skipped",
        producer::WRITES
    );
    // A guest's clock may leap, and with it the window of the budget: the ring's end is the second bound.
    let known = reported + suppressed + lost;
    ensure!(
        (known..=known + skipped).contains(&producer::WRITES),
        "{reported} reported, {suppressed} counted, {lost} lost, {skipped} skipped"
    );
    ensure!(suppressed > 0, "nothing was bounded");
    ensure!(
        (quiet_reported..=quiet_reported + skipped).contains(&producer::TURNS),
        "{quiet_reported} of {} of the quiet one, {skipped} skipped",
        producer::TURNS
    );
    Ok(())
}

/// How often the programs behind limit writes were skipped.
fn skipped(session: &mut Session) -> u64 {
    session.running().skipped().get(LIMIT_WRITES).copied().unwrap_or(0)
}
