//! `kwitness-demo`: does things to a real containerd and shows, live, what kwitness tells of them.
//!
//! What a person sees between two lines of the narrator is the output of the real `kwitness events` command. At
//! the end, what was told is compared with what was done; anything missed, doubled or told wrongly is a failure.

mod script;
mod stage;
mod verdict;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use kwitness_tests::agent::{Agent, from_now};
use kwitness_tests::environment::Environment;
use kwitness_tests::node::Node;

use crate::script::Script;
use crate::stage::Stage;
use crate::verdict::{RuntimeEvents, Verdict};

/// Shows kwitness watching a real container runtime.
#[derive(Debug, Parser)]
struct Arguments {
    /// Do not pause for the reader.
    #[arg(long)]
    fast: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let played = tokio::runtime::Runtime::new().context("start tokio").and_then(|runtime| {
        runtime.block_on(async {
            tokio::select! {
                played = play(&arguments) => played,
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted.context("wait for Ctrl-C")?;
                    anyhow::bail!("interrupted")
                }
            }
        })
    });
    match played {
        Ok(verdict) if verdict.is_good() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            anstream::eprintln!("\nThe demo broke off: {error:?}");
            ExitCode::FAILURE
        }
    }
}

async fn play(arguments: &Arguments) -> Result<Verdict> {
    let environment = Environment::find()?;
    let combination = environment.first_combination()?;
    let pause = if arguments.fast { Duration::ZERO } else { Duration::from_millis(1500) };

    stage::title(&environment)?;
    stage::say("A node comes up: containerd with two images, and the kwitness daemon.");
    let node = Node::start(&environment, combination.driver).await?;
    let agent = Agent::start(&environment, &[]).await?;
    stage::introduce(&node, &agent).await?;

    let told = play_with(&environment, &node, &agent, combination, pause).await;
    let verdict = told.with_context(|| format!("{}\n{}", agent.log_tail(), node.log_tail()))?;
    agent.stop()?;
    node.shutdown().await?;
    verdict.print();
    Ok(verdict)
}

async fn play_with(
    environment: &Environment,
    node: &Node,
    agent: &Agent,
    combination: kwitness_tests::environment::Combination,
    pause: Duration,
) -> Result<Verdict> {
    let runtime_events = RuntimeEvents::collect(node.cri());
    let watcher = agent.watch(from_now()).await?;
    let stage = Stage::open(environment, agent, watcher, pause).await?;
    let mut script = Script::new(node, combination.handler, stage);
    script.play().await?;
    let (stage, deeds) = script.finish();
    let seen = stage.close()?;
    Verdict::reach(&deeds, &seen, &runtime_events, &agent.status().await?)
}
