//! What the caller decides about the probes.

use std::{fmt, num::NonZeroU32, path::PathBuf, str::FromStr};

use kwitness_abi::{HIERARCHY_ROOT, PATTERN_CAP, Pattern};
use kwitness_core::model::Thresholds;

use super::capability::Exclusion;

/// What the caller decides about the probes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes of the ring of rare, precious records. The kernel's rings are powers of two: sizes are rounded up.
    pub lifecycle_ring: NonZeroU32,
    /// Bytes of the ring of exec and exit.
    pub tasks_ring: NonZeroU32,
    /// Bytes of the ring of forks inside containers.
    pub forks_ring: NonZeroU32,
    /// How many cgroups can be tracked at a time.
    pub tracked_capacity: NonZeroU32,
    /// The cgroup id of the top of what this process sees of the hierarchy, at which paths begin; [`HIERARCHY_ROOT`]: all of it.
    pub top: u64,
    /// The cgroup id of the top of the subtree that roots are looked for in; [`HIERARCHY_ROOT`]: anywhere.
    pub subtree: u64,
    /// The pid namespace whose pids records have, by its inode number; none: the initial one.
    pub pid_namespace: Option<u32>,
    /// What is tracked besides `kubepods` and `*-kubepods*`.
    pub roots: Vec<RootPattern>,
    /// Hooks that are not to be used.
    pub exclude: Vec<Exclusion>,
    /// Hooks at system calls may be used: they cost every process of the node something.
    pub syscalls: bool,
    /// Whether charges of memory are recorded.
    pub charges: Charges,
    /// This process is known to be charged for its memory: a function that the kernel does not call meanwhile is none of charges.
    pub is_charged: bool,
    /// What the programs log of their decisions.
    pub log: ProbeLog,
    /// The lock of the only instance. It says whose ledger goes with what is pinned; taking it is up to the caller.
    pub lock_file: Option<PathBuf>,
    /// Where maps, programs and links are pinned, in a BPF file system; none: they end with the process.
    pub pins: Option<PathBuf>,
}

impl Settings {
    /// How many lives of containers the ring of lifecycle records holds, about, while no daemon reads it.
    pub fn lives_held(&self) -> u32 {
        /// Bytes of the records of a life.
        const LIFE: u32 = 1331;
        self.lifecycle_ring.get() / LIFE
    }
}

impl Default for Settings {
    fn default() -> Self {
        const fn size(value: u32) -> NonZeroU32 {
            NonZeroU32::new(value).expect("not zero")
        }
        Self {
            // 6,000 lives without a reader.
            lifecycle_ring: size(8 << 20),
            tasks_ring: size(8 << 20),
            forks_ring: size(2 << 20),
            tracked_capacity: size(65_536),
            top: HIERARCHY_ROOT,
            subtree: HIERARCHY_ROOT,
            pid_namespace: None,
            roots: Vec::new(),
            exclude: Vec::new(),
            syscalls: false,
            charges: Charges::Across(Thresholds::default()),
            is_charged: false,
            log: ProbeLog::Off,
            lock_file: None,
            pins: None,
        }
    }
}

/// Whether charges of memory are recorded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Charges {
    /// Those that cross one of these thresholds.
    Across(Thresholds),
    /// None is wanted.
    Off,
    /// Memory is accounted in a hierarchy of cgroup v1, of which no cgroup is tracked.
    Untracked,
}

/// What the programs log of their decisions, as the target `kwitness_probes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeLog {
    /// Nothing: the verifier cuts the logging out.
    Off,
    /// What they could not do.
    Warn,
    /// What they take up and let go, too.
    Debug,
}

impl ProbeLog {
    /// The level as the programs compare it; 0 is below every level.
    pub(super) const fn level(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Warn => aya_log::Level::Warn as u8,
            Self::Debug => aya_log::Level::Debug as u8,
        }
    }
}

/// What makes a cgroup a root of the tracked set: the beginning of its name (`docker-`), or, starting with `/`, of its path
/// from the root of the cgroup hierarchy (`/machine.slice/libpod-`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RootPattern(String);

/// Most patterns that can be configured.
pub const MAX_ROOTS: u32 = 64;

/// Why a text is no root pattern.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RootPatternError {
    /// It would match every cgroup.
    #[error(
        "a root pattern that is empty or only `/` would track every cgroup of the node; name what to track"
    )]
    MatchesEverything,
    /// The kernel side has no room for it.
    #[error("a root pattern has at most {} bytes", PATTERN_CAP - 1)]
    TooLong,
    /// A name with a slash in it matches nothing.
    #[error("`{0}` matches nothing: a cgroup's name has no `/`, and a path begins with one")]
    SlashInName(String),
    /// No name or path contains a NUL.
    #[error("a root pattern contains no NUL")]
    Nul,
}

impl RootPattern {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it makes the cgroup of that path, from the root of the hierarchy, a root: the kernel side's rule, for
    /// those who scan.
    pub fn matches(&self, path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        if self.is_path() { path.starts_with(&self.0) } else { name.starts_with(&self.0) }
    }

    /// Whether it is the beginning of a path, not of a name.
    pub fn is_path(&self) -> bool {
        self.0.starts_with('/')
    }

    /// The key of the kernel's map: its text, and how many bits of it count.
    pub(super) fn key(&self) -> (u32, Pattern) {
        let mut text = [0; PATTERN_CAP];
        text[..self.0.len()].copy_from_slice(self.0.as_bytes());
        (8 * self.0.len() as u32, text)
    }
}

impl FromStr for RootPattern {
    type Err = RootPatternError;

    fn from_str(text: &str) -> Result<Self, RootPatternError> {
        if text.is_empty() || text == "/" {
            Err(RootPatternError::MatchesEverything)
        } else if text.len() >= PATTERN_CAP {
            Err(RootPatternError::TooLong)
        } else if text.contains('\0') {
            Err(RootPatternError::Nul)
        } else if !text.starts_with('/') && text.contains('/') {
            Err(RootPatternError::SlashInName(text.to_owned()))
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

impl fmt::Display for RootPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> RootPattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_pattern_is_the_beginning_of_a_name_or_a_path() {
        assert!(pattern("docker-").matches("/system.slice/docker-abc.scope"));
        assert!(!pattern("docker-").matches("/docker-x/other"));
        assert!(pattern("/machine.slice/libpod-").matches("/machine.slice/libpod-abc.scope"));
        assert!(!pattern("/machine.slice/libpod-").matches("/x/machine.slice/libpod-abc.scope"));
    }

    #[test]
    fn a_pattern_that_cannot_mean_anything_is_refused() {
        for (text, error) in [
            ("", RootPatternError::MatchesEverything),
            ("/", RootPatternError::MatchesEverything),
            ("a/b", RootPatternError::SlashInName("a/b".to_owned())),
            ("a\0", RootPatternError::Nul),
            (&"x".repeat(PATTERN_CAP), RootPatternError::TooLong),
        ] {
            assert_eq!(text.parse::<RootPattern>(), Err(error), "{text:?}");
        }
        assert!("x".repeat(PATTERN_CAP - 1).parse::<RootPattern>().is_ok());
    }
}
