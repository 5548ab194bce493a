//! How often the kernel calls a program at charges of memory, and whether that is too often: the daemon's and the guard's.
//!
//! It is to be called once per 64 pages: where a CPU's stock of charged pages is filled. A kernel that calls it for each page would
//! make each page fault of the node pay for it; one whose compiler has made the function a part of its caller would never call it.
//! Measured by having memory of the own process charged. Where that is accounted in the root cgroup, which is not charged, nothing
//! is counted; unless it is known to be elsewhere, nothing is known then.
//!
//! Owns the rule. Whoever uses it counts the calls, and has the memory charged.

/// Calls for each mebibyte that are too many; 64 pages of 4 KiB at a time make 4, one at a time 256.
const TOO_MANY: u64 = 64;
/// Pages that are charged at a time: `MEMCG_CHARGE_BATCH` of `include/linux/memcontrol.h`.
const BATCH: u64 = 64;
const MIB: u64 = 1 << 20;
/// Bytes that an attempt has charged, page by page.
pub const CHARGED: u64 = 4 * MIB;
/// What others charge meanwhile is counted, too: the least of so many attempts counts, and none is nothing only if all are.
pub const ATTEMPTS: usize = 5;

/// What speaks against the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Each page fault would pay for it.
    #[error("the kernel calls it {0} times for each MiB charged: too expensive for page faults")]
    CalledTooOften(u64),
    /// Its code is a part of its caller's.
    #[error("the kernel charges memory without calling it")]
    NeverCalled,
}

/// By the calls that each attempt took, with pages of so many bytes; none: nothing speaks against it, or nothing is known. With
/// `is_charged`, this process is known to be charged.
pub fn flaw(calls: &[u64], page: u64, is_charged: bool) -> Option<Flaw> {
    let (least, most) = (calls.iter().min()?, calls.iter().max()?);
    // With large pages, an attempt may be served from the stock.
    let takes_calls = CHARGED / page >= 4 * BATCH;
    if *most == 0 && is_charged && takes_calls {
        return Some(Flaw::NeverCalled);
    }
    let per_mebibyte = least / (CHARGED / MIB);
    (per_mebibyte >= TOO_MANY).then_some(Flaw::CalledTooOften(per_mebibyte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_is_called_for_each_page_or_never_is_refused() {
        for (calls, is_charged, expected) in [
            (&[16, 17, 40][..], true, None),
            (&[0, 0, 0], false, None),
            (&[0, 1, 0], true, None),
            (&[0, 0, 0], true, Some(Flaw::NeverCalled)),
            (&[1030, 1024, 2000], false, Some(Flaw::CalledTooOften(256))),
            // Each of the others' charges.
            (&[16, 5000], true, None),
            (&[], true, None),
        ] {
            assert_eq!(flaw(calls, 4096, is_charged), expected, "{calls:?}");
        }
        assert_eq!(flaw(&[0, 0], 64 << 10, true), None, "the stock may have been enough");
    }
}
