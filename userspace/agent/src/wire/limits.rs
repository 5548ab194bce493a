//! Limits, and what their being hit leads to, in the API's shape.

use kwitness_core::model::{
    Bound, Caller, Charger, Direction, LevelRole, LimitChange, OomChoice, OomExhausted, OomKilled, PodNames,
    Pressure, Reading, SeenWrite, WriteHook, WriteResult,
};
use kwitness_core::usage::time_to_limit;
use nix::errno::Errno;

use super::subject;
use kwitness_api::proto;

/// A change of a limit.
pub(super) fn changed(changed: &LimitChange) -> proto::LimitChanged {
    proto::LimitChanged {
        cgroup: Some(proto::Cgroup {
            id: changed.cgroup.0,
            path: changed.path.as_deref().map(str::to_owned),
            role: changed.role.map_or(proto::CgroupRole::Unspecified, role).into(),
            pod: changed.pod.as_ref().map(pod),
        }),
        file: changed.limit_file.to_string(),
        old: Some(reading(&changed.old)),
        new: Some(reading(&changed.new)),
        read_back: changed.read_back,
        write: changed.write.as_ref().map(write),
        coalesced: changed.coalesced,
    }
}

/// What a file says.
pub(super) fn reading(reading: &Reading) -> proto::Reading {
    use proto::reading::Reading as Api;
    let api = match reading {
        Reading::Is(value) => Api::Value(value.to_string()),
        Reading::Absent => Api::Absent(true),
        Reading::Gone => Api::Gone(true),
        Reading::Unknown(why) => Api::Unknown(why.to_string()),
    };
    proto::Reading { reading: Some(api) }
}

pub(super) fn role(role: LevelRole) -> proto::CgroupRole {
    match role {
        LevelRole::Inner => proto::CgroupRole::Inner,
        LevelRole::Container => proto::CgroupRole::Container,
        LevelRole::Pod => proto::CgroupRole::Pod,
        LevelRole::Qos => proto::CgroupRole::Qos,
        LevelRole::Kubepods => proto::CgroupRole::Kubepods,
        LevelRole::Other => proto::CgroupRole::Other,
    }
}

/// A pod with its names.
pub(super) fn pod(pod: &PodNames) -> proto::Pod {
    proto::Pod {
        uid: pod.pod.uid.to_string(),
        namespace: pod.namespace.as_deref().map(str::to_owned),
        name: pod.name.as_deref().map(str::to_owned),
        qos_class: subject::qos_class(pod.pod.qos).into(),
    }
}

fn write(write: &SeenWrite) -> proto::LimitWrite {
    let errno = write.result.errno();
    proto::LimitWrite {
        value: write.value.as_ref().map(|value| value.text.to_string()),
        truncated: write.value.as_ref().is_some_and(|value| value.truncated),
        writer: Some(caller(&write.writer, write.writer_cgroup.as_deref())),
        errno,
        errno_name: errno.map(errno_name),
        began: write.began.map(|began| began.0),
        returned: write.returned.map(|returned| returned.0),
        hook: match write.hook {
            WriteHook::Fentry => proto::WriteHook::Fentry,
            WriteHook::Kprobe => proto::WriteHook::Kprobe,
            WriteHook::Syscall => proto::WriteHook::Syscall,
            WriteHook::Fanotify => proto::WriteHook::Fanotify,
        }
        .into(),
        outcome: outcome(write.result).into(),
    }
}

/// What became of a write that has returned.
pub(super) fn outcome(result: WriteResult) -> proto::WriteOutcome {
    match result {
        WriteResult::Accepted => proto::WriteOutcome::Accepted,
        WriteResult::Refused { .. } => proto::WriteOutcome::Refused,
        WriteResult::Unknown => proto::WriteOutcome::Unknown,
    }
}

fn caller(caller: &Caller, cgroup_path: Option<&str>) -> proto::Writer {
    proto::Writer {
        pid: caller.pid,
        start_time: caller.start.map(|start| start.0),
        comm: caller.comm.as_deref().map(str::to_owned),
        cgroup_id: caller.cgroup.map(|cgroup| cgroup.0),
        cgroup_path: cgroup_path.map(str::to_owned),
    }
}

/// An OOM kill.
pub(super) fn oom_kill(kill: &OomKilled) -> proto::OomKill {
    use proto::oom_kill::Exhausted;
    let bytes = |pages: u64| pages.saturating_mul(page_size());
    proto::OomKill {
        process: Some(subject::process(&kill.process)),
        choice: match kill.choice {
            None => proto::OomChoice::Unspecified,
            Some(OomChoice::Chosen) => proto::OomChoice::Chosen,
            Some(OomChoice::GroupMember) => proto::OomChoice::GroupMember,
        }
        .into(),
        exhausted: kill.scope.as_ref().map(|scope| match scope {
            OomExhausted::Machine => Exhausted::Machine(true),
            OomExhausted::Limit { cgroup, path, role, pod } => Exhausted::LimitOf(proto::Cgroup {
                id: cgroup.0,
                path: path.as_deref().map(str::to_owned),
                role: role.map_or(proto::CgroupRole::Unspecified, self::role).into(),
                pod: pod.as_ref().map(self::pod),
            }),
        }),
        usage_bytes: kill.usage.map(|usage| bytes(usage.usage)),
        limit_bytes: kill.usage.map(|usage| bytes(usage.limit)),
        trigger: Some(caller(&kill.trigger, kill.trigger_cgroup.as_deref())),
    }
}

/// A threshold that memory usage crossed.
pub(super) fn pressure(pressure: &Pressure) -> proto::Pressure {
    let limit = match pressure.limit {
        Bound::At(limit) => Some(limit),
        Bound::Unlimited => None,
    };
    let to_limit =
        limit.zip(pressure.fill_rate).and_then(|(limit, rate)| time_to_limit(pressure.usage, limit, rate));
    proto::Pressure {
        cgroup: Some(proto::Cgroup {
            id: pressure.cgroup.0,
            path: Some(pressure.path.to_string()),
            role: role(pressure.role).into(),
            pod: pressure.pod.as_ref().map(pod),
        }),
        threshold_percent: pressure.threshold.into(),
        direction: match pressure.direction {
            Direction::Up => proto::PressureDirection::Up,
            Direction::Down => proto::PressureDirection::Down,
        }
        .into(),
        usage_bytes: pressure.usage,
        limit_bytes: limit,
        fill_rate: pressure.fill_rate,
        time_to_limit_ms: to_limit.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        suppressed: pressure.suppressed,
        charged_by: pressure
            .charger
            .as_ref()
            .map(|Charger { process, cgroup_path }| caller(process, cgroup_path.as_deref())),
    }
}

/// What the kernel counts memory in.
fn page_size() -> u64 {
    procfs::page_size()
}

/// As errno(3) calls it.
pub(super) fn errno_name(errno: i32) -> String {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno => errno.to_string(),
        known => format!("{known:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_names_of_the_manual() {
        for (errno, name) in [(22, "EINVAL"), (16, "EBUSY"), (34, "ERANGE"), (5000, "5000")] {
            assert_eq!(errno_name(errno), name);
        }
    }
}
