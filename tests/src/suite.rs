//! A table of tests, run one after the other against shared parts, reported in the format of `cargo test`.
//!
//! Every row appears in the report: one that cannot apply in this place is shown as ignored with the reason in
//! brackets before its name, never passed over. Before the verdict on a row stands how long it took.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use libtest_mimic::{Arguments, ColorSetting, Failed, Trial};

use crate::context::TestContext;
use crate::environment::{Combination, Tier};
use crate::events::Skipped;
use crate::process;

/// How often a row is tried at most. Linux 7.0 and later can preempt a program at most hooks, and skips it for the other tasks of that
/// CPU meanwhile. That is counted, so what is missed without a count is a failure at once.
pub const ATTEMPTS: u32 = 5;

type Body = Box<dyn Fn(&TestContext) -> Result<()> + Send>;

/// What a row of [`Case::each`] does, with a combination.
pub type Combined = fn(&TestContext, Combination) -> Result<()>;

#[expect(missing_debug_implementations, reason = "a closure has nothing to show")]
pub struct Case {
    name: String,
    refused: Option<&'static str>,
    body: Body,
}

impl Case {
    pub fn new(name: &str, body: impl Fn(&TestContext) -> Result<()> + Send + 'static) -> Self {
        Self { name: name.to_owned(), refused: None, body: Box::new(body) }
    }

    /// The same row, which cannot apply here if there is a reason.
    pub fn refused(self, reason: Option<&'static str>) -> Self {
        Self { refused: self.refused.or(reason), ..self }
    }

    /// The same row, which brings its own node: what the rows share is stopped before it.
    pub fn on_own_node(self) -> Self {
        let Self { name, refused, body } = self;
        Self { name, refused, body: Box::new(move |ctx| ctx.finish().and_then(|()| body(ctx))) }
    }

    /// A table of what depends on OCI runtime and cgroup driver: each row with each combination of them.
    pub fn each(ctx: &TestContext, table: &[(&str, Combined)]) -> Vec<Self> {
        let mut cases = Vec::new();
        for (row, (name, body)) in table.iter().enumerate() {
            let body = *body;
            cases.extend(Combination::ALL.map(|combination| {
                Self {
                    name: format!("{}_{name}", combination.name()),
                    refused: ctx
                        .environment
                        .refuses(combination)
                        .or_else(|| ctx.environment.leaves_out(combination, row)),
                    body: Box::new(move |ctx| body(ctx, combination)),
                }
            }));
        }
        cases
    }

    /// A row for the first combination that this place can run: for what does not depend on it.
    pub fn once(
        ctx: &TestContext,
        name: &str,
        body: impl Fn(&TestContext, Combination) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let combination = ctx.environment.first_combination()?;
        Ok(Self::new(name, move |ctx| body(ctx, combination)))
    }
}

/// A table of async functions that depend on no combination: `alone![function, module::function, …]`.
#[macro_export]
macro_rules! alone {
    ($($($segment:ident)::+),* $(,)?) => {
        vec![$($crate::suite::Case::new(
            stringify!($($segment)::+).rsplit(':').next().unwrap_or_default().trim(),
            |ctx| ctx.block_on($($segment)::+(ctx)),
        )),*]
    };
}

/// A table of async functions, each row with each combination: `each!(ctx; module::function, …)`.
#[macro_export]
macro_rules! each {
    ($ctx:ident; $($module:ident::$name:ident),* $(,)?) => {
        $crate::suite::Case::each(&$ctx, &[$((stringify!($name), |ctx, combination| {
            ctx.block_on($module::$name(&ctx.on(combination)))
        })),*])
    };
}

/// Adds rows of async functions, each for the first combination: `once!(ctx, cases, reason; module::function, …)`. A reason leaves
/// them out.
#[macro_export]
macro_rules! once {
    ($ctx:ident, $cases:ident, $reason:expr; $($module:ident::$name:ident),* $(,)?) => {
        {
            $($cases.push($crate::suite::Case::once(&$ctx, stringify!($name), |ctx, combination| {
                ctx.block_on($module::$name(&ctx.on(combination)))
            })?.refused($reason));)*
        }
    };
}

/// Runs the rows that the command line chose, stops what they shared, and ends the process if any failed.
pub fn run(ctx: TestContext, cases: Vec<Case>) -> Result<()> {
    let mut arguments = Arguments::from_args();
    // One node, one daemon at a time.
    arguments.test_threads = Some(1);
    // A guest's console is a terminal, but its reader is not.
    if ctx.environment.tier == Tier::Vm {
        arguments.color.get_or_insert(ColorSetting::Never);
        anstream::ColorChoice::Never.write_global();
    }
    let ctx = Arc::new(ctx);
    let trials = cases.into_iter().map(|case| {
        let shared = Arc::clone(&ctx);
        let body = move || {
            let start = Instant::now();
            let outcome = tried(|| (case.body)(&shared));
            print!("{:.1} s ", start.elapsed().as_secs_f64());
            outcome.map_err(|error| Failed::from(explain(&error)))
        };
        let trial = Trial::test(case.name, body);
        match case.refused {
            Some(reason) => trial.with_kind(reason).with_ignored_flag(true),
            None => trial,
        }
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    ctx.finish()?;
    conclusion.exit_if_failed();
    Ok(())
}

/// Tries again, as long as the kernel skipped programs and nothing else was wrong.
fn tried(mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(error) if error.chain().any(|cause| cause.is::<Skipped>()) => {
                print!("the kernel skipped programs; once more ");
            }
            outcome => return outcome,
        }
    }
    attempt()
}

/// What went wrong, outermost first, then the logs that were attached on the way.
fn explain(error: &anyhow::Error) -> String {
    let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
    let (logs, causes): (Vec<_>, Vec<_>) = causes.into_iter().partition(|cause| process::is_log(cause));
    format!("{}\n{}", causes.join("\n  because: "), logs.join("\n"))
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, bail};
    use kwitness_api::proto::event::Kind;
    use kwitness_api::proto::{Event, Gap, GapCause};

    use super::*;
    use crate::events::{Received, Seen};

    fn seen(causes: &[GapCause]) -> Seen {
        let gap = |cause: &GapCause| {
            let kind = Kind::Gap(Gap { cause: (*cause).into(), ..Gap::default() });
            Received {
                event: Event { r#type: "gap".to_owned(), kind: Some(kind), ..Event::default() },
                at: 0,
            }
        };
        Seen(causes.iter().map(gap).collect())
    }

    #[test]
    fn a_row_is_tried_again_only_if_the_kernel_skipped_programs_and_nothing_else_was_lost() {
        use GapCause::{ProgramSkipped, RingFull};
        let attempts = |outcomes: &[&[GapCause]]| {
            let mut made = 0;
            let outcome = tried(|| {
                made += 1;
                let causes = outcomes.get(made - 1).copied().unwrap_or(outcomes[outcomes.len() - 1]);
                seen(causes).check_complete().context("in a row")
            });
            (made, outcome.is_ok())
        };
        assert_eq!(attempts(&[&[]]), (1, true));
        assert_eq!(attempts(&[&[ProgramSkipped], &[ProgramSkipped], &[]]), (3, true));
        assert_eq!(attempts(&[&[ProgramSkipped], &[ProgramSkipped, RingFull]]), (2, false));
        assert_eq!(attempts(&[&[RingFull]]), (1, false));
        assert_eq!(attempts(&[&[ProgramSkipped]]), (ATTEMPTS as usize, false));
        let mut made = 0;
        let fails = || {
            made += 1;
            bail!("something else")
        };
        assert!(tried(fails).is_err() && made == 1);
    }
}
