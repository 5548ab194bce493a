//! How often the kernel calls the program: once per 64 pages charged, or the guard does not start. Measured by pages of a memory file
//! of this process; the rule is [`charge_calls`]'.

use std::fs::File;
use std::io::{self, Write as _};

use kwitness_service::charge_calls::{self, ATTEMPTS, CHARGED, Flaw};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::cgroup;

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
    Ok(charge_calls::flaw(&calls, page, cgroup::is_charged()))
}

/// Has memory charged, page by page.
fn write(page: u64) -> io::Result<()> {
    let create = |flags| memfd_create("kwitness-guard", MFdFlags::MFD_CLOEXEC | flags);
    // Since Linux 6.3, which may insist on it; kernels before know no such flag.
    let sealed = create(MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL));
    let mut file = File::from(sealed.or_else(|_| create(MFdFlags::empty()))?);
    let content = vec![1; usize::try_from(page).unwrap_or(1)];
    (0..CHARGED / page).try_for_each(|_| file.write_all(&content))
}

#[cfg(test)]
mod tests {
    use super::*;

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
