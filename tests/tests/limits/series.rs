//! The series of resizes: see [`kwitness_tests::resizes`].

use anyhow::{Context as _, Result};
use kwitness_tests::context::Testbed;
use kwitness_tests::resizes::{self, Account};

pub(crate) async fn a_series_of_resizes(ctx: &Testbed<'_>) -> Result<()> {
    let kubelet = tempfile::tempdir().context("make the kubelet's directory")?;
    let setting = format!("kubelet.directory={}", kubelet.path().display());
    ctx.with_both_recorded(&[&setting], async |node, agent| {
        let mut account = Account::default();
        let stage = resizes::Stage { node, agent, combination: ctx.combination };
        resizes::play(stage, kubelet.path(), &mut account).await?;
        println!("  {} steps, {} of them sabotaged", account.steps(), account.sabotaged());
        Ok(())
    })
    .await
}
