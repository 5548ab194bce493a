//! The runtime's own process (`runc init`, `crun`), which waits in the container's namespaces for the order to execute the
//! container's program. A record shows it by its exec; a scan, by what it runs and how it calls itself.
//!
//! A workload may call itself that, too. So a name is taken for the truth only as long as nothing contradicts it: its age here, and
//! what is known of the container's life in [`Container::may_be_preparing`](super::container::Container::may_be_preparing).

use crate::model::{KernelTime, Output, ScannedProcess};

use super::Lifecycle;

/// For how long a helper waits at most, in nanoseconds. The kubelet gives up on a request to the runtime after two minutes
/// (`runtimeRequestTimeout`), and within one containerd makes the helper and has it execute the program; CRI-O does so within two
/// that follow each other at once. A container that is created by hand and started later than that may be reported as started.
const LONGEST: u64 = 120_000_000_000;

/// Whether what began then has lasted for longer than a helper waits.
pub(super) fn is_over(since: KernelTime, now: KernelTime) -> bool {
    now.0.saturating_sub(since.0) > LONGEST
}

/// Whether the process looks like the runtime's helper, and is young enough for it.
pub(super) fn may_be_helper(process: &ScannedProcess, now: KernelTime) -> bool {
    const RUNTIMES: [&str; 3] = ["runc", "crun", "youki"];
    let program = process.program.as_deref().unwrap_or_default();
    let program = program.strip_suffix(" (deleted)").unwrap_or(program);
    let in_memory = program.strip_prefix("/memfd:").is_some_and(|name| {
        RUNTIMES
            .iter()
            .any(|runtime| name.strip_prefix(runtime).is_some_and(|rest| rest.starts_with("_cloned")))
    });
    // crun executes itself from a mount of its own that it detached: the path of that is `/`.
    let detached = program == "/";
    let file = program.rsplit('/').next().unwrap_or_default();
    let is_called_so = process.task.comm.starts_with("runc:[") || RUNTIMES.contains(&file);
    (in_memory || detached || is_called_so) && !is_over(process.task.key.start, now)
}

impl Lifecycle {
    /// What the last scan took for the runtime's helper is looked at again if it does not come to a start: the start may be lost, and
    /// whoever is there only call itself so.
    pub(super) fn look_again_at_preparing(&mut self, at: KernelTime, output: &mut Output) {
        let Self { cgroups, preparing, .. } = self;
        let mut is_due = false;
        preparing.retain(|id| {
            let since = cgroups.container_mut(*id).and_then(|container| container.preparing_since());
            let is_late = since.is_some_and(|since| is_over(since, at));
            is_due |= is_late;
            since.is_some() && !is_late
        });
        if is_due {
            self.ask_for_repair(at, output);
        }
    }
}
