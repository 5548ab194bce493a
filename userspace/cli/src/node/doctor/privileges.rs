//! What the doctor says of the privileges that a running daemon holds.

use kwitness_agent::probe::environment::CheckVerdict;
use kwitness_api::proto;

use super::{Finding, PRIVILEGES};

/// The finding; none: the daemon does not say, for it is an older one.
pub(super) fn finding(held: &[proto::Privilege]) -> Option<Finding> {
    let names: Vec<_> = held.iter().map(|privilege| privilege.name.as_str()).collect();
    if names.is_empty() {
        return None;
    }
    Some(if names.contains(&"CAP_SYS_PTRACE") {
        Finding::good(PRIVILEGES, format!("the daemon holds {}", names.join(", ")))
    } else {
        Finding::new(
            PRIVILEGES,
            CheckVerdict::Degraded,
            "the daemon has no CAP_SYS_PTRACE: containers that ran before it have no main process, and stop for an unknown \
             reason",
            "grant it (the chart: capabilities.sysPtrace); in a pod with hostPID it is root on the node, see SECURITY.md",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_named_and_what_is_missing_has_its_cost() {
        let held = |names: &[&str]| {
            let named = |name: &&str| proto::Privilege { name: (*name).into(), purpose: String::new() };
            finding(&names.iter().map(named).collect::<Vec<_>>())
        };
        assert!(held(&[]).is_none(), "an older daemon");
        let good = held(&["CAP_SYS_PTRACE", "CAP_BPF"]).unwrap();
        assert_eq!(good.found, "the daemon holds CAP_SYS_PTRACE, CAP_BPF");
        assert_eq!(good.remedy, None);
        let poor = held(&["CAP_BPF"]).unwrap();
        assert_eq!(poor.verdict, "degraded");
        assert!(poor.found.contains("no CAP_SYS_PTRACE") && poor.remedy.is_some(), "{poor:?}");
    }
}
