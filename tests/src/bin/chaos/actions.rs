//! What befalls the daemon, and in which order.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// SIGKILL; some containers later, it is started again.
    Kill,
    /// SIGTERM; some containers later, it is started again.
    End,
    /// SIGSTOP, for the lives of some containers.
    Pause,
    /// The kernel's OOM killer; some containers later, it is started again.
    OomKill,
    /// An end, and a start with other maps.
    Upgrade,
    /// SIGKILL right after a start with other maps, while the old programs are read on.
    CrashInUpgrade,
    /// A ring that is too small for what comes while it is not read.
    SmallRing,
    /// Its pins are removed while it runs.
    LosePins,
    /// The BPF file system is unmounted while it runs, and another one mounted.
    UnmountBpffs,
    /// No memory is left for the ledger, over a crash and a start.
    FullState,
    /// Its directory cannot be written to when it starts.
    ReadOnlyState,
    /// Clients that never read.
    StalledWatchers,
    /// The runtime ends, and is started again.
    RestartRuntime,
    /// SIGSTOP of the runtime.
    PauseRuntime,
    /// The proxy ends, and is started again on its socket.
    RestartProxy,
    /// The wall clock is set an hour ahead, then back.
    StepClock,
}

/// The sequence that a seed gives, wherever it is played: all actions, each once, in another order each round.
#[derive(Debug)]
pub struct Sequence {
    random: fastrand::Rng,
    left: Vec<Action>,
    rounds: usize,
}

impl Sequence {
    /// Lives that an action lasts, at most, in the first round: a minute is enough for it.
    const FEW: usize = 3;
    /// The same, in every later one.
    const MANY: usize = 20;

    pub fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), left: Vec::new(), rounds: 0 }
    }

    /// What is next, and how many containers live and die meanwhile, at least.
    pub fn next(&mut self) -> (Action, usize) {
        if self.left.is_empty() {
            self.left.extend(Action::value_variants());
            self.random.shuffle(&mut self.left);
            self.rounds += 1;
        }
        let lives = self.random.usize(1..=if self.rounds == 1 { Self::FEW } else { Self::MANY });
        (self.left.pop().unwrap_or(Action::Kill), lives)
    }
}
