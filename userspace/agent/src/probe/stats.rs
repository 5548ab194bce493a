//! How often a program ran, how long, and how often the kernel could not run it.

use std::{
    fs,
    os::fd::{AsRawFd as _, BorrowedFd},
    time::Duration,
};

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

/// Reads the statistics of the program that has this descriptor.
pub fn read(name: &'static str, program: BorrowedFd<'_>) -> ProgramStats {
    let fdinfo = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).ok();
    let are_counted =
        fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|on| on.trim() != "0");
    parse(name, &fdinfo.unwrap_or_default(), are_counted)
}

/// The lines of a program's fdinfo read `name:\tvalue`.
fn parse(program: &'static str, fdinfo: &str, are_counted: bool) -> ProgramStats {
    let field = |name: &str| {
        let value = fdinfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| value.trim().parse().ok())
    };
    // The kernel shows a zero also where it does not count.
    let counted = |name| field(name).filter(|count| are_counted || *count > 0);
    ProgramStats {
        program,
        runs: counted("run_cnt"),
        run_time: counted("run_time_ns").map(Duration::from_nanos),
        recursion_misses: field("recursion_misses"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
