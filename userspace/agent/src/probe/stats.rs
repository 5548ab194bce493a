//! How often a program ran, how long, and how often the kernel could not run it.

use std::{
    fs::{self, File},
    os::fd::{AsRawFd as _, OwnedFd},
    os::unix::fs::FileExt as _,
    time::Duration,
};

/// Bytes of a program's fdinfo that are read; on Linux 7.2 it has some 300.
const FDINFO_MAX: usize = 2048;

/// What the kernel says about a loaded program. Absent is what it does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramStats {
    /// The program's name in the object.
    pub program: &'static str,
    /// How often it ran. Counted only while `kernel.bpf_stats_enabled` is set.
    pub runs: Option<u64>,
    /// How long all runs took together. Counted only while `kernel.bpf_stats_enabled` is set.
    pub run_time: Option<Duration>,
    /// How often it was due while it was already running on the same CPU: each is a record that was not made. Always
    /// counted, by kernels since 5.12.
    pub recursion_misses: Option<u64>,
}

/// Reads the statistics of one program, as long as it is held.
#[derive(Debug)]
pub struct StatsReader {
    program: &'static str,
    /// Opened once: opening costs more than reading, and this is read once a second.
    fdinfo: Option<File>,
    _fd: OwnedFd,
}

impl StatsReader {
    /// Of the program that has this descriptor.
    pub fn new(program: &'static str, fd: OwnedFd) -> Self {
        let fdinfo = File::open(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok();
        Self { program, fdinfo, _fd: fd }
    }

    /// What the kernel says now; `are_counted`: see [`are_counted`].
    pub fn read(&self, are_counted: bool) -> ProgramStats {
        parse(self.program, &self.fdinfo(), are_counted)
    }

    /// [`ProgramStats::recursion_misses`] alone.
    pub fn recursion_misses(&self) -> Option<u64> {
        field(&self.fdinfo(), "recursion_misses")
    }

    fn fdinfo(&self) -> String {
        let mut text = [0; FDINFO_MAX];
        let length = self.fdinfo.as_ref().and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
        String::from_utf8_lossy(&text[..length]).into_owned()
    }
}

/// Whether the kernel counts every program's runs and their time, by the sysctl.
pub fn are_counted() -> bool {
    fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|on| on.trim() != "0")
}

/// The lines of a program's fdinfo read `name:\tvalue`.
fn parse(program: &'static str, fdinfo: &str, are_counted: bool) -> ProgramStats {
    // The kernel shows a zero also where it does not count.
    let counted = |name| field(fdinfo, name).filter(|count| are_counted || *count > 0);
    ProgramStats {
        program,
        runs: counted("run_cnt"),
        run_time: counted("run_time_ns").map(Duration::from_nanos),
        recursion_misses: field(fdinfo, "recursion_misses"),
    }
}

fn field(fdinfo: &str, name: &str) -> Option<u64> {
    let value = fdinfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.and_then(|value| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_fdinfo_is_read_anew_each_time() {
        let mut file = tempfile::tempfile().unwrap();
        let reader = StatsReader::new("p", file.try_clone().unwrap().into());
        let position = |text: &str| field(text, "pos");
        assert_eq!(position(&reader.fdinfo()), Some(0));
        std::io::Write::write_all(&mut file, b"1234567").unwrap();
        assert_eq!(position(&reader.fdinfo()), Some(7));
        assert_eq!(reader.recursion_misses(), None, "it is no program");
    }

    #[test]
    fn what_the_kernel_does_not_say_is_absent() {
        let stats = parse("p", "pos:\t0\nprog_type:\t26\nrun_time_ns:\t1500\nrun_cnt:\t3\n", true);
        assert_eq!((stats.runs, stats.run_time), (Some(3), Some(Duration::from_nanos(1500))));
        assert_eq!(stats.recursion_misses, None);
        assert_eq!(parse("p", "recursion_misses:\t2\n", true).recursion_misses, Some(2));
        let off = parse("p", "run_time_ns:\t0\nrun_cnt:\t0\n", false);
        assert_eq!((off.runs, off.run_time), (None, None), "a zero that was not counted");
        assert_eq!(parse("p", "run_cnt:\t0\n", true).runs, Some(0));
    }
}
