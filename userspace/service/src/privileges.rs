//! Kernel capabilities that a program keeps; it gives up all others before it starts a thread.
//!
//! Owns how they are given up. Which ones a program keeps, and why, is the program's own table: `kwitness_agent::privileges` for the
//! daemon, `kwitness_guard::PRIVILEGES` for the guard. The CRI proxy and the exporter keep none.

use anyhow::Context as _;
pub use rustix::thread::CapabilitySet;
use rustix::thread::{self, CapabilitySets};

/// A capability, and what a program uses it for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privilege {
    /// One bit.
    pub capability: CapabilitySet,
    /// What needs it.
    pub purpose: &'static str,
}

impl Privilege {
    /// All of them, as a set.
    pub fn set<'a>(privileges: impl IntoIterator<Item = &'a Self>) -> CapabilitySet {
        privileges.into_iter().fold(CapabilitySet::empty(), |set, privilege| set | privilege.capability)
    }

    /// As capabilities(7) names it: `CAP_BPF`.
    pub fn name(&self) -> String {
        names(self.capability).concat()
    }
}

/// The names of capabilities(7): `CAP_BPF`.
pub fn names(set: CapabilitySet) -> Vec<String> {
    set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect()
}

/// The effective capabilities of this thread.
///
/// # Errors
/// The kernel does not answer.
pub fn held() -> anyhow::Result<CapabilitySet> {
    Ok(thread::capabilities(None).context("capget(2) failed")?.effective)
}

/// What a program keeps that loads BPF programs, of what it holds: where `CAP_BPF` was not granted, `CAP_SYS_ADMIN` stands in for it.
pub fn for_bpf(kept: CapabilitySet, held: CapabilitySet) -> CapabilitySet {
    if held.contains(CapabilitySet::BPF) { kept } else { kept | CapabilitySet::SYS_ADMIN }
}

/// Gives up every capability but these, for good: this thread, what it starts from now on, and what those execute. A program calls it
/// before it has another thread, for capabilities are a thread's.
///
/// The bounding set can be reduced only with `CAP_SETPCAP`. Without, `no_new_privs` does the same: execve(2) adds nothing.
///
/// # Errors
/// The kernel refuses.
pub fn keep_only(kept: CapabilitySet) -> anyhow::Result<()> {
    thread::set_no_new_privs(true).context("PR_SET_NO_NEW_PRIVS failed")?;
    let CapabilitySets { effective, permitted, inheritable } =
        thread::capabilities(None).context("capget(2) failed")?;
    if effective.contains(CapabilitySet::SETPCAP) {
        for (_, capability) in CapabilitySet::all().iter_names().filter(|(_, of)| !kept.contains(*of)) {
            // An error: a capability that this kernel does not have.
            if thread::capability_is_in_bounding_set(capability).unwrap_or(false) {
                thread::remove_capability_from_bounding_set(capability).context("PR_CAPBSET_DROP failed")?;
            }
        }
    }
    // The kernel keeps the ambient set within the other two.
    let sets = CapabilitySets {
        effective: effective & kept,
        permitted: permitted & kept,
        inheritable: inheritable & kept,
    };
    thread::set_capabilities(None, sets).context("capset(2) failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a thread of its own: capabilities are a thread's, and the other tests need theirs.
    fn on_a_thread<T: Send>(run: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(run).join().unwrap())
    }

    #[test]
    fn nothing_but_what_is_kept_is_left_and_it_is_inherited() {
        let before = held().unwrap();
        let kept = CapabilitySet::BPF | CapabilitySet::KILL;
        let after = on_a_thread(|| {
            keep_only(kept).unwrap();
            on_a_thread(|| (thread::capabilities(None).unwrap(), thread::no_new_privs().unwrap()))
        });
        let (CapabilitySets { effective, permitted, inheritable }, no_new_privs) = after;
        assert_eq!(effective, before & kept);
        assert!(kept.contains(permitted) && kept.contains(inheritable));
        assert!(no_new_privs);
        assert_eq!(held().unwrap(), before, "other threads keep theirs");
    }

    #[test]
    fn names_are_those_of_the_manual() {
        assert_eq!(names(CapabilitySet::BPF | CapabilitySet::SYS_PTRACE), ["CAP_SYS_PTRACE", "CAP_BPF"]);
        assert_eq!(Privilege { capability: CapabilitySet::KILL, purpose: "" }.name(), "CAP_KILL");
    }
}
