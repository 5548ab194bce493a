//! A container whose limit is raised for the time that its work needs it: recognized by an exec event of the daemon, raised by
//! `pods/resize`, verified by the daemon, and given back in the same way.
//!
//! Owns the carrying out; [`controller`] decides. The two kinds of work are [`build`] and [`startup`]. Never writes a cgroup.

pub mod build;
pub mod controller;
pub mod startup;

use std::future::pending;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kwitness_api::proto::event::Kind;
use kwitness_api::proto::kwitness_client::KwitnessClient;
use kwitness_api::proto::{EventKind, Filter, VerdictKind, WatchRequest, WatchResponse};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::Streaming;
use tonic::transport::Channel;

use crate::agent::from_now;
use crate::chart::Mark;
use crate::cluster_node::ClusterNode;
use crate::limit::Limit;
use crate::process;
use controller::{Controller, Level, Work};

/// How long work may take, with what follows it, in an emulated guest on a machine that does other work.
const WORK_LIMIT: Duration = Duration::from_secs(900);
/// How long a limit may take to be in force. The kubelet lowers one when its own figures say that less is used, which it looks at again
/// about once a minute.
const VERDICT_LIMIT: Duration = Duration::from_secs(400);
const LOOK: Duration = Duration::from_millis(250);
/// What programs of the node's root need in a container of another image.
const ROOT_MOUNTS: [(&str, &str); 3] = [("/usr", "/usr"), ("/usr/lib", "/lib"), ("/usr/lib64", "/lib64")];

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub original: Limit,
    pub raised: Limit,
}

/// A limit that was changed; times since the work was let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub to: Level,
    pub decided: Duration,
    /// The API server had accepted.
    pub accepted: Duration,
    /// The daemon said that it is in force.
    pub in_force: Duration,
}

/// Follows a container's work, and changes its limit where it is to.
struct Follower<'a> {
    cluster: &'a ClusterNode,
    client: KwitnessClient<Channel>,
    events: Streaming<WatchResponse>,
    pod: &'a str,
    id: &'a str,
    limits: Option<Limits>,
    controller: Controller,
    moves: Vec<Move>,
}

impl<'a> Follower<'a> {
    /// Begins to watch. Without limits, the container keeps its own.
    async fn open(
        cluster: &'a ClusterNode,
        pod: &'a str,
        id: &'a str,
        work: Work,
        limits: Option<Limits>,
    ) -> Result<Self> {
        let mut client = cluster.agent.client().await?;
        let kinds = [EventKind::Exec, EventKind::Exited, EventKind::Stopped, EventKind::Gap];
        let filter = Filter {
            containers: vec![id.to_owned()],
            kinds: kinds.map(i32::from).to_vec(),
            ..Filter::default()
        };
        let request = WatchRequest { filter: Some(filter), ..from_now() };
        let events = client.watch(request).await.context("call Watch")?.into_inner();
        Ok(Self {
            cluster,
            client,
            events,
            pod,
            id,
            limits,
            controller: Controller::new(work),
            moves: Vec::new(),
        })
    }

    /// Until the work is over and the limit is the original one again. `look` sees the container at each moment, and says whether the
    /// work is over.
    async fn follow(
        &mut self,
        began: Instant,
        say: &impl Fn(&str),
        look: impl FnMut(Duration, Mark) -> Result<bool>,
    ) -> Result<()> {
        let followed = timeout(WORK_LIMIT, self.follow_until_over(began, say, look)).await;
        followed.with_context(|| format!("the work of {} took longer than {WORK_LIMIT:?}", self.pod))?
    }

    async fn follow_until_over(
        &mut self,
        began: Instant,
        say: &impl Fn(&str),
        mut look: impl FnMut(Duration, Mark) -> Result<bool>,
    ) -> Result<()> {
        let mut moving = None;
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next = tokio::select! {
                message = self.events.message() => {
                    let message = message.context("the daemon's events")?.context("the daemon's events ended")?;
                    self.observe(message)?
                }
                moved = ended(&mut moving) => {
                    let moved = moved?;
                    moving = None;
                    say(match moved.to {
                        Level::Raised => "The raise is in force at every level, by the daemon's verdict.",
                        Level::Original => "The original limit is in force again, by the daemon's verdict.",
                    });
                    self.moves.push(moved);
                    self.controller.moved()
                }
                _ = looks.tick() => {
                    let is_over = look(began.elapsed(), self.mark())?;
                    let next = if is_over { self.controller.ready() } else { None };
                    if is_over && (self.limits.is_none() || self.controller.is_settled()) {
                        return Ok(());
                    }
                    next
                }
            };
            if let (Some(level), Some(limits)) = (next, self.limits) {
                let program = self.controller.recognized().unwrap_or_default();
                say(&match level {
                    Level::Raised => format!("{program} is executed: the limit is to be {}.", limits.raised),
                    Level::Original => {
                        format!("The work is over: the limit is to be {} again.", limits.original)
                    }
                });
                moving = Some(self.change(level, limits, began));
            }
        }
    }

    /// The move to make now. Lost events fail: no claim could rest on the others.
    fn observe(&mut self, message: WatchResponse) -> Result<Option<Level>> {
        let mut next = None;
        for kind in message.events.into_iter().filter_map(|event| event.kind) {
            if let Kind::Gap(gap) = &kind {
                ensure!(gap.lost.is_empty(), "the daemon lost events: {:?}", gap.lost);
            }
            next = self.controller.observe(&kind).or(next);
        }
        Ok(next)
    }

    fn mark(&self) -> Mark {
        match self.controller.in_force() {
            Level::Raised => Mark::InForce,
            Level::Original if self.controller.is_busy() => Mark::Busy,
            Level::Original => Mark::None,
        }
    }

    /// Asks the API server, and then the daemon until it is in force.
    fn change(&self, to: Level, limits: Limits, began: Instant) -> JoinHandle<Result<Move>> {
        let limit = match to {
            Level::Original => limits.original,
            Level::Raised => limits.raised,
        };
        let resources = json!({ "limits": limit.resources() });
        let patch = json!({ "spec": { "containers": [{ "name": "main", "resources": resources }] } });
        let patch = patch.to_string();
        let mut resize =
            self.cluster.api.kubectl(&["patch", "pod", self.pod, "--subresource=resize", "--patch", &patch]);
        let request = limit.verify(self.id, VERDICT_LIMIT);
        let mut client = self.client.clone();
        tokio::spawn(async move {
            let decided = began.elapsed();
            let resized = tokio::task::spawn_blocking(move || process::run(&mut resize)).await;
            resized.context("the thread that runs kubectl died")??;
            let accepted = began.elapsed();
            let answer = client.verify(request).await.context("call Verify")?.into_inner();
            let verdict = limit.verdict(answer)?;
            ensure!(verdict.verdict() == VerdictKind::InForce, "{limit} is not in force: {verdict:?}");
            Ok(Move { to, decided, accepted, in_force: began.elapsed() })
        })
    }
}

/// The end of the move under way; never, if none is.
async fn ended(moving: &mut Option<JoinHandle<Result<Move>>>) -> Result<Move> {
    match moving {
        Some(task) => task.await.context("the task that changes the limit died")?,
        None => pending().await,
    }
}

fn was_raised_and_returned(moves: &[Move]) -> bool {
    matches!(moves, [Move { to: Level::Raised, .. }, Move { to: Level::Original, .. }])
}

/// The moves in words, for a chart's notes.
fn notes(moves: &[Move], limits: Limits) -> impl Iterator<Item = String> {
    moves.iter().map(move |moved| {
        let limit = match moved.to {
            Level::Original => limits.original,
            Level::Raised => limits.raised,
        };
        let after = moved.in_force.saturating_sub(moved.decided);
        format!("{limit}: decided at {}, in force {} later", seconds(moved.decided), seconds(after))
    })
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Has what containers execute in memory before the first of them needs it, so that it is charged to none of them.
fn read_ahead(directories: &[&str]) -> Result<()> {
    for directory in directories {
        ensure!(
            Path::new(directory).exists(),
            "{directory} is missing: this needs the root that `cargo xtask demo` takes for it"
        );
    }
    let line = format!("find {} -type f -exec cat {{}} + >/dev/null", directories.join(" "));
    process::run(Command::new("sh").args(["-c", &line])).map(drop)
}
