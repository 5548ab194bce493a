//! Limits, and what their being hit leads to, in the API's shape.

use kwitness_core::event::{OomExhausted, OomKilled, PodNames};
use kwitness_core::limits::{Changed, LevelRole, Reading, SeenWrite};
use kwitness_core::observation::{Caller, OomChoice, WriteHook, WriteResult};
use nix::errno::Errno;

use super::{convert, v1};

/// A change of a limit.
pub(super) fn changed(changed: &Changed) -> v1::LimitChanged {
    v1::LimitChanged {
        cgroup: Some(v1::Cgroup {
            id: changed.cgroup.0,
            path: changed.path.as_deref().map(str::to_owned),
            role: changed.role.map_or(v1::CgroupRole::Unspecified, role).into(),
            pod: changed.pod.as_ref().map(pod),
        }),
        file: changed.knob.to_string(),
        old: Some(reading(&changed.old)),
        new: Some(reading(&changed.new)),
        read_back: changed.read_back,
        write: changed.write.as_ref().map(write),
        coalesced: changed.coalesced,
    }
}

/// What a file says.
pub(super) fn reading(reading: &Reading) -> v1::Reading {
    use v1::reading::Reading as Api;
    let api = match reading {
        Reading::Is(value) => Api::Value(value.to_string()),
        Reading::Absent => Api::Absent(true),
        Reading::Gone => Api::Gone(true),
        Reading::Unknown(why) => Api::Unknown(why.to_string()),
    };
    v1::Reading { reading: Some(api) }
}

pub(super) fn role(role: LevelRole) -> v1::CgroupRole {
    match role {
        LevelRole::Inner => v1::CgroupRole::Inner,
        LevelRole::Container => v1::CgroupRole::Container,
        LevelRole::Pod => v1::CgroupRole::Pod,
        LevelRole::Qos => v1::CgroupRole::Qos,
        LevelRole::Kubepods => v1::CgroupRole::Kubepods,
        LevelRole::Other => v1::CgroupRole::Other,
    }
}

/// A pod with its names.
pub(super) fn pod(pod: &PodNames) -> v1::Pod {
    v1::Pod {
        uid: pod.pod.uid.to_string(),
        namespace: pod.namespace.as_deref().map(str::to_owned),
        name: pod.name.as_deref().map(str::to_owned),
        qos_class: convert::qos_class(pod.pod.qos).into(),
    }
}

fn write(write: &SeenWrite) -> v1::LimitWrite {
    let errno = write.result.errno();
    v1::LimitWrite {
        value: write.value.as_ref().map(|value| value.text.to_string()),
        truncated: write.value.as_ref().is_some_and(|value| value.truncated),
        writer: Some(caller(&write.writer, write.writer_cgroup.as_deref())),
        errno,
        errno_name: errno.map(errno_name),
        began: write.began.map(|began| began.0),
        returned: write.returned.map(|returned| returned.0),
        hook: match write.hook {
            WriteHook::Fentry => v1::WriteHook::Fentry,
            WriteHook::Kprobe => v1::WriteHook::Kprobe,
            WriteHook::Syscall => v1::WriteHook::Syscall,
            WriteHook::Fanotify => v1::WriteHook::Fanotify,
        }
        .into(),
        outcome: outcome(write.result).into(),
    }
}

/// What became of a write that has returned.
pub(super) fn outcome(result: WriteResult) -> v1::WriteOutcome {
    match result {
        WriteResult::Accepted => v1::WriteOutcome::Accepted,
        WriteResult::Refused { .. } => v1::WriteOutcome::Refused,
        WriteResult::Unknown => v1::WriteOutcome::Unknown,
    }
}

fn caller(caller: &Caller, cgroup_path: Option<&str>) -> v1::Writer {
    v1::Writer {
        pid: caller.pid,
        start_time: caller.start.map(|start| start.0),
        comm: caller.comm.as_deref().map(str::to_owned),
        cgroup_id: caller.cgroup.map(|cgroup| cgroup.0),
        cgroup_path: cgroup_path.map(str::to_owned),
    }
}

/// A kill for want of memory.
pub(super) fn oom_kill(kill: &OomKilled) -> v1::OomKill {
    use v1::oom_kill::Exhausted;
    let bytes = |pages: u64| pages.saturating_mul(page_size());
    v1::OomKill {
        process: Some(convert::process(&kill.process)),
        choice: match kill.choice {
            None => v1::OomChoice::Unspecified,
            Some(OomChoice::Chosen) => v1::OomChoice::Chosen,
            Some(OomChoice::GroupMember) => v1::OomChoice::GroupMember,
        }
        .into(),
        exhausted: kill.scope.as_ref().map(|scope| match scope {
            OomExhausted::Machine => Exhausted::Machine(true),
            OomExhausted::Limit { cgroup, path, role, pod } => Exhausted::LimitOf(v1::Cgroup {
                id: cgroup.0,
                path: path.as_deref().map(str::to_owned),
                role: role.map_or(v1::CgroupRole::Unspecified, self::role).into(),
                pod: pod.as_ref().map(self::pod),
            }),
        }),
        usage_bytes: kill.usage.map(|usage| bytes(usage.usage)),
        limit_bytes: kill.usage.map(|usage| bytes(usage.limit)),
        trigger: Some(caller(&kill.trigger, kill.trigger_cgroup.as_deref())),
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
