//! critest, the suite that judges container runtimes, straight at a real containerd and through the proxy: the same tests pass and fail.

mod compare;
mod report;

use anyhow::Result;
use kwitness_tests::context::TestContext;
use kwitness_tests::suite::{self, Case};

fn main() -> Result<()> {
    let ctx = TestContext::new()?;
    let name = "the_same_tests_pass_and_fail_straight_and_through_the_proxy";
    let case = Case::once(&ctx, name, |ctx, combination| {
        ctx.block_on(compare::the_same_tests_pass_and_fail(ctx, combination))
    })?;
    suite::run(ctx, vec![case])
}
