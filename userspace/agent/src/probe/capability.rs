//! What the probes can do on this kernel, for people: which hook serves each need, which were refused and by whom, what it
//! costs to miss one, and what to do.
//!
//! Owns the words of `kwitness doctor`, of the status API and of the loader's errors about hooks. Decides nothing: the
//! loader fills it in.

use std::{fmt, io};

use nix::libc;

use super::{
    environment::Check,
    need::{Hook, Importance, Need},
};

/// What this kernel offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The kernel's release, as uname(2) gives it.
    pub kernel: String,
    /// What was found around the probes: privileges, BTF, lockdown, file systems.
    pub environment: Vec<Check>,
    /// One for each need, in the order of [`super::need::NEEDS`].
    pub needs: Vec<NeedReport>,
}

impl Capabilities {
    /// The needs that no hook serves.
    pub fn unmet(&self) -> impl Iterator<Item = &NeedReport> {
        self.needs.iter().filter(|report| report.chosen.is_none())
    }

    /// Whether the daemon can run.
    pub fn suffices(&self) -> bool {
        self.unmet().all(|report| report.need.importance == Importance::Optional)
    }
}

/// How a need is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeedReport {
    /// The need.
    pub need: &'static Need,
    /// The hook that serves it, if one does.
    pub chosen: Option<Hook>,
    /// What serves it where no hook does, with less than a hook tells: "fanotify:/sys/fs/cgroup".
    pub substitute: Option<String>,
    /// The hooks before it, or all, each with what spoke against it.
    pub refused: Vec<Refusal>,
}

/// A hook that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which.
    pub hook: Hook,
    /// What speaks against it.
    pub reason: Reason,
}

impl Refusal {
    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match (&self.reason, self.hook.at_return) {
            (Reason::Kernel { .. }, Some(_)) => {
                "a kernel in lockdown (`lockdown=integrity`, Secure Boot) allows no program at a function; boot without, or do \
                 with less"
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

/// What speaks against a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The configuration excludes it.
    Excluded,
    /// It costs every process of the node something, and the configuration does not ask for it.
    NotAskedFor,
    /// The kernel's BTF lacks fields that the program reads.
    MissingFields(Vec<String>),
    /// The kernel has no such tracepoint.
    MissingTracepoint(&'static str),
    /// The kernel has no such function, or has it built into its callers.
    MissingFunction(&'static str),
    /// The kernel said no.
    Kernel {
        /// To which system call.
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
            Self::NotAskedFor => f.write_str("not asked for by configuration"),
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
            Self::NotAskedFor => {
                "set kernel.syscall_hooks to see refused writes, too; every write(2) of the node then takes about an \
                 eighth longer"
            }
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
