//! Why the probes cannot be used, each with what to do next.

use std::io;

use kwitness_api::causes;
use kwitness_btf::BtfError;
pub use kwitness_service::LockError;

use super::{
    capability::Capability,
    environment::{BTF_PATH, BTF_REMEDY, LOCKDOWN_REMEDY, PRIVILEGES_REMEDY, TIME_NAMESPACE_REMEDY},
    report::Refusal,
};

/// The result of a step of the loader.
pub type Result<T> = std::result::Result<T, ProbeError>;

/// Why the probes cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The process may not use bpf(2) as it must.
    #[error("loading the probes requires privileges: missing {}. Remedy: {PRIVILEGES_REMEDY}", missing.join(", "))]
    Unprivileged {
        /// What is missing.
        missing: Vec<&'static str>,
    },

    /// The kernel does not publish its type information.
    #[error("the kernel's type information cannot be read from {BTF_PATH}. Remedy: {BTF_REMEDY}")]
    NoBtf(#[source] io::Error),

    /// The kernel's type information makes no sense.
    #[error(
        "the kernel's type information in {BTF_PATH} cannot be parsed. Remedy: report it with the kernel's version"
    )]
    Btf(#[from] BtfError),

    /// The kernel is locked down too far.
    #[error(
        "kernel lockdown is in confidentiality mode: BPF programs may not read kernel memory. Remedy: {LOCKDOWN_REMEDY}"
    )]
    Lockdown,

    /// The clock is not the kernel's.
    #[error(
        "this process is in a time namespace: its boot-time clock is off by {offset}, so events cannot be ordered. \
         Remedy: {TIME_NAMESPACE_REMEDY}"
    )]
    TimeNamespace {
        /// How far, in words.
        offset: String,
    },

    /// The kernel's pids cannot be those of the node's pid namespace.
    #[error(
        "pids cannot be translated into this node's pid namespace: the kernel's type information has no {}. Remedy: \
         report it with the kernel's version",
        missing.join(", ")
    )]
    PidNamespace {
        /// The fields that are missing.
        missing: Vec<String>,
    },

    /// Another daemon runs.
    #[error(transparent)]
    Lock(#[from] LockError),

    /// A map cannot be allocated: not enough memory, or RLIMIT_MEMLOCK too low.
    #[error(
        "cannot allocate BPF map {map} (RLIMIT_MEMLOCK is {memlock}). Remedy: raise the limit (systemd: \
         LimitMEMLOCK=infinity), configure smaller rings, or give the process's cgroup more memory"
    )]
    Memory {
        /// The map.
        map: String,
        /// RLIMIT_MEMLOCK, for people.
        memlock: String,
        /// What the kernel answered.
        source: io::Error,
    },

    /// A map cannot be made or used.
    #[error("cannot create BPF map {map}")]
    Map {
        /// The map.
        map: String,
        /// What went wrong.
        source: aya::maps::MapError,
    },

    /// The compiled programs cannot be read. They are part of this executable, so this is a defect.
    #[error(
        "the compiled probes in this executable cannot be loaded. Remedy: report it with the kernel's version"
    )]
    Object(#[source] aya::EbpfError),

    /// No hook serves a capability that the daemon cannot do without.
    #[error("{}", describe_missing(capability, refused))]
    MissingCapability {
        /// The capability.
        capability: &'static Capability,
        /// Its hooks, each with what spoke against it.
        refused: Vec<Refusal>,
    },

    /// An attached program's descriptor cannot be had.
    #[error(
        "the attached program {program} cannot be opened. Remedy: run `kwitness uninstall-pins`, then start again"
    )]
    Program {
        /// The program.
        program: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },

    /// The ring of the programs' log messages cannot be read.
    #[error("the programs' log cannot be read. Remedy: set kernel.log to \"off\"")]
    Log(#[source] aya_log::Error),

    /// How many CPUs there may be cannot be read.
    #[error("cannot read the number of possible CPUs. Remedy: mount sysfs at /sys")]
    Cpus(#[source] io::Error),

    /// The rings cannot be waited for.
    #[error("the rings cannot be registered with the I/O driver: is this a tokio runtime with I/O enabled?")]
    Register(#[source] io::Error),
}

fn describe_missing(capability: &Capability, refused: &[Refusal]) -> String {
    let mut text = format!(
        "capability {} ({}) is required, and no hook at tracepoint {} can be used",
        capability.name, capability.cost_of_missing, capability.target
    );
    for refusal in refused {
        text += &format!("; {refusal}");
    }
    if let Some(last) = refused.last() {
        text += &format!(". Remedy: {}", last.reason.remedy());
    }
    text
}

/// An error with its causes, in one line.
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
