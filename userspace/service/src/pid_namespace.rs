//! Whether the pids that this process sees are those of the kernel's records.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

/// `PROC_PID_INIT_INO` of `include/linux/proc_ns.h`.
const INITIAL: u32 = 0xEFFF_FFFC;

/// This process's pid namespace, by its inode number; none, if that cannot be read.
pub fn pid_namespace() -> Option<u32> {
    fs::metadata("/proc/self/ns/pid").ok().and_then(|metadata| u32::try_from(metadata.ino()).ok())
}

/// Whether this process is in the initial pid namespace, the host's.
pub fn in_initial_pid_namespace() -> bool {
    pid_namespace() == Some(INITIAL)
}
