//! The contract between the BPF programs and user space: one `repr(C)` struct a record kind, the counters of
//! what was lost, the value types of the shared maps, and [`KernelLayout`], the offsets that user space
//! resolves from the running kernel's BTF.
//!
//! Owns the layout of every byte that crosses the border. Never interprets one: decoding is
//! `kwitness_core::decode`, resolving offsets is `kwitness::probe`.
//!
//! Rules: integers only, padding spelled out, no enum in a record (an unknown tag must not be undefined
//! behaviour), sizes and alignments asserted below.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod charge;
mod guard;
mod layout;
mod limits;
mod record;

pub use charge::*;
pub use guard::*;
pub use layout::*;
pub use limits::*;
pub use record::*;

/// Bytes of a cgroup path that a record carries, the terminating NUL included.
pub const PATH_CAP: usize = 512;
/// Bytes of an executed file's name that a record carries, the terminating NUL included.
pub const FILENAME_CAP: usize = 256;
/// `TASK_COMM_LEN` of `include/linux/sched.h`.
pub const COMM_LEN: usize = 16;
/// Bytes of a [`Pattern`], the terminating NUL included.
pub const PATTERN_CAP: usize = 128;

/// The id of the cgroup v2 hierarchy's root, on every kernel: its first node.
pub const HIERARCHY_ROOT: u64 = 1;

/// A configured root of the tracked set, NUL-padded: the data of a key of the longest-prefix-match map `ROOTS`,
/// whose `prefix_len` counts the bits of the text without its NUL.
///
/// The text is either the beginning of a cgroup's name (`docker-`) or, if it starts with `/`, of its path from
/// the root of the hierarchy.
pub type Pattern = [u8; PATTERN_CAP];

/// The kinds of record, the value of [`Header::kind`].
///
/// Never stored in a record as this type: a record carries the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum RecordKind {
    /// A tracked cgroup was made: [`CgroupMkdir`].
    CgroupMkdir = 1,
    /// A tracked cgroup was removed; dying tasks may still be in it: [`CgroupRemoved`].
    CgroupRmdir = 2,
    /// The last reference to a tracked cgroup went: [`CgroupRemoved`].
    CgroupRelease = 3,
    /// A process was moved into a tracked cgroup: [`CgroupAttach`].
    CgroupAttach = 4,
    /// A tracked cgroup's subtree got its first process or lost its last: [`CgroupPopulated`].
    CgroupPopulated = 5,
    /// A process (never a thread) was made in a tracked cgroup: [`TaskFork`].
    TaskFork = 6,
    /// A process in a tracked cgroup executed a program: [`TaskExec`].
    TaskExec = 7,
    /// A process in a tracked cgroup is gone, its last thread included: [`TaskExit`].
    TaskExit = 8,
    /// A write to a limit file begins: [`LimitWrite`].
    LimitWriteBegan = 9,
    /// A write to a limit file has returned: [`LimitWrite`].
    LimitWriteReturned = 10,
    /// A process in a tracked cgroup was OOM-killed: [`OomKill`].
    OomKill = 11,
    /// A charge of memory changed how many thresholds of its limit a level is above: [`MemoryCharge`].
    MemoryCharge = 12,
}

impl RecordKind {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 12] = [
        Self::CgroupMkdir,
        Self::CgroupRmdir,
        Self::CgroupRelease,
        Self::CgroupAttach,
        Self::CgroupPopulated,
        Self::TaskFork,
        Self::TaskExec,
        Self::TaskExit,
        Self::LimitWriteBegan,
        Self::LimitWriteReturned,
        Self::OomKill,
        Self::MemoryCharge,
    ];

    /// The kind of that number, if there is one.
    pub const fn from_u16(raw: u16) -> Option<Self> {
        if raw == 0 || raw as usize > Self::ALL.len() {
            return None;
        }
        Some(Self::ALL[raw as usize - 1])
    }

    /// The kind's place in [`Counters::lost`].
    pub const fn index(self) -> usize {
        self as usize - 1
    }

    /// The kind's name in logs, metrics and the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CgroupMkdir => "cgroup_mkdir",
            Self::CgroupRmdir => "cgroup_rmdir",
            Self::CgroupRelease => "cgroup_release",
            Self::CgroupAttach => "cgroup_attach",
            Self::CgroupPopulated => "cgroup_populated",
            Self::TaskFork => "task_fork",
            Self::TaskExec => "task_exec",
            Self::TaskExit => "task_exit",
            Self::LimitWriteBegan => "limit_write_began",
            Self::LimitWriteReturned => "limit_write_returned",
            Self::OomKill => "oom_kill",
            Self::MemoryCharge => "memory_charge",
        }
    }

    /// The size of the kind's record in bytes, its header included.
    pub const fn record_size(self) -> usize {
        match self {
            Self::CgroupMkdir => size_of::<CgroupMkdir>(),
            Self::CgroupRmdir | Self::CgroupRelease => size_of::<CgroupRemoved>(),
            Self::CgroupAttach => size_of::<CgroupAttach>(),
            Self::CgroupPopulated => size_of::<CgroupPopulated>(),
            Self::TaskFork => size_of::<TaskFork>(),
            Self::TaskExec => size_of::<TaskExec>(),
            Self::TaskExit => size_of::<TaskExit>(),
            Self::LimitWriteBegan | Self::LimitWriteReturned => size_of::<LimitWrite>(),
            Self::OomKill => size_of::<OomKill>(),
            Self::MemoryCharge => size_of::<MemoryCharge>(),
        }
    }
}

/// What the kernel side could not deliver; the value of an array with one element for each CPU. Nothing but `u64`, for user
/// space reads it while it is being counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// Records that found their ring full, by [`RecordKind::index`].
    pub lost: [u64; RecordKind::ALL.len()],
    /// Cgroups that could not be tracked because the tracked set was full: they and all below them are unseen.
    pub untracked: u64,
    /// Suppressed writes to limit files, each beyond its cgroup's [`Budget`].
    pub suppressed: u64,
    /// How often the program at charges of memory ran. No loss: with it, user space finds out how dear it is.
    pub charges: u64,
}

impl Counters {
    /// What was lost or suppressed, without what only says how often a program ran.
    pub const fn losses(self) -> Self {
        Self { charges: 0, ..self }
    }
}

/// The value of the tracked set; its key is the cgroup v2 id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tracked {
    /// `TRACKED_*`.
    pub flags: u32,
    /// With [`TRACKED_CONTAINED`], the container, by its [`container_number`]; otherwise zero.
    pub container: u32,
}

/// Of a container whose cgroup has that id, the lower half. The kernel gives it to one cgroup at a time.
pub const fn container_number(cgroup: u64) -> u32 {
    cgroup as u32
}

/// Whose lost records of which kind are counted: the key of the map `LOST`, whose value is how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LostOf {
    /// [`Tracked::container`].
    pub container: u32,
    /// A [`RecordKind`] as a number.
    pub kind: u32,
}

/// [`Tracked::flags`]: a program that is not the runtime's own has run in this cgroup, see [`FLAG_FIRST`].
///
/// A cgroup made below inherits it: what a container's own init starts in groups of its own is no container's
/// first program. It ends when the cgroup loses its last process, unless it came by inheritance: a cgroup that is
/// filled again starts again.
pub const TRACKED_STARTED: u32 = 1 << 0;
/// [`Tracked::flags`]: the cgroup, or one above it, is named as the kubelet's cgroup of pods is, and root made that. A container
/// in it is a pod's.
pub const TRACKED_POD: u32 = 1 << 1;
/// [`Tracked::flags`]: the cgroup is a container's, or lies in one: with [`TRACKED_POD`] in the first of a pod from the root on,
/// otherwise in the first outside of pods.
pub const TRACKED_CONTAINED: u32 = 1 << 2;
/// [`Tracked::flags`]: it is counted as one of those that its container holds.
pub const TRACKED_COUNTED: u32 = 1 << 3;

/// Containers whose shares of the tracked set are distinguished: the map `SHARES` has so many elements, which count the cgroups
/// that are tracked *in* each container, and one more, at this index, that counts all that are tracked.
///
/// A container's element is its number modulo this. The kernel gives ids out in turn, so that two containers have one
/// element, and then one share, only by chance; even then the containers' own cgroups are tracked, for no share bounds these.
pub const SHARES: u32 = 1 << 16;

/// Of a container with that [`container_number`], the element of the map `SHARES`.
pub const fn share_of(container: u32) -> u32 {
    container & (SHARES - 1)
}

/// Whether each of the eight bytes is a hexadecimal digit, as the runtimes write them: in lower case.
pub const fn is_hexadecimal(word: u64) -> bool {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const TOP: u64 = 0x80 * EACH;
    // The top bit of each byte that is not below the bound; for bytes without one.
    const fn from(word: u64, bound: u8) -> u64 {
        ((word | TOP) - bound as u64 * EACH) & TOP
    }
    let digits = from(word, b'0') & !from(word, b'9' + 1);
    let letters = from(word, b'a') & !from(word, b'f' + 1);
    word & TOP == 0 && digits | letters == TOP
}

/// Whether one more cgroup may be tracked in a container that holds so many while so many of `capacity` are tracked: it must hold
/// less than what is free. See `kwitness_core::shares`, which has the same rule, and says why it is this one.
///
/// The counts are of the same moment approximately, hence signed.
pub const fn may_track(held: i64, tracked: i64, capacity: u32) -> bool {
    held < capacity as i64 - tracked
}

/// Names a process for good: a key of the kernel side's own maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessKey {
    /// [`Process::start_boottime`].
    pub start_boottime: u64,
    /// Its process id (thread-group id) in the initial pid namespace, whichever one records have.
    pub pid: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = {
    assert!(size_of::<Header>() == 24 && align_of::<Header>() == 8);
    assert!(size_of::<Actor>() == 24);
    assert!(size_of::<Process>() == 40);
    assert!(size_of::<CgroupMkdir>() == 24 + 8 + 24 + 8 + PATH_CAP);
    assert!(size_of::<CgroupRemoved>() == 24 + 24);
    assert!(size_of::<CgroupAttach>() == 24 + 40 + 24);
    assert!(size_of::<CgroupPopulated>() == 24 + 8);
    assert!(size_of::<TaskFork>() == 24 + 40);
    assert!(size_of::<TaskExec>() == 24 + 40 + 8 + FILENAME_CAP);
    assert!(size_of::<TaskExit>() == 24 + 40 + 8);
    assert!(size_of::<Counters>() == 8 * (RecordKind::ALL.len() + 3));
    assert!(size_of::<Tracked>() == 8);
    assert!(size_of::<ProcessKey>() == 16);
    assert!(size_of::<LostOf>() == 8);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_holds_less_than_what_is_free_may_take_more() {
        assert!(may_track(0, 0, 1) && !may_track(0, 1, 1) && !may_track(5, 5, 10) && may_track(4, 5, 10));
        // Counts that were read in between of two changes.
        assert!(may_track(-1, 10, 10) && may_track(10, -1, 10) && !may_track(0, 11, 10));
        assert_eq!((share_of(5), share_of(SHARES + 5)), (5, 5));
        assert_eq!(container_number(7 << 32 | 1 << 20 | 5), 1 << 20 | 5);
    }

    #[test]
    fn hexadecimal_digits_are_those_of_lower_case() {
        for byte in 0..=u8::MAX {
            for place in 0..8 {
                let mut word = *b"0fa9b1e7";
                word[place] = byte;
                let expected = matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                assert_eq!(is_hexadecimal(u64::from_le_bytes(word)), expected, "{byte:#x} at {place}");
            }
        }
    }

    #[test]
    fn kinds_round_trip_by_number() {
        for (index, kind) in RecordKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), index);
            assert_eq!(RecordKind::from_u16(kind as u16), Some(kind));
        }
        assert_eq!(RecordKind::from_u16(0), None);
        assert_eq!(RecordKind::from_u16(RecordKind::ALL.len() as u16 + 1), None);
    }
}
