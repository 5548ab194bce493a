//! The daemon's own stream of CRI events (`GetContainerEvents`), compared with what was done and with the runtime's.

mod stream;

use anyhow::Result;
use kwitness_tests::context::TestContext;
use kwitness_tests::suite::{self, Case};

fn main() -> Result<()> {
    let ctx = TestContext::new()?;
    let mut cases = Case::each(
        &ctx,
        &[("events_of_a_pod", |ctx, combination| ctx.block_on(stream::events_of_a_pod(ctx, combination)))],
    );
    macro_rules! once {
        ($refused:expr; $($name:ident),* $(,)?) => {
            $(cases.push(Case::once(&ctx, stringify!($name), |ctx, combination| {
                ctx.block_on(stream::$name(ctx, combination))
            })?.refused($refused));)*
        };
    }
    once![None; events_of_a_crash_loop];
    once![
        ctx.environment.same_everywhere();
        the_runtime_is_away,
        a_restart_of_the_daemon,
        methods_that_the_daemon_does_not_serve,
    ];
    let crictl = ctx.environment.job.join("bin/crictl").exists();
    cases.push(
        Case::once(&ctx, "crictl_events", |ctx, combination| {
            ctx.block_on(stream::crictl_events(ctx, combination))
        })?
        .refused((!crictl).then_some("crictl is on the host only")),
    );
    suite::run(ctx, cases)
}
