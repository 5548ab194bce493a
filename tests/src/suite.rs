//! A table of tests, run one after the other against shared parts, reported in the format of `cargo test`.
//!
//! Every row appears in the report: one that cannot apply in this place is shown as ignored with the reason in
//! its name's brackets, never passed over.

use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, ColorSetting, Conclusion, Failed, Trial};

use crate::environment::Tier;

/// A row of the table.
#[derive(Debug)]
pub struct Case<C> {
    /// What the report calls it.
    pub name: String,
    /// Why it cannot apply here.
    pub refused: Option<&'static str>,
    /// What it does.
    pub run: fn(&C) -> Result<()>,
}

/// Runs the rows that the command line chose.
pub fn run<C: Send + Sync + 'static>(tier: Tier, context: &Arc<C>, cases: Vec<Case<C>>) -> Conclusion {
    let mut arguments = Arguments::from_args();
    // One node, one daemon: the rows share them.
    arguments.test_threads = Some(1);
    // A guest's console is a terminal, but its reader is not.
    if tier == Tier::Vm {
        arguments.color.get_or_insert(ColorSetting::Never);
    }
    let trials = cases.into_iter().map(|case| {
        let context = Arc::clone(context);
        let trial = Trial::test(case.name, move || {
            (case.run)(&context).map_err(|error| Failed::from(format!("{error:?}")))
        });
        match case.refused {
            Some(reason) => trial.with_kind(reason).with_ignored_flag(true),
            None => trial,
        }
    });
    libtest_mimic::run(&arguments, trials.collect())
}
