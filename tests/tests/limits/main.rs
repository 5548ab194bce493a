//! Limits on a real node: resizes, half of them sabotaged, each with the verdict that it must get.
//!
//! Where the cgroup v2 hierarchy has no controllers there are no limits to judge, and that is what is tested there.

mod deaths;
mod oom;
mod plain;
mod pressure;
mod proof;
mod requested;
mod series;
mod top;

use kwitness_tests::prelude::*;
use kwitness_tests::{each, once};

fn main() -> Result<()> {
    let ctx = TestContext::new()?;
    let mut cases = Vec::new();
    match ctx.environment.layout {
        CgroupLayout::Unified => {
            cases.extend(each![ctx; series::a_series_of_resizes, oom::an_oom_kill, pressure::each_crossing_is_reported_once]);
            once![ctx, cases, None; proof::a_quota_is_kept_or_it_is_reported,
                deaths::what_a_removed_container_left_kills_by_the_pods_limit, deaths::a_killed_cgroup_is_no_oom_kill,
                pressure::a_limit_that_is_reached_has_usage_sampled,
                requested::a_restart_turns_no_requested_limit_into_a_diverged_one];
            let reason = deaths::not_our_machine(&ctx.environment);
            once![ctx, cases, reason; deaths::without_memory_on_the_machine_no_limit_is_blamed];
        }
        CgroupLayout::Hybrid => {
            once![ctx, cases, None; plain::limits_need_cgroup_v2, pressure::each_crossing_is_reported_once]
        }
    }
    once![ctx, cases, None; top::usage_its_limit_and_when_it_is_reached];
    suite::run(ctx, cases)
}
