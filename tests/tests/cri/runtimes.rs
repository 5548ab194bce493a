//! A real runtime that cannot be used, and what it says of itself.

use std::path::Path;

use bytes::Bytes;
use kwitness_tests::prelude::*;
use kwitness_tests::proxy::RawClient;
use tonic::Code;

const VERSION: &str = "/runtime.v1.RuntimeService/Version";
/// "nobody": may use no socket of root's.
const NOBODY: u32 = 65_534;
const SOON: Duration = Duration::from_secs(30);

/// containerd's socket belongs to root, and the proxy runs as another user.
pub(crate) async fn a_runtime_that_may_not_be_used_is_said_so(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_node(async |_| {
        let proxy = Proxy::unprivileged(&ctx.environment, NOBODY, Path::new(CONTAINERD_SOCKET)).await?;
        for _ in 0..3 {
            let answer = RawClient::connect(proxy.socket()).await?.call(VERSION, Bytes::new()).await?;
            let status = answer.err().context("it may not use the socket")?;
            ensure!(status.code() == Code::Unavailable, "{status}");
            ensure!(status.message().contains("connect: permission denied"), "{status}");
        }
        let counts = proxy.counts().await?;
        ensure!(counts["calls_unavailable"] == 3 && counts["runtime_unreachable"] == 3, "{counts:?}");
        let log = proxy.log_tail();
        ensure!(
            log.matches("the runtime is unreachable").count() == 1 && log.contains("permission denied"),
            "{log}"
        );
        proxy.stop()
    })
    .await
}

/// `Version` at the daemon's socket is the runtime's answer to the byte, and its refusal to the word.
pub(crate) async fn the_daemon_passes_on_what_the_runtime_says_it_is(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_node(async |node| {
        let agent = Agent::start(&ctx.environment, &[]).await?;
        let of_daemon = RawClient::connect(agent.socket()).await?;
        let of_runtime = RawClient::connect(Path::new(CONTAINERD_SOCKET)).await?;
        // It is ready without a runtime.
        wait_for("the runtime's answer at the daemon", SOON, async || {
            Ok(of_daemon.call(VERSION, Bytes::new()).await?.ok().map(drop))
        })
        .await?;
        for request in [&b""[..], b"\x0a\x02v1", b"\x0a\x02\xc3\x28", b"\xff\xff"] {
            let expected = of_runtime.call(VERSION, Bytes::from_static(request)).await?;
            let found = of_daemon.call(VERSION, Bytes::from_static(request)).await?;
            match (&expected, &found) {
                (Ok(expected), Ok(found)) => ensure!(expected == found, "{expected:?} {found:?}"),
                (Err(expected), Err(found)) => {
                    ensure!(
                        (expected.code(), expected.message()) == (found.code(), found.message()),
                        "{expected} {found}"
                    );
                }
                _ => anyhow::bail!("{expected:?} {found:?}"),
            }
        }
        node.stop_containerd()?;
        let away = of_daemon.call(VERSION, Bytes::new()).await?.err().context("there is no runtime")?;
        ensure!(away.code() == Code::Unavailable, "{away}");
        node.start_containerd().await?;
        let back = of_daemon.call(VERSION, Bytes::new()).await?;
        ensure!(back.is_ok(), "{back:?}");
        agent.stop()
    })
    .await
}
