//! What befalls the daemon, and in which order.

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kwitness_api::proto::WatchResponse;
use kwitness_tests::agent::{Agent, from_now};
use kwitness_tests::outage::{Bpffs, Client, Storm};
use tonic::Streaming;

/// How long the daemon may take to end.
const LIMIT: Duration = Duration::from_secs(60);
/// Watchers that are added at a time, and never read.
const STALLED: usize = 32;
/// A ring that holds a few lives, and one that holds many.
const SMALL_RING: &str = "--set=kernel.lifecycle_ring=16KiB";
const USUAL_RING: &str = "--set=kernel.lifecycle_ring=8MiB";
/// More lives than the small ring holds.
const FLOOD: usize = 40;

/// What befalls the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL, as the OOM killer does; some containers later, it is started again.
    Kill,
    /// SIGTERM; some containers later, it is started again.
    End,
    /// SIGSTOP, for the lives of some containers.
    Pause,
    /// An end, and a start with other maps.
    Upgrade,
    /// SIGKILL right after a start with other maps, while the old programs are read on.
    CrashInUpgrade,
    /// A ring that is too small for what comes while nobody reads it.
    SmallRing,
    /// Its pins are removed while it runs.
    LosePins,
    /// Clients that never read.
    StalledWatchers,
}

impl Action {
    const ALL: [Self; 8] = [
        Self::Kill,
        Self::End,
        Self::Pause,
        Self::Upgrade,
        Self::CrashInUpgrade,
        Self::SmallRing,
        Self::LosePins,
        Self::StalledWatchers,
    ];
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill the daemon",
            Self::End => "end the daemon",
            Self::Pause => "stop the daemon's threads",
            Self::Upgrade => "upgrade to other maps",
            Self::CrashInUpgrade => "upgrade to other maps, with a crash",
            Self::SmallRing => "overflow a small ring",
            Self::LosePins => "remove the pins",
            Self::StalledWatchers => "add watchers that never read",
        })
    }
}

/// The numbers that a seed gives: SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Those of that seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of 1 to `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        1 + usize::try_from(self.next() % bound).unwrap_or(0)
    }

    /// What is next.
    pub fn action(&mut self) -> Action {
        Action::ALL[self.below(Action::ALL.len()) - 1]
    }
}

/// The daemon and its clients.
pub struct Stage {
    agent: Agent,
    bpffs: Bpffs,
    /// None only while it resumes.
    client: Option<Client>,
    stalled: Vec<Streaming<WatchResponse>>,
    upgrades: usize,
}

impl Stage {
    /// A running daemon with a client.
    pub fn new(agent: Agent, bpffs: Bpffs, client: Client) -> Self {
        Self { agent, bpffs, client: Some(client), stalled: Vec::new(), upgrades: 0 }
    }

    /// The end of the daemon's log.
    pub fn log_tail(&self) -> String {
        self.agent.log_tail()
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
                self.end_agent()?;
                storm.more(lives).await?;
                self.start_again().await
            }
            Action::Pause => {
                let _paused = self.agent.pause()?;
                storm.more(lives).await
            }
            Action::Upgrade => {
                self.end_agent()?;
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
                for set in self.bpffs.sets()? {
                    fs::remove_dir_all(&set).with_context(|| format!("remove {}", set.display()))?;
                }
                storm.more(lives).await
            }
            Action::StalledWatchers => {
                let mut client = self.agent.client().await?;
                for _ in 0..STALLED {
                    // One that is refused, for there are too many, is as good.
                    if let Ok(stream) = client.watch(from_now()).await {
                        self.stalled.push(stream.into_inner());
                    }
                }
                storm.more(lives).await
            }
        }
    }

    /// Has the daemon as it is usually.
    pub async fn settle(&mut self, storm: &Storm) -> Result<()> {
        self.restart_with(USUAL_RING).await?;
        storm.more(1).await
    }

    /// The daemon, where it pins, and what the client has.
    pub fn end(self) -> Result<(Agent, Bpffs, Client)> {
        let Self { agent, bpffs, client, .. } = self;
        Ok((agent, bpffs, client.context("it does not resume")?))
    }

    /// Another layout than the last.
    fn change_maps(&mut self) {
        self.upgrades += 1;
        // The kernel's rings are powers of two, from a page on.
        let kibibytes = 64 << (self.upgrades % 6);
        self.agent.add_argument(&format!("--set=kernel.forks_ring={kibibytes}KiB"));
    }

    fn end_agent(&mut self) -> Result<()> {
        let status = self.agent.process().terminate(LIMIT)?;
        ensure!(status.success(), "the daemon ended badly: {status}");
        Ok(())
    }

    async fn restart_with(&mut self, argument: &str) -> Result<()> {
        self.end_agent()?;
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
