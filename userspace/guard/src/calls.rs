//! How often the kernel calls the program: once per 64 pages charged, or the guard does not start.
//!
//! A kernel that calls it for each page would make each page fault of the node pay for it; one whose compiler has made the function a
//! part of its caller would never call it. Measured by pages of a memory file of this process. Where that is accounted in the root
//! cgroup, nothing is counted, and nothing known.

use std::fs::File;
use std::io::{self, Write as _};

use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::cgroup;

/// Calls for each mebibyte that are too many, as for the daemon's program: 64 pages of 4 KiB at a time make 4, one at a time 256.
const TOO_MANY: u64 = 64;
/// Pages that are charged at a time: `MEMCG_CHARGE_BATCH`.
const BATCH: u64 = 64;
const MIB: u64 = 1 << 20;
/// What is written at a time.
const WRITTEN: u64 = 4 * MIB;
/// What others charge meanwhile is counted, too: the least of so many attempts counts, and none is nothing only if all are.
const ATTEMPTS: usize = 5;

/// What speaks against the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Each page fault would pay for it.
    #[error("the kernel calls it {0} times for each MiB charged: too dear for page faults")]
    CalledTooOften(u64),
    /// Its code is a part of its caller's.
    #[error("the kernel charges memory without calling it")]
    NeverCalled,
}

/// What speaks against a program that has counted so many calls; none: nothing does, or nothing is known.
pub(crate) fn flaw<E>(count: impl Fn() -> Result<u64, E>) -> Result<Option<Flaw>, E> {
    let page = procfs::page_size();
    let mut calls = Vec::new();
    for _ in 0..ATTEMPTS {
        let before = count()?;
        if let Err(error) = write(page) {
            tracing::debug!(%error, "how often the kernel calls the program is not measured");
            return Ok(None);
        }
        calls.push(count()?.saturating_sub(before));
    }
    Ok(judge(&calls, page, cgroup::is_charged()))
}

/// By the calls that each attempt took; `is_charged`: this process is charged for what it writes.
fn judge(calls: &[u64], page: u64, is_charged: bool) -> Option<Flaw> {
    let (least, most) = (calls.iter().min()?, calls.iter().max()?);
    // With large pages, an attempt may be served from the stock.
    let takes_calls = WRITTEN / page >= 4 * BATCH;
    if *most == 0 && is_charged && takes_calls {
        return Some(Flaw::NeverCalled);
    }
    let per_mebibyte = least / (WRITTEN / MIB);
    (per_mebibyte >= TOO_MANY).then_some(Flaw::CalledTooOften(per_mebibyte))
}

/// Has memory charged, page by page.
fn write(page: u64) -> io::Result<()> {
    let create = |flags| memfd_create("kwitness-guard", MFdFlags::MFD_CLOEXEC | flags);
    // Since Linux 6.3, which may insist on it; kernels before know no such flag.
    let sealed = create(MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL));
    let mut file = File::from(sealed.or_else(|_| create(MFdFlags::empty()))?);
    let content = vec![1; usize::try_from(page).unwrap_or(1)];
    (0..WRITTEN / page).try_for_each(|_| file.write_all(&content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_is_called_for_each_page_or_never_is_refused() {
        let page = 4096;
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
            assert_eq!(judge(calls, page, is_charged), expected, "{calls:?}");
        }
        assert_eq!(judge(&[0, 0], 64 << 10, true), None, "the stock may have been enough");
    }

    #[test]
    fn what_cannot_be_counted_is_an_error_and_each_attempt_is_counted_by_itself() {
        assert_eq!(flaw(|| Err::<u64, _>("no map")), Err("no map"));
        let calls = std::cell::Cell::new(0);
        let counted = flaw(|| {
            calls.set(calls.get() + 1024);
            Ok::<_, ()>(calls.get())
        });
        assert_eq!(counted, Ok(Some(Flaw::CalledTooOften(256))));
    }
}
