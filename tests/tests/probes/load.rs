//! Loading itself: what is refused, what degrades, and in which words.

use std::num::NonZeroU32;

use kwitness_agent::probe::capability::{CAPABILITIES, Exclusion, HookKind, Importance, Tracepoints};
use kwitness_agent::probe::environment::kernel_release;
use kwitness_agent::probe::{
    Advised, CapabilityReport, Loaded, ProbeError, ProbeLog, Reason, Settings, survey,
};
use kwitness_tests::prelude::*;

use crate::all_but;

pub fn cases(ctx: &TestContext) -> Vec<Case> {
    // What is refused by name is so before the kernel is called.
    let repeated = ctx.environment.same_everywhere();
    vec![
        Case::new("every_hook_of_every_capability_loads", |_| every_hook()),
        Case::new("a_missing_optional_capability_degrades", |_| degrades()),
        Case::new("a_missing_vital_capability_is_an_error_in_words", |_| vital()).refused(repeated),
        Case::new("a_set_too_large_for_the_machine", |_| too_large()),
    ]
}

fn every_hook() -> Result<()> {
    // What the verifier cuts out of programs that log nothing has to pass it, too.
    let logging = [ProbeLog::Off, ProbeLog::Debug];
    for (kind, log) in HookKind::TRACEPOINTS.into_iter().flat_map(|kind| logging.map(|log| (kind, log))) {
        let capabilities = survey(&Settings { exclude: all_but(kind), log, ..Settings::default() })?;
        ensure!(capabilities.suffices(), "{capabilities:#?}");
        for report in &capabilities.reports {
            if report.capability.hooks.iter().any(|hook| hook.kind == kind) {
                ensure!(report.chosen.is_some_and(|hook| hook.kind == kind), "{kind}: {report:#?}");
            }
        }
    }
    Ok(())
}

fn degrades() -> Result<()> {
    let tracepoints = Tracepoints::of(&kernel_release());
    let exec = CAPABILITIES
        .iter()
        .find(|capability| capability.name == "task_exec")
        .context("no capability task_exec")?;
    let [first, second, ..] = exec.hooks_in_order(tracepoints)[..] else { bail!("{:?}", exec.hooks) };
    let exclude = vec!["task_fork".parse()?, Exclusion::Program(first.program)];
    let attached = Loaded::load(&Settings { exclude, ..Settings::default() })?.attach()?;
    let capabilities = attached.capabilities();
    ensure!(capabilities.suffices());
    // Which hooks at functions there are depends on the kernel: `limits` and `oom` look at those.
    let is_at_tracepoint = |kind| HookKind::TRACEPOINTS.contains(&kind);
    let at_tracepoint =
        |report: &&CapabilityReport| report.capability.hooks.iter().all(|hook| is_at_tracepoint(hook.kind));
    let missing: Vec<_> =
        capabilities.missing().filter(at_tracepoint).map(|report| report.capability.name).collect();
    ensure!(missing == ["task_fork"], "{missing:?}");
    for report in capabilities.reports.iter().filter(at_tracepoint) {
        let (program, refused) = (report.chosen.map(|hook| hook.program), &report.refused);
        match report.capability.name {
            "task_fork" => {
                ensure!(
                    matches!(&refused[..], [refusal] if refusal.reason == Reason::Excluded),
                    "{report:#?}"
                );
            }
            "task_exec" => ensure!(program == Some(second.program) && refused.len() == 1, "{report:#?}"),
            _ => {
                let first = report.capability.hooks_in_order(tracepoints)[0].program;
                ensure!(program == Some(first) && refused.is_empty(), "{report:#?}");
            }
        }
    }
    Ok(())
}

fn vital() -> Result<()> {
    for capability in CAPABILITIES.iter().filter(|capability| capability.importance == Importance::Vital) {
        let exclude = capability.hooks.iter().map(|hook| Exclusion::Program(hook.program)).collect();
        let settings = Settings { exclude, ..Settings::default() };
        ensure!(!survey(&settings)?.suffices());
        let Err(error) = Loaded::load(&settings) else { anyhow::bail!("loaded without {}", capability.name) };
        let text = Advised::from(error).to_string();
        let programs = capability.hooks.iter().map(|hook| hook.program);
        for part in [capability.name, capability.target, "raw_tp", "Remedy"].into_iter().chain(programs) {
            ensure!(text.contains(part), "no `{part}` in: {text}");
        }
    }
    Ok(())
}

fn too_large() -> Result<()> {
    let tracked_capacity = NonZeroU32::MAX;
    match Loaded::load(&Settings { tracked_capacity, ..Settings::default() }) {
        Err(error @ (ProbeError::Memory { .. } | ProbeError::Map { .. })) => {
            ensure!(
                error.to_string().contains("TRACKED") || error.to_string().contains("FIRST_PROCESSES"),
                "{error}"
            );
            Ok(())
        }
        Err(other) => anyhow::bail!("{other}"),
        Ok(_) => anyhow::bail!("a set of {tracked_capacity} cgroups was made"),
    }
}
