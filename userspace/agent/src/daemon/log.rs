//! What the daemon logs of its probes when it starts.

use crate::probe::capability::MEMORY_CHARGES;
use crate::probe::pins::Origin;
use crate::probe::{Advised, Attached, Capabilities, Unpinned};

/// The hook of each capability, or its absence.
pub(super) fn capabilities(capabilities: &Capabilities) {
    for report in &capabilities.reports {
        if let Some(substitute) = &report.substitute {
            let capability = report.capability.name;
            if capability == MEMORY_CHARGES {
                tracing::info!(capability, hook = substitute, "memory pressure: from samples alone");
            } else {
                tracing::warn!(
                    capability,
                    hook = substitute,
                    "limit writes: using the fanotify fallback; values and errors are not recorded"
                );
            }
            continue;
        }
        match report.chosen {
            Some(hook) => {
                tracing::info!(
                    capability = report.capability.name,
                    hook = %hook.kind,
                    program = hook.program,
                    "hook attached"
                )
            }
            None => tracing::warn!(
                capability = report.capability.name,
                missed = report.capability.cost_of_missing,
                "no hook can be used; see `kwitness doctor`"
            ),
        }
    }
}

/// What outlives the daemon, or why nothing does.
pub(super) fn pins(attached: &Attached) {
    match &attached.pinned {
        Ok(set) => {
            let (set, origin) = (set.path().display(), set.origin());
            match origin {
                Origin::Adopted => tracing::info!(%set, "adopted the programs of an earlier daemon"),
                Origin::Made { replaced } => {
                    for (name, flaw) in replaced {
                        tracing::warn!(name, %flaw, "replaced the programs of an earlier daemon");
                    }
                    tracing::info!(%set, "the programs outlive the daemon");
                }
            }
        }
        // As configured.
        Err(Unpinned::Off) => {}
        Err(error) => {
            let error = Advised::from(error).to_string();
            tracing::warn!(
                error,
                "the programs end with the daemon; what happens while none runs is not recorded"
            );
        }
    }
}
