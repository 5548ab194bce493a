//! What killed it, whose limit was it, who wrote that limit, and when: read from the events, with the evidence.
//!
//! Never guesses: what was not seen is said to be unknown.

use kwitness_api::proto;
use kwitness_api::proto::event::Kind;
use kwitness_api::proto::oom_kill::Exhausted;
use kwitness_api::proto::reading::Reading;
use kwitness_core::units;
use serde::Serialize;

use super::micros::{Micros, event_micros};
use crate::describe::limits::{whose, writer};
use crate::describe::{exit_status, names};
use crate::time::Times;

/// An answer: one end of a container, or one OOM kill, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// When it happened.
    pub at: Option<Micros>,
    /// "app was OOM-killed": the headline.
    pub what: String,
    /// Label and sentence of each fact.
    pub facts: Vec<(&'static str, String)>,
}

/// One answer for each OOM kill and for each container that ended in another way than with exit code 0.
pub fn answers(events: &[proto::Event], times: Times) -> Vec<Answer> {
    let mut answers = Vec::new();
    for event in events {
        let answer = match &event.kind {
            Some(Kind::OomKill(kill)) => oom_kill(events, event, kill, times),
            Some(Kind::Stopped(stopped)) if !stopped.main_oom_killed => {
                let Some(answer) = stop(event, stopped, times) else { continue };
                answer
            }
            _ => continue,
        };
        answers.push(answer);
    }
    answers
}

fn who(event: &proto::Event) -> String {
    let names = names(event.container.as_ref(), false);
    format!("{} {}", names.qualified(), names.container)
}

fn stop(event: &proto::Event, stopped: &proto::Stopped, times: Times) -> Option<Answer> {
    use proto::exit_status::Status;

    // The runtime ends a pod's pause container so.
    if event.container.as_ref().is_some_and(|of| of.r#type() == proto::ContainerType::Sandbox) {
        return None;
    }
    let (what, fact) = match stopped.main_status.as_ref().and_then(|status| status.status) {
        Some(Status::Code(0)) => return None,
        Some(Status::Code(_)) => ("exited with an error", "its own program ended it"),
        Some(Status::Signal(_)) => (
            "was killed by a signal",
            "no OOM kill of its main process was seen; the sender of a signal is not observed",
        ),
        None if stopped.never_started => ("never started", "its own program was not seen to run"),
        None => ("ended", "how its main process ended was not seen"),
    };
    let mut facts = vec![("when", times.show(event.time))];
    if stopped.main_status.is_some() {
        facts.push(("status", exit_status(stopped.main_status.as_ref())));
    }
    facts.push(("cause", fact.to_owned()));
    Some(Answer { at: event_micros(event), what: format!("{} {what}", who(event)), facts })
}

fn oom_kill(events: &[proto::Event], event: &proto::Event, kill: &proto::OomKill, times: Times) -> Answer {
    let victim = kill.process.as_ref();
    let is_main = victim.is_some_and(|process| process.role() == proto::ProcessRole::Main);
    let what = if is_main { "was OOM-killed" } else { "lost a process to the OOM killer" };
    let mut facts = vec![("when", times.show(event.time))];
    facts.extend(victim.map(|process| ("victim", format!("{} ({})", process.comm, process.pid))));
    match &kill.exhausted {
        Some(Exhausted::Machine(_)) => facts.push(("limit", "none: the node ran out of memory".to_owned())),
        None => {
            facts.push(("limit", "unknown: this kernel does not report whose limit was reached".to_owned()))
        }
        Some(Exhausted::LimitOf(cgroup)) => {
            let limit = kill.limit_bytes.map_or_else(|| "unknown".to_owned(), units::bytes);
            let usage = kill
                .usage_bytes
                .map_or_else(String::new, |usage| format!(", usage {}", units::amount(usage)));
            facts.push(("limit", format!("the {}'s memory.max of {limit}{usage}", whose(cgroup))));
            facts.extend(cgroup.path.clone().map(|path| ("cgroup", path)));
            facts.push(("set by", set_by(events, event, cgroup, kill.limit_bytes, times)));
        }
    }
    let is_other =
        |trigger: &&proto::Writer| trigger.pid.is_some() && trigger.pid != victim.map(|process| process.pid);
    if let Some(trigger) = kill.trigger.as_ref().filter(is_other) {
        facts.push(("trigger", writer(trigger)));
    }
    Answer { at: event_micros(event), what: format!("{} {what}", who(event)), facts }
}

/// Whether both are of the same epoch: cgroup IDs and the kernel's clock begin anew with a boot, and so does an epoch.
fn is_of_epoch(event: &proto::Event, other: &proto::Event) -> bool {
    let epoch = |of: &proto::Event| of.position.as_ref().map(|position| position.epoch.clone());
    epoch(event) == epoch(other)
}

/// Who wrote the limit that was reached. A write that makes the kernel kill returns after the kill.
fn set_by(
    events: &[proto::Event],
    event: &proto::Event,
    cgroup: &proto::Cgroup,
    limit: Option<u64>,
    times: Times,
) -> String {
    let began = |changed: &proto::LimitChanged, of: &proto::Event| {
        changed.write.as_ref().and_then(|write| write.began).unwrap_or(of.kernel_time)
    };
    let of_cgroup = |of: &proto::Event| match &of.kind {
        Some(Kind::LimitChanged(changed))
            if is_of_epoch(of, event)
                && changed.file == "memory.max"
                && changed.cgroup.as_ref().is_some_and(|of| of.id == cgroup.id)
                && changed.write.as_ref().is_none_or(|write| write.errno.is_none()) =>
        {
            Some((of.clone(), (**changed).clone()))
        }
        _ => None,
    };
    let before =
        events.iter().filter_map(of_cgroup).filter(|(of, changed)| began(changed, of) <= event.kernel_time);
    let Some((of, changed)) = before.max_by_key(|(of, changed)| began(changed, of)) else {
        return "unknown: no write was seen; it was set before these events begin".to_owned();
    };
    let new = match changed.new.as_ref().and_then(|of| of.reading.as_ref()) {
        Some(Reading::Value(value)) => value.parse().ok(),
        _ => None,
    };
    if limit.is_some() && new != limit {
        return "unknown: the last write that was seen was of another value".to_owned();
    }
    let old = crate::describe::limits::reading("memory.max", changed.old.as_ref());
    let Some(write) = &changed.write else {
        return format!(
            "unknown: found changed (from {old}) at {} without a write having been seen",
            times.show(of.time)
        );
    };
    let by = write.writer.as_ref().map_or_else(|| "an unknown process".to_owned(), writer);
    let from = write.writer.as_ref().and_then(|writer| writer.cgroup_path.as_ref());
    let from = from.map_or_else(String::new, |path| format!(" in {path}"));
    let probably = if write.outcome() == proto::WriteOutcome::Unknown { "probably " } else { "" };
    let while_writing = match (write.began, write.returned) {
        (Some(began), Some(returned)) if (began..=returned).contains(&event.kernel_time) => {
            "; the kernel killed before the write returned"
        }
        _ => "",
    };
    format!("{probably}{by}{from} at {}, from {old}{while_writing}", times.show(of.time))
}
