//! What the probes report of cgroups and processes, one scenario a function. Each runs once for each kind of hook.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kwitness_core::model::{CgroupId, ExitStatus, Fact, PathText, TaskInfo};
use kwitness_tests::prelude::*;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;

use crate::child::{Action, Child};
use crate::producer;
use crate::session::{LIMIT, Root, Session, rmdir};

const OWN_MOUNTS: CloneFlags = CloneFlags::CLONE_NEWNS;
const NO_NAMESPACES: CloneFlags = CloneFlags::empty();

/// A scenario: what it does with running probes, in a root of its own.
type Scenario = fn(&mut Session, &Root) -> Result<()>;

pub const SCENARIOS: &[(&str, Scenario)] = &[
    ("a_whole_life_in_order", whole_life),
    ("who_did_it_and_to_whom", identities),
    ("the_first_program_is_not_the_runtimes", first_program),
    ("a_first_process_that_dies_before_exec", dies_before_exec),
    ("a_group_below_a_started_one_does_not_start", nested_after_start),
    ("a_refilled_group_starts_again", refilled),
    ("a_first_process_is_known_where_it_ends", moved_first),
    ("a_process_moved_in", attach),
    ("a_lone_exit_wakes_a_reader_that_waits", lone_exit),
    ("every_exit_status_as_wait_reports_it", statuses),
    ("threads_are_no_processes", threads),
    ("an_exec_from_a_thread", exec_from_thread),
    ("a_path_that_is_too_long", long_path),
    ("a_group_that_was_there_before", tracked_later),
    ("names_that_make_a_root", roots),
    ("the_v1_hierarchies_are_ignored", wrong_hierarchy),
];

/// The facts' kinds, for a readable comparison.
fn kinds(facts: &[&Fact]) -> Vec<&'static str> {
    let kind = |fact: &&Fact| match fact {
        Fact::Mkdir { .. } => "mkdir",
        Fact::Rmdir { .. } => "rmdir",
        Fact::Release => "release",
        Fact::Attach { .. } => "attach",
        Fact::Populated(true) => "populated",
        Fact::Populated(false) => "empty",
        Fact::Fork { entered: true, .. } => "enter",
        Fact::Fork { entered: false, .. } => "fork",
        Fact::Exec { first: true, .. } => "first exec",
        Fact::Exec { first: false, .. } => "exec",
        Fact::Exit { first: true, .. } => "first exit",
        Fact::Exit { first: false, .. } => "exit",
        Fact::LimitWrite(_) => "limit write",
        Fact::LimitWritesSuppressed(_) => "limit writes suppressed",
        Fact::OomKill(_) => "oom kill",
        Fact::MemoryCharge(_) => "memory charge",
    };
    facts.iter().map(kind).collect()
}

fn expect(session: &mut Session, id: u64, expected: &[&str]) -> Result<()> {
    // See `await_empty`.
    while kinds(&session.facts(id)).len() < expected.len()
        && session.read_until(|event| event.cgroup.0 == id).is_ok()
    {}
    let facts = session.facts(id);
    ensure!(kinds(&facts) == expected, "expected {expected:?}, got {:?}:\n{facts:#?}", kinds(&facts));
    Ok(())
}

/// The exit of one of two processes: no record of any other ring comes with it.
fn lone_exit(session: &mut Session, root: &Root) -> Result<()> {
    let (container, id) = root.container()?;
    let pause = || Child::spawn(Some(&container), NO_NAMESPACES, Action::Pause);
    let (stays, ends) = (pause()?, pause()?);
    session.settle()?;
    let pid = ends.pid();
    let waits = session.running().reader_waits();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !waits.is_set() {
                std::thread::yield_now();
            }
            ends.signal(Signal::SIGKILL)
        });
        session.read_until(|event| {
            event.cgroup.0 == id
                && matches!(&event.fact, Fact::Exit { process, .. } if process.key.pid == pid)
        })
    })?;
    drop((stays, ends));
    Ok(())
}

fn whole_life(session: &mut Session, root: &Root) -> Result<()> {
    let pod = root.sub("pod")?;
    let container = root.sub("pod/ctr")?;
    let (pod_id, id) = (cgroup::id(&pod)?, cgroup::id(&container)?);
    let status = producer::spawn(&container, "end")?.wait()?;
    ensure!(status == ExitStatus::Code(0), "{status:?}");
    rmdir(&container)?;
    rmdir(&pod)?;
    session.await_release(&[id, pod_id])?;
    expect(session, id, &["mkdir", "populated", "enter", "exec", "exit", "empty", "rmdir", "release"])?;
    expect(session, pod_id, &["mkdir", "populated", "empty", "rmdir", "release"])?;
    Ok(())
}

fn identities(session: &mut Session, root: &Root) -> Result<()> {
    let (container, id) = root.container()?;
    let child = producer::spawn(&container, "end")?;
    let pid = child.pid();
    child.wait()?;
    rmdir(&container)?;
    session.settle()?;

    let own_mounts = fs::metadata("/proc/self/ns/mnt")?.ino();
    let own_comm = fs::read_to_string("/proc/thread-self/comm")?;
    let facts = session.facts(id);
    let [Fact::Mkdir { parent, path, root: is_root, beyond_share: false, actor }, ..] = facts[..] else {
        anyhow::bail!("{facts:#?}");
    };
    ensure!(*parent == CgroupId(root.id()?) && !is_root && *path == root.path_of("ctr"), "{:#?}", facts[0]);
    ensure!(actor.pid == std::process::id() && *actor.comm == *own_comm.trim_end(), "{actor:?}");

    let processes = facts.iter().filter_map(|fact| match fact {
        Fact::Fork { child, .. } => Some(("fork", child)),
        Fact::Exec { process, .. } => Some(("exec", process)),
        Fact::Exit { process, .. } => Some(("exit", process)),
        _ => None,
    });
    let processes: Vec<_> = processes.collect();
    ensure!(processes.len() == 3, "{facts:#?}");
    for (what, TaskInfo { key, ppid, mnt_ns, parent_mnt_ns, comm }) in &processes {
        ensure!(key.pid == pid && *ppid == std::process::id(), "{what}: {key:?}, parent {ppid}");
        ensure!(*key == processes[0].1.key, "{what}: {key:?}");
        ensure!(mnt_ns.map(u64::from) == Some(own_mounts) && parent_mnt_ns == mnt_ns, "{what}: {mnt_ns:?}");
        // The program's file name, which is longer than a comm.
        ensure!(**comm == *own_comm.trim_end(), "{what}: {comm}");
    }
    let program = facts.iter().find_map(|fact| match fact {
        Fact::Exec { program, .. } => Some(program.clone()),
        _ => None,
    });
    ensure!(program.as_deref() == Some(&producer::program()?), "{program:?}");
    Ok(())
}

fn first_program(session: &mut Session, root: &Root) -> Result<()> {
    let (container, id) = root.container()?;
    // A runtime's helper: in the container's cgroup, in its parent's mount namespace.
    producer::spawn(&container, "end")?.wait()?;
    await_empty(&container)?;
    // The container's own program (which becomes another), then an exec into the container.
    let main = producer::spawn_in(&container, OWN_MOUNTS, "become-pause")?;
    await_execs(session, id, 3)?;
    producer::spawn_in(&container, OWN_MOUNTS, "end")?.wait()?;
    main.signal(Signal::SIGTERM)?;
    main.wait()?;
    session.settle()?;
    let expected = ["mkdir", "populated", "enter", "exec", "exit", "empty"];
    let expected = [&expected[..], &["populated", "enter", "first exec", "exec"], &["enter", "exec", "exit"]];
    expect(session, id, &[&expected.concat()[..], &["first exit", "empty"]].concat())
}

/// Linux 7.2 takes a task out of its cgroup once it has been switched out: wait(2) may have returned before.
fn await_empty(cgroup: &Path) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while cgroup::entry(cgroup, "cgroup.events", "populated")? != 0 {
        ensure!(Instant::now() < deadline, "{} stays populated", cgroup.display());
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Reads on until that many more programs were executed in the cgroup.
fn await_execs(session: &mut Session, id: u64, mut count: u32) -> Result<()> {
    session.read_until(|event| {
        count -= u32::from(event.cgroup.0 == id && matches!(event.fact, Fact::Exec { .. }));
        count == 0
    })
}

fn dies_before_exec(session: &mut Session, root: &Root) -> Result<()> {
    let (container, id) = root.container()?;
    Child::spawn(Some(&container), OWN_MOUNTS, Action::Exit(1))?.wait()?;
    session.settle()?;
    expect(session, id, &["mkdir", "populated", "enter", "exit", "empty"])
}

fn nested_after_start(session: &mut Session, root: &Root) -> Result<()> {
    let container = root.sub("ctr")?;
    let main = producer::spawn_in(&container, OWN_MOUNTS, "pause")?;
    let id = cgroup::id(&container)?;
    await_execs(session, id, 1)?;
    // A service of an init system in the container, with mounts of its own, twice.
    let service = root.sub("ctr/service")?;
    let service_id = cgroup::id(&service)?;
    for _ in 0..2 {
        producer::spawn_in(&service, OWN_MOUNTS, "end")?.wait()?;
        await_empty(&service)?;
    }
    main.signal(Signal::SIGKILL)?;
    main.wait()?;
    session.settle()?;
    let run = ["populated", "enter", "exec", "exit", "empty"];
    expect(session, service_id, &[&["mkdir"], &run[..], &run[..]].concat())?;
    // The container's own group was populated by its main process all along.
    expect(session, id, &["mkdir", "populated", "enter", "first exec", "first exit", "empty"])
}

fn refilled(session: &mut Session, root: &Root) -> Result<()> {
    let (container, id) = root.container()?;
    for _ in 0..2 {
        producer::spawn_in(&container, OWN_MOUNTS, "end")?.wait()?;
        await_empty(&container)?;
    }
    session.settle()?;
    let run = ["populated", "enter", "first exec", "first exit", "empty"];
    expect(session, id, &[&["mkdir"], &run[..], &run[..]].concat())
}

fn moved_first(session: &mut Session, root: &Root) -> Result<()> {
    let (container, id) = root.container()?;
    let main = producer::spawn_in(&container, OWN_MOUNTS, "pause")?;
    await_execs(session, id, 1)?;
    let init = root.sub("ctr/init")?;
    let init_id = cgroup::id(&init)?;
    cgroup::enter(&init, main.pid())?;
    main.signal(Signal::SIGKILL)?;
    main.wait()?;
    session.settle()?;
    expect(session, init_id, &["mkdir", "populated", "attach", "first exit", "empty"])
}

fn attach(session: &mut Session, root: &Root) -> Result<()> {
    let (container, id) = root.container()?;
    let child = Child::spawn(None, NO_NAMESPACES, Action::Pause)?;
    let pid = child.pid();
    cgroup::enter(&container, pid)?;
    let outside = root.directory().parent().context("the root has a parent")?;
    cgroup::enter(outside, pid)?;
    cgroup::enter(&container, pid)?;
    child.signal(Signal::SIGTERM)?;
    child.wait()?;
    session.settle()?;
    expect(session, id, &["mkdir", "populated", "attach", "empty", "populated", "attach", "exit", "empty"])?;
    for fact in session.facts(id) {
        if let Fact::Attach { process, actor } = fact {
            ensure!(process.key.pid == pid && actor.pid == std::process::id(), "{fact:?}");
        }
    }
    Ok(())
}

fn statuses(session: &mut Session, root: &Root) -> Result<()> {
    let container = root.sub("ctr")?;
    let mut expected = Vec::new();
    for code in [0, 1, 7, 127, 255] {
        let child = Child::spawn(Some(&container), NO_NAMESPACES, Action::Exit(code))?;
        let pid = child.pid();
        let status = child.wait()?;
        ensure!(status == ExitStatus::Code(code), "{status:?}");
        expected.push((pid, status));
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGALRM, Signal::SIGABRT, Signal::SIGUSR1] {
        let child = Child::spawn(Some(&container), NO_NAMESPACES, Action::Pause)?;
        let pid = child.pid();
        child.signal(signal)?;
        expected.push((pid, child.wait()?));
    }
    for (variant, possible) in producer::EXITS {
        let child = producer::spawn(&container, variant)?;
        let pid = child.pid();
        let waited = child.wait()?;
        ensure!(possible.contains(&waited), "{variant}: wait(2) says {waited:?}");
        expected.push((pid, waited));
    }
    session.settle()?;
    ensure!(exits(session, cgroup::id(&container)?) == expected, "expected {expected:?}");
    Ok(())
}

/// Pid and status of every process that ended in the cgroup.
fn exits(session: &Session, id: u64) -> Vec<(u32, ExitStatus)> {
    let exit = |fact: &Fact| match fact {
        Fact::Exit { process, status, .. } => Some((process.key.pid, *status)),
        _ => None,
    };
    session.facts(id).into_iter().filter_map(exit).collect()
}

fn threads(session: &mut Session, root: &Root) -> Result<()> {
    let (container, id) = root.container()?;
    let mut expected = Vec::new();
    // Threads that end at the same moment: more than one of them may look like the last.
    for _ in 0..50 {
        let child = producer::spawn(&container, "threads-end-together")?;
        let pid = child.pid();
        expected.push((pid, child.wait()?));
    }
    session.settle()?;
    let found = exits(session, id);
    ensure!(found == expected, "expected {expected:?}, got {found:?}");
    let forks = session.facts(id).into_iter().filter(|fact| matches!(fact, Fact::Fork { .. })).count();
    ensure!(forks == expected.len(), "{forks} forks of {} processes", expected.len());
    Ok(())
}

fn exec_from_thread(session: &mut Session, root: &Root) -> Result<()> {
    let (container, id) = root.container()?;
    let child = producer::spawn(&container, "exec-from-thread")?;
    let pid = child.pid();
    child.wait()?;
    session.settle()?;
    expect(session, id, &["mkdir", "populated", "enter", "exec", "exec", "exit", "empty"])?;
    for fact in session.facts(id) {
        if let Fact::Exec { process, .. } | Fact::Exit { process, .. } = fact {
            ensure!(process.key.pid == pid, "{fact:?}");
        }
    }
    Ok(())
}

fn long_path(session: &mut Session, root: &Root) -> Result<()> {
    let name = "n".repeat(200);
    let mut path = name.clone();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push((cgroup::id(&root.sub(&path)?)?, path.clone()));
        path = format!("{path}/{name}");
    }
    session.settle()?;
    for (index, (id, path)) in ids.iter().enumerate() {
        let facts = session.facts(*id);
        let expected = if index < 2 { root.path_of(path) } else { PathText::Name(name.as_str().into()) };
        ensure!(matches!(facts[..], [Fact::Mkdir { path, .. }] if *path == expected), "{facts:#?}");
    }
    Ok(())
}

fn tracked_later(session: &mut Session, root: &Root) -> Result<()> {
    use kwitness_agent::probe::{TrackedCgroup, TrackedLife};
    let of = |life| TrackedCgroup { life, in_pods: false, container: None };
    let parent = root.directory().parent().context("the root has a parent")?;
    let plain = Root::make_named(parent, &format!("plain-{}", std::process::id()))?;
    let (started, unstarted) = (plain.sub("started")?, plain.sub("unstarted")?);
    let ids = [cgroup::id(&started)?, cgroup::id(&unstarted)?];
    session.running().tracker().track(ids[0], of(TrackedLife::Started))?;
    session.running().tracker().track(ids[1], of(TrackedLife::Unstarted))?;
    // The second time changes nothing.
    session.running().tracker().track(ids[0], of(TrackedLife::Unstarted))?;
    for container in [&started, &unstarted] {
        producer::spawn_in(container, OWN_MOUNTS, "end")?.wait()?;
    }
    let below = cgroup::id(&plain.sub("unstarted/below")?)?;
    session.settle()?;
    expect(session, ids[0], &["populated", "enter", "exec", "exit", "empty"])?;
    expect(session, ids[1], &["populated", "enter", "first exec", "first exit", "empty"])?;
    expect(session, below, &["mkdir"])?;
    expect(session, plain.id()?, &[])?;
    session.running().tracker().untrack(ids[0])?;
    session.running().tracker().untrack(ids[0])?;
    Child::spawn(Some(&started), NO_NAMESPACES, Action::Exit(0))?.wait()?;
    session.settle()?;
    expect(session, ids[0], &["populated", "enter", "exec", "exit", "empty"])
}

/// Configured for every session, see [`roots`].
pub fn configured_roots(environment: &Environment) -> [String; 2] {
    ["witness-".to_owned(), environment.cgroup("kubepod-holder/in")]
}

fn roots(session: &mut Session, root: &Root) -> Result<()> {
    let parent = root.directory().parent().context("the root has a parent")?;
    let holder = Root::make_named(parent, "kubepod-holder")?;
    ensure!(session.facts(holder.id()?).is_empty(), "`kubepod` is no root");
    for (name, is_root) in [
        ("kubepods", true),
        ("kubepods.slice", true),
        ("kubelet-kubepods.slice", true),
        ("a-kubepods", true),
        ("a-b-kubepodskubepods", true),
        ("mykubepods", false),
        ("kubepod", false),
        ("kubepods_", true),
        ("Kubepods", false),
        ("witness-1", true),
        ("witness", false),
        ("not-witness-1", false),
        ("inside", true),
        ("outside", false),
        ("i", false),
    ] {
        let id = cgroup::id(&holder.sub(name)?)?;
        let below = cgroup::id(&holder.sub(&format!("{name}/below"))?)?;
        session.settle()?;
        let facts = session.facts(id);
        let reported =
            matches!(facts[..], [Fact::Mkdir { root: true, path, .. }] if *path == holder.path_of(name));
        ensure!(reported == is_root && facts.is_empty() != is_root, "{name}: {facts:#?}");
        let facts = session.facts(below);
        ensure!(facts.is_empty() != is_root, "{name}/below: {facts:#?}");
        ensure!(
            !is_root || matches!(facts[..], [Fact::Mkdir { root: false, .. }]),
            "{name}/below: {facts:#?}"
        );
    }
    // A name counts only if root chose it, a configured path whoever makes the cgroup.
    std::os::unix::fs::chown(holder.directory(), Some(NOBODY), None).context("give the holder away")?;
    for (name, is_root) in [("x-kubepods", false), ("witness-2", false), ("inside-2", true)] {
        let directory = by_user(NOBODY, || holder.sub(name))?;
        let owner = fs::metadata(&directory)?.uid();
        ensure!(owner == NOBODY, "{name} belongs to {owner}");
        let id = cgroup::id(&directory)?;
        session.settle()?;
        ensure!(session.facts(id).is_empty() != is_root, "{name} of another user: {:#?}", session.facts(id));
    }
    Ok(())
}

/// `nobody`.
const NOBODY: u32 = 65_534;

/// Has the file system take this thread for that user.
fn by_user<T>(user: u32, act: impl FnOnce() -> T) -> T {
    let root = nix::unistd::setfsuid(user.into());
    let done = act();
    nix::unistd::setfsuid(root);
    done
}

fn wrong_hierarchy(session: &mut Session, _: &Root) -> Result<()> {
    use nix::mount::{MsFlags, mount, umount};
    // A named hierarchy of version 1, without controllers: any kernel that still has version 1 can mount it.
    let directory = tempfile::tempdir()?;
    let options = format!("none,name=kwitness-{}", std::process::id());
    mount(Some("cgroup"), directory.path(), Some("cgroup"), MsFlags::empty(), Some(options.as_str()))
        .context("mount a cgroup v1 hierarchy")?;
    let outcome = in_v1(session, directory.path());
    umount(directory.path()).context("unmount the cgroup v1 hierarchy")?;
    outcome
}

fn in_v1(session: &mut Session, mount: &std::path::Path) -> Result<()> {
    let root = Root::make(mount, "v1")?;
    let container = root.sub("ctr")?;
    let ids = [root.id()?, cgroup::id(&container)?];
    // Its ids may be those of v2 cgroups, so what counts is that nothing is reported between here and the end.
    session.settle()?;
    let before = session.events().len();
    let child = Child::spawn(None, NO_NAMESPACES, Action::Pause)?;
    fs::write(container.join("cgroup.procs"), child.pid().to_string()).context("enter the v1 cgroup")?;
    let pid = child.pid();
    child.signal(Signal::SIGKILL)?;
    child.wait()?;
    rmdir(&container)?;
    session.settle()?;
    for event in &session.events()[before..] {
        let (Fact::Attach { process, .. } | Fact::Exit { process, .. }) = &event.fact else { continue };
        ensure!(process.key.pid != pid, "{event:?}");
    }
    let name = root.directory().file_name().context("a name")?.to_string_lossy().into_owned();
    for event in session.events() {
        if let Fact::Mkdir { path: PathText::Full(path), .. } = &event.fact {
            ensure!(!path.contains(&name), "{event:?}");
        }
    }
    ensure!(ids.iter().all(|id| *id != 0));
    Ok(())
}
