//! Which containers are armed: what the policy selects of those that run, as far as the program has room.
//!
//! Owns the map of armed cgroups. Decides nothing about a hold.

use std::collections::HashMap;

use kwitness_abi::{Armed, GUARD_ARMED_CAP, GUARD_LEVELS};

use super::answers::Late;
use super::raises::Raises;
use super::{Guard, Guarded};
use crate::cgroup::Cgroup;
use crate::daemon::{Container, Running};
use crate::episode::Input;
use crate::plan::Change;
use crate::policy::{Bytes, Rule, Selection};
use crate::program::{self, level_bit, nanos};
use crate::protected::Protected;

/// Containers whose share is looked at between two heartbeats.
const LOOKS: usize = 64;

/// Why a container that the policy selects is not armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotArmed {
    /// The program does not look that deep.
    #[error("its cgroup is at level {GUARD_LEVELS} or deeper")]
    TooDeep,
    /// The program's map has no room. It is armed when another container has gone.
    #[error("{GUARD_ARMED_CAP} containers are armed, and there is no room for more")]
    Full,
    /// Whether the policy selects it cannot be said: it is armed, or not, as soon as its names are known.
    #[error("its names are not known yet")]
    Unnamed,
    /// Whatever a rule says.
    #[error(transparent)]
    Protected(#[from] Protected),
}

/// Why a container that is armed otherwise is not held: every raise would be refused in the same way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspended {
    /// The refusal's name.
    pub reason: &'static str,
    /// The limit then. What the refusal depends on is another one together with it: a raise is given back, another process changes
    /// the limit, the pod's spec gets one.
    limit: Option<Bytes>,
}

impl NotArmed {
    /// Its name in the log and in the status.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::TooDeep => "tooDeep",
            Self::Full => "full",
            Self::Unnamed => "unnamed",
            Self::Protected(protected) => protected.name(),
        }
    }

    /// Why a container cannot be armed beside that many others, if so.
    fn of(container: &Container, armed: usize) -> Option<Self> {
        if level_bit(&container.cgroup_path).is_none() {
            Some(Self::TooDeep)
        } else if armed >= GUARD_ARMED_CAP as usize {
            Some(Self::Full)
        } else {
            None
        }
    }
}

impl Guarded {
    /// The change to find out about when it is armed: an earlier guard may have ended before the answer came. One of this guard's is being
    /// waited for, or has been given up for good.
    fn to_resolve(&self) -> Option<Change> {
        let is_waited_for = self.unanswered || self.give_back.is_lowering() || self.open.is_looked_for;
        self.loan.and_then(|loan| loan.unanswered()).filter(|_| !is_waited_for)
    }
}

impl Guard {
    /// Arms what the policy selects of these containers and their pods, and disarms what is not among them any more.
    pub(super) fn arm(&mut self, running: Running) -> anyhow::Result<()> {
        // The container runtime raises no pod.
        if self.options.raiser.raises_pod() {
            self.pods.update(&self.options.policy, &running.containers);
        }
        self.running = running;
        self.arm_known()?;
        self.report_left();
        Ok(())
    }

    /// Looks at the limits of some pods again.
    pub(super) fn look_at_pods(&mut self) -> anyhow::Result<()> {
        if self.pods.look_again() {
            self.arm_known()?;
        }
        Ok(())
    }

    /// The pods whose limit is hit before those of their containers, or has been raised and is to be given back.
    fn guarded_pods(&self) -> Vec<Container> {
        let is_lent = |id: u64| {
            let of_this = self.known(id).is_some_and(|guarded| guarded.loan.is_some());
            of_this || self.inherited.contains_key(&id)
        };
        let pods = self.pods.found().filter(|pod| pod.is_hit_first || is_lent(pod.container.cgroup_id));
        pods.map(|pod| pod.container.clone()).collect()
    }

    fn arm_known(&mut self) -> anyhow::Result<()> {
        let mut wanted: HashMap<u64, (Container, Rule)> = HashMap::new();
        let mut excluded: HashMap<u64, (Container, NotArmed)> = HashMap::new();
        let pods = self.guarded_pods();
        for container in self.running.containers.iter().chain(&pods) {
            let id = container.cgroup_id;
            match (container.select(&self.options.policy), self.guarded.get(&id)) {
                (Selection::Rule(rule), _) => {
                    let needed = self.running.daemon.iter().chain(&self.own_cgroup);
                    match Protected::of(container, rule, needed) {
                        Some(protected) => {
                            excluded.insert(id, (container.clone(), protected.into()));
                        }
                        None => {
                            wanted.insert(id, (container.clone(), rule.clone()));
                        }
                    }
                }
                (Selection::Nothing, _) => {}
                // A daemon that was started again asks for the names again: what is armed stays so meanwhile.
                (Selection::Undecided, Some(of)) => {
                    wanted.insert(id, (of.container.clone(), of.rule.clone()));
                }
                (Selection::Undecided, None) => {
                    excluded.insert(id, (container.clone(), NotArmed::Unnamed));
                }
            }
        }
        let gone: Vec<u64> = self.guarded.keys().filter(|id| !wanted.contains_key(id)).copied().collect();
        for cgroup_id in gone {
            self.disarm(cgroup_id)?;
        }
        self.not_armed.retain(|id, _| wanted.contains_key(id) || excluded.contains_key(id));
        for (container, reason) in excluded.into_values() {
            self.exclude(&container, reason);
        }
        self.retired.retain(|id, of| exists(&of.container.cgroup_path, *id));
        self.inherited.retain(|id, lent| exists(&lent.cgroup_path, *id));
        let mut looks = 0;
        for (cgroup_id, (container, rule)) in wanted {
            // To look at the processes of very many may take longer than the lease, and than a hold.
            if looks >= LOOKS {
                self.beat()?;
                self.look()?;
                looks = 0;
            }
            if let Some(guarded) = self.guarded.get_mut(&cgroup_id) {
                guarded.container = container;
                // A name that has become known may select another one.
                if guarded.rule != rule {
                    guarded.rule = rule;
                    guarded.suspended = None;
                    looks += 1;
                    self.look_at_share(cgroup_id, None);
                    self.write_armed(cgroup_id)?;
                }
                continue;
            }
            if let Some(reason) = NotArmed::of(&container, self.guarded.len()) {
                self.exclude(&container, reason);
                continue;
            }
            self.not_armed.remove(&cgroup_id);
            tracing::info!(
                container = container.id,
                pod = container.pod,
                name = container.name,
                level = ?container.level(),
                threshold = %rule.threshold,
                ceiling = %rule.ceiling,
                "armed"
            );
            let guarded = match (self.retired.remove(&cgroup_id), self.inherited.remove(&cgroup_id)) {
                (Some(earlier), _) => Guarded { container, rule, ..earlier },
                (None, lent) => {
                    let lent = lent.filter(|lent| lent.container_id == container.id);
                    let loan = lent.as_ref().map(|lent| lent.loan);
                    let raises = lent.map(|lent| Raises::inherited(&lent.loan, lent.raises, rule.step));
                    let raises = raises.unwrap_or_default();
                    Guarded { raises, loan, ..Guarded::new(container, rule) }
                }
            };
            let open = guarded.to_resolve();
            self.guarded.insert(cgroup_id, guarded);
            looks += 1;
            self.look_at_share(cgroup_id, None);
            self.write_armed(cgroup_id)?;
            if let Some(change) = open {
                self.resolve(cgroup_id, Late { change, since: program::now() });
            }
        }
        self.beat()
    }

    /// Notes why a container is not armed. That its names are to come is no news.
    fn exclude(&mut self, container: &Container, reason: NotArmed) {
        let is_news = self.not_armed.insert(container.cgroup_id, reason) != Some(reason);
        if is_news && reason != NotArmed::Unnamed {
            let Container { id, cgroup_path: path, .. } = container;
            tracing::warn!(container = id, path, reason = reason.name(), "not armed: {reason}");
        }
    }

    fn disarm(&mut self, cgroup_id: u64) -> anyhow::Result<()> {
        let episode = self.guarded.get_mut(&cgroup_id).and_then(|guarded| guarded.episode.take());
        if let Some(running) = episode {
            self.perform(cgroup_id, running, Input::Gone)?;
        }
        self.program.disarm(cgroup_id)?;
        if let Some(guarded) = self.guarded.remove(&cgroup_id) {
            tracing::info!(container = guarded.container.id, "disarmed");
            // The daemon may list it again: what it has had of its budget stays counted for as long as it exists.
            self.retired.insert(cgroup_id, guarded);
        }
        Ok(())
    }

    /// Holds nothing of a container until its limit is another one.
    pub(super) fn suspend(&mut self, cgroup_id: u64, reason: &'static str) -> anyhow::Result<()> {
        let Some(guarded) = self.guarded.get_mut(&cgroup_id) else { return Ok(()) };
        guarded.suspended = Some(Suspended { reason, limit: limit(&guarded.container).flatten() });
        let container = &guarded.container.id;
        tracing::warn!(container, reason, "suspended: nothing of it is held until its limit is another one");
        Ok(self.program.disarm(cgroup_id)?)
    }

    /// Arms those again whose limit is another one than when they were suspended.
    pub(super) fn look_at_suspended(&mut self) -> anyhow::Result<()> {
        let is_over = |guarded: &Guarded| {
            let suspended = guarded.suspended?;
            (limit(&guarded.container)? != suspended.limit).then_some(())
        };
        let over = self.guarded.iter().filter_map(|(id, guarded)| is_over(guarded).map(|()| *id));
        for cgroup_id in over.collect::<Vec<_>>() {
            if let Some(guarded) = self.guarded.get_mut(&cgroup_id) {
                guarded.suspended = None;
                tracing::info!(container = guarded.container.id, "armed again: its limit is another one");
            }
            self.write_armed(cgroup_id)?;
        }
        Ok(())
    }

    /// Gives the program what it must know of a container; nothing, if nothing of it is to be held.
    pub(super) fn write_armed(&mut self, cgroup_id: u64) -> anyhow::Result<()> {
        let Some(guarded) = self.guarded.get(&cgroup_id) else { return Ok(()) };
        let Guarded { container, rule, quiet_until, .. } = guarded;
        let (Ok(per_mille), None) = (guarded.share, guarded.suspended) else {
            return Ok(self.program.disarm(cgroup_id)?);
        };
        let armed = Armed {
            quiet_until: *quiet_until,
            longest: nanos(rule.longest_hold),
            per_mille,
            is_pod: container.is_pod().into(),
        };
        Ok(self.program.arm(cgroup_id, armed)?)
    }
}

/// The limit of a container now; none: it cannot be read.
fn limit(container: &Container) -> Option<Option<Bytes>> {
    Cgroup::find(&container.cgroup_path, container.cgroup_id).ok()??.limit().ok()
}

/// Whether that cgroup is still there. One that cannot be looked at may be.
fn exists(cgroup_path: &str, cgroup_id: u64) -> bool {
    !matches!(Cgroup::find(cgroup_path, cgroup_id), Ok(None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::give_back::{GiveBack, Loan};
    use crate::plan::tests::rule;

    fn container(cgroup_path: &str) -> Container {
        Container {
            id: "c".to_owned(),
            is_identified: true,
            cgroup_id: 7,
            cgroup_path: cgroup_path.to_owned(),
            namespace: None,
            pod: None,
            pod_uid: None,
            name: None,
        }
    }

    #[test]
    fn what_the_program_has_no_room_for_is_not_armed() {
        let full = GUARD_ARMED_CAP as usize;
        assert_eq!(NotArmed::of(&container("/pod/c"), full - 1), None);
        assert_eq!(NotArmed::of(&container("/pod/c"), full), Some(NotArmed::Full));
        let deep = "/x".repeat(GUARD_LEVELS as usize);
        assert_eq!(NotArmed::of(&container(&deep), 0), Some(NotArmed::TooDeep));
    }

    #[test]
    fn an_earlier_guards_open_change_is_looked_for_and_not_one_that_this_guard_waits_for_or_has_given_up() {
        let change = Change { from: Bytes(64), to: Bytes(128) };
        let loan = Some(Loan::requested(None, change));
        let inherited = || Guarded { loan, ..Guarded::new(container("/pod/c"), rule()) };
        assert_eq!(inherited().to_resolve(), Some(change));
        assert_eq!(Guarded { unanswered: true, ..inherited() }.to_resolve(), None);
        assert_eq!(Guarded { give_back: GiveBack::lowering(change), ..inherited() }.to_resolve(), None);
        let mut looked_for = inherited();
        looked_for.open.is_looked_for = true;
        assert_eq!(looked_for.to_resolve(), None);
    }
}
