//! Each kind of event: its name as an OpenTelemetry event, and the attributes that it has beyond all others.

use kwitness_api::proto;
use kwitness_api::proto::event::Kind;
use kwitness_api::proto::exit_status::Status;
use kwitness_api::proto::oom_kill::Exhausted;
use kwitness_api::proto::reading::Reading;

use super::attributes::Attributes;

/// The name of a loss, the daemon's or the collector's.
pub const GAP: &str = "kwitness.gap";

/// The event's name. A kind that this release does not know has its name in `kwitness.type`.
pub fn name(kind: Option<&Kind>) -> &'static str {
    match kind {
        Some(Kind::Created(_)) => "kwitness.container.created",
        Some(Kind::Started(_)) => "kwitness.container.started",
        Some(Kind::Stopped(_)) => "kwitness.container.stopped",
        Some(Kind::Deleted(_)) => "kwitness.container.deleted",
        Some(Kind::Updated(_)) => "kwitness.container.updated",
        Some(Kind::Exec(_)) => "kwitness.process.exec",
        Some(Kind::Exited(_)) => "kwitness.process.exited",
        Some(Kind::OomKill(_)) => "kwitness.oom.kill",
        Some(Kind::LimitChanged(_)) => "kwitness.limit.changed",
        Some(Kind::Verdict(_)) => "kwitness.limit.verdict",
        Some(Kind::Pressure(_)) => "kwitness.memory.pressure",
        Some(Kind::Gap(_)) => GAP,
        Some(Kind::Resynced(_)) => "kwitness.resynced",
        Some(Kind::AgentRestarted(_)) => "kwitness.agent.restarted",
        Some(Kind::GuardHeld(_)) => "kwitness.guard.held",
        Some(Kind::GuardRaised(_)) => "kwitness.guard.raised",
        Some(Kind::GuardContinued(_)) => "kwitness.guard.continued",
        Some(Kind::GuardRefused(_)) => "kwitness.guard.refused",
        Some(Kind::GuardReturned(_)) => "kwitness.guard.returned",
        None => "kwitness.unknown",
    }
}

/// Adds what the kind has.
pub fn add(event: &proto::Event, to: &mut Attributes) {
    match &event.kind {
        Some(Kind::Created(proto::Created { actor }) | Kind::Deleted(proto::Deleted { actor })) => {
            if let Some(actor) = actor {
                to.number("kwitness.actor.pid", actor.pid);
                to.text("kwitness.actor.comm", &actor.comm);
            }
        }
        Some(Kind::Started(proto::Started { process, program })) => {
            self::process(process.as_ref(), to);
            to.known_text("process.executable.path", program.as_deref());
        }
        Some(Kind::Exec(proto::Exec { process, program })) => {
            self::process(process.as_ref(), to);
            to.text("process.executable.path", program);
        }
        Some(Kind::Exited(proto::Exited { process, status, before_exec })) => {
            self::process(process.as_ref(), to);
            self::status(status.as_ref(), to);
            to.flag("kwitness.process.before_exec", *before_exec);
        }
        Some(Kind::Stopped(proto::Stopped { main_status, never_started, main_oom_killed })) => {
            self::status(main_status.as_ref(), to);
            to.flag("kwitness.container.never_started", *never_started);
            to.flag("kwitness.container.oom_killed", *main_oom_killed);
        }
        Some(Kind::Updated(proto::Updated { fields })) => to.texts("kwitness.container.updated", fields),
        Some(Kind::OomKill(kill)) => oom_kill(kill, to),
        Some(Kind::LimitChanged(changed)) => limit_changed(changed, to),
        Some(Kind::Verdict(verdict)) => self::verdict(verdict, to),
        Some(Kind::Pressure(pressure)) => self::pressure(pressure, to),
        Some(Kind::Gap(gap)) => self::gap(gap, to),
        Some(Kind::Resynced(proto::Resynced { found, gone, corrected })) => {
            to.number("kwitness.resynced.found", *found);
            to.number("kwitness.resynced.gone", *gone);
            to.number("kwitness.resynced.corrected", *corrected);
        }
        Some(Kind::AgentRestarted(proto::AgentRestarted { from, to: until, records })) => {
            time("kwitness.agent.down.from", *from, to);
            time("kwitness.agent.down.to", *until, to);
            to.number("kwitness.agent.records", *records);
        }
        Some(Kind::GuardHeld(held)) => {
            guarded_process(held.process.as_ref(), to);
            guard_level(held.level(), to);
            to.number("kwitness.guard.usage", held.usage_bytes);
            to.number("kwitness.guard.limit", held.limit_bytes);
        }
        Some(Kind::GuardRaised(raised)) => {
            guard_level(raised.level(), to);
            to.number("kwitness.guard.limit", raised.limit_after);
            to.number("kwitness.guard.limit_before", raised.limit_before);
            to.number("kwitness.guard.held_ns", raised.held_ns);
        }
        Some(Kind::GuardContinued(continued)) => {
            guarded_process(continued.process.as_ref(), to);
            to.number("kwitness.guard.held_ns", continued.held_ns);
            to.word("kwitness.guard.state", continued.state().as_str_name(), "GUARDED_STATE_");
            if !continued.reason.is_empty() {
                to.text("error.type", &continued.reason);
            }
        }
        Some(Kind::GuardRefused(refused)) => {
            to.word("kwitness.guard.attempt", refused.attempt().as_str_name(), "GUARD_ATTEMPT_");
            guard_level(refused.level(), to);
            to.text("error.type", &refused.reason);
            to.known_number("kwitness.guard.limit", refused.limit_bytes);
            to.known_number("kwitness.guard.held_ns", refused.held_ns);
        }
        Some(Kind::GuardReturned(returned)) => {
            guard_level(returned.level(), to);
            to.number("kwitness.guard.limit", returned.limit_after);
            to.number("kwitness.guard.limit_before", returned.limit_before);
            to.number("kwitness.guard.original_limit", returned.original_limit);
        }
        None => to.text("kwitness.type", &event.r#type),
    }
}

fn guarded_process(process: Option<&proto::GuardedProcess>, to: &mut Attributes) {
    let Some(process) = process else { return };
    to.number("process.pid", process.pid);
    to.text("kwitness.process.comm", &process.comm);
    to.number("kwitness.process.start_time", process.start_time);
}

fn guard_level(level: proto::CgroupRole, to: &mut Attributes) {
    to.word("kwitness.guard.level", level.as_str_name(), "CGROUP_ROLE_");
}

fn process(process: Option<&proto::Process>, to: &mut Attributes) {
    let Some(process) = process else { return };
    to.number("process.pid", process.pid);
    to.number("process.parent_pid", process.parent_pid);
    to.text("kwitness.process.comm", &process.comm);
    to.number("kwitness.process.start_time", process.start_time);
    to.word("kwitness.process.role", process.role().as_str_name(), "PROCESS_ROLE_");
}

fn status(status: Option<&proto::ExitStatus>, to: &mut Attributes) {
    let Some(status) = status else { return };
    match status.status {
        Some(Status::Code(code)) => to.number("process.exit.code", code),
        Some(Status::Signal(number)) => {
            to.number("kwitness.process.exit.signal", number);
            to.text("kwitness.process.exit.signal_name", &status.signal_name);
            to.flag("kwitness.process.exit.core_dumped", status.core_dumped);
        }
        None => {}
    }
}

fn cgroup(cgroup: Option<&proto::Cgroup>, to: &mut Attributes) {
    let Some(cgroup) = cgroup else { return };
    to.number("kwitness.cgroup.id", cgroup.id);
    to.known_text("kwitness.cgroup.path", cgroup.path.as_deref());
    to.word("kwitness.cgroup.role", cgroup.role().as_str_name(), "CGROUP_ROLE_");
}

/// The process that wrote, or whose allocation crossed a threshold or triggered an OOM kill.
fn actor(writer: Option<&proto::Writer>, to: &mut Attributes) {
    let Some(writer) = writer else { return };
    to.known_number("kwitness.actor.pid", writer.pid);
    to.known_text("kwitness.actor.comm", writer.comm.as_deref());
    to.known_text("kwitness.actor.cgroup.path", writer.cgroup_path.as_deref());
}

fn reading(key: &str, reading: Option<&proto::Reading>, to: &mut Attributes) {
    match reading.and_then(|reading| reading.reading.as_ref()) {
        Some(Reading::Value(value)) => to.text(key, value),
        Some(Reading::Absent(_)) => to.text(key, "absent"),
        Some(Reading::Gone(_)) => to.text(key, "gone"),
        Some(Reading::Unknown(_)) | None => {}
    }
}

/// Nanoseconds since the Unix epoch.
fn time(key: &str, time: Option<kwitness_api::Timestamp>, to: &mut Attributes) {
    to.known_number(key, time.map(kwitness_api::Timestamp::to_unix_nanos));
}

fn oom_kill(kill: &proto::OomKill, to: &mut Attributes) {
    process(kill.process.as_ref(), to);
    to.word("kwitness.oom.choice", kill.choice().as_str_name(), "OOM_CHOICE_");
    match &kill.exhausted {
        Some(Exhausted::Machine(_)) => to.text("kwitness.oom.scope", "node"),
        Some(Exhausted::LimitOf(of)) => {
            to.word("kwitness.oom.scope", of.role().as_str_name(), "CGROUP_ROLE_");
            cgroup(Some(of), to);
        }
        None => {}
    }
    to.known_number("kwitness.oom.usage", kill.usage_bytes);
    to.known_number("kwitness.oom.limit", kill.limit_bytes);
    actor(kill.trigger.as_ref(), to);
}

fn limit_changed(changed: &proto::LimitChanged, to: &mut Attributes) {
    to.text("kwitness.limit.file", &changed.file);
    cgroup(changed.cgroup.as_ref(), to);
    reading("kwitness.limit.old", changed.old.as_ref(), to);
    reading("kwitness.limit.new", changed.new.as_ref(), to);
    if changed.coalesced > 0 {
        to.number("kwitness.limit.coalesced", changed.coalesced);
    }
    if let Some(write) = &changed.write {
        to.known_text("kwitness.limit.written", write.value.as_deref());
        to.word("kwitness.limit.outcome", write.outcome().as_str_name(), "WRITE_OUTCOME_");
        to.known_text("error.type", write.errno_name.as_deref());
        actor(write.writer.as_ref(), to);
    }
}

fn verdict(verdict: &proto::Verdict, to: &mut Attributes) {
    to.word("kwitness.limit.verdict", verdict.verdict().as_str_name(), "VERDICT_KIND_");
    to.text("kwitness.limit.file", &verdict.file);
    cgroup(verdict.cgroup.as_ref(), to);
    let wanted = verdict.desired.iter().find(|desired| desired.source == verdict.compared_with);
    to.known_text("kwitness.limit.desired", wanted.map(|desired| desired.value.as_str()));
    to.word("kwitness.limit.source", verdict.compared_with().as_str_name(), "SOURCE_");
    reading("kwitness.limit.in_force", verdict.in_force.as_ref(), to);
    to.known_text(
        "kwitness.limit.effective",
        verdict.effective.as_ref().map(|effective| effective.value.as_str()),
    );
    actor(verdict.writer.as_ref(), to);
}

fn pressure(pressure: &proto::Pressure, to: &mut Attributes) {
    cgroup(pressure.cgroup.as_ref(), to);
    to.number("kwitness.pressure.threshold", pressure.threshold_percent);
    to.word("kwitness.pressure.direction", pressure.direction().as_str_name(), "PRESSURE_DIRECTION_");
    to.number("kwitness.pressure.usage", pressure.usage_bytes);
    to.known_number("kwitness.pressure.limit", pressure.limit_bytes);
    to.known_number("kwitness.pressure.fill_rate", pressure.fill_rate);
    to.known_number("kwitness.pressure.time_to_limit_ms", pressure.time_to_limit_ms);
    if pressure.suppressed > 0 {
        to.number("kwitness.pressure.suppressed", pressure.suppressed);
    }
    actor(pressure.charged_by.as_ref(), to);
}

fn gap(gap: &proto::Gap, to: &mut Attributes) {
    to.word("kwitness.gap.cause", gap.cause().as_str_name(), "GAP_CAUSE_");
    to.counts("kwitness.gap.lost", gap.lost.iter());
    time("kwitness.gap.from", gap.from, to);
    time("kwitness.gap.to", gap.to, to);
    to.known_number("kwitness.gap.first_seq", gap.first_seq);
    to.known_number("kwitness.gap.last_seq", gap.last_seq);
    to.known_text("kwitness.cgroup.path", gap.cgroup_path.as_deref());
    to.texts("kwitness.gap.capabilities", &gap.capabilities);
}
