//! The daemon's own stream of CRI events (`GetContainerEvents`), compared with what was done and with the runtime's.

mod stream;

use anyhow::Result;
use kwitness_tests::context::TestContext;
use kwitness_tests::{each, once, suite};

fn main() -> Result<()> {
    let ctx = TestContext::new()?;
    let mut cases = each![ctx; stream::events_of_a_pod];
    once![ctx, cases, None; stream::events_of_a_crash_loop];
    once![
        ctx, cases, ctx.environment.same_everywhere();
        stream::the_runtime_is_away,
        stream::a_restart_of_the_daemon,
        stream::methods_that_the_daemon_does_not_serve,
    ];
    let crictl = ctx.environment.job.join("bin/crictl").exists();
    once![ctx, cases, (!crictl).then_some("crictl is on the host only"); stream::crictl_events];
    suite::run(ctx, cases)
}
