//! Loading itself: what is refused, what degrades, and in which words.

use std::num::NonZeroU32;

use anyhow::{Result, ensure};
use kwitness::probe::need::{Exclusion, HookKind, Importance, NEEDS};
use kwitness::probe::{Loaded, ProbeError, Reason, Settings, survey};
use kwitness_tests::suite::Case;

/// The rows.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("every_hook_of_every_need_is_offered", |_| every_hook()),
        Case::new("a_missing_optional_need_degrades", |_| degrades()),
        Case::new("a_missing_vital_need_is_an_error_in_words", |_| vital()),
        Case::new("one_instance_at_a_time", |_| one_instance()),
        Case::new("a_set_too_large_for_the_machine", |_| too_large()),
    ]
}

fn every_hook() -> Result<()> {
    for kind in HookKind::ALL {
        let exclude = HookKind::ALL.into_iter().filter(|other| *other != kind).map(Exclusion::Kind).collect();
        let capabilities = survey(&Settings { exclude, ..Settings::default() });
        ensure!(capabilities.suffices(), "{capabilities:#?}");
        for report in &capabilities.needs {
            ensure!(report.chosen.is_some_and(|hook| hook.kind == kind), "{kind}: {report:#?}");
        }
    }
    Ok(())
}

fn degrades() -> Result<()> {
    let exclude = vec!["task_fork_btf".parse()?, "task_fork_raw".parse()?, "task_exec_btf".parse()?];
    let attached = Loaded::load(&Settings { exclude, ..Settings::default() })?.attach()?;
    let capabilities = attached.capabilities();
    ensure!(capabilities.suffices());
    let unmet: Vec<_> = capabilities.unmet().map(|report| report.need.name).collect();
    ensure!(unmet == ["task_fork"], "{unmet:?}");
    for report in &capabilities.needs {
        let (program, refused) = (report.chosen.map(|hook| hook.program), &report.refused);
        match report.need.name {
            "task_fork" => {
                ensure!(
                    refused.iter().all(|refusal| refusal.reason == Reason::Excluded) && refused.len() == 2
                )
            }
            "task_exec" => ensure!(program == Some("task_exec_raw") && refused.len() == 1, "{report:#?}"),
            _ => ensure!(program == Some(report.need.hooks[0].program) && refused.is_empty(), "{report:#?}"),
        }
    }
    Ok(())
}

fn vital() -> Result<()> {
    for need in NEEDS.iter().filter(|need| need.importance == Importance::Vital) {
        let exclude = need.hooks.iter().map(|hook| Exclusion::Program(hook.program)).collect();
        let settings = Settings { exclude, ..Settings::default() };
        ensure!(!survey(&settings).suffices());
        let Err(error) = Loaded::load(&settings) else { anyhow::bail!("loaded without {}", need.name) };
        let text = error.to_string();
        for part in
            [need.name, need.tracepoint, need.hooks[0].program, need.hooks[1].program, "tp_btf", "Remedy"]
        {
            ensure!(text.contains(part), "no `{part}` in: {text}");
        }
    }
    Ok(())
}

fn one_instance() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let settings = Settings { lock_file: Some(directory.path().join("lock")), ..Settings::default() };
    let first = Loaded::load(&settings)?;
    match Loaded::load(&settings) {
        Err(ProbeError::AlreadyRunning { holder: Some(pid), .. }) if pid == std::process::id() => {}
        Err(other) => anyhow::bail!("{other}"),
        Ok(_) => anyhow::bail!("a second one was loaded"),
    }
    // Looking at what the kernel offers disturbs nobody.
    ensure!(survey(&settings).suffices());
    drop(first);
    Loaded::load(&settings)?;
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
