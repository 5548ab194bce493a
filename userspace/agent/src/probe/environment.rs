//! What surrounds the probes: privileges, the kernel's type information, lockdown, file systems.
//!
//! Owns the reading of those facts and the words about them. Changes nothing.

use std::{fmt, fs, path::Path};

use kwitness_btf::BTF_PATH;
use nix::sys::{
    statfs::{self, FsType},
    utsname,
};

use super::capability::Tracepoints;

/// Where bpffs is mounted by convention.
const BPFFS_PATH: &str = "/sys/fs/bpf";
const TRACEFS_PATH: &str = "/sys/kernel/tracing";
const SECURITYFS_PATH: &str = "/sys/kernel/security";
const LOCKDOWN_PATH: &str = "/sys/kernel/security/lockdown";

/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
pub(super) const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);
/// `TRACEFS_MAGIC` of `include/uapi/linux/magic.h`.
const TRACEFS_MAGIC: FsType = FsType(0x7472_6163);
/// `SECURITYFS_MAGIC` of `include/uapi/linux/magic.h`.
const SECURITYFS_MAGIC: FsType = FsType(0x7363_6673);

/// One fact about the surroundings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// What it means.
    pub verdict: CheckVerdict,
    /// What was found.
    pub found: String,
    /// What to do about it, unless the verdict is [`CheckVerdict::Good`].
    pub remedy: Option<&'static str>,
}

/// What a fact means for the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckVerdict {
    /// As it should be.
    Good,
    /// The daemon runs, and something is lost: see [`Check::found`].
    Degraded,
    /// The probes cannot be loaded.
    Fatal,
    /// It cannot be found out.
    Unknown,
}

/// What the kernel's lockdown forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// Lockdown forbids nothing.
    Off,
    /// Changing the running kernel: BPF tracepoints are allowed.
    Integrity,
    /// Reading kernel memory, too, and with it every program here.
    Confidentiality,
}

/// The running kernel's release.
pub fn kernel_release() -> String {
    utsname::uname()
        .map_or_else(|_| "unknown".to_owned(), |name| name.release().to_string_lossy().into_owned())
}

/// Everything that is worth knowing before loading, or when loading failed.
pub fn check() -> Vec<Check> {
    vec![
        privileges_check(),
        btf_check(),
        lockdown_check(),
        time_namespace_check(),
        bpffs_check(),
        tracefs_check(),
    ]
}

/// The privileges that this thread is missing to load tracing programs; empty if none.
pub fn missing_privileges() -> Vec<&'static str> {
    let Ok(status) = fs::read_to_string("/proc/thread-self/status") else { return Vec::new() };
    let in_user_namespace = fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().ne(["0", "0", "4294967295"]));
    missing_in(&status, in_user_namespace)
}

fn missing_in(status: &str, in_user_namespace: bool) -> Vec<&'static str> {
    const CAP_SYS_ADMIN: u32 = 21;
    const CAP_PERFMON: u32 = 38;
    const CAP_BPF: u32 = 39;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Not being able to read it is no finding: the kernel's answer to loading will be.
    let Some(effective) = effective else { return Vec::new() };
    if in_user_namespace {
        return vec!["a process in the initial user namespace"];
    }
    let has = |capability: u32| effective >> capability & 1 == 1;
    if has(CAP_SYS_ADMIN) {
        return Vec::new();
    }
    [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")]
        .into_iter()
        .filter_map(|(capability, name)| (!has(capability)).then_some(name))
        .collect()
}

/// The lockdown in force, if it can be found out.
pub fn lockdown() -> Option<Lockdown> {
    lockdown_in(&fs::read_to_string(LOCKDOWN_PATH).ok()?)
}

/// The file reads `none [integrity] confidentiality`.
fn lockdown_in(text: &str) -> Option<Lockdown> {
    match text.split_once('[')?.1.split_once(']')?.0 {
        "none" => Some(Lockdown::Off),
        "integrity" => Some(Lockdown::Integrity),
        "confidentiality" => Some(Lockdown::Confidentiality),
        _ => None,
    }
}

fn privileges_check() -> Check {
    let missing = missing_privileges();
    let (verdict, found, remedy) = if missing.is_empty() {
        (CheckVerdict::Good, "sufficient for bpf(2)".to_owned(), None)
    } else {
        (CheckVerdict::Fatal, format!("missing {}", missing.join(", ")), Some(PRIVILEGES_REMEDY))
    };
    Check { name: "privileges", verdict, found, remedy }
}

/// How to get the privileges that loading takes.
pub const PRIVILEGES_REMEDY: &str = "run as root, or give the process CAP_BPF and CAP_PERFMON (in Kubernetes: \
     capabilities BPF and PERFMON, hostPID: true)";
/// How to get the kernel's type information.
pub const BTF_REMEDY: &str = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as all current distributions' are, and \
     mount sysfs on /sys";
/// How to get the kernel's own clock.
pub const TIME_NAMESPACE_REMEDY: &str = "run outside a time namespace (unshare -T)";
/// How to get out of a confidentiality lockdown.
pub const LOCKDOWN_REMEDY: &str = "boot with `lockdown=integrity` or less";

fn btf_check() -> Check {
    let (verdict, found, remedy) = match fs::metadata(BTF_PATH) {
        Ok(metadata) => (CheckVerdict::Good, format!("{BTF_PATH}, {} KiB", metadata.len() / 1024), None),
        Err(error) => (CheckVerdict::Fatal, format!("{BTF_PATH}: {error}"), Some(BTF_REMEDY)),
    };
    Check { name: "BTF", verdict, found, remedy }
}

fn lockdown_check() -> Check {
    let (verdict, found, remedy) = match lockdown() {
        Some(Lockdown::Off) => (CheckVerdict::Good, "none".to_owned(), None),
        Some(Lockdown::Integrity) => (
            CheckVerdict::Good,
            "integrity: tracepoints are allowed, fentry and kprobes may not be".to_owned(),
            None,
        ),
        Some(Lockdown::Confidentiality) => (
            CheckVerdict::Fatal,
            "confidentiality: no program may read kernel memory".to_owned(),
            Some(LOCKDOWN_REMEDY),
        ),
        None if is_mounted(SECURITYFS_PATH, SECURITYFS_MAGIC) && !Path::new(LOCKDOWN_PATH).exists() => {
            (CheckVerdict::Good, "not built into this kernel".to_owned(), None)
        }
        None => (
            CheckVerdict::Unknown,
            format!("{LOCKDOWN_PATH} cannot be read"),
            Some(
                "mount securityfs as root: mount -t securityfs securityfs /sys/kernel/security (the chart: \
                 securityfs.enabled)",
            ),
        ),
    };
    Check { name: "lockdown", verdict, found, remedy }
}

fn time_namespace_check() -> Check {
    let (verdict, found, remedy) = match kwitness_service::boot_time_offset() {
        None => (CheckVerdict::Good, "the kernel's boot-time clock".to_owned(), None),
        Some(offset) => {
            let found = format!("the boot-time clock is off by {offset}: events cannot be ordered");
            (CheckVerdict::Fatal, found, Some(TIME_NAMESPACE_REMEDY))
        }
    };
    Check { name: "time namespace", verdict, found, remedy }
}

fn bpffs_check() -> Check {
    unneeded_mount("bpffs", BPFFS_PATH, BPF_FS_MAGIC, "without it, programs and maps end with the daemon")
}

fn tracefs_check() -> Check {
    match Tracepoints::of(&kernel_release()) {
        Tracepoints::Atomic => {
            unneeded_mount("tracefs", TRACEFS_PATH, TRACEFS_MAGIC, "raw tracepoints do not need it")
        }
        Tracepoints::Preemptible if is_mounted(TRACEFS_PATH, TRACEFS_MAGIC) => Check {
            name: "tracefs",
            verdict: CheckVerdict::Good,
            found: TRACEFS_PATH.to_owned(),
            remedy: None,
        },
        Tracepoints::Preemptible => Check {
            name: "tracefs",
            verdict: CheckVerdict::Degraded,
            found: format!(
                "not mounted on {TRACEFS_PATH}: exec and exit are seen by programs that this kernel can preempt, and \
                 what it then skips is reported as a gap"
            ),
            remedy: Some("mount -t tracefs tracefs /sys/kernel/tracing (the chart: tracefs.enabled)"),
        },
    }
}

/// A file system that people expect a BPF program to need, and that this one does not.
fn unneeded_mount(name: &'static str, path: &str, magic: FsType, why: &str) -> Check {
    let found = if is_mounted(path, magic) {
        path.to_owned()
    } else {
        format!("not mounted on {path}, and not needed: {why}")
    };
    Check { name, verdict: CheckVerdict::Good, found, remedy: None }
}

fn is_mounted(path: &str, magic: FsType) -> bool {
    statfs::statfs(Path::new(path)).is_ok_and(|stat| stat.filesystem_type() == magic)
}

impl fmt::Display for CheckVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Good => "good",
            Self::Degraded => "degraded",
            Self::Fatal => "fatal",
            Self::Unknown => "unknown",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileges_are_read_from_the_effective_set() {
        let status = |mask: u64| format!("Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t{mask:016x}\n");
        assert!(missing_in(&status(1 << 21), false).is_empty());
        assert!(missing_in(&status(1 << 38 | 1 << 39), false).is_empty());
        assert_eq!(missing_in(&status(1 << 39), false), ["CAP_PERFMON"]);
        assert_eq!(missing_in(&status(0), false), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing_in(&status(u64::MAX), true), ["a process in the initial user namespace"]);
        assert!(missing_in("Name:\tx\n", false).is_empty());
    }

    #[test]
    fn lockdown_is_what_stands_in_brackets() {
        assert_eq!(lockdown_in("[none] integrity confidentiality\n"), Some(Lockdown::Off));
        assert_eq!(lockdown_in("none [integrity] confidentiality\n"), Some(Lockdown::Integrity));
        assert_eq!(lockdown_in("none integrity [confidentiality]\n"), Some(Lockdown::Confidentiality));
        assert_eq!(lockdown_in("none integrity [later]"), None);
        assert_eq!(lockdown_in(""), None);
    }
}
