//! The probes on this kernel: real cgroups, real processes, each scenario with each kind of hook.

mod child;
mod life;
mod load;
mod producer;
mod session;
mod storm;

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use kwitness::probe::Settings;
use kwitness::probe::need::{Exclusion, HookKind};
use kwitness_tests::environment::Environment;
use kwitness_tests::suite::{self, Case};

use crate::session::{Root, Session};

/// What the rows share: the place, and the probes of the kind of hook that the last row asked for.
pub struct Bed {
    environment: Environment,
    loaded: Mutex<Option<(HookKind, Session)>>,
}

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [producer::ROLE, role @ ..] = &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return producer::run(role);
    }
    let bed = Arc::new(Bed { environment: Environment::find()?, loaded: Mutex::new(None) });
    let mut cases = load::cases();
    /// Gives each scenario a function of its own for each kind of hook, for a row has no state.
    macro_rules! rows {
        ($kind:ident: $($index:literal)*) => {
            const { assert!([$($index),*].len() == life::SCENARIOS.len()) };
            $(cases.push(Case {
                name: format!("{}_{}", HookKind::$kind.name(), life::SCENARIOS[$index].0),
                refused: None,
                run: |bed: &Bed| bed.scenario(HookKind::$kind, $index),
            });)*
        };
    }
    rows!(BtfTracepoint: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    rows!(RawTracepoint: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    cases.extend(storm::cases());
    suite::run(bed.environment.tier, &bed, cases).exit()
}

impl Bed {
    fn scenario(&self, kind: HookKind, index: usize) -> Result<()> {
        let (name, scenario) = life::SCENARIOS[index];
        let mut loaded = self.loaded.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if loaded.as_ref().is_none_or(|(other, _)| *other != kind) {
            // The old ones go first.
            *loaded = None;
            *loaded = Some((kind, Session::start(&self.environment.cgroup2, &settings(Some(kind))?)?));
        }
        let (_, session) = loaded.as_mut().context("just loaded")?;
        session.forget();
        let root = Root::make(&self.environment.cgroup2, name)?;
        scenario(session, &root)
    }

    /// Frees the machine from the shared probes.
    fn unload(&self) {
        *self.loaded.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
    }
}

/// Settings for hooks of that kind only, or for the best there are.
fn settings(kind: Option<HookKind>) -> Result<Settings> {
    let others = HookKind::ALL.into_iter().filter(|other| kind.is_some_and(|kind| kind != *other));
    Ok(Settings {
        exclude: others.map(Exclusion::Kind).collect(),
        roots: life::CONFIGURED_ROOTS.map(str::parse).into_iter().collect::<Result<_, _>>()?,
        ..Settings::default()
    })
}
