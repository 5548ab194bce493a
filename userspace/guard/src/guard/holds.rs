//! From what the map says is held to SIGCONT: one episode a container, performed step by step.
//!
//! Decides nothing itself: [`Episode`] does. Arming, the lease and the status are the parent's.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use kwitness_abi::{Hold, ProcessKey};
use kwitness_api::proto::guard_report::Report;
use kwitness_api::proto::{self, CgroupRole};

use super::answers::Late;
use super::in_force::verify;
use super::room::Room;
use super::{Answer, Guard, Guarded, HoldId, Running, Times, announce, hold_id};
use crate::brake;
use crate::cgroup::{self, Cgroup};
use crate::episode::{Episode, Input, Next, Outcome, Proof};
use crate::plan::{Facts, Refusal};
use crate::policy::Bytes;
use crate::process::{self, Motion, State};
use crate::program::{self, nanos};
use crate::reporter;
use crate::status::{Ended, HISTORY};

impl Guard {
    /// Brings everything in step with what the map says.
    pub(super) fn look(&mut self) -> anyhow::Result<()> {
        let held = self.program.records.held()?;
        let now = program::now();
        let ids: HashSet<HoldId> = held.iter().map(|(key, hold)| hold_id(*key, hold)).collect();
        for of in [&mut self.reported, &mut self.continuing, &mut self.still] {
            of.retain(|id| ids.contains(id));
        }
        self.movers.retain(|id, _| ids.contains(id));
        self.ended_by_watchdog.retain(|id, _| ids.contains(id));
        // Before anything that takes time.
        self.brake(&held);
        // By container, the hold that began first.
        let mut first: BTreeMap<u64, Hold> = BTreeMap::new();
        for (key, hold) in &held {
            let id = hold_id(*key, hold);
            if self.reported.insert(id) {
                self.counts.holds += 1;
                self.report_held(*key, hold);
            }
            if !self.continuing.contains(&id) {
                let earliest = first.entry(hold.cgroup_id).or_insert(*hold);
                if hold.since < earliest.since {
                    *earliest = *hold;
                }
            }
        }
        let mut room = None;
        for (cgroup_id, hold) in first {
            match self.guarded.get_mut(&cgroup_id) {
                // Disarmed while the program was at it.
                None => self.continue_all(&held, cgroup_id),
                Some(guarded) if !self.watchdog.looks_on() => match guarded.episode.take() {
                    Some(running) => self.perform(cgroup_id, running, Input::Unwatched)?,
                    None => self.begin(&hold, &mut room)?,
                },
                // What is being lowered would be lowered after the raise.
                Some(guarded) if guarded.give_back.is_lowering() && now < hold.until => {}
                Some(guarded) if guarded.episode.is_none() => self.begin(&hold, &mut room)?,
                Some(guarded) => {
                    if let Some(running) = guarded.episode.take_if(|running| now >= running.until) {
                        self.perform(cgroup_id, running, Input::Overdue)?;
                    }
                }
            }
        }
        self.brake(&held);
        self.resume(&held)
    }

    /// Puts the second brake on where a process that is to stay held has not stopped, or runs again, and releases every other one.
    fn brake(&mut self, held: &[(ProcessKey, Hold)]) {
        let mut moving = HashSet::new();
        let (mut looks, mut repeated) = (process::LOOKS, process::REPEATED_LOOKS);
        let now = program::now();
        for (key, hold) in held {
            let id = hold_id(*key, hold);
            let is_braked = self.guarded.get(&hold.cgroup_id).is_some_and(|guarded| guarded.rule.brake);
            let is_ended = self.continuing.contains(&id) || self.ended_by_watchdog.contains_key(&id);
            let is_over = now >= brake::end(hold) || is_ended;
            if !is_braked || is_over || moving.contains(&hold.cgroup_id) {
                continue;
            }
            if self.still.contains(&id) {
                let is_due = repeated > 0;
                repeated = repeated.saturating_sub(1);
                if !is_due || !process::is_continued(*key, hold).unwrap_or(false) {
                    continue;
                }
                // The watchdog says so before it continues a process.
                self.hear();
                if self.ended_by_watchdog.contains_key(&id) {
                    continue;
                }
                tracing::warn!(pid = key.pid, "another process has continued it during its hold");
                self.still.remove(&id);
            }
            let mut mover = self.movers.remove(&id);
            let motion = process::motion(*key, hold, &mut mover, &mut looks);
            self.movers.extend(mover.map(|tid| (id, tid)));
            match motion {
                Ok(Motion::Still) => {
                    self.still.insert(id);
                }
                Ok(Motion::Stopping) => {}
                Ok(Motion::Moving) => {
                    moving.insert(hold.cgroup_id);
                }
                Err(error) => {
                    tracing::debug!(pid = key.pid, %error, "cannot see whether a process has stopped")
                }
            }
        }
        let moving = moving.iter().filter_map(|cgroup_id| Some(&self.guarded.get(cgroup_id)?.container));
        self.brakes.set(moving);
    }

    fn report_held(&self, key: ProcessKey, hold: &Hold) {
        let page = procfs::page_size();
        let comm = String::from_utf8_lossy(&hold.comm);
        let (container, level) = (self.container_id(hold.cgroup_id), self.level(hold.cgroup_id));
        if let Some(container) = container {
            let held = proto::GuardHeld {
                process: reporter::process(key.pid, key.start_boottime, &hold.comm),
                level: level.into(),
                usage_bytes: hold.usage.saturating_mul(page),
                limit_bytes: hold.limit.saturating_mul(page),
            };
            self.reporter.push_at(hold.since, container, Report::Held(held));
        }
        tracing::info!(
            pid = key.pid,
            comm = comm.trim_end_matches('\0'),
            container,
            ?level,
            usage = hold.usage * page,
            limit = hold.limit * page,
            "guardHeld"
        );
    }

    /// The id of a container that is or was armed.
    pub(super) fn container_id(&self, cgroup_id: u64) -> Option<&str> {
        Some(&self.known(cgroup_id)?.container.id)
    }

    /// Whose limit is guarded there.
    fn level(&self, cgroup_id: u64) -> CgroupRole {
        self.known(cgroup_id).map_or(CgroupRole::Container, |guarded| guarded.container.level())
    }

    /// The first hold of a container that has no episode.
    fn begin(&mut self, first: &Hold, room: &mut Option<Room>) -> anyhow::Result<()> {
        let seen = program::now();
        let Some(guarded) = self.guarded.get_mut(&first.cgroup_id) else { return Ok(()) };
        guarded.give_back.held();
        if let Some(change) = guarded.give_back.proven(held_at(first)) {
            self.returned(first.cgroup_id, change);
        }
        let room = match room {
            Some(room) => room,
            none => none.insert(self.room()?),
        };
        let Some(guarded) = self.guarded.get(&first.cgroup_id) else { return Ok(()) };
        let next = match self.facts(guarded, first, room) {
            Ok(facts) => Episode::begin(&guarded.rule, &facts),
            Err(refusal) => Next::Continue(Outcome::Refused(refusal)),
        };
        let times = Times { seen, planned: program::now(), raised: None };
        self.episodes += 1;
        let number = self.episodes;
        let running = |episode| Running { number, episode, until: first.until, first: *first, times };
        match next {
            Next::Raise(episode) => {
                room.raised(first.cgroup_id, episode.raise());
                self.raise(first.cgroup_id, running(episode));
                Ok(())
            }
            Next::Continue(outcome) => self.end(first.cgroup_id, first, times, outcome),
            // A hold begins with one of the two above.
            Next::Verify(_) | Next::Wait(_) => Ok(()),
        }
    }

    /// What a raise is planned by, as it is at this moment.
    fn facts(&self, guarded: &Guarded, first: &Hold, room: &Room) -> Result<Facts, Refusal> {
        if !self.watchdog.looks_on() {
            return Err(Refusal::WatchdogLost);
        }
        let Guarded { container, rule, .. } = guarded;
        let read = || -> std::io::Result<_> {
            let cgroup = Cgroup::find(&container.cgroup_path, container.cgroup_id)?;
            cgroup.map(|cgroup| Ok((cgroup.limit()?, cgroup.high()?, cgroup.above(rule.step)?))).transpose()
        };
        let (limit, high, above) = match read() {
            Ok(Some(read)) => read,
            Ok(None) => return Err(Refusal::Gone),
            Err(error) if cgroup::is_gone(&error) => return Err(Refusal::Gone),
            Err(error) => return Err(Refusal::Unreadable(error.to_string())),
        };
        let held_at = held_at(first);
        Ok(Facts {
            held_at,
            limit,
            high: high.filter(|_| !self.brakes.has(container.cgroup_id)),
            is_returning: guarded.loan.is_some_and(|loan| loan.is_taken_from(held_at)),
            above,
            is_pod_raised: self.options.raiser.raises_pod(),
            available: room.available,
            reserve: room.reserve,
            promised: room.promised_beside(container.cgroup_id),
            raises: guarded.raises.count(),
            unanswered: guarded.unanswered || guarded.is_taking_back || guarded.give_back.is_lowering(),
        })
    }

    /// Gives an episode an input, and performs what follows.
    pub(super) fn perform(&mut self, cgroup_id: u64, running: Running, input: Input) -> anyhow::Result<()> {
        let Running { number, episode, until, first, times } = running;
        let keep = |episode| Running { number, episode, until, first, times };
        let change = episode.raise();
        match episode.next(input) {
            Next::Raise(episode) => self.raise(cgroup_id, keep(episode)),
            Next::Verify(episode) => self.verify(cgroup_id, keep(episode)),
            Next::Wait(episode) => {
                if let Some(guarded) = self.guarded.get_mut(&cgroup_id) {
                    guarded.episode = Some(keep(episode));
                }
            }
            Next::Continue(outcome) => {
                // Whatever came after the answer that it was accepted.
                let left = match &outcome {
                    Outcome::Refused(refusal) if times.raised.is_some() => Some(refusal.clone()),
                    Outcome::Refused(_) | Outcome::Raised(..) => None,
                };
                self.end(cgroup_id, &first, times, outcome)?;
                if let Some(refusal) = left {
                    self.left_open(cgroup_id, Late { change, since: first.since }, &refusal);
                }
            }
        }
        Ok(())
    }

    fn raise(&mut self, cgroup_id: u64, running: Running) {
        self.replace_return(cgroup_id, Bytes(running.first.usage.saturating_mul(procfs::page_size())));
        let Some(guarded) = self.guarded.get_mut(&cgroup_id) else { return };
        let (episode, raise) = (running.number, running.episode.raise());
        let since = running.first.since;
        let container = guarded.container.clone();
        let hold = Duration::from_nanos(running.until.saturating_sub(program::now()));
        let asked = guarded.loan.map(|loan| loan.asked());
        guarded.episode = Some(running);
        guarded.unanswered = true;
        self.request(cgroup_id, raise);
        let (raiser, reporter) = (self.options.raiser.clone(), self.reporter.clone());
        self.answers.spawn(async move {
            announce(&reporter, &container, raise.to).await;
            let answer = raiser.set(&container, raise, asked, hold).await;
            Answer { cgroup_id, episode, since, raise, input: Input::Raised(answer) }
        });
    }

    fn verify(&mut self, cgroup_id: u64, mut running: Running) {
        let Some(guarded) = self.guarded.get_mut(&cgroup_id) else { return };
        let now = program::now();
        running.times.raised = Some(now);
        let wait = Duration::from_nanos(running.until.saturating_sub(now));
        let (episode, raise) = (running.number, running.episode.raise());
        let since = running.first.since;
        let container = guarded.container.clone();
        guarded.episode = Some(running);
        let (address, raiser) = (self.options.daemon.clone(), self.options.raiser.clone());
        self.answers.spawn(async move {
            let verified = verify(address, &raiser, &container, raise.to, wait).await;
            Answer { cgroup_id, episode, since, raise, input: Input::Verified(verified) }
        });
    }

    /// An answer to an episode under way, or to one that is over.
    pub(super) fn answered(&mut self, answer: Answer) -> anyhow::Result<()> {
        let Answer { cgroup_id, episode, since, raise, input } = answer;
        let Some(guarded) = self.known_mut(cgroup_id) else { return Ok(()) };
        let is_raised = input == Input::Raised(Ok(()));
        if is_raised {
            guarded.raises.accepted(raise);
        }
        // Of one that is over, the loan is confirmed later, and the count with it.
        let is_current = guarded.episode.as_ref().is_some_and(|running| running.number == episode);
        if is_current && matches!(input, Input::Verified(Ok(_))) {
            guarded.raises.in_force();
        }
        if let Input::Raised(answer) = &input {
            guarded.unanswered = *answer == Err(Refusal::Unanswered);
        }
        let current = guarded.episode.take_if(|running| running.number == episode);
        match &input {
            Input::Raised(Err(refusal)) if !refusal.may_come_later() => {
                self.set_loan(cgroup_id, |loan| loan?.withdrawn(raise.to));
            }
            Input::Raised(Err(refusal)) if refusal.is_open() => {
                self.resolve(cgroup_id, Late { change: raise, since });
            }
            Input::Verified(Ok(_)) if current.is_some() => {
                self.set_loan(cgroup_id, |loan| loan?.confirmed(raise.to));
            }
            _ => {}
        }
        match current {
            Some(running) => self.perform(cgroup_id, running, input)?,
            None if is_raised => self.verify_late(cgroup_id, Late { change: raise, since }),
            None => {}
        }
        self.look()
    }

    /// The decision: everything of the container that is held now continues.
    fn end(&mut self, cgroup_id: u64, first: &Hold, times: Times, outcome: Outcome) -> anyhow::Result<()> {
        let now = program::now();
        let held: Vec<_> = self.program.records.held()?;
        let held: Vec<_> = held.into_iter().filter(|(_, hold)| hold.cgroup_id == cgroup_id).collect();
        let after = |at: u64| at.saturating_sub(first.since) / 1_000_000;
        let page = procfs::page_size();
        let container_id = self.container_id(cgroup_id).map(str::to_owned);
        let mut ended = Ended {
            container_id: container_id.unwrap_or_default(),
            held: held.iter().map(|(key, _)| key.pid).collect(),
            usage: first.usage.saturating_mul(page),
            limit: first.limit.saturating_mul(page),
            raised_to: None,
            unverified: false,
            refused: None,
            raised_ms: times.raised.map(after),
            decided_ms: after(now),
            steps: times.steps(first.since, now),
        };
        let (container, raised_ms, decided_ms) = (&ended.container_id, ended.raised_ms, ended.decided_ms);
        let level = self.level(cgroup_id);
        let held_ns = now.saturating_sub(first.since);
        match &outcome {
            Outcome::Raised(raise, proof) => {
                let raised = proto::GuardRaised {
                    level: level.into(),
                    limit_before: raise.from.0,
                    limit_after: raise.to.0,
                    held_ns,
                };
                self.reporter.push(container, Report::Raised(raised));
                tracing::info!(
                    container,
                    ?level,
                    from = raise.from.0,
                    to = raise.to.0,
                    raised_ms,
                    decided_ms,
                    ?proof,
                    "guardRaised"
                );
                self.counts.raises += 1;
                ended.raised_to = Some(raise.to.0);
                ended.unverified = *proof == Proof::Files;
            }
            Outcome::Refused(refusal) => {
                let level = match refusal.level() {
                    CgroupRole::Container => level,
                    above => above,
                };
                let refused = proto::GuardRefused {
                    attempt: proto::GuardAttempt::Raise.into(),
                    reason: refusal.name().to_owned(),
                    detail: reporter::detail(refusal.to_string()),
                    level: level.into(),
                    limit_bytes: Some(ended.limit),
                    held_ns: Some(held_ns),
                };
                self.reporter.push(container, Report::Refused(refused));
                tracing::warn!(container, reason = refusal.name(), %refusal, decided_ms, "guardRefused");
                *self.counts.refusals.entry(refusal.name()).or_default() += 1;
                ended.refused = Some(refusal.name().to_owned());
                // Before anything continues, or it would be held again at its next charge.
                if refusal.is_permanent() {
                    self.suspend(cgroup_id, refusal.name())?;
                } else if refusal.is_failure() {
                    self.quiet(cgroup_id, now)?;
                }
            }
        }
        self.history.push_back(ended);
        while self.history.len() > HISTORY {
            self.history.pop_front();
        }
        self.brakes.release(cgroup_id);
        self.continue_all(&held, cgroup_id);
        self.resume(&held)
    }

    /// From now on, what is held of a container is to continue.
    fn continue_all(&mut self, held: &[(ProcessKey, Hold)], cgroup_id: u64) {
        let of_container = held.iter().filter(|(_, hold)| hold.cgroup_id == cgroup_id);
        self.continuing.extend(of_container.map(|(key, hold)| hold_id(*key, hold)));
    }

    fn quiet(&mut self, cgroup_id: u64, now: u64) -> anyhow::Result<()> {
        let Some(guarded) = self.guarded.get_mut(&cgroup_id) else { return Ok(()) };
        guarded.quiet_until = now + nanos(guarded.rule.cool_down);
        self.write_armed(cgroup_id)
    }

    /// Sends SIGCONT to what is to continue, and forgets what is seen running.
    pub(super) fn resume(&mut self, held: &[(ProcessKey, Hold)]) -> anyhow::Result<()> {
        for (key, hold) in held {
            let id = hold_id(*key, hold);
            if !self.continuing.contains(&id) {
                continue;
            }
            match process::end_hold(*key, hold) {
                Ok(State::Stopped) => {}
                Ok(state) => {
                    self.program.records.release(*key)?;
                    self.continuing.remove(&id);
                    self.reported.remove(&id);
                    self.hear();
                    let ending = self.ended_by_watchdog.remove(&id);
                    let at = ending.map_or_else(program::now, |ending| ending.at);
                    let reason = ending.map_or("", |ending| ending.reason.name());
                    let held = Duration::from_nanos(at.saturating_sub(hold.since));
                    self.counts.hold_seconds.observe(held.as_secs_f64());
                    *self.counts.continued.entry(state.name()).or_default() += 1;
                    if let Some(container) = self.container_id(hold.cgroup_id) {
                        let continued = proto::GuardContinued {
                            process: reporter::process(key.pid, key.start_boottime, &hold.comm),
                            held_ns: nanos(held),
                            state: state.report().into(),
                            reason: reason.to_owned(),
                        };
                        self.reporter.push_at(at, container, Report::Continued(continued));
                    }
                    let held_ms = held.as_millis();
                    tracing::info!(pid = key.pid, ?state, held_ms, reason, "guardContinued");
                }
                Err(error) => {
                    tracing::error!(pid = key.pid, %error, "cannot continue a process; trying again")
                }
            }
        }
        Ok(())
    }
}

/// The limit at which a process was held.
fn held_at(hold: &Hold) -> Bytes {
    Bytes(hold.limit.saturating_mul(procfs::page_size()))
}
