//! The probes on this kernel: real cgroups, real processes, each scenario with each kind of hook.

mod charges;
#[expect(unsafe_code, reason = "a bare clone3(2), and threads that end without their process")]
mod child;
mod life;
mod limits;
mod load;
mod oom;
mod producer;
mod session;
mod storm;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use kwitness_agent::probe::Settings;
use kwitness_agent::probe::capability::{CAPABILITIES, Exclusion, HookKind};
use kwitness_agent::probe::environment::{self, Lockdown};
use kwitness_tests::prelude::*;

use crate::session::{Root, Session};

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [producer::ROLE, role @ ..] = &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return producer::run(role);
    }
    let ctx = TestContext::new()?;
    let mut cases = load::cases(&ctx);
    let loaded = Arc::new(Loaded::default());
    for kind in HookKind::TRACEPOINTS {
        for (name, scenario) in life::SCENARIOS {
            let loaded = Arc::clone(&loaded);
            cases.push(Case::new(&format!("{kind}_{name}"), move |ctx| {
                let parent = &ctx.environment.cgroup_directory();
                loaded.with(kind, parent, |session| scenario(session, &Root::make(parent, name)?))
            }));
        }
    }
    cases.extend(limits::cases(&ctx, &loaded));
    cases.extend(oom::cases(&ctx, &loaded));
    cases.extend(charges::cases(&ctx, &loaded));
    cases.extend(storm::cases(&loaded));
    suite::run(ctx, cases)
}

/// Probes with one kind of hook, shared by the scenarios that ask for that kind one after the other.
#[derive(Default)]
pub struct Loaded(Mutex<Option<(HookKind, Session)>>);

impl Loaded {
    /// Plays a scenario with hooks of that kind; again, if the kernel skipped programs meanwhile.
    fn with(
        &self,
        kind: HookKind,
        parent: &Path,
        scenario: impl Fn(&mut Session) -> Result<()>,
    ) -> Result<()> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_none_or(|(other, _)| *other != kind) {
            // The old ones go first.
            *slot = None;
            *slot = Some((kind, Session::start(parent, &settings(Some(kind))?)?));
        }
        let (_, session) = slot.as_mut().context("just loaded")?;
        let mut attempt = 1;
        loop {
            session.forget();
            let before = skipped(session);
            let outcome = scenario(session);
            let skipped = skipped(session);
            if outcome.is_ok() || attempt == suite::ATTEMPTS || skipped == before {
                return outcome;
            }
            print!("skipped {before:?} before, {skipped:?} now; once more ");
            attempt += 1;
        }
    }

    /// Frees the machine from them.
    fn unload(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// How often the kernel skipped each program: also those at charges of memory, for which [`Running::skipped`] has no count, because
/// the next charge shows the same. Which process it names is then another matter.
///
/// [`Running::skipped`]: kwitness_agent::probe::Running::skipped
fn skipped(session: &mut Session) -> Vec<(&'static str, u64)> {
    let stats = session.running().program_stats().into_iter();
    let misses = stats.filter_map(|of| Some((of.program, of.recursion_misses?)));
    misses.filter(|(_, misses)| *misses > 0).collect()
}

/// Settings for hooks of that kind, where a capability has one, or for the best there are.
fn settings(kind: Option<HookKind>) -> Result<Settings> {
    Ok(Settings {
        syscalls: kind == Some(HookKind::Syscall),
        exclude: kind.map(all_but).unwrap_or_default(),
        roots: life::configured_roots(&Environment::find()?)
            .iter()
            .map(|root| root.parse())
            .collect::<Result<_, _>>()?,
        ..Settings::default()
    })
}

/// A name and what is done in a session, in the directory for its cgroups.
type Scenario = (&'static str, fn(&mut Session, &Path) -> Result<()>);

/// A row for each scenario with each kind of hook at functions.
fn by_function_hooks(ctx: &TestContext, loaded: &Arc<Loaded>, scenarios: &'static [Scenario]) -> Vec<Case> {
    let kinds = [HookKind::Fentry, HookKind::Kprobe];
    let rows = kinds.into_iter().flat_map(|kind| scenarios.iter().map(move |row| (kind, row)));
    rows.map(|(kind, (name, scenario))| {
        let loaded = Arc::clone(loaded);
        let body = move |ctx: &TestContext| {
            let parent = &ctx.environment.cgroup_directory();
            loaded.with(kind, parent, |session| scenario(session, parent))
        };
        Case::new(&format!("{kind}_{name}"), body).refused(refusal(ctx, kind))
    })
    .collect()
}

/// Why hooks of that kind cannot be had here; none if they can. In a guest they have to.
fn refusal(ctx: &TestContext, kind: HookKind) -> Option<&'static str> {
    let may_be_refused = ctx.environment.tier == Tier::Host && environment::lockdown() != Some(Lockdown::Off);
    (may_be_refused && matches!(kind, HookKind::Fentry | HookKind::Kprobe))
        .then_some("a locked down kernel has no fentry and no kprobes")
}

/// The other hooks of each capability that has one of that kind.
fn all_but(kind: HookKind) -> Vec<Exclusion> {
    let with_it =
        CAPABILITIES.iter().filter(|capability| capability.hooks.iter().any(|hook| hook.kind == kind));
    let others = with_it.flat_map(|capability| capability.hooks).filter(|hook| hook.kind != kind);
    others.map(|hook| Exclusion::Program(hook.program)).collect()
}
