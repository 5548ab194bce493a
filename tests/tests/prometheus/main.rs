//! A real Prometheus scrapes the daemon: what its alerts say of a real OOM kill, of a limit that was really reverted, and of a daemon
//! that is gone; and what every query of the dashboard gives.

mod alerts;

use kwitness_tests::once;
use kwitness_tests::prelude::*;

fn main() -> Result<()> {
    let ctx = TestContext::new()?;
    let hybrid = ctx.environment.layout == CgroupLayout::Hybrid;
    let no_limits = hybrid.then_some("hybrid cgroups have no limits");
    let mut cases = Vec::new();
    once![ctx, cases, no_limits; alerts::alerts_fire_on_what_really_happened];
    suite::run(ctx, cases)
}
