//! Limits on a real node: resizes, half of them sabotaged, each with the verdict that it must get.
//!
//! Where the cgroup v2 hierarchy has no controllers there are no limits to judge, and that is what is tested there.

mod oom;
mod plain;
mod pressure;
mod proof;
mod series;
mod top;

use anyhow::Result;
use kwitness_tests::context::TestContext;
use kwitness_tests::environment::CgroupLayout;
use kwitness_tests::{each, once, suite};

fn main() -> Result<()> {
    let ctx = TestContext::new()?;
    let mut cases = Vec::new();
    match ctx.environment.layout {
        CgroupLayout::Unified => {
            cases.extend(each![ctx; series::a_series_of_resizes, oom::an_oom_kill, pressure::each_crossing_is_reported_once]);
            once![ctx, cases, None; proof::a_quota_is_kept_or_it_is_reported];
        }
        CgroupLayout::Hybrid => {
            once![ctx, cases, None; plain::limits_need_cgroup_v2, pressure::each_crossing_is_reported_once]
        }
    }
    once![ctx, cases, None; top::usage_its_limit_and_when_it_is_reached];
    suite::run(ctx, cases)
}
