//! Thousands of containers that live about a millisecond each, and a reader that is too slow on purpose.
//!
//! The producers are processes of their own: they say what they did, and the records have to say the same.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::path::Path;
use std::process::{Child as Process, Command, Stdio};
use std::sync::Arc;

use kwitness_abi::{RecordKind, container_number};
use kwitness_core::model::{ExitStatus, Fact, KernelEvent};

use crate::producer;
use crate::session::{Root, Session, rmdir};
use crate::{Loaded, settings};
use kwitness_agent::probe::Settings;
use kwitness_tests::prelude::*;

/// On a real processor, and where what takes long is wanted.
const CONTAINERS: u32 = 10_000;
/// In an emulated guest, where each takes some fifty milliseconds.
const CONTAINERS_EMULATED: u32 = 1_000;
const PRODUCERS: u32 = 2;
const OVERFLOW_CONTAINERS: u32 = 300;

pub fn cases(loaded: &Arc<Loaded>) -> [Case; 4] {
    let case = |name: &str, body: fn(&Environment) -> Result<()>| {
        let loaded = Arc::clone(loaded);
        Case::new(name, move |ctx| {
            loaded.unload();
            body(&ctx.environment)
        })
    };
    [
        case("a_storm_of_containers_loses_nothing", storm),
        case("what_is_lost_is_counted_exactly", overflow),
        case("one_containers_groups_leave_room_for_other_containers", share),
        case("one_containers_records_leave_room_in_the_rings", rings),
    ]
}

/// What a producer did in one container.
#[derive(Debug, PartialEq, Eq)]
struct Life {
    pod: u64,
    pid: u32,
    executed: bool,
    status: ExitStatus,
}

fn storm(environment: &Environment) -> Result<()> {
    let parent = &environment.cgroup_directory();
    let whole = environment.tier == Tier::Host || environment.long;
    let containers = if whole { CONTAINERS } else { CONTAINERS_EMULATED };
    let mut session = Session::start(parent, &settings(None)?)?;
    let root = Root::make(parent, "storm")?;
    let started = std::time::Instant::now();
    let lives = session.read_while(produce_all(root.directory(), containers)?)?;
    let took = started.elapsed();
    ensure!(lives.len() == containers as usize, "the producers made {} containers", lives.len());
    let ids: Vec<_> = lives.iter().flat_map(|(id, life)| [*id, life.pod]).collect();
    session.await_release(&ids)?;

    let lost = session.running().counters().losses();
    ensure!(lost == Default::default(), "{lost:?}");
    let skipped = session.running().skipped();
    ensure!(skipped.is_empty(), "skipped: {skipped:?}");
    // What is read is all but in order: behind a record that another CPU is still writing, its ring waits, the others do
    // not.
    let late = session.events().windows(2).filter(|pair| pair[0].at > pair[1].at).count();
    let mut events: Vec<_> = session.events().iter().collect();
    events.sort_by_key(|event| event.at);
    let mut reported: HashMap<u64, Vec<&Fact>> = HashMap::new();
    for event in events {
        reported.entry(event.cgroup.0).or_default().push(&event.fact);
    }
    let none = Vec::new();
    let mut wrong = Vec::new();
    for (id, life) in &lives {
        let facts = reported.get(id).unwrap_or(&none);
        let pod_facts = reported.get(&life.pod).unwrap_or(&none);
        if !is_life(facts, life) || !is_pod(pod_facts) {
            wrong.push(format!("{id}: {life:?}\n{facts:#?}\npod: {pod_facts:#?}"));
        }
    }
    ensure!(wrong.is_empty(), "{} of {containers} wrong, the first: {}", wrong.len(), wrong[0]);
    println!("{containers} containers in {took:.1?}, {} records, {late} read late", session.events().len());
    Ok(())
}

/// Whether a container's facts are those of its life, each once and in order.
fn is_life(facts: &[&Fact], life: &Life) -> bool {
    let mut facts = facts.iter();
    let mut next = |wanted: &dyn Fn(&Fact) -> bool| facts.next().is_some_and(|fact| wanted(fact));
    let pid = life.pid;
    next(&|fact| matches!(fact, Fact::Mkdir { parent, root: false, .. } if parent.0 == life.pod))
        && next(&|fact| matches!(fact, Fact::Populated(true)))
        && next(&|fact| matches!(fact, Fact::Fork { child, entered: true } if child.key.pid == pid))
        && (!life.executed
            || next(
                &|fact| matches!(fact, Fact::Exec { process, first: false, .. } if process.key.pid == pid),
            ))
        && next(&|fact| {
            matches!(fact, Fact::Exit { process, status, first: false }
                if process.key.pid == pid && *status == life.status)
        })
        && is_end(facts.as_slice())
}

fn is_pod(facts: &[&Fact]) -> bool {
    matches!(facts, [Fact::Mkdir { root: false, .. }, Fact::Populated(true), end @ ..] if is_end(end))
}

/// Whether a cgroup's last facts are those of its end. A kernel that takes a task out of its cgroup only after its last
/// switch ("cgroup: Defer task cgroup unlink until after the task is done switching out") lets it be removed before.
fn is_end(facts: &[&Fact]) -> bool {
    matches!(
        facts,
        [Fact::Populated(false), Fact::Rmdir { .. }, Fact::Release]
            | [Fact::Rmdir { .. }, Fact::Populated(false), Fact::Release]
    )
}

/// With rings of one page that are not read, what came and what was lost add up to what was produced, kind by kind.
fn overflow(environment: &Environment) -> Result<()> {
    let parent = &environment.cgroup_directory();
    let page = NonZeroU32::MIN;
    let tiny = Settings { lifecycle_ring: page, tasks_ring: page, forks_ring: page, ..settings(None)? };
    let mut session = Session::start(parent, &tiny)?;
    let root = Root::make(parent, "overflow")?;
    let before = session.running().counters().losses();
    ensure!(before == Default::default(), "lost before it began: {before:?}");
    let mut lives = HashMap::new();
    for producer in produce_all(root.directory(), OVERFLOW_CONTAINERS)? {
        lives.extend(producer.finish()?);
    }
    // A container with a process that forks, so that the ring of forks has its share.
    let container = root.sub("forks")?;
    let forks = u64::from(producer::FORKS);
    let status = producer::spawn(&container, "forks")?.wait()?;
    ensure!(status == ExitStatus::Code(0), "{status:?}");
    rmdir(&container)?;
    await_releases(&root)?;

    while session.drain()? {}
    let lost = session.running().counters();
    let executed = lives.values().filter(|life| life.executed).count() as u64;
    let containers = u64::from(OVERFLOW_CONTAINERS);
    for (kind, produced) in [
        // Root, pods, their containers, and the one with forks.
        (RecordKind::CgroupMkdir, 2 * containers + 2),
        (RecordKind::CgroupRmdir, 2 * containers + 1),
        (RecordKind::CgroupRelease, 2 * containers + 1),
        (RecordKind::CgroupAttach, 0),
        (RecordKind::TaskFork, containers + 1 + forks),
        (RecordKind::TaskExec, executed + 1),
        (RecordKind::TaskExit, containers + 1 + forks),
    ] {
        let came = session.events().iter().filter(|event| kind_of(event) == kind).count() as u64;
        let lost = lost.lost[kind.index()];
        ensure!(came + lost == produced, "{}: {came} came, {lost} lost, {produced} produced", kind.name());
        ensure!(produced < 300 || lost > 0, "{}: nothing was lost", kind.name());
    }
    // The rings are free again.
    session.forget();
    let lost = session.running().counters().losses();
    session.settle()?;
    ensure!(session.running().counters().losses() == lost, "lost with empty rings");
    Ok(())
}

/// One container has more groups made than the set has room for, and nothing reads meanwhile: it gets its share, and another pod's
/// container is tracked with all that is in it. What the first gives back, it gets again.
fn share(environment: &Environment) -> Result<()> {
    const CAPACITY: u32 = 64;
    const GROUPS: usize = 200;
    let parent = &environment.cgroup_directory();
    let tracked_capacity = NonZeroU32::new(CAPACITY).context("not zero")?;
    let mut session = Session::start(parent, &Settings { tracked_capacity, ..settings(None)? })?;
    let root = Root::make(parent, "share")?;
    let container = |pod: &str, digit: &str| -> Result<String> {
        root.sub(pod)?;
        let path = format!("{pod}/{}", digit.repeat(64));
        root.sub(&path)?;
        Ok(path)
    };
    let hog = container("podhog", "a")?;
    let hog_id = cgroup::id(&root.directory().join(&hog))?;
    for round in ["first", "second"] {
        session.forget();
        let groups =
            (0..GROUPS).map(|group| root.sub(&format!("{hog}/{group}"))).collect::<Result<Vec<_>>>()?;
        let ids = groups.iter().map(|group| cgroup::id(group)).collect::<Result<Vec<_>>>()?;
        let other = container(&format!("pod{round}"), "b")?;
        let inner = root.sub(&format!("{other}/inner"))?;
        let status = producer::spawn(&inner, "end")?.wait()?;
        ensure!(status == ExitStatus::Code(0), "{status:?}");
        session.settle()?;
        let tracked = |id: u64| -> Result<bool> {
            match session.facts(id)[..] {
                [Fact::Mkdir { beyond_share, .. }, ..] => Ok(!beyond_share),
                ref other => bail!("cgroup {id}: {other:#?}"),
            }
        };
        let followed: Vec<u64> = ids
            .iter()
            .copied()
            .filter_map(|id| tracked(id).map(|is| is.then_some(id)).transpose())
            .collect::<Result<_>>()?;
        // As many as are free then; the root, two pods and two containers are not the first one's.
        let most = CAPACITY as usize / 2;
        ensure!((most - 8..=most).contains(&followed.len()), "{round}: {} of {CAPACITY}", followed.len());
        ensure!(session.facts(hog_id).is_empty() || tracked(hog_id)?, "the container itself is not tracked");
        for path in [&other, &format!("{other}/inner")] {
            ensure!(tracked(cgroup::id(&root.directory().join(path))?)?, "{path} is not tracked");
        }
        let facts = session.facts(cgroup::id(&inner)?);
        ensure!(facts.iter().any(|fact| matches!(fact, Fact::Exec { .. })), "{facts:#?}");
        let lost = session.running().counters().losses();
        ensure!(lost == Default::default(), "{lost:?}");
        groups.iter().try_for_each(|group| rmdir(group))?;
        session.await_release(&followed)?;
    }
    Ok(())
}

/// One container fills small rings that no process reads, with groups and with processes: it loses records, which are counted as its own,
/// and another pod's container that is made, runs and ends after that loses none.
fn rings(environment: &Environment) -> Result<()> {
    let parent = &environment.cgroup_directory();
    let size = NonZeroU32::new(1 << 16).context("not zero")?;
    let small = Settings { lifecycle_ring: size, tasks_ring: size, forks_ring: size, ..settings(None)? };
    let mut session = Session::start(parent, &small)?;
    let root = Root::make(parent, "rings")?;
    root.sub("podhog")?;
    let hog = format!("podhog/{}", "a".repeat(64));
    let hog_directory = root.sub(&hog)?;
    until_lost(&mut session, RecordKind::CgroupMkdir, || rmdir(&root.sub(&format!("{hog}/group"))?))?;
    until_lost(&mut session, RecordKind::TaskExit, || {
        producer::spawn(&hog_directory, "forks")?.wait().map(drop)
    })?;
    root.sub("podother")?;
    let other = root.sub(&format!("podother/{}", "b".repeat(64)))?;
    let id = cgroup::id(&other)?;
    let status = producer::spawn(&other, "end")?.wait()?;
    ensure!(status == ExitStatus::Code(0), "{status:?}");
    rmdir(&other)?;
    await_releases(&root)?;
    while session.drain()? {}
    let facts = session.facts(id);
    let is_whole = matches!(
        facts[..],
        [
            Fact::Mkdir { .. },
            Fact::Populated(true),
            Fact::Fork { entered: true, .. },
            Fact::Exec { .. },
            Fact::Exit { .. },
            ref end @ ..
        ] if is_end(end)
    );
    ensure!(is_whole, "{facts:#?}");
    let lost = session.running().counters().lost;
    let lost = RecordKind::ALL.into_iter().map(|kind| (kind, lost[kind.index()])).filter(|(_, of)| *of > 0);
    let whose = BTreeMap::from([(container_number(cgroup::id(&hog_directory)?), lost.collect())]);
    let counted = session.running().lost_by_container()?;
    ensure!(counted == whose, "{counted:?} is not {whose:?}");
    Ok(())
}

/// Causes records until a hundred of a kind are lost: by then, a ring without shares has no room for anyone.
fn until_lost(session: &mut Session, kind: RecordKind, cause: impl Fn() -> Result<()>) -> Result<()> {
    while session.running().counters().lost[kind.index()] < 100 {
        cause()?;
    }
    Ok(())
}

/// Waits until the kernel has let go of every cgroup below the root: the rings are full, so no record shows it.
fn await_releases(root: &Root) -> Result<()> {
    for _ in 0..1000 {
        if cgroup::entry(root.directory(), "cgroup.stat", "nr_dying_descendants")? == 0 {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    bail!("cgroups stay dying");
}

fn kind_of(event: &KernelEvent) -> RecordKind {
    match event.fact {
        Fact::Mkdir { .. } => RecordKind::CgroupMkdir,
        Fact::Rmdir { .. } => RecordKind::CgroupRmdir,
        Fact::Release => RecordKind::CgroupRelease,
        Fact::Attach { .. } => RecordKind::CgroupAttach,
        Fact::Populated(_) => RecordKind::CgroupPopulated,
        Fact::Fork { .. } => RecordKind::TaskFork,
        Fact::Exec { .. } => RecordKind::TaskExec,
        Fact::Exit { .. } => RecordKind::TaskExit,
        Fact::LimitWrite(_) | Fact::LimitWritesSuppressed(_) => RecordKind::LimitWriteReturned,
        Fact::OomKill(_) => RecordKind::OomKill,
        Fact::MemoryCharge(_) => RecordKind::MemoryCharge,
    }
}

/// A process that makes containers.
struct Producer(Process);

fn produce_all(root: &Path, containers: u32) -> Result<Vec<Producer>> {
    let produce = |index| {
        Command::new(producer::program()?)
            .args([producer::ROLE, "storm"])
            .arg(root.join(format!("pod{index}-")))
            .arg((containers / PRODUCERS).to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map(Producer)
            .context("start a producer")
    };
    (0..PRODUCERS).map(produce).collect()
}

impl Producer {
    /// Waits for its end; what it did, by container.
    fn finish(self) -> Result<HashMap<u64, Life>> {
        let output = self.0.wait_with_output().context("wait for a producer")?;
        ensure!(output.status.success(), "a producer failed: {}", output.status);
        String::from_utf8(output.stdout)?.lines().map(parse).collect()
    }
}

fn parse(line: &str) -> Result<(u64, Life)> {
    let words: Vec<_> = line.split(' ').collect();
    let [id, pod, pid, executed, code] = words[..] else { bail!("a producer said `{line}`") };
    let (executed, status) = (executed == "true", ExitStatus::Code(code.parse()?));
    Ok((id.parse()?, Life { pod: pod.parse()?, pid: pid.parse()?, executed, status }))
}

impl Session {
    /// Reads while the producers produce; what they did.
    fn read_while(&mut self, producers: Vec<Producer>) -> Result<HashMap<u64, Life>> {
        let waiting = std::thread::spawn(move || {
            producers.into_iter().map(Producer::finish).collect::<Result<Vec<_>>>()
        });
        while !waiting.is_finished() {
            self.settle()?;
        }
        let lives = waiting.join().map_err(|_| anyhow::anyhow!("waiting for the producers failed"))??;
        self.settle()?;
        Ok(lives.into_iter().flatten().collect())
    }
}
