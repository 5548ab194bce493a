//! critest, the suite that judges container runtimes, straight at a real containerd and through the proxy: the same tests pass and fail.

mod compare;
mod report;

use anyhow::Result;
use kwitness_tests::context::TestContext;
use kwitness_tests::{once, suite};

fn main() -> Result<()> {
    let ctx = TestContext::new()?;
    let mut cases = Vec::new();
    once![ctx, cases, None; compare::the_same_tests_pass_and_fail_straight_and_through_the_proxy];
    suite::run(ctx, cases)
}
