//! Why the probes cannot be used, each with what to do next.

use std::io;

use kwitness_api::causes;
use kwitness_btf::{BTF_PATH, BtfError};

use super::{
    capability::Capability,
    environment::{BTF_REMEDY, LOCKDOWN_REMEDY, PRIVILEGES_REMEDY, TIME_NAMESPACE_REMEDY},
    pins::Unpinned,
    report::Refusal,
};

/// The result of a step of the loader.
pub type Result<T> = std::result::Result<T, ProbeError>;

/// Why the probes cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The process may not use bpf(2) as it must.
    #[error("loading the probes requires privileges: missing {}", missing.join(", "))]
    Unprivileged {
        /// What is missing.
        missing: Vec<&'static str>,
    },

    /// The kernel does not publish its type information.
    #[error("the kernel's type information cannot be read from {BTF_PATH}")]
    NoBtf(#[source] io::Error),

    /// The kernel's type information makes no sense.
    #[error("the kernel's type information in {BTF_PATH} cannot be parsed")]
    Btf(#[from] BtfError),

    /// The kernel is locked down too far.
    #[error("kernel lockdown is in confidentiality mode: BPF programs may not read kernel memory")]
    Lockdown,

    /// The clock is not the kernel's.
    #[error(
        "this process is in a time namespace: its boot-time clock is off by {offset}, so events cannot be ordered"
    )]
    TimeNamespace {
        /// How far, in words.
        offset: String,
    },

    /// The kernel's pids cannot be those of the node's pid namespace.
    #[error(
        "pids cannot be translated into this node's pid namespace: the kernel's type information has no {}",
        missing.join(", ")
    )]
    PidNamespace {
        /// The fields that are missing.
        missing: Vec<String>,
    },

    /// A map cannot be allocated: not enough memory, or RLIMIT_MEMLOCK too low.
    #[error("cannot allocate BPF map {map} (RLIMIT_MEMLOCK is {memlock})")]
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
    #[error("the compiled probes in this executable cannot be loaded")]
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
    #[error("the attached program {program} cannot be opened")]
    Program {
        /// The program.
        program: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },

    /// The ring of the programs' log messages cannot be read.
    #[error("the programs' log cannot be read")]
    Log(#[source] aya_log::Error),

    /// How many CPUs there may be cannot be read.
    #[error("cannot read the number of possible CPUs")]
    Cpus(#[source] io::Error),

    /// The rings cannot be waited for.
    #[error("the rings cannot be registered with the I/O driver: is this a tokio runtime with I/O enabled?")]
    Register(#[source] io::Error),
}

impl ProbeError {
    /// What to do next; none: the error says it, or nothing is known to help.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Unprivileged { .. } => Some(PRIVILEGES_REMEDY),
            Self::NoBtf(_) => Some(BTF_REMEDY),
            Self::Lockdown => Some(LOCKDOWN_REMEDY),
            Self::TimeNamespace { .. } => Some(TIME_NAMESPACE_REMEDY),
            Self::Btf(_) | Self::PidNamespace { .. } | Self::Object(_) => {
                Some("report it with the kernel's version")
            }
            Self::Memory { .. } => Some(
                "raise the limit (systemd: LimitMEMLOCK=infinity), configure smaller rings, or give the process's cgroup \
                 more memory",
            ),
            Self::MissingCapability { refused, .. } => refused.last().map(|last| last.reason.remedy()),
            Self::Program { .. } => Some("run `kwitness uninstall-pins`, then start again"),
            Self::Log(_) => Some("set kernel.log to \"off\""),
            Self::Cpus(_) => Some("mount sysfs at /sys"),
            Self::Map { .. } | Self::Register(_) => None,
        }
    }
}

/// An error with its causes, and what to do next.
#[derive(Debug, thiserror::Error)]
#[error("{found}{}", remedy.map(|remedy| format!(". Remedy: {remedy}")).unwrap_or_default())]
pub struct Advised {
    /// The error with its causes, in one line.
    pub found: String,
    /// What to do next.
    pub remedy: Option<&'static str>,
    /// Whether this process has insufficient privileges.
    pub is_denied: bool,
}

impl From<ProbeError> for Advised {
    fn from(error: ProbeError) -> Self {
        let is_denied = matches!(error, ProbeError::Unprivileged { .. });
        Self { found: error_chain(&error), remedy: error.remedy(), is_denied }
    }
}

impl From<&Unpinned> for Advised {
    fn from(error: &Unpinned) -> Self {
        let is_denied = match error {
            Unpinned::Io { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            _ => false,
        };
        Self { found: error_chain(error), remedy: error.remedy(), is_denied }
    }
}

fn describe_missing(capability: &Capability, refused: &[Refusal]) -> String {
    let mut text = format!(
        "capability {} ({}) is required, and no hook at tracepoint {} can be used",
        capability.name, capability.cost_of_missing, capability.target
    );
    for refusal in refused {
        text += &format!("; {refusal}");
    }
    text
}

/// An error with its causes, in one line.
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
