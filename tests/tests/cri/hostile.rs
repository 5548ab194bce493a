//! A client that means harm, at a proxy before a runtime that never answers: the proxy stays smaller than its unit allows, or the
//! kernel would end it and the kubelet would have no runtime.

use kwitness_tests::hostile::{Silent, attack_all};
use kwitness_tests::prelude::*;

const UNIT: &str = include_str!("../../../deploy/systemd/kwitness-cri-proxy.service");
const PATH: &str = "/runtime.v1.RuntimeService/Version";

pub(crate) async fn no_client_makes_the_proxy_too_large(ctx: &TestContext) -> Result<()> {
    let runtime = Silent::listen()?;
    let nowhere = std::path::Path::new("/run/there-is-no-daemon.sock");
    let proxy = Proxy::before(&ctx.environment, &runtime.socket(), nowhere).await?;
    attack_all(proxy.socket(), PATH, proxy.pid(), memory_max()?).with_context(|| proxy.log_tail())?;
    proxy.stop()
}

/// What the unit file allows, bytes.
fn memory_max() -> Result<u64> {
    let max = UNIT.lines().find_map(|line| line.strip_prefix("MemoryMax=")?.strip_suffix('M'));
    let mebibytes: u64 = max.context("the unit has no MemoryMax in mebibytes")?.parse()?;
    Ok(mebibytes << 20)
}
