//! Limits on a real node.
//!
//! Where the cgroup v2 hierarchy has no controllers there are no limits to judge, and that is what is tested there.

mod plain;

use anyhow::Result;
use kwitness_tests::bed::Bed;
use kwitness_tests::environment::CgroupLayout;
use kwitness_tests::suite::{self, Case};

fn main() -> Result<()> {
    let bed = Bed::make()?;
    let mut cases = Vec::new();
    if bed.environment.layout == CgroupLayout::Hybrid {
        cases.push(Case::once(&bed, "limits_need_cgroup_v2", |bed, combination| {
            bed.block_on(plain::limits_need_cgroup_v2(bed, combination))
        })?);
    }
    suite::run(bed, cases)
}
