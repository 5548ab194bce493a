//! A real kubelet that lives on kwitness's events: the daemon behind the CRI proxy, in front of a real containerd.

mod hints;
mod once;
mod restart;

use anyhow::Result;
use kwitness_tests::context::TestContext;
use kwitness_tests::{once, suite};

fn main() -> Result<()> {
    let ctx = TestContext::new()?;
    let mut cases = Vec::new();
    let only_long = (!ctx.environment.long).then_some("only with --long");
    once![ctx, cases, only_long; hints::a_hint_comes_when_the_runtime_agrees];
    once![
        ctx, cases, None;
        once::a_start_is_answered_after_its_event,
        restart::a_restart_of_the_proxy_costs_one_attempt,
        restart::events_stay_in_use_over_restarts_of_daemon_and_runtime,
    ];
    suite::run(ctx, cases)
}
