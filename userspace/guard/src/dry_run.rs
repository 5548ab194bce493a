//! What the policy would do on this node now: which containers it would arm, and how far a raise would go. Loads no program,
//! holds nothing, raises nothing.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use kwitness_api::Client;
use kwitness_api::client::Address;

use crate::daemon::{self, Container};
use crate::guard::available;
use crate::plan::{self, Facts, Raise, Refusal};
use crate::policy::{Bytes, Policy, Threshold};

/// Where the cgroup v2 hierarchy is, on a node that has its controllers there.
const CGROUPS: &str = "/sys/fs/cgroup";

/// One container that a rule selects.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub container: Container,
    /// Its limit; none: it has none, so nothing of it is ever held.
    pub limit: Option<Bytes>,
    /// What is charged now.
    pub usage: Bytes,
    /// From what share of the limit on it would be held.
    pub threshold: Threshold,
    /// What a first raise would do; none without a limit.
    pub raise: Option<Result<Raise, Refusal>>,
}

/// Every container that a rule selects.
///
/// # Errors
/// The daemon is away, or a cgroup's files cannot be read.
pub async fn rows(policy: &Policy, daemon: Address) -> anyhow::Result<Vec<Row>> {
    let mut client = Client::connect(daemon).await?;
    let available = available()?;
    let mut rows = Vec::new();
    for container in daemon::containers(&mut client).await? {
        let Some(rule) = policy.rule(container.names()) else { continue };
        let directory = Path::new(CGROUPS).join(container.cgroup_path.trim_start_matches('/'));
        let read = |name| -> anyhow::Result<String> {
            let file = directory.join(name);
            let text = fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}: the guard needs cgroup v2", file.display()))?;
            Ok(text.trim().to_owned())
        };
        let limit = read("memory.max")?;
        let limit =
            (limit != "max").then(|| limit.parse().map(Bytes)).transpose().context("parse memory.max")?;
        let usage = Bytes(read("memory.current")?.parse().context("parse memory.current")?);
        let raise =
            limit.map(|limit| plan::raise(rule, &Facts { limit, available, raises: 0, unanswered: false }));
        rows.push(Row { limit, usage, threshold: rule.threshold, raise, container });
    }
    Ok(rows)
}
