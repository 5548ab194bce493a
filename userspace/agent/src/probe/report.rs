//! What the probes can observe on this kernel, for people: the hook of each capability, the hooks that were refused and why,
//! what a missing one costs, and the remedy.
//!
//! Owns the words of `kwitness doctor`, of the status API and of the loader's errors about hooks. Decides nothing: the
//! loader fills it in.

use std::{fmt, io};

use kwitness_service::charge_calls::Flaw;
use nix::libc;

use super::{
    capability::{Capability, Hook, Importance},
    environment::Check,
};

/// What this kernel offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The kernel's release, as uname(2) gives it.
    pub kernel: String,
    /// What was found around the probes: privileges, BTF, lockdown, file systems.
    pub environment: Vec<Check>,
    /// One for each capability, in the order of [`super::capability::CAPABILITIES`].
    pub reports: Vec<CapabilityReport>,
}

impl Capabilities {
    /// The capabilities that no hook serves.
    pub fn missing(&self) -> impl Iterator<Item = &CapabilityReport> {
        self.reports.iter().filter(|report| report.chosen.is_none())
    }

    /// Whether the daemon can run.
    pub fn suffices(&self) -> bool {
        self.missing().all(|report| report.capability.importance == Importance::Optional)
    }
}

/// How a capability is provided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapabilityReport {
    /// The capability.
    pub capability: &'static Capability,
    /// The hook that provides it, if one does.
    pub chosen: Option<Hook>,
    /// The fallback where no hook provides it, with less detail: "fanotify:/sys/fs/cgroup".
    pub substitute: Option<String>,
    /// The preferred hooks, or all, each with the reason why it cannot be used.
    pub refused: Vec<Refusal>,
}

/// A hook that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The hook.
    pub hook: Hook,
    /// Why it cannot be used.
    pub reason: Reason,
}

impl Refusal {
    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match (&self.reason, self.hook.kind.is_at_function() || self.hook.at_return.is_some()) {
            (Reason::Kernel { .. }, true) => {
                "kernel lockdown (`lockdown=integrity`, Secure Boot) forbids fentry and kprobes; disable lockdown for this \
                 detail, or ignore"
            }
            (reason, _) => reason.remedy(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.hook.program, self.hook.kind, self.reason)
    }
}

/// Why a hook cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The configuration excludes it.
    Excluded,
    /// It costs every process of the node something, and the configuration does not enable it.
    NotEnabled,
    /// Memory is accounted in a hierarchy of cgroup v1.
    MemoryInV1,
    /// The kernel calls the function too often, or never.
    Calls(Flaw),
    /// The kernel's BTF does not have fields that the program reads.
    MissingFields(Vec<String>),
    /// The kernel has no such tracepoint.
    MissingTracepoint(&'static str),
    /// The kernel has no such function, or has it built into its callers.
    MissingFunction(&'static str),
    /// The kernel refused it.
    Kernel {
        /// The system call.
        call: String,
        /// The error number; absent if the refusal came without one.
        errno: Option<i32>,
        /// The last line of the verifier's log, or the error's text where there is no number.
        detail: Option<String>,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Excluded => f.write_str("excluded by configuration"),
            Self::NotEnabled => f.write_str("not enabled by configuration"),
            Self::MemoryInV1 => f.write_str("memory is accounted in cgroup v1"),
            Self::Calls(flaw) => flaw.fmt(f),
            Self::MissingFields(fields) => write!(f, "the kernel's BTF does not have {}", fields.join(", ")),
            Self::MissingTracepoint(tracepoint) => write!(f, "the kernel has no tracepoint {tracepoint}"),
            Self::MissingFunction(function) => {
                write!(f, "the kernel has no function {function}, or has it built into its callers")
            }
            Self::Kernel { call, errno, detail } => {
                write!(f, "{call} was refused")?;
                if let Some(errno) = errno {
                    write!(f, ": {}", io::Error::from_raw_os_error(*errno))?;
                }
                if let Some(detail) = detail {
                    write!(f, " ({detail})")?;
                }
                Ok(())
            }
        }
    }
}

impl Reason {
    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Excluded => "remove the exclusion from the configuration",
            Self::NotEnabled => {
                "set kernel.syscall_hooks to see refused writes, too; every write(2) of the node is then about 12 % \
                 slower"
            }
            Self::Calls(_) => "report it with the kernel's version; meanwhile usage is sampled",
            Self::MemoryInV1 => "boot with cgroup v2 only, or ignore: usage is sampled",
            Self::MissingFields(_) => {
                "this kernel's structures are not known to this release: report it with the kernel's version"
            }
            Self::MissingTracepoint(_) => {
                "use a kernel with CONFIG_CGROUPS and CONFIG_TRACEPOINTS; every distribution's kernel has them"
            }
            Self::MissingFunction(_) => "report it with the kernel's version",
            Self::Kernel { errno: Some(libc::EPERM | libc::EACCES), .. } => {
                "run as root, or with CAP_BPF and CAP_PERFMON, outside a user namespace; if so already, look whether a \
                 security module (lockdown, SELinux, AppArmor, seccomp) forbids bpf(2)"
            }
            Self::Kernel { errno: Some(libc::ENOMEM), .. } => "free memory, or configure smaller rings",
            Self::Kernel { .. } => "report it with the kernel's version and the text of this refusal",
        }
    }
}
