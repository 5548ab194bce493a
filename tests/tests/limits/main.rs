//! Limits on a real node: resizes, half of them sabotaged, each with the verdict that it must get.
//!
//! Where the cgroup v2 hierarchy has no controllers there are no limits to judge, and that is what is tested there.

mod oom;
mod plain;
mod proof;
mod series;

use anyhow::Result;
use kwitness_tests::context::TestContext;
use kwitness_tests::environment::CgroupLayout;
use kwitness_tests::suite::{self, Case};

fn main() -> Result<()> {
    let ctx = TestContext::new()?;
    let mut cases = Vec::new();
    match ctx.environment.layout {
        CgroupLayout::Unified => {
            cases.extend(Case::each(
                &ctx,
                &[
                    ("a_series_of_resizes", |ctx, combination| {
                        ctx.block_on(series::resizes(ctx, combination))
                    }),
                    ("a_kill_for_want_of_memory", |ctx, combination| {
                        ctx.block_on(oom::kills(ctx, combination))
                    }),
                ],
            ));
            cases.push(Case::once(&ctx, "a_quota_is_kept_or_it_is_reported", |ctx, combination| {
                ctx.block_on(proof::of_a_busy_loop(ctx, combination))
            })?);
        }
        CgroupLayout::Hybrid => {
            cases.push(Case::once(&ctx, "limits_need_cgroup_v2", |ctx, combination| {
                ctx.block_on(plain::limits_need_cgroup_v2(ctx, combination))
            })?);
        }
    }
    suite::run(ctx, cases)
}
