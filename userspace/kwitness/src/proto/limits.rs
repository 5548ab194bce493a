//! Limits in the API's shape.

use kwitness_core::event::PodNames;
use kwitness_core::limits::{Changed, LevelRole, Reading, SeenWrite};
use kwitness_core::observation::{WriteHook, WriteResult};
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
    let errno = match write.result {
        WriteResult::Accepted => None,
        WriteResult::Refused { errno } => Some(errno),
    };
    let writer = &write.writer;
    v1::LimitWrite {
        value: write.value.as_ref().map(|value| value.text.to_string()),
        truncated: write.value.as_ref().is_some_and(|value| value.truncated),
        writer: Some(v1::Writer {
            pid: writer.pid,
            start_time: writer.start.map(|start| start.0),
            comm: writer.comm.as_deref().map(str::to_owned),
            cgroup_id: writer.cgroup.map(|cgroup| cgroup.0),
            cgroup_path: write.writer_cgroup.as_deref().map(str::to_owned),
        }),
        errno,
        errno_name: errno.map(errno_name),
        began: write.began.map(|began| began.0),
        returned: write.returned.map(|returned| returned.0),
        hook: match write.hook {
            WriteHook::Fentry => v1::WriteHook::Fentry,
            WriteHook::Kprobe => v1::WriteHook::Kprobe,
            WriteHook::Fanotify => v1::WriteHook::Fanotify,
        }
        .into(),
    }
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
