//! `kwitness-demo`: does things to a real containerd and shows, live, what kwitness reports of them.
//!
//! What a person sees between two lines of the narrator is the output of the real `kwitness events` command. At
//! the end, the report is compared with what was done; anything missed, doubled or misreported is a failure.

mod claims;
mod resize;
mod script;
mod stage;
mod verdict;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use kwitness_tests::boost::{build, startup};
use kwitness_tests::cri_events::Subscriber;
use kwitness_tests::oom;
use kwitness_tests::prelude::*;

use crate::script::Script;
use crate::stage::Stage;
use crate::verdict::Findings;

/// Shows kwitness watching a real container runtime.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to show.
    #[arg(value_enum, default_value_t = Scene::Life)]
    scene: Scene,
    /// Do not pause for the reader.
    #[arg(long)]
    fast: bool,
    /// Where to leave the picture of a scene that claims something.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// What there is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scene {
    /// Containers come and go.
    Life,
    /// Containers are resized, and another process interferes.
    Resize,
    /// The same work is OOM-killed without the guard, and finishes with it.
    Oom,
    /// The same build is OOM-killed with the limit as it is, and succeeds with one that is raised for it.
    Build,
    /// A JVM starts with little CPU, with a boost until it is ready, and without a limit.
    Startup,
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
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            anstream::eprintln!("\nThe demo broke off: {error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Whether what was reported is right.
async fn play(arguments: &Arguments) -> Result<bool> {
    let environment = Environment::find()?;
    let combination = environment.first_combination()?;
    stage::title(&environment)?;
    let svg = arguments.svg.as_deref();
    match arguments.scene {
        Scene::Life => life(&environment, combination, arguments.fast).await,
        Scene::Resize => resize::play(&environment, arguments.fast).await,
        Scene::Oom => claims::play(&environment, svg, oom::run(&environment, stage::say)).await,
        Scene::Build => claims::play(&environment, svg, build::run(&environment, stage::say)).await,
        Scene::Startup => claims::play(&environment, svg, startup::run(&environment, stage::say)).await,
    }
}

async fn life(environment: &Environment, combination: Combination, fast: bool) -> Result<bool> {
    let pause = if fast { Duration::ZERO } else { Duration::from_millis(1500) };
    stage::say("A node comes up: containerd with two images, and the kwitness daemon.");
    let node = Node::start(environment, combination.driver).await?;
    let agent = Agent::start(environment, &[]).await?;
    stage::introduce(&node, &agent).await?;

    let reported = play_with(environment, &node, &agent, combination, pause).await;
    let verdict = reported.with_context(|| format!("{}\n{}", agent.log_tail(), node.log_tail()))?;
    agent.stop()?;
    node.shutdown().await?;
    verdict.print();
    Ok(verdict.is_good())
}

async fn play_with(
    environment: &Environment,
    node: &Node,
    agent: &Agent,
    combination: Combination,
    pause: Duration,
) -> Result<Findings> {
    // Without the runtime's own events there is nothing to compare with, and that is all.
    let runtime_events = Subscriber::open(Path::new(CONTAINERD_SOCKET), None).await?;
    let watcher = agent.watch(from_now()).await?;
    let stage = Stage::open(environment, agent, watcher, pause).await?;
    let mut script = Script::new(node, combination.handler, stage);
    script.play().await?;
    let (stage, deeds) = script.finish();
    let seen = stage.close()?;
    Findings::reach(&deeds, &seen, &runtime_events, &agent.status().await?)
}
