//! The daemon, its clients, its runtime, and how an action is performed: each leaves everything as it was.

use std::fs;
use std::time::SystemTime;

use kwitness_api::proto::WatchResponse;
use kwitness_cri::events::ContainerEventType;
use kwitness_tests::cgroup::TestCgroup;
use kwitness_tests::cri_events::{CriEvents, Subscriber};
use kwitness_tests::outage::{Bpffs, Client, Lived, StateDirectory, Storm};
use kwitness_tests::prelude::*;
use nix::time::{ClockId, clock_gettime, clock_settime};
use tonic::Streaming;

use crate::actions::Action;

const LIMIT: Duration = Duration::from_secs(60);
/// Watchers that are added at a time, and never read; fewer in a guest, where a thousand take most of a minute. On so many
/// connections.
const STALLED: usize = 1000;
const STALLED_IN_A_GUEST: usize = 100;
const CONNECTIONS: usize = 20;
/// As many as the daemon has to allow for that.
pub const WATCHERS: &str = "api.max_watchers=1024";
/// A ring that holds a few lives, and one that holds many.
const SMALL_RING: &str = "--set=kernel.lifecycle_ring=16KiB";
const USUAL_RING: &str = "--set=kernel.lifecycle_ring=8MiB";
/// More lives than the small ring holds.
const FLOOD: usize = 40;
const HOUR: i64 = 3600;

pub struct Stage {
    agent: Agent,
    bpffs: Bpffs,
    state: StateDirectory,
    /// None only while it resumes.
    client: Option<Client>,
    stalled: Vec<Streaming<WatchResponse>>,
    upgrades: usize,
    node: Node,
    proxy: Proxy,
    combination: Combination,
    /// Where the daemon gets no more memory; none where the memory controller is not to be had.
    narrow: Option<TestCgroup>,
    tier: Tier,
    lived: Vec<Lived>,
}

impl Stage {
    pub async fn new(
        environment: &Environment,
        agent: Agent,
        bpffs: Bpffs,
        state: StateDirectory,
        client: Client,
    ) -> Result<Self> {
        let combination = environment.first_combination()?;
        let node = Node::start(environment, combination.driver).await?;
        let proxy = Proxy::activated(environment, agent.socket())?;
        // Once it serves, it ends well when it is asked to.
        drop(Subscriber::open(proxy.socket(), None).await?);
        Ok(Self {
            agent,
            bpffs,
            state,
            client: Some(client),
            stalled: Vec::new(),
            upgrades: 0,
            node,
            proxy,
            combination,
            narrow: narrow(environment)?,
            tier: environment.tier,
            lived: Vec::new(),
        })
    }

    pub fn log_tail(&self) -> String {
        self.agent.log_tail()
    }

    pub fn refuses(&self, action: Action) -> Option<&'static str> {
        match action {
            Action::OomKill if self.narrow.is_none() => Some("the memory controller is not to be had"),
            Action::StepClock if self.tier == Tier::Host => {
                Some("the clock is the machine's: only in a guest")
            }
            _ => None,
        }
    }

    /// Performs an action; `lives` is how many containers live and die meanwhile, at least.
    pub async fn perform(&mut self, action: Action, lives: usize, storm: &Storm) -> Result<()> {
        match action {
            Action::Kill => {
                self.agent.kill()?;
                storm.more(lives).await?;
                self.start_again().await
            }
            Action::End => {
                self.agent.process().end(LIMIT)?;
                storm.more(lives).await?;
                self.start_again().await
            }
            Action::Pause => {
                let _paused = self.agent.pause()?;
                storm.more(lives).await
            }
            Action::OomKill => self.oom_kill(lives, storm).await,
            Action::Upgrade => {
                self.agent.process().end(LIMIT)?;
                self.change_maps();
                storm.more(lives).await?;
                self.start_again().await
            }
            Action::CrashInUpgrade => {
                self.agent.kill()?;
                self.change_maps();
                self.agent.start_again().await?;
                self.agent.kill()?;
                storm.more(lives).await?;
                self.start_again().await
            }
            Action::SmallRing => {
                self.restart_with(SMALL_RING).await?;
                let paused = self.agent.pause()?;
                storm.more(FLOOD + lives).await?;
                drop(paused);
                self.restart_with(USUAL_RING).await
            }
            Action::LosePins => {
                // There are none since the file system was unmounted, until the daemon starts again.
                let sets = if self.bpffs.pins().exists() { self.bpffs.sets()? } else { Vec::new() };
                for set in sets {
                    fs::remove_dir_all(&set).with_context(|| format!("remove {}", set.display()))?;
                }
                storm.more(lives).await
            }
            Action::UnmountBpffs => {
                self.bpffs.remount()?;
                storm.more(lives).await
            }
            Action::FullState => self.fill_state(lives, storm).await,
            Action::ReadOnlyState => {
                self.agent.kill()?;
                let read_only = self.state.make_read_only()?;
                ensure!(self.agent.start_again().await.is_err(), "it starts without a place for its lock");
                drop(read_only);
                storm.more(lives).await?;
                self.start_again().await
            }
            Action::StalledWatchers => {
                let stalled = match self.tier {
                    Tier::Host => STALLED,
                    Tier::Vm => STALLED_IN_A_GUEST,
                };
                for _ in 0..CONNECTIONS {
                    let mut client = self.agent.client().await?;
                    for _ in 0..stalled / CONNECTIONS {
                        // One that is refused, for there are too many, is as good.
                        if let Ok(stream) = client.watch(from_now()).await {
                            self.stalled.push(stream.into_inner());
                        }
                    }
                }
                storm.more(lives).await
            }
            Action::RestartRuntime => {
                self.node.stop_containerd()?;
                storm.more(lives).await?;
                self.node.start_containerd().await?;
                self.live().await
            }
            Action::PauseRuntime => {
                let paused = self.node.pause_containerd()?;
                storm.more(lives).await?;
                drop(paused);
                self.live().await
            }
            Action::RestartProxy => {
                self.proxy.restart()?;
                let mut events = Subscriber::open(self.proxy.socket(), None).await?;
                self.live().await?;
                let id = self.lived.last().map(|lived| lived.id.clone()).context("it has lived")?;
                // What is gone by the time that the runtime is asked may have only the last of its events.
                let ends =
                    [ContainerEventType::ContainerStoppedEvent, ContainerEventType::ContainerDeletedEvent];
                let ended = |seen: &CriEvents| ends.iter().any(|end| seen.has(&id, *end));
                let ended = events.wait_until("the container's end", ended).await;
                ended.with_context(|| self.proxy.log_tail())?;
                storm.more(lives).await
            }
            Action::StepClock => {
                let stepped = Stepped::by(HOUR)?;
                storm.more(lives).await?;
                drop(stepped);
                // What is reported next is of the clock as it is again.
                storm.more(1).await
            }
        }
    }

    pub async fn settle(&mut self, storm: &Storm) -> Result<()> {
        self.restart_with(USUAL_RING).await?;
        storm.more(1).await
    }

    /// Ends everything but the daemon, the BPF file system and the state directory.
    pub async fn end(self) -> Result<(Agent, Bpffs, StateDirectory, Client, Vec<Lived>)> {
        let Self { agent, bpffs, state, client, node, proxy, lived, .. } = self;
        proxy.stop()?;
        node.shutdown().await?;
        Ok((agent, bpffs, state, client.context("it does not resume")?, lived))
    }

    async fn live(&mut self) -> Result<()> {
        let began = SystemTime::now();
        let pod = self.node.run_pod(&PodSpec::new("chaos", self.combination.handler)?).await?;
        let id = self.node.run(&pod, &ContainerSpec::shell("main", "exit 0")).await?;
        self.node.wait_exited(&id).await?;
        self.node.remove_pod(&pod).await?;
        self.lived.push(Lived { id, began, ended: SystemTime::now() });
        Ok(())
    }

    /// Gives the daemon no page more, and something to do.
    async fn oom_kill(&mut self, lives: usize, storm: &Storm) -> Result<()> {
        let narrow = self.narrow.as_ref().context("the memory controller is not to be had")?;
        cgroup::write(narrow.directory(), "memory.max", 0)?;
        narrow.enter(self.agent.pid())?;
        wait_for("the OOM killer", LIMIT, async || {
            // Each connection takes memory.
            let _ = self.agent.client().await;
            Ok(self.agent.process().check_running().is_err().then_some(()))
        })
        .await?;
        cgroup::write(narrow.directory(), "memory.max", "max")?;
        let kills = memory_event(narrow.directory(), "oom_kill")?;
        ensure!(kills > 0, "it ended otherwise\n{}", self.agent.log_tail());
        storm.more(lives).await?;
        self.start_again().await
    }

    /// A daemon that goes on with the ledger and cannot go on writing it, and one after it, which begins a new epoch.
    async fn fill_state(&mut self, lives: usize, storm: &Storm) -> Result<()> {
        self.agent.kill()?;
        let full = self.state.fill()?;
        self.start_again().await?;
        storm.more(lives).await?;
        self.agent.kill()?;
        drop(full);
        self.start_again().await?;
        storm.more(1).await
    }

    fn change_maps(&mut self) {
        self.upgrades += 1;
        // The kernel's rings are powers of two, from a page on.
        let kibibytes = 64 << (self.upgrades % 6);
        self.agent.add_argument(&format!("--set=kernel.forks_ring={kibibytes}KiB"));
    }

    async fn restart_with(&mut self, argument: &str) -> Result<()> {
        self.agent.process().end(LIMIT)?;
        self.agent.add_argument(argument);
        self.start_again().await
    }

    async fn start_again(&mut self) -> Result<()> {
        self.agent.start_again().await?;
        self.stalled.clear();
        let client = self.client.take().context("it resumes once")?;
        self.client = Some(client.resume(&self.agent).await?);
        Ok(())
    }
}

/// A cgroup for the daemon with a limit of memory, if this place has the controller.
fn narrow(environment: &Environment) -> Result<Option<TestCgroup>> {
    let directory = environment.cgroup_directory();
    let has_memory = |file: &str| {
        let controllers = fs::read_to_string(directory.join(file)).unwrap_or_default();
        controllers.split_whitespace().any(|controller| controller == "memory")
    };
    if !has_memory("cgroup.controllers") {
        return Ok(None);
    }
    // Refused where processes are in that cgroup itself.
    if fs::write(directory.join("cgroup.subtree_control"), "+memory").is_err() {
        return Ok(None);
    }
    TestCgroup::make(&environment.cgroup2, &environment.cgroup("chaos-narrow")).map(Some)
}

/// The wall clock, off by so many seconds until this is dropped.
struct Stepped(i64);

impl Stepped {
    fn by(seconds: i64) -> Result<Self> {
        step(seconds)?;
        Ok(Self(seconds))
    }
}

impl Drop for Stepped {
    fn drop(&mut self) {
        if let Err(error) = step(-self.0) {
            eprintln!("the clock is off by {} s: {error:#}", self.0);
        }
    }
}

fn step(seconds: i64) -> Result<()> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).context("read the clock")?;
    let then = nix::sys::time::TimeSpec::new(now.tv_sec() + seconds, now.tv_nsec());
    clock_settime(ClockId::CLOCK_REALTIME, then).context("set the clock")
}
