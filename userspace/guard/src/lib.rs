//! The guard: a process that is about to be OOM-killed is held, its container's limit is raised in place, the raise is
//! proven to be in effect, and the process continues.
//!
//! It is opt-in and a process of its own. The daemon stays read-only; the guard is one more client of it.
//!
//! # One hold
//!
//! ```text
//!              charge above the threshold            plan refused (policy, budget, free memory)
//!   running ───────────────────────────────▶ held ──────────────────────────────────────────────┐
//!      ▲        (program: record, SIGSTOP)     │ planned                                        │
//!      │                                       ▼             refused, no answer in time         │
//!      │                                    raising ───────────────────────────────────────────┤
//!      │                                       │ accepted                                      │
//!      │                                       ▼             not in force, no answer in time   │
//!      │                                   verifying ──────────────────────────────────────────┤
//!      │                                       │ in force at every level                       │
//!      │            SIGCONT, seen running      ▼                                               ▼
//!      └─────────────────────────────── continuing ◀─────────────────── the container is quiet for the cool-down
//! ```
//!
//! A held process stops when it returns to user space. One that has not, because it is inside a system call, is slowed down by
//! `memory.high` meanwhile: see `brake`.
//!
//! A raise that comes too late stays: it is in effect, and the process has been continued without waiting for it. It is verified and
//! reported as others are; one that the kubelet puts off is taken back (`late`).
//! What was raised is given back after a quiet time, if the policy says so: see [`give_back`].
//!
//! # Nothing stays stopped
//!
//! | What happens | Who ends the hold | When |
//! |---|---|---|
//! | the raise is refused, not in force, or late | the guard | at once; at the latest after the longest hold |
//! | the guard stops, or exits with an error | the guard | before it ends |
//! | the guard is killed | the watchdog, by the end of its pipe | at once |
//! | the guard hangs, or is stopped | the watchdog, by the lease's end | [`LEASE`] after the last heartbeat |
//! | a hold overruns | the watchdog, by the hold's own deadline | [`OVERRUN`](watchdog) after it |
//! | the watchdog ends, or is killed | the guard, which then holds nothing until another one looks on | at its next heartbeat |
//! | the watchdog hangs, or is stopped | the same | [`SILENCE_MAX`](watchdog::SILENCE_MAX) after its last sign |
//! | both are killed at the same moment | the next guard: the records are pinned | when it starts, whatever keeps it from guarding then |
//!
//! Without a heartbeat within [`LEASE`] the program holds nothing, so that a guard that is not there cannot stop anything.
//!
//! # Where each rule is
//!
//! | Rule | Place |
//! |---|---|
//! | who is never stopped; recorded before stopped; the threshold | the BPF program, `ebpf/guard` |
//! | that the program costs page faults next to nothing | `calls` |
//! | which containers, and every number | [`policy`] |
//! | what is never armed, whatever a rule says | `protected` |
//! | that a hold leaves room for the other threads, and comes before another process' `memory.high` | `share` |
//! | whether and how far a limit is raised; why not | [`plan`] |
//! | what limit and usage are at this moment, at every level | `cgroup` |
//! | what follows what in a hold | [`episode`] |
//! | when a hold must end whatever the guard does | [`watchdog`] |
//! | that nothing is held without a watchdog that looks on | `watchdog::link` |
//! | how the holds of a dead guard end | `orphans` |
//! | that there is an event of each hold which the guard did not end itself | `continued` |
//! | that only what was recorded is continued, until it is seen running; whether it has stopped | `process` |
//! | that a process which has not stopped is slowed down, and for no longer | `brake` |
//! | how a limit is raised | [`raise`] |
//! | when a raise is given back, and how far | [`give_back`] |
//! | that the next guard knows what was raised | `loans` |
//! | that a limit is in force | the daemon's `Verify`, called by [`daemon`] |
//! | that the daemon's stream has an event of each step | `reporter` |
//!
//! [`policy`], [`plan`], [`episode`], [`give_back`], `share` and `raise::resize` are pure: no clock, no file, no signal.

mod brake;
mod calls;
mod cgroup;
mod continued;
pub mod daemon;
pub mod dry_run;
pub mod episode;
pub mod give_back;
mod guard;
mod layout;
mod loans;
mod metrics;
mod orphans;
pub mod plan;
pub mod policy;
mod process;
#[expect(unsafe_code, reason = "values in BPF maps, and a descriptor that aya hands out")]
mod program;
mod protected;
pub mod raise;
mod reporter;
mod share;
mod state_file;
pub mod status;
pub mod watchdog;

use kwitness_service::privileges::{CapabilitySet, Privilege};

pub use guard::{HEARTBEAT, Options, run};
pub use metrics::CATALOG;
pub use orphans::{Recovered, recover};
pub use process::Unable;
pub use program::{LEASE, ProgramError};
pub use protected::Protected;
pub use share::NoShare;
pub use status::STATUS_SOCKET;

/// What the guard and its watchdog keep of a process's capabilities, and why: the unit grants these, but for the last.
pub const PRIVILEGES: [Privilege; 5] = [
    Privilege { capability: CapabilitySet::BPF, purpose: "bpf(2): its program, its maps, and what it pins" },
    Privilege {
        capability: CapabilitySet::PERFMON,
        purpose: "a program that reads kernel memory; the kprobe where there is no fentry",
    },
    Privilege { capability: CapabilitySet::KILL, purpose: "SIGCONT to processes of any user" },
    Privilege {
        capability: CapabilitySet::SYS_PTRACE,
        purpose: "finding held processes again where /proc is mounted with hidepid",
    },
    Privilege {
        capability: CapabilitySet::DAC_READ_SEARCH,
        purpose: "a policy or a kubeconfig that belongs to another user",
    },
];

/// Locked by the guard of this node: a second one does not start.
pub const LOCK_FILE: &str = "/run/kwitness/guard.lock";

/// What the guard of this node has raised: the next one gives it back.
pub const LOANS_FILE: &str = "/run/kwitness/guard-loans.json";

/// Whose `memory.high` the guard of this node has lowered: its watchdog, or the next guard, restores it.
const BRAKES_FILE: &str = "/run/kwitness/guard-brakes.json";

/// Which holds ended without a guard: the next one reports them.
const CONTINUED_FILE: &str = "/run/kwitness/guard-continued.json";

/// Where lease and holds are pinned by default.
pub const PIN_DIRECTORY: &str = "/sys/fs/bpf/kwitness-guard";
