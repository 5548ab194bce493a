//! Whether the clock that this process reads is that of the kernel's records.

use std::fs;

/// How far this process's boot-time clock is from the kernel's, in words; none: it is the kernel's.
///
/// Records carry the kernel's clock, and `/proc` gives start times by the reader's. In a time namespace with an offset neither
/// agrees with what this process reads.
pub fn boot_time_offset() -> Option<String> {
    offset_in(&fs::read_to_string("/proc/self/timens_offsets").ok()?)
}

/// The file has a line for each clock: `boottime -1500 0`, in seconds and nanoseconds.
fn offset_in(text: &str) -> Option<String> {
    let mut fields = text.lines().find_map(|line| line.trim().strip_prefix("boottime"))?.split_whitespace();
    match (fields.next()?, fields.next()?) {
        ("0", "0") => None,
        (seconds, nanos) => Some(format!("{seconds} s and {nanos} ns")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_namespace_is_known_by_its_offset() {
        let offsets = |boottime: &str| format!("monotonic           0         0\nboottime   {boottime}\n");
        assert_eq!(offset_in(&offsets("       0         0")), None);
        assert_eq!(offset_in(&offsets("   -1500         0")).as_deref(), Some("-1500 s and 0 ns"));
        assert_eq!(offset_in(&offsets("       0         7")).as_deref(), Some("0 s and 7 ns"));
        assert_eq!(offset_in(""), None);
    }
}
