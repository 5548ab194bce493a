//! The programs in the kernel, and what the kernel offers for them, in the API's shape.

use kwitness_api::proto;

use crate::probe::capability::Importance;
use crate::probe::{CapabilityReport, ProgramStats};

/// A capability in the API's shape; `kwitness doctor` without a daemon says it the same way.
pub fn capability(report: &CapabilityReport) -> proto::Capability {
    let CapabilityReport { capability, chosen, substitute, refused } = report;
    proto::Capability {
        name: capability.name.to_owned(),
        vital: capability.importance == Importance::Vital,
        hook: chosen
            .map(|hook| format!("{}:{}", hook.kind, capability.target))
            .or_else(|| substitute.clone())
            .unwrap_or_default(),
        refused: refused.iter().map(ToString::to_string).collect(),
        cost: capability.cost_of_missing.to_owned(),
        remedy: match (chosen, refused.last()) {
            (None, Some(refusal)) => refusal.remedy().to_owned(),
            _ => String::new(),
        },
    }
}

/// What the kernel says of a program, in the API's shape.
pub fn program(stats: &ProgramStats) -> proto::ProgramStats {
    let ProgramStats { program, runs, run_time, recursion_misses } = stats;
    proto::ProgramStats {
        name: (*program).to_owned(),
        run_count: *runs,
        run_time_ns: run_time.and_then(|time| u64::try_from(time.as_nanos()).ok()),
        recursion_misses: *recursion_misses,
    }
}
