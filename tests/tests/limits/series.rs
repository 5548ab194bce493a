//! The series of resizes: see [`kwitness_tests::resizes`].

use anyhow::{Context as _, Result};
use kwitness_tests::bed::Bed;
use kwitness_tests::environment::Combination;
use kwitness_tests::resizes::{self, Account};

pub(crate) async fn resizes(bed: &Bed, combination: Combination) -> Result<()> {
    let kubelet = tempfile::tempdir().context("make the kubelet's directory")?;
    let setting = format!("kubelet.directory={}", kubelet.path().display());
    bed.with_node(combination.driver, async |node| {
        bed.with_agent(&[&setting], async |agent| {
            let mut account = Account::default();
            resizes::play(node, agent, combination, kubelet.path(), &mut account).await?;
            println!("  {} steps, {} of them sabotaged", account.steps(), account.sabotaged());
            Ok(())
        })
        .await
    })
    .await
}
