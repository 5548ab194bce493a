//! Charges of memory: which crossings are recorded, who charged, and how many records there are at most.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use kwitness_abi::{CHARGE_RECORDS, CHARGE_WINDOW};
use kwitness_core::model::{Bound, CgroupId, Fact, KernelTime, MemoryCharge, Thresholds};
use kwitness_core::pressure::sampling::ThresholdState;
use kwitness_tests::prelude::*;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;

use crate::child::{Action, Child};
use crate::limits::root_with_controllers;
use crate::producer::{self, RESERVED};
use crate::session::Session;
use crate::{Loaded, Scenario, by_function_hooks};

/// Each with either kind of hook at a function.
const SCENARIOS: &[Scenario] = &[
    ("charges_of_a_process_name_it_at_each_threshold", own_limit),
    ("charges_of_a_container_cross_its_pods_limit", pods_limit),
    ("memory_charged_by_a_process_outside_names_no_process", charged_from_outside),
    ("charges_in_a_sawtooth_are_bounded_and_each_crossing_counted", sawtooth),
];

/// The rows.
pub fn cases(ctx: &TestContext, loaded: &Arc<Loaded>) -> impl Iterator<Item = Case> {
    let hybrid = ctx.environment.layout == CgroupLayout::Hybrid;
    let reason = hybrid.then_some("the memory controller is in v1");
    by_function_hooks(ctx, loaded, SCENARIOS).into_iter().map(move |case| case.refused(reason))
}

const LIMIT: u64 = 32 << 20;
/// Above the highest threshold, and below the limit by more than what is charged at a time.
const FULL: u64 = LIMIT * 97 / 100;
/// How often the sawtooth rises before it rests.
const TEETH: u64 = 40;

/// Starts a process that fills the memory of a cgroup so often, then stops itself.
fn fill(container: &Path, limited: &Path, times: u64) -> Result<Child> {
    let usage = limited.join("memory.current").display().to_string();
    let (program, full, times) = (producer::program()?, FULL.to_string(), times.to_string());
    let words = [&*program, producer::ROLE, "fill", &usage, &full, &times];
    let child = Child::spawn(Some(container), CloneFlags::empty(), Action::Exec(&words))?;
    child.wait_stopped()?;
    Ok(child)
}

fn limit(directory: &Path) -> Result<()> {
    cgroup::write(directory, "memory.max", LIMIT)
}

/// The charges of that cgroup that were recorded, in the order of their times.
fn charges(session: &mut Session, id: u64) -> Result<Vec<(KernelTime, MemoryCharge)>> {
    session.settle()?;
    let of = session.events().iter().filter(|event| event.cgroup.0 == id);
    let mut charges: Vec<_> = of
        .filter_map(|event| match &event.fact {
            Fact::MemoryCharge(charge) => Some((event.at, (**charge).clone())),
            _ => None,
        })
        .collect();
    charges.sort_by_key(|(at, _)| *at);
    Ok(charges)
}

/// How many thresholds usage is above after each charge; what the core makes of the record is the same.
fn counts_above(charges: &[(KernelTime, MemoryCharge)]) -> Result<Vec<usize>> {
    let state = |(_, charge): &(KernelTime, MemoryCharge)| {
        let state = ThresholdState::of(&Thresholds::default(), charge.usage, Bound::At(charge.limit));
        ensure!(state.above(charge.above) == charge.above, "{charge:#?}");
        Ok(charge.above)
    };
    charges.iter().map(state).collect()
}

/// The charges say that usage rose above every threshold, at once or one after the other, and never fell.
fn check_rise(charges: &[(KernelTime, MemoryCharge)]) -> Result<()> {
    let counts_above = counts_above(charges)?;
    ensure!(counts_above.last() == Some(&3), "{charges:#?}");
    ensure!(counts_above.is_sorted_by(|lower, higher| lower < higher), "{counts_above:?}: {charges:#?}");
    for (_, charge) in charges {
        ensure!(charge.limit == LIMIT && charge.suppressed == 0, "{charge:#?}");
    }
    Ok(())
}

/// Each was made by that process, and usage was seen before it.
fn check_charger(charges: &[(KernelTime, MemoryCharge)], pid: u32, container: &Path) -> Result<()> {
    let container = CgroupId(cgroup::id(container)?);
    for (at, charge) in charges {
        let charger = charge.charger.as_ref().with_context(|| format!("no process: {charge:#?}"))?;
        ensure!((charger.pid, charger.cgroup) == (Some(pid), Some(container)), "not {pid}: {charge:#?}");
        ensure!(charger.start.is_some_and(|start| start < *at) && charger.comm.is_some(), "{charge:#?}");
        let (earlier, usage) = charge.earlier.context("no usage before it")?;
        ensure!(earlier < *at && usage < charge.usage, "{charge:#?}");
    }
    Ok(())
}

fn own_limit(session: &mut Session, parent: &Path) -> Result<()> {
    let root = root_with_controllers(parent, "charge")?;
    let container = root.sub("ctr")?;
    limit(&container)?;
    let child = fill(&container, &container, 1)?;
    let charges = charges(session, cgroup::id(&container)?)?;
    check_rise(&charges)?;
    check_charger(&charges, child.pid(), &container)
}

fn pods_limit(session: &mut Session, parent: &Path) -> Result<()> {
    let root = root_with_controllers(parent, "chargepod")?;
    let pod = root.sub("pod")?;
    cgroup::write(&pod, "cgroup.subtree_control", "+memory")?;
    limit(&pod)?;
    let container = root.sub("pod/ctr")?;
    let child = fill(&container, &pod, 1)?;
    let of_pod = charges(session, cgroup::id(&pod)?)?;
    check_rise(&of_pod)?;
    check_charger(&of_pod, child.pid(), &container)?;
    let of_container = charges(session, cgroup::id(&container)?)?;
    ensure!(of_container.is_empty(), "it has no limit: {of_container:#?}");
    Ok(())
}

/// What is written to the memory of a process by another one is charged to the first one's cgroup.
fn charged_from_outside(session: &mut Session, parent: &Path) -> Result<()> {
    let root = root_with_controllers(parent, "chargeout")?;
    let container = root.sub("ctr")?;
    limit(&container)?;
    let child = producer::spawn(&container, "reserve")?;
    child.wait_stopped()?;
    let maps = fs::read_to_string(format!("/proc/{}/maps", child.pid())).context("read its mappings")?;
    let reserved = maps.lines().find_map(|line| {
        let [range, "rw-p", _, _, "0"] = line.split_ascii_whitespace().collect::<Vec<_>>()[..] else {
            return None;
        };
        let (from, to) = range.split_once('-')?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        (to - from >= RESERVED as u64).then_some(from)
    });
    let mut address = reserved.with_context(|| format!("nothing is reserved:\n{maps}"))?;
    let memory =
        File::options().write(true).open(format!("/proc/{}/mem", child.pid())).context("its memory")?;
    let block = [1; 64 << 10];
    while cgroup::number(&container, "memory.current")? < FULL {
        memory.write_all_at(&block, address).context("write to its memory")?;
        address += block.len() as u64;
    }
    let charges = charges(session, cgroup::id(&container)?)?;
    check_rise(&charges)?;
    for (_, charge) in charges {
        ensure!(charge.charger.is_none(), "this process is not in the container: {charge:#?}");
    }
    Ok(())
}

/// Usage rises above all three thresholds and falls below them, again and again; then a window passes, and it does so once more.
fn sawtooth(session: &mut Session, parent: &Path) -> Result<()> {
    let root = root_with_controllers(parent, "sawtooth")?;
    let container = root.sub("ctr")?;
    limit(&container)?;
    let child = fill(&container, &container, TEETH)?;
    std::thread::sleep(Duration::from_nanos(CHARGE_WINDOW));
    child.signal(Signal::SIGCONT)?;
    child.wait_stopped()?;
    let charges = charges(session, cgroup::id(&container)?)?;
    let (mut window, mut records) = (KernelTime(0), 0);
    for (at, _) in &charges {
        if at.0 - window.0 >= CHARGE_WINDOW {
            (window, records) = (*at, 0);
        }
        records += 1;
        ensure!(records <= CHARGE_RECORDS, "{records} within a window: {charges:#?}");
    }
    let counts_above = counts_above(&charges)?;
    let before = [0].into_iter().chain(counts_above.iter().copied());
    let shown: usize = before.zip(&counts_above).map(|(from, to)| from.abs_diff(*to)).sum();
    let suppressed: u64 = charges.iter().map(|(_, charge)| charge.suppressed).sum();
    // Three up, then three down and up for each further tooth, and for the last.
    let crossings = 3 + 6 * TEETH;
    ensure!(
        shown as u64 + suppressed == crossings,
        "{shown} shown, {suppressed} suppressed, not {crossings}: {charges:#?}"
    );
    ensure!(counts_above.last() == Some(&3), "{counts_above:?}");
    Ok(())
}
