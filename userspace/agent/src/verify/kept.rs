//! What a call that waits keeps of its looks: of few verdicts all, of many which are open. There may be a thousand calls, and as many
//! containers.
//!
//! Never looks.

use std::collections::BTreeSet;

use kwitness_core::model::{CgroupId, Resource, Verdict};

use super::VerifyReport;

/// Verdicts that are kept as they are, at most; each takes a kilobyte.
const WHOLE_MAX: usize = 32;

/// The verdicts of a call's looks so far.
#[derive(Debug)]
pub(super) enum Kept {
    /// The whole report.
    Whole(VerifyReport),
    /// Those that are not in force.
    Open(BTreeSet<(CgroupId, Resource)>),
}

impl Kept {
    pub(super) fn of(report: VerifyReport) -> Self {
        if report.judged.len() <= WHOLE_MAX {
            return Self::Whole(report);
        }
        let mut kept = Self::Open(BTreeSet::new());
        kept.renew(vec![report]);
        kept
    }

    pub(super) fn all_in_force(&self) -> bool {
        match self {
            Self::Whole(report) => report.all_in_force(),
            Self::Open(open) => open.is_empty(),
        }
    }

    /// As [`VerifyReport::renew`].
    pub(super) fn renew(&mut self, looks: Vec<VerifyReport>) {
        match self {
            Self::Whole(report) => {
                report.renew(looks);
                if report.judged.len() > WHOLE_MAX {
                    *self = Self::of(std::mem::take(report));
                }
            }
            Self::Open(open) => {
                for (_, judged) in looks.iter().flat_map(|newer| &newer.judged) {
                    let key = (judged.cgroup, judged.judgement.resource);
                    if judged.judgement.verdict == Verdict::InForce {
                        open.remove(&key);
                    } else {
                        open.insert(key);
                    }
                }
            }
        }
    }
}
