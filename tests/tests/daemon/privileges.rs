//! What the daemon may do once it is ready, as the kernel says of each of its threads.

use kwitness_agent::privileges::{LASTING, SETUP};
use kwitness_service::privileges::{CapabilitySet, Privilege};
use kwitness_tests::prelude::*;

pub(crate) async fn each_thread_has_kept_what_is_documented(ctx: &TestContext) -> Result<()> {
    // What it was started with.
    let given = process::status(std::process::id())?;
    let lasting = Privilege::set(&LASTING);
    let expected = lasting.bits() & given.capeff;
    let bound = (lasting | Privilege::set(&SETUP)).bits();
    ctx.with_agent(&[], async |agent| {
        let tasks = process::procfs_of(agent.pid())?.tasks().context("list the daemon's threads")?;
        let mut threads = 0;
        for task in tasks {
            let status = task.and_then(|task| task.status()).context("read the status of a thread")?;
            ensure!(status.capeff == expected && status.capprm == expected, "not {expected:x}: {status:?}");
            ensure!((status.capinh | status.capamb.unwrap_or(0)) & !expected == 0, "{status:?}");
            ensure!(status.nonewprivs == Some(1), "{status:?}");
            if given.capeff & CapabilitySet::SETPCAP.bits() != 0 {
                ensure!(
                    status.capbnd.is_some_and(|held| held & !bound == 0),
                    "more than {bound:x}: {status:?}"
                );
            }
            threads += 1;
        }
        ensure!(threads > 2, "{threads} threads");
        let reported: Vec<_> = agent.status().await?.privileges.into_iter().map(|held| held.name).collect();
        let named = LASTING.iter().filter(|privilege| privilege.capability.bits() & expected != 0);
        let mut named: Vec<_> = named.map(Privilege::name).collect();
        named.sort();
        let mut sorted = reported.clone();
        sorted.sort();
        ensure!(sorted == named, "{reported:?} is reported, not {named:?}");
        Ok(())
    })
    .await
}
