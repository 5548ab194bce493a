//! The node's state as of a moment of a recording: the last snapshot, verdicts and sample of usage before it, and the events since.
//!
//! Owns what `List`, `Verify` and `WatchUsage` answer from. What no event reports stays as the snapshot has it (the number of forks).

use std::collections::HashMap;

use super::Line;
use super::usage::Usage;
use crate::proto::event::Kind;
use crate::{Timestamp, proto};

/// The state.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// The journal position of the state.
    pub position: Option<proto::Position>,
    /// When the first snapshot was taken: before it, only containers are known whose beginning is an event.
    pub known_since: Option<Timestamp>,
    /// By cgroup ID.
    pub containers: HashMap<u64, proto::ContainerState>,
    /// By cgroup ID and limit file.
    pub verdicts: HashMap<(u64, String), proto::VerdictOf>,
    /// Sources that could not be queried when the verdicts were recorded.
    pub unavailable: Vec<String>,
    /// What containers use.
    pub usage: Usage,
}

impl State {
    /// Takes a line that is not later than the moment.
    pub fn apply(&mut self, line: &Line) {
        match line {
            Line::Header(_) => {}
            Line::Snapshot(snapshot) => {
                self.known_since = self.known_since.or(Some(snapshot.time));
                let epoch = |position: &Option<proto::Position>| position.as_ref().map(|of| of.epoch.clone());
                // After a reboot, cgroup IDs are those of others.
                if epoch(&self.position) != epoch(&snapshot.answer.position) {
                    self.verdicts.clear();
                }
                self.position = snapshot.answer.position.clone();
                let key = |state: &proto::ContainerState| Some(state.container.as_ref()?.cgroup_id);
                let containers = snapshot.answer.containers.iter();
                self.containers = containers.filter_map(|state| Some((key(state)?, state.clone()))).collect();
                self.verdicts.retain(|(_, _), of| {
                    of.container.as_ref().is_none_or(|of| self.containers.contains_key(&of.cgroup_id))
                });
            }
            Line::Verdicts(verdicts) => {
                self.unavailable.clone_from(&verdicts.answer.unavailable);
                let verdicts = verdicts.answer.verdicts.iter();
                self.verdicts =
                    verdicts.clone().filter_map(|of| Some((key(of.verdict.as_ref()?), of.clone()))).collect();
                for (container, verdict) in
                    verdicts.filter_map(|of| of.container.as_ref().zip(of.verdict.as_ref()))
                {
                    self.usage.verdict(container, verdict);
                }
            }
            Line::Usage(sample) => self.usage.sample(sample),
            Line::Event(event) => {
                self.usage.killed(event);
                let is_known = |position: &proto::Position| {
                    self.position.as_ref().is_some_and(|snapshot| {
                        snapshot.epoch == position.epoch && position.seq <= snapshot.seq
                    })
                };
                if !event.position.as_ref().is_some_and(is_known) {
                    self.event(event);
                }
            }
        }
    }

    fn event(&mut self, event: &proto::Event) {
        self.position.clone_from(&event.position);
        let Some(kind) = &event.kind else { return };
        let begins = matches!(kind, Kind::Created(_) | Kind::Started(_));
        // What comes late of one that is gone (its names, an exit, a verdict) does not bring it back.
        if event.container.as_ref().is_some_and(|container| !begins && !self.has(container)) {
            return;
        }
        if let Kind::Verdict(verdict) = kind {
            let of = proto::VerdictOf {
                container: event.container.clone(),
                verdict: Some((**verdict).clone()),
                ..Default::default()
            };
            self.verdicts.insert(key(verdict), of);
        }
        let Some(container) = &event.container else { return };
        self.usage.event(container, kind);
        if let Kind::Deleted(_) = kind {
            self.containers.remove(&container.cgroup_id);
            self.verdicts.retain(|(cgroup, _), _| *cgroup != container.cgroup_id);
            return;
        }
        let state = self.containers.entry(container.cgroup_id).or_default();
        if state.container.as_ref().is_some_and(|known| known.id != container.id) {
            *state = proto::ContainerState::default();
        }
        state.container = Some(container.clone());
        // What a scan found happened earlier.
        let at = event
            .time
            .filter(|_| !matches!(event.basis(), proto::Basis::InitialScan | proto::Basis::RepairScan));
        match kind {
            Kind::Created(_) => {
                state.state = proto::State::Created.into();
                state.created_at = at;
            }
            Kind::Started(started) => {
                state.state = proto::State::Running.into();
                state.started_at = at.or_else(|| made(event, started.process.as_ref()?));
                state.stopped_at = None;
                state.main_status = None;
                state.main.clone_from(&started.process);
                state.program.clone_from(&started.program);
                state.execs += 1;
            }
            Kind::Exec(_) => state.execs += 1,
            Kind::Exited(_) => state.exits += 1,
            Kind::Stopped(stopped) => {
                state.state = proto::State::Stopped.into();
                state.stopped_at = at;
                state.main_status.clone_from(&stopped.main_status);
            }
            _ => {}
        }
    }

    /// Whether it is there: a cgroup ID of before a reboot may be another container's.
    fn has(&self, container: &proto::Container) -> bool {
        let known = self.containers.get(&container.cgroup_id).and_then(|state| state.container.as_ref());
        known.is_some_and(|known| known.id == container.id)
    }
}

/// When a process was made that an event found, as the daemon has it.
fn made(event: &proto::Event, process: &proto::Process) -> Option<Timestamp> {
    let age = event.kernel_time.checked_sub(process.start_time).filter(|_| process.start_time > 0)?;
    let at = event.time?.to_unix_nanos().saturating_sub(i64::try_from(age).ok()?);
    Some(Timestamp::from_unix_nanos(at))
}

fn key(verdict: &proto::Verdict) -> (u64, String) {
    (verdict.cgroup.as_ref().map_or(0, |cgroup| cgroup.id), verdict.file.clone())
}
