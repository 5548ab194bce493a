//! What a watcher has seen, and what a container's life must look like in it.
//!
//! The rules of the API's event stream stand here once, in [`Seen::check_life`]: every test that lets a container
//! live asks it, and the demo does, too.

use std::collections::HashMap;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use kwitness_api::EventKind;
use kwitness_api::proto::event::Kind;
use kwitness_api::proto::exit_status::Status;
use kwitness_api::proto::{
    Basis, Container, ContainerType, Event, ExitStatus, Gap, GapCause, Process, ProcessRole, QosClass,
    Stopped,
};

use crate::pod::{APP_IMAGE, Pod, Qos};

/// How an OCI runtime executes a copy of itself, which may happen in the container's cgroup already: it came from
/// outside, and is no program of the container's.
const RUNTIME_HELPERS: [&str; 2] = ["/dev/fd/", "/proc/self/"];

pub const WHOLE: [&str; 4] = ["created", "started", "stopped", "deleted"];

/// An event, and when its watcher got it (`CLOCK_BOOTTIME`, nanoseconds).
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    pub event: Event,
    pub at: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Seen(pub Vec<Received>);

/// The kernel skipped programs, said so, and lost nothing else: see [`crate::suite::ATTEMPTS`].
#[derive(Debug, thiserror::Error)]
#[error("the kernel skipped programs, in:\n{0}")]
pub struct Skipped(String);

#[derive(Clone, Debug)]
pub struct Life<'a> {
    pub pod: &'a Pod,
    pub id: &'a str,
    /// Its name; a sandbox has none.
    pub name: Option<&'a str>,
    /// Its own first program; none if it never ran.
    pub program: Option<&'a str>,
    pub end: Option<End>,
    /// The programs of processes that came in from outside, each with its end.
    pub entered: &'a [(&'a str, End)],
}

impl<'a> Life<'a> {
    /// Of a container that ran a program, into which no process came from outside.
    pub fn of(pod: &'a Pod, id: &'a str, name: &'a str, program: &'a str, end: End) -> Self {
        Self { program: Some(program), end: Some(end), ..Self::unstarted(pod, id, name) }
    }

    /// Of a container that never ran, or of which no more is compared than what the runtime knows.
    pub fn unstarted(pod: &'a Pod, id: &'a str, name: &'a str) -> Self {
        Self { pod, id, name: Some(name), program: None, end: None, entered: &[] }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Code(u32),
    Signal(u32),
}

impl End {
    pub fn of(status: &ExitStatus) -> Option<Self> {
        Some(match status.status? {
            Status::Code(code) => Self::Code(code),
            Status::Signal(signal) => Self::Signal(signal),
        })
    }
}

/// The event's kind, in the API's JSON spelling.
pub fn kind(event: &Event) -> &'static str {
    EventKind::of(event).map_or("(none)", EventKind::name)
}

impl Seen {
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &Event> {
        self.0.iter().map(|received| &received.event)
    }

    pub fn of(&self, id: &str) -> impl DoubleEndedIterator<Item = &Event> {
        self.events()
            .filter(move |event| event.container.as_ref().is_some_and(|container| container.id == id))
    }

    /// The events about each container, by its id: for tests of thousands.
    pub fn by_container(&self) -> HashMap<String, Self> {
        let mut by_container = HashMap::<String, Self>::new();
        for received in &self.0 {
            if let Some(container) = &received.event.container {
                let own = by_container.entry(container.id.clone()).or_insert_with(|| Self(Vec::new()));
                own.0.push(received.clone());
            }
        }
        by_container
    }

    pub fn has(&self, id: &str, wanted: &str) -> bool {
        self.of(id).any(|event| kind(event) == wanted)
    }

    pub fn count(&self, wanted: &str) -> usize {
        self.events().filter(|event| kind(event) == wanted).count()
    }

    pub fn subject(&self, id: &str) -> Option<&Container> {
        self.of(id).last().and_then(|event| event.container.as_ref())
    }

    /// The kinds of a container's events, `exec`, `exited` and `updated` left out.
    pub fn milestones(&self, id: &str) -> Vec<&'static str> {
        let all = self.of(id).map(kind);
        all.filter(|kind| matches!(*kind, "created" | "started" | "stopped" | "deleted")).collect()
    }

    /// That a container's whole life is reported, once and in its order.
    pub fn check_whole(&self, id: &str) -> Result<()> {
        let milestones = self.milestones(id);
        ensure!(milestones == WHOLE, "{id}: {milestones:?} in:\n{self}");
        Ok(())
    }

    pub fn stopped(&self, id: &str) -> Option<&Stopped> {
        self.of(id).find_map(|event| match &event.kind {
            Some(Kind::Stopped(stopped)) => Some(stopped),
            _ => None,
        })
    }

    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.events().filter_map(|event| match &event.kind {
            Some(Kind::Gap(gap)) => Some(gap),
            _ => None,
        })
    }

    /// That sequence numbers follow each other without a hole, in one epoch: nothing is missing between what the
    /// daemon reported and what this watcher got.
    pub fn check_unbroken(&self) -> Result<()> {
        let positions = || self.events().map(|event| event.position.as_ref());
        for (before, after) in positions().zip(positions().skip(1)) {
            let (before, after) = before.zip(after).with_context(|| format!("no position in:\n{self}"))?;
            ensure!(
                before.epoch == after.epoch && before.seq + 1 == after.seq,
                "{before:?} is followed by {after:?} in:\n{self}"
            );
        }
        Ok(())
    }

    /// That the numbers have no hole, but for those that a gap names.
    pub fn check_numbered(&self) -> Result<()> {
        for (before, after) in self.events().zip(self.events().skip(1)) {
            let (Some(from), Some(to)) = (&before.position, &after.position) else {
                bail!("no position in:\n{self}");
            };
            let next = match &after.kind {
                // A new epoch begins, and a gap says so.
                Some(Kind::Gap(gap)) if gap.cause() == GapCause::ReplayExpired && from.epoch != to.epoch => {
                    continue;
                }
                // One of several containers' is followed by the others', in the same range.
                Some(Kind::Gap(gap)) if gap.last_seq.is_some_and(|last| to.seq <= last) => {
                    gap.first_seq.map(|first| first.max(from.seq + 1))
                }
                _ => Some(to.seq),
            };
            ensure!(
                from.epoch == to.epoch && next == Some(from.seq + 1),
                "{from:?} is followed by {to:?} in:\n{self}"
            );
        }
        Ok(())
    }

    /// That no record was lost and no repair was needed.
    ///
    /// # Errors
    /// [`Skipped`], if nothing was lost but for that.
    pub fn check_complete(&self) -> Result<()> {
        let is_skipped = |gap: &Gap| gap.cause() == GapCause::ProgramSkipped;
        if self.gaps().next().is_some() && self.gaps().all(is_skipped) {
            return Err(Skipped(self.to_string()).into());
        }
        for unwanted in ["gap", "resynced", "(none)"] {
            ensure!(self.count(unwanted) == 0, "an event `{unwanted}` in:\n{self}");
        }
        Ok(())
    }

    /// That a whole life, from cgroup to no cgroup, is reported exactly once, in its order, and rightly.
    pub fn check_life(&self, life: &Life<'_>) -> Result<()> {
        self.check_life_inner(life).with_context(|| {
            let name = life.name.unwrap_or("the sandbox");
            let own =
                Self(self.0.iter().filter(|received| about(&received.event, life.id)).cloned().collect());
            format!("{name} of pod {} ({}), of which was seen:\n{own}", life.pod.spec.name, short(life.id))
        })
    }

    fn check_life_inner(&self, life: &Life<'_>) -> Result<()> {
        let expected: &[_] = match life.program {
            Some(_) => &WHOLE,
            None => &["created", "stopped", "deleted"],
        };
        let milestones = self.milestones(life.id);
        // A container in which no process ever was cannot have lost its last one.
        let never_populated = life.program.is_none() && milestones == ["created", "deleted"];
        ensure!(milestones == expected || never_populated, "milestones {milestones:?}, not {expected:?}");

        let mut main: Option<&Process> = None;
        let mut main_end = None;
        let mut entered: Vec<(&str, u32, Option<End>)> = Vec::new();
        let mut before = 0;
        for event in self.of(life.id) {
            let what = kind(event);
            let subject = event.container.as_ref().context("no container")?;
            check_identity(subject, life).with_context(|| format!("the subject of `{what}`"))?;
            // Knowledge comes from the runtime and the guard at their own time, a limit is reported once it has been read back; the
            // kernel's facts have the kernel's order.
            let own_time = [Basis::Runtime, Basis::Guard, Basis::LimitWrite, Basis::LimitRead];
            if !own_time.contains(&event.basis()) {
                ensure!(event.kernel_time >= before, "`{what}` happened before what precedes it");
                before = event.kernel_time;
            }
            match event.kind.as_ref().context("an event without a kind")? {
                Kind::Created(_) => check_basis(event, Basis::CgroupMkdir)?,
                Kind::Started(started) => {
                    check_basis(event, Basis::TaskExec)?;
                    ensure!(
                        started.program.as_deref() == life.program,
                        "started {:?}, not {:?}",
                        started.program,
                        life.program
                    );
                    let process = started.process.as_ref().context("no process in `started`")?;
                    ensure!(
                        process.role() == ProcessRole::Main,
                        "the first program's role is {:?}",
                        process.role()
                    );
                    main = Some(process);
                }
                Kind::Exec(exec) => {
                    let process = exec.process.as_ref().context("no process in `exec`")?;
                    let helper = RUNTIME_HELPERS.iter().any(|beginning| exec.program.starts_with(beginning));
                    let known = entered.iter().any(|(_, pid, _)| *pid == process.pid);
                    if process.role() == ProcessRole::Entered && !helper && !known {
                        entered.push((&exec.program, process.pid, None));
                    }
                }
                Kind::Exited(exited) => {
                    check_basis(event, Basis::TaskExit)?;
                    let process = exited.process.as_ref().context("no process in `exited`")?;
                    let end = exited.status.as_ref().and_then(End::of).context("no status in `exited`")?;
                    if main.is_some_and(|main| main.pid == process.pid) {
                        ensure!(main_end.replace(end).is_none(), "the main process ended twice");
                    }
                    if let Some(known) = entered.iter_mut().find(|(_, pid, _)| *pid == process.pid) {
                        known.2 = Some(end);
                    }
                }
                Kind::Stopped(stopped) => {
                    let end = stopped.main_status.as_ref().and_then(End::of);
                    ensure!(end == life.end, "stopped with {end:?}, not {:?}", life.end);
                    ensure!(stopped.never_started == life.program.is_none(), "never_started is wrong");
                }
                Kind::Deleted(_) => check_basis(event, Basis::CgroupRmdir)?,
                Kind::Updated(updated) => ensure!(!updated.fields.is_empty(), "`updated` names no field"),
                Kind::LimitChanged(changed) => {
                    ensure!(changed.old != changed.new || changed.write.is_some(), "no change: {changed:?}");
                }
                Kind::Verdict(verdict) => ensure!(!verdict.reason.is_empty(), "no reason: {verdict:?}"),
                Kind::OomKill(_) => check_basis(event, Basis::OomKill)?,
                Kind::Pressure(_) => ensure!(
                    matches!(event.basis(), Basis::MemorySample | Basis::MemoryCharge),
                    "`pressure` rests on {:?}",
                    event.basis()
                ),
                Kind::GuardHeld(_)
                | Kind::GuardRaised(_)
                | Kind::GuardContinued(_)
                | Kind::GuardRefused(_)
                | Kind::GuardReturned(_) => check_basis(event, Basis::Guard)?,
                Kind::Gap(_) | Kind::Resynced(_) | Kind::AgentRestarted(_) => {
                    bail!("`{what}` has a container")
                }
            }
        }
        ensure!(main_end == life.end, "the main process ended with {main_end:?}, not {:?}", life.end);
        let entered: Vec<_> = entered.into_iter().map(|(program, _, end)| (program, end)).collect();
        let wanted: Vec<_> = life.entered.iter().map(|(program, end)| (*program, Some(*end))).collect();
        ensure!(entered == wanted, "entered: {entered:?}, not {wanted:?}");
        Ok(())
    }

    /// That the runtime's knowledge of the container has come, with an event or by `updated`.
    pub fn check_known(&self, life: &Life<'_>) -> Result<()> {
        let subject = self.subject(life.id).with_context(|| format!("nothing seen of {}", life.id))?;
        check_known(subject, life).with_context(|| format!("what is known of {}: {subject:?}", life.id))
    }
}

/// That what the runtime knows of the container is in the subject, and is right.
pub fn check_known(subject: &Container, life: &Life<'_>) -> Result<()> {
    let spec = &life.pod.spec;
    let pod = subject.pod.as_ref().context("no pod")?;
    ensure!(pod.name.as_deref() == Some(&spec.name), "pod name {:?}", pod.name);
    ensure!(pod.namespace.as_deref() == Some(&spec.namespace), "namespace {:?}", pod.namespace);
    ensure!(subject.name.as_deref() == life.name, "name {:?}", subject.name);
    let uid = subject.labels.get("io.kubernetes.pod.uid");
    ensure!(uid == Some(&spec.uid), "label io.kubernetes.pod.uid {uid:?}");
    if life.name.is_some() {
        ensure!(subject.r#type() == ContainerType::App, "type {:?}", subject.r#type());
        ensure!(subject.image.as_deref() == Some(APP_IMAGE), "image {:?}", subject.image);
    } else {
        ensure!(subject.r#type() == ContainerType::Sandbox, "type {:?}", subject.r#type());
        let label = subject.labels.get("app");
        ensure!(label == spec.labels.get("app"), "label app {label:?}");
    }
    Ok(())
}

/// What the cgroup's path alone says, so that it is right in every event.
fn check_identity(subject: &Container, life: &Life<'_>) -> Result<()> {
    let spec = &life.pod.spec;
    ensure!(subject.id == life.id, "id {}", subject.id);
    ensure!(subject.cgroup_id != 0, "no cgroup id");
    ensure!(
        subject.cgroup_path.starts_with(&life.pod.cgroup) && subject.cgroup_path.contains(life.id),
        "path {} below {}",
        subject.cgroup_path,
        life.pod.cgroup
    );
    let pod = subject.pod.as_ref().context("no pod")?;
    ensure!(pod.uid == spec.uid, "pod uid {}, not {}", pod.uid, spec.uid);
    let class = match spec.qos {
        Qos::Guaranteed => QosClass::Guaranteed,
        Qos::Burstable => QosClass::Burstable,
        Qos::BestEffort => QosClass::BestEffort,
    };
    ensure!(pod.qos_class() == class, "class {:?}, not {class:?}", pod.qos_class());
    Ok(())
}

fn check_basis(event: &Event, wanted: Basis) -> Result<()> {
    ensure!(event.basis() == wanted, "`{}` rests on {:?}, not {wanted:?}", kind(event), event.basis());
    Ok(())
}

fn about(event: &Event, id: &str) -> bool {
    event.container.as_ref().is_some_and(|container| container.id == id)
}

/// The beginning of a container's id, as tools show it.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.0.first().map_or(0, |received| received.event.kernel_time);
        for Received { event, at } in &self.0 {
            let seq = event.position.as_ref().map_or(0, |position| position.seq);
            let since = event.kernel_time.wrapping_sub(first) as i64 as f64 / 1e6;
            let took = at.wrapping_sub(event.kernel_time) as i64 as f64 / 1e3;
            write!(f, "  {seq:>6} {since:>+10.3}ms (+{took:.0}us) {:<8}", kind(event))?;
            if let Some(container) = &event.container {
                let pod = container.pod.as_ref().and_then(|pod| pod.name.as_deref()).unwrap_or("?");
                let name = container.name.as_deref().unwrap_or("-");
                write!(f, " {} {pod}/{name}", short(&container.id))?;
            }
            match &event.kind {
                Some(Kind::Started(started)) => write!(f, " {:?} {:?}", started.program, started.process)?,
                Some(Kind::Exec(exec)) => write!(f, " {} {:?}", exec.program, exec.process)?,
                Some(Kind::Exited(exited)) => write!(f, " {:?} {:?}", exited.status, exited.process)?,
                Some(other) => write!(f, " {other:?}")?,
                None => {}
            }
            writeln!(f, " [{:?}]", event.basis())?;
        }
        Ok(())
    }
}
