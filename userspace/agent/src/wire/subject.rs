//! Processes and QoS classes in the API's shape: what events, limits and verdicts have in common.

use kwitness_api::proto;
use kwitness_core::model as core;

pub(super) fn process(process: &core::Process) -> proto::Process {
    proto::Process {
        pid: process.key.pid,
        start_time: process.key.start.0,
        parent_pid: process.ppid,
        comm: process.comm.to_string(),
        role: match process.role {
            core::Role::Main => proto::ProcessRole::Main,
            core::Role::Entered => proto::ProcessRole::Entered,
            core::Role::Child => proto::ProcessRole::Child,
        }
        .into(),
    }
}

pub(super) fn qos_class(class: core::QosClass) -> proto::QosClass {
    match class {
        core::QosClass::Guaranteed => proto::QosClass::Guaranteed,
        core::QosClass::Burstable => proto::QosClass::Burstable,
        core::QosClass::BestEffort => proto::QosClass::BestEffort,
    }
}
