//! What kwitness observes, and the hooks that provide it: the table behind every decision of the loader.
//!
//! Owns which capability is vital, the order of its hooks, the fields that they read, and what missing it costs. Knows nothing
//! of the running kernel.

use std::{fmt, str::FromStr};

use super::layout::{self, Field};

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HookKind {
    /// A raw tracepoint: the kernel's own arguments.
    RawTracepoint,
    /// A classic tracepoint: a copied event instead of the arguments, the dearest. Needs tracefs. The kernel runs it with
    /// preemption disabled, also where it no longer does so for raw ones. It skips it while a bpf(2) call on a map's element is in
    /// progress on that CPU (`bpf_prog_active`, `trace_call_bpf` of `kernel/trace/bpf_trace.c`), also if that call, anyone's, has
    /// been preempted. Each is counted. Ours make none in steady state: see `Tracker::listed` and the module `counters`.
    Tracepoint,
    /// A function's entry, and for most capabilities its return, each with a program of its own, by fentry and fexit.
    Fentry,
    /// The same by kprobe and kretprobe, for kernels or machines without fentry.
    Kprobe,
    /// A system call's beginning and end, by the classic tracepoints of that call: for kernels that allow no program at a function.
    /// It runs at each such call on the node, and is used only if the settings ask for it.
    Syscall,
}

impl HookKind {
    /// Whether it is at a function of the kernel's.
    pub const fn is_at_function(self) -> bool {
        matches!(self, Self::Fentry | Self::Kprobe)
    }

    /// Every kind.
    pub const ALL: [Self; 5] =
        [Self::RawTracepoint, Self::Tracepoint, Self::Fentry, Self::Kprobe, Self::Syscall];
    /// Those that are at tracepoints.
    pub const TRACEPOINTS: [Self; 2] = [Self::RawTracepoint, Self::Tracepoint];

    /// The usual short name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RawTracepoint => "raw_tp",
            Self::Tracepoint => "tp",
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Syscall => "syscall",
        }
    }
}

impl fmt::Display for HookKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A program that can provide a capability.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// How it is attached.
    pub kind: HookKind,
    /// The program's name in the object.
    pub program: &'static str,
    /// The program at the return of the function or system call, if the hook has one there.
    pub at_return: Option<&'static str>,
    /// The fields that it reads in addition to those of its capability.
    pub fields: &'static [&'static Field],
}

impl Hook {
    /// The names of all its programs.
    pub fn programs(&self) -> impl Iterator<Item = &'static str> + use<> {
        [self.program].into_iter().chain(self.at_return)
    }
}

impl PartialEq for Hook {
    fn eq(&self, other: &Self) -> bool {
        self.program == other.program
    }
}

impl Eq for Hook {}

/// What a missing capability means for the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importance {
    /// It does not start.
    Vital,
    /// It runs, and reports it as missing.
    Optional,
}

/// Something to observe in the kernel.
pub struct Capability {
    /// Its name in reports, that of the record kind that it brings.
    pub name: &'static str,
    /// Whether the daemon can do without.
    pub importance: Importance,
    /// What is not seen without it.
    pub cost_of_missing: &'static str,
    /// The tracepoint, or the kernel's function, that its hooks attach to.
    pub target: &'static str,
    /// Its hooks, the cheapest first.
    pub hooks: &'static [Hook],
    /// The fields that all its programs read.
    pub fields: &'static [&'static Field],
}

impl Capability {
    /// Its hooks, the preferred one first: the cheapest, but where tracepoints are preemptible, one that is not.
    ///
    /// The kernel skips a program that is still running on the CPU, so what one program is preempted in, others go unseen
    /// by. Only a classic tracepoint's is protected there; a capability without one is at a tracepoint that fires with
    /// interrupts disabled.
    pub fn hooks_in_order(&self, tracepoints: Tracepoints) -> Vec<Hook> {
        let mut hooks = self.hooks.to_vec();
        if tracepoints == Tracepoints::Preemptible {
            hooks.sort_by_key(|hook| hook.kind != HookKind::Tracepoint);
        }
        hooks
    }
}

/// Whether the kernel can preempt a task in a program at a tracepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracepoints {
    /// It disables preemption before it runs one.
    Atomic,
    /// It protects tracepoints with SRCU, as since 7.0 ("tracing: Guard __DECLARE_TRACE() use of __DO_TRACE_CALL() with
    /// SRCU-fast").
    Preemptible,
}

impl Tracepoints {
    /// What a kernel with that release does; known from its version only. A release that cannot be read counts as a new
    /// one: what is preferred there works everywhere.
    pub fn of(release: &str) -> Self {
        match release.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
            Some(major) if major < 7 => Self::Atomic,
            _ => Self::Preemptible,
        }
    }
}

impl fmt::Debug for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Capability {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Capability {}

macro_rules! hooks {
    ($raw:literal $(, + $more:ident)* $(, $event:literal $(+ $field:ident)*)?) => {
        &[
            Hook { kind: HookKind::RawTracepoint, program: $raw, at_return: None, fields: &[$(&layout::$more),*] },
            $(Hook { kind: HookKind::Tracepoint, program: $event, at_return: None, fields: &[$(&layout::$field),*] })?
        ]
    };
}

macro_rules! function_hooks {
    ($fentry:literal, $fexit:literal, $kprobe:literal, $kretprobe:literal $(, $more:expr)?) => {
        &[
            Hook { kind: HookKind::Fentry, program: $fentry, at_return: Some($fexit), fields: &[] },
            Hook {
                kind: HookKind::Kprobe,
                program: $kprobe,
                at_return: Some($kretprobe),
                fields: &[
                    &layout::REGS_FIRST,
                    &layout::REGS_SECOND,
                    &layout::REGS_THIRD,
                    &layout::REGS_RESULT,
                ],
            },
            $($more,)?
        ]
    };
}

/// Fields behind "which cgroup is this, and is it of the v2 hierarchy".
macro_rules! cgroup_fields {
    ($($more:ident),*) => {
        &[
            &layout::CGROUP_ROOT, &layout::CGROUP_ROOT_HIERARCHY_ID, &layout::CGROUP_KN, &layout::KERNFS_NODE_ID,
            $(&layout::$more),*
        ]
    };
}

/// Fields behind "which process is this".
macro_rules! process_fields {
    ($($more:ident),*) => {
        &[
            &layout::TASK_CGROUPS, &layout::CSS_SET_DFL_CGRP, &layout::CGROUP_KN, &layout::KERNFS_NODE_ID,
            &layout::TASK_PID, &layout::TASK_TGID, &layout::TASK_REAL_PARENT, &layout::TASK_GROUP_LEADER,
            &layout::TASK_START_BOOTTIME, &layout::TASK_NSPROXY, &layout::NSPROXY_MNT_NS,
            &layout::MNT_NAMESPACE_INUM, &layout::TASK_COMM,
            $(&layout::$more),*
        ]
    };
}

/// The name of the capability for limit writes, which has an alternative that is no program: `cgroupfs::watch`.
pub const LIMIT_WRITES: &str = "limit_write";

/// The name of the capability for charges of memory, which has an alternative that is no program: [`crate::pressure`].
pub const MEMORY_CHARGES: &str = "memory_charge";

/// Every capability, in the order of attaching. The one that makes a cgroup tracked comes last: of a cgroup that the kernel side
/// took up by itself, everything that follows is seen.
pub static CAPABILITIES: [Capability; 12] = [
    Capability {
        name: "task_exit",
        importance: Importance::Vital,
        cost_of_missing: "exit codes and signals of processes",
        target: "sched_process_exit",
        hooks: hooks!("task_exit", "task_exit_event"),
        fields: process_fields!(
            TASK_SIGNAL,
            TASK_EXIT_CODE,
            SIGNAL_LIVE,
            SIGNAL_FLAGS,
            SIGNAL_GROUP_EXIT_CODE
        ),
    },
    Capability {
        name: "task_exec",
        importance: Importance::Vital,
        cost_of_missing: "when a container's own program starts, and what is executed in it",
        target: "sched_process_exec",
        hooks: hooks!(
            "task_exec",
            +BINPRM_FILENAME,
            "task_exec_event" + EXEC_EVENT_FILENAME
        ),
        fields: process_fields!(),
    },
    Capability {
        name: "task_fork",
        importance: Importance::Optional,
        cost_of_missing: "processes that a container makes, and entries by CLONE_INTO_CGROUP before they exec",
        target: "sched_wakeup_new",
        hooks: hooks!("task_fork"),
        fields: process_fields!(),
    },
    Capability {
        name: LIMIT_WRITES,
        importance: Importance::Optional,
        cost_of_missing: "what is written to a limit, whether that was refused, and when the write began",
        target: "cgroup_file_write",
        hooks: function_hooks!(
            "limit_write_fentry",
            "limit_write_fexit",
            "limit_write_kprobe",
            "limit_write_kretprobe",
            Hook {
                kind: HookKind::Syscall,
                program: "limit_write_enter",
                at_return: Some("limit_write_exit"),
                fields: &[
                    &layout::TASK_FILES,
                    &layout::FILES_FDT,
                    &layout::FDTABLE_FD,
                    &layout::FDTABLE_MAX_FDS,
                    &layout::FILE_INODE,
                    &layout::INODE_SB,
                    &layout::INODE_PRIVATE,
                    &layout::SUPER_BLOCK_MAGIC,
                    &layout::SYS_ENTER_ARGS,
                    &layout::SYS_EXIT_RET,
                ],
            }
        ),
        fields: process_fields!(
            OPEN_FILE_KN,
            KERNFS_NODE_PRIV,
            KERNFS_NODE_NAME,
            KERNFS_NODE_PARENT,
            CGROUP_ROOT,
            CGROUP_ROOT_HIERARCHY_ID
        ),
    },
    Capability {
        name: "oom_scope",
        importance: Importance::Optional,
        cost_of_missing: "which limit an OOM kill enforced, how full it was, and whether a group was killed as one",
        target: "oom_kill_process",
        hooks: function_hooks!(
            "oom_scope_fentry",
            "oom_scope_fexit",
            "oom_scope_kprobe",
            "oom_scope_kretprobe"
        ),
        fields: process_fields!(
            TASK_SIGNAL,
            SIGNAL_FLAGS,
            CGROUP_ROOT,
            CGROUP_ROOT_HIERARCHY_ID,
            OOM_MEMCG,
            OOM_CHOSEN,
            MEMCG_CGROUP,
            MEMCG_USAGE,
            MEMCG_MAX
        ),
    },
    Capability {
        name: "oom_kill",
        importance: Importance::Optional,
        cost_of_missing: "which processes are OOM-killed",
        target: "mark_victim",
        hooks: hooks!("oom_kill"),
        fields: process_fields!(),
    },
    Capability {
        name: MEMORY_CHARGES,
        importance: Importance::Optional,
        cost_of_missing: "memory thresholds crossed between two samples, and which process was charging",
        target: "page_counter_try_charge",
        hooks: &[
            Hook { kind: HookKind::Fentry, program: "memory_charge_fentry", at_return: None, fields: &[] },
            Hook {
                kind: HookKind::Kprobe,
                program: "memory_charge_kprobe",
                at_return: None,
                fields: &[&layout::REGS_FIRST, &layout::REGS_SECOND],
            },
        ],
        fields: process_fields!(
            TASK_FLAGS,
            KERNFS_NODE_PARENT,
            CGROUP_ROOT,
            CGROUP_ROOT_HIERARCHY_ID,
            MEMCG_CGROUP,
            MEMCG_MEMORY,
            MEMCG_SERIAL,
            COUNTER_USAGE,
            COUNTER_MAX,
            COUNTER_PARENT
        ),
    },
    Capability {
        name: "cgroup_attach",
        importance: Importance::Optional,
        cost_of_missing: "who moves a process into a container, and when",
        target: "cgroup_attach_task",
        hooks: hooks!("cgroup_attach"),
        fields: process_fields!(CGROUP_ROOT, CGROUP_ROOT_HIERARCHY_ID),
    },
    Capability {
        name: "cgroup_populated",
        importance: Importance::Vital,
        cost_of_missing: "when a container stops",
        target: "cgroup_notify_populated",
        hooks: hooks!("cgroup_populated"),
        fields: cgroup_fields!(KERNFS_NODE_PARENT),
    },
    Capability {
        name: "cgroup_release",
        importance: Importance::Vital,
        cost_of_missing: "when a removed cgroup may be forgotten: the set of tracked cgroups would fill up",
        target: "cgroup_release",
        hooks: hooks!("cgroup_release"),
        fields: cgroup_fields!(),
    },
    Capability {
        name: "cgroup_rmdir",
        importance: Importance::Vital,
        cost_of_missing: "when a container is deleted, and by whom",
        target: "cgroup_rmdir",
        hooks: hooks!("cgroup_rmdir"),
        fields: cgroup_fields!(),
    },
    Capability {
        name: "cgroup_mkdir",
        importance: Importance::Vital,
        cost_of_missing: "that a container exists",
        target: "cgroup_mkdir",
        hooks: hooks!("cgroup_mkdir"),
        fields: cgroup_fields!(CGROUP_LEVEL, KERNFS_NODE_NAME, KERNFS_NODE_PARENT, TASK_CRED, CRED_FSUID),
    },
];

/// Hooks that are not to be used: a diagnostic aid, and how the tests reach each alternative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exclusion {
    /// All hooks of a kind.
    Kind(HookKind),
    /// One program.
    Program(&'static str),
}

impl Exclusion {
    /// Whether it rules that hook out.
    pub fn covers(&self, hook: &Hook) -> bool {
        match self {
            Self::Kind(kind) => *kind == hook.kind,
            Self::Program(program) => *program == hook.program,
        }
    }
}

/// Not a kind of hook and not a program.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{given}` is neither a kind of hook ({}) nor a program ({})", kinds(), programs())]
pub struct UnknownHook {
    given: String,
}

fn kinds() -> String {
    HookKind::ALL.map(HookKind::name).join(", ")
}

fn all_hooks() -> impl Iterator<Item = &'static Hook> {
    CAPABILITIES.iter().flat_map(|capability| capability.hooks)
}

fn programs() -> String {
    all_hooks().map(|hook| hook.program).collect::<Vec<_>>().join(", ")
}

impl FromStr for Exclusion {
    type Err = UnknownHook;

    fn from_str(given: &str) -> Result<Self, UnknownHook> {
        let kind = HookKind::ALL.into_iter().find(|kind| kind.name() == given).map(Self::Kind);
        let program = || all_hooks().find(|hook| hook.program == given);
        kind.or_else(|| program().map(|hook| Self::Program(hook.program)))
            .ok_or_else(|| UnknownHook { given: given.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_preempted_is_left_to_the_classic_tracepoint() {
        let first = |release| {
            CAPABILITIES
                .each_ref()
                .map(|capability| capability.hooks_in_order(Tracepoints::of(release))[0].kind)
        };
        for release in ["5.10.0-35-amd64", "6.18.44"] {
            assert!(!first(release).contains(&HookKind::Tracepoint), "{release}");
        }
        for release in ["7.0.1", "7.2.13+deb14-cloud-amd64", "10.1", "unknown"] {
            let classic =
                CAPABILITIES.iter().zip(first(release)).filter(|(_, kind)| *kind == HookKind::Tracepoint);
            let names: Vec<_> = classic.map(|(capability, _)| capability.name).collect();
            assert_eq!(names, ["task_exit", "task_exec"], "{release}");
        }
    }
}
