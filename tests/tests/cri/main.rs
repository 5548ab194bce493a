//! `kwitness cri-proxy` before a real containerd: what a client of the CRI sees through it is what it sees without it.

mod crictl;
mod events;
mod hostile;
mod methods;
mod requests;
mod runtimes;
mod stalled;

use std::path::Path;

use kwitness_tests::node::containerd_version;
use kwitness_tests::once;
use kwitness_tests::prelude::*;

fn main() -> Result<()> {
    let ctx = TestContext::new()?;
    let mut cases = Vec::new();
    once![
        ctx, cases, None;
        crictl::crictl_says_the_same,
        methods::every_method_answers_the_same,
        requests::the_daemon_knows_what_was_requested_and_when,
        runtimes::a_runtime_that_may_not_be_used_is_said_so,
        runtimes::the_daemon_passes_on_what_the_runtime_says_it_is,
        events::a_stream_of_the_daemon_outlives_restarts_of_everything,
        hostile::no_client_makes_the_proxy_too_large,
    ];
    // Without a daemon, the proxy has no other events than the runtime's.
    let no_events = containerd_version()?.starts_with("1.6.").then_some("containerd 1.6 has no events");
    once![
        ctx, cases, no_events;
        methods::what_is_decoded_passes,
        events::no_client_loses_an_event_to_another,
        events::a_stream_outlives_the_runtime,
    ];
    // Last, for it leaves much behind in containerd.
    once![ctx, cases, None; stalled::a_subscriber_that_does_not_read_delays_no_other];
    suite::run(ctx, cases)
}

/// A node and a proxy before it, without a daemon; a failure shows the end of the proxy's log.
async fn with_proxy(
    ctx: &Testbed<'_>,
    body: impl AsyncFnOnce(&mut Node, &Proxy) -> Result<()>,
) -> Result<()> {
    ctx.with_node(async |node| {
        let proxy = Proxy::start(&ctx.environment, Path::new("/run/there-is-no-daemon.sock")).await?;
        match body(node, &proxy).await {
            Ok(()) => proxy.stop(),
            Err(error) => Err(error.context(proxy.log_tail())),
        }
    })
    .await
}

/// A node, a daemon, and a proxy before it; a failure shows the ends of both logs.
async fn with_daemon(
    ctx: &Testbed<'_>,
    body: impl AsyncFnOnce(&mut Node, &mut Agent, &Proxy) -> Result<()>,
) -> Result<()> {
    ctx.with_node(async |node| {
        let mut agent = Agent::start(&ctx.environment, &[]).await?;
        let proxy = Proxy::start(&ctx.environment, agent.socket()).await?;
        let done = body(node, &mut agent, &proxy).await;
        done.with_context(|| proxy.log_tail()).with_context(|| agent.log_tail())?;
        proxy.stop()?;
        agent.stop()
    })
    .await
}
