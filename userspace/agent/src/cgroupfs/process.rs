//! A process as procfs shows it, in the shape of a kernel record. One that goes away while being read is none.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use kwitness_core::model::{KernelTime, ProcKey, ScannedProcess, TaskInfo};
use procfs::process::Process;

/// Reads a process. Its start time has procfs' resolution of a clock tick (10 ms), rounded down.
pub(super) fn read(pid: i32) -> Option<ScannedProcess> {
    let stat = Process::new(pid).and_then(|process| process.stat()).ok()?;
    let nanos_a_tick = 1_000_000_000 / procfs::ticks_per_second();
    let parent = u32::try_from(stat.ppid).unwrap_or(0);
    Some(ScannedProcess {
        task: TaskInfo {
            key: ProcKey { pid: u32::try_from(pid).ok()?, start: KernelTime(stat.starttime * nanos_a_tick) },
            ppid: parent,
            mnt_ns: mount_namespace(pid),
            parent_mnt_ns: mount_namespace(stat.ppid),
            comm: stat.comm.into(),
        },
        program: program(pid),
    })
}

/// None for a kernel thread or a zombie, and where it must not be seen.
fn mount_namespace(pid: i32) -> Option<u32> {
    fs::metadata(format!("/proc/{pid}/ns/mnt")).ok().and_then(|metadata| u32::try_from(metadata.ino()).ok())
}

fn program(pid: i32) -> Option<Arc<str>> {
    let link = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let path = link.to_string_lossy();
    // The kernel's mark of a file that was replaced since; it is still the program that runs.
    Some(path.strip_suffix(" (deleted)").unwrap_or(&path).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_reads_itself() {
        let pid = std::process::id();
        let found = read(pid as i32).unwrap();
        assert_eq!(found.task.key.pid, pid);
        assert_eq!(found.task.ppid, std::os::unix::process::parent_id());
        assert_eq!(found.program.as_deref(), std::env::current_exe().unwrap().to_str());
        assert!(found.task.key.start < crate::clock::Clock::read().now());
        assert!(found.task.mnt_ns.is_some());
    }

    #[test]
    fn one_that_is_gone_is_none() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        assert_eq!(read(child.id() as i32), None);
    }
}
