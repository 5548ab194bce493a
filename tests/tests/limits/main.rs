//! Limits on a real node: resizes, half of them sabotaged, each with the verdict that it must get.
//!
//! Where the cgroup v2 hierarchy has no controllers there are no limits to judge, and that is what is tested there.

mod oom;
mod plain;
mod proof;
mod series;

use anyhow::Result;
use kwitness_tests::bed::Bed;
use kwitness_tests::environment::CgroupLayout;
use kwitness_tests::suite::{self, Case};

fn main() -> Result<()> {
    let bed = Bed::make()?;
    let mut cases = Vec::new();
    match bed.environment.layout {
        CgroupLayout::Unified => {
            cases.extend(Case::each(&bed, "a_series_of_resizes", |bed, combination| {
                bed.block_on(series::resizes(bed, combination))
            }));
            cases.push(Case::once(&bed, "a_quota_is_kept_or_it_is_told", |bed, combination| {
                bed.block_on(proof::of_a_busy_loop(bed, combination))
            })?);
            cases.extend(Case::each(&bed, "a_kill_for_want_of_memory", |bed, combination| {
                bed.block_on(oom::kills(bed, combination))
            }));
        }
        CgroupLayout::Hybrid => {
            cases.push(Case::once(&bed, "limits_need_cgroup_v2", |bed, combination| {
                bed.block_on(plain::limits_need_cgroup_v2(bed, combination))
            })?);
        }
    }
    suite::run(bed, cases)
}
