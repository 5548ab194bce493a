//! What the policy would do on this node now: which containers it would arm, and how far a raise would go. Loads no program,
//! holds nothing, raises nothing.

use anyhow::Context as _;
use kwitness_api::Client;
use kwitness_api::client::Address;

use crate::cgroup::Cgroup;
use crate::daemon::{self, Container};
use crate::guard::{self, NodeMemory};
use crate::plan::{self, Change, Facts, Refusal};
use crate::policy::{Bytes, Policy, Selection};
use crate::protected::Protected;
use crate::share::{NoShare, share};

/// What a policy says of the containers of this node.
#[derive(Clone, Debug, Default)]
pub struct Outlook {
    /// Those that a rule selects.
    pub rows: Vec<Row>,
    /// Those of which that cannot be said yet, because their names are not known.
    pub unnamed: Vec<Container>,
    /// Those that a rule selects and that are not guarded.
    pub protected: Vec<(Container, Protected)>,
}

/// One container that a rule selects.
#[derive(Clone, Debug)]
pub struct Row {
    /// The container.
    pub container: Container,
    /// Its limit; none: it has none, so nothing of it is ever held.
    pub limit: Option<Bytes>,
    /// What is charged now.
    pub usage: Bytes,
    /// From what share of the limit on it would be held now, in thousandths; or why not.
    pub share: Result<u32, NoShare>,
    /// What a first raise would do; none without a limit.
    pub raise: Option<Result<Change, Refusal>>,
}

/// What the policy would do now. `is_pod_raised`: the pod's limit would be raised with the container's.
///
/// # Errors
/// The daemon is away, or a cgroup's files cannot be read.
pub async fn outlook(policy: &Policy, daemon: Address, is_pod_raised: bool) -> anyhow::Result<Outlook> {
    let needed = daemon::cgroup(&daemon).await;
    let mut client = Client::connect(daemon).await?;
    let NodeMemory { total, available } = NodeMemory::read()?;
    let reserve = policy.node_reserve(total);
    let mut outlook = Outlook::default();
    for container in daemon::containers(&mut client).await? {
        let rule = match container.select(policy) {
            Selection::Rule(rule) => rule,
            Selection::Nothing => continue,
            Selection::Undecided => {
                outlook.unnamed.push(container);
                continue;
            }
        };
        if let Some(protected) = Protected::of(&container, rule, &needed) {
            outlook.protected.push((container, protected));
            continue;
        }
        let unreadable =
            || format!("cannot read the cgroup {}: the guard needs cgroup v2", container.cgroup_path);
        let cgroup = Cgroup::find(&container.cgroup_path, container.cgroup_id).with_context(unreadable)?;
        let Some(cgroup) = cgroup else { continue };
        let sizes = guard::sizes(&cgroup, false).with_context(unreadable)?;
        let (limit, high) = (sizes.limit, sizes.high);
        let usage = cgroup.usage().with_context(unreadable)?;
        let above = cgroup.above(rule.step).with_context(unreadable)?;
        let raise = limit.map(|held_at| {
            let (promised, raises, unanswered) = (Bytes(0), 0, false);
            let facts = Facts {
                held_at,
                limit,
                high,
                is_returning: false,
                above,
                is_pod_raised,
                available,
                reserve,
                promised,
                raises,
                unanswered,
            };
            plan::raise(rule, &facts)
        });
        let share = share(rule.threshold, sizes);
        outlook.rows.push(Row { limit, usage, share, raise, container });
    }
    Ok(outlook)
}
