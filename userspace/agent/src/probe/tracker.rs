//! The user side of the tracked set: what a scan adds to it, and the count of what each container holds of it.
//!
//! Owns the maps `TRACKED` and `ANCESTORS`, and the mapping of `SHARES`. The kernel side decides what is tracked of what is made
//! later; see `ebpf/probes/src/cgroup.rs`.

use std::{
    collections::BTreeSet,
    io,
    num::NonZeroUsize,
    os::fd::AsFd as _,
    ptr::NonNull,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use aya::maps::{Array, HashMap, IterableMap as _, Map, MapData, MapError};
use kwitness_abi::{
    SHARES, TRACKED_CONTAINED, TRACKED_COUNTED, TRACKED_POD, TRACKED_STARTED, Tracked, container_number,
    share_of,
};
use nix::{
    libc::c_void,
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};

use super::error::{ProbeError, Result};

/// `BPF_NOEXIST` of `include/uapi/linux/bpf.h`.
const BPF_NOEXIST: u64 = 1;
const EEXIST: i32 = nix::libc::EEXIST;

/// [`Tracked`] as the value of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct TrackedValue(pub(super) Tracked);

// SAFETY: `repr(C)`, integers only, without padding.
unsafe impl aya::Pod for TrackedValue {}

/// Whether a cgroup's own first program has been started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackedLife {
    /// Not yet: the next program that is not the runtime's will be the first.
    Unstarted,
    /// It has: what is executed from now on is not the first.
    Started,
}

/// What the kernel side is to know of a cgroup that existed before it, for [`Tracker::track`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackedCgroup {
    /// Whether it has been started.
    pub life: TrackedLife,
    /// Whether it lies in, or is, a cgroup of pods.
    pub in_pods: bool,
    /// The container that it is, or lies in, by its cgroup's id.
    pub container: Option<u64>,
}

impl TrackedCgroup {
    fn of(self, id: u64) -> Tracked {
        let Self { life, in_pods, container } = self;
        let flag = |holds: bool, flag: u32| if holds { flag } else { 0 };
        Tracked {
            flags: flag(life == TrackedLife::Started, TRACKED_STARTED)
                | flag(in_pods, TRACKED_POD)
                | flag(container.is_some(), TRACKED_CONTAINED)
                | flag(container.is_some_and(|container| container != id), TRACKED_COUNTED),
            container: container.map_or(0, container_number),
        }
    }
}

/// The map `SHARES`, in this process's memory: see [`kwitness_abi::SHARES`].
pub(super) struct SharesView {
    address: NonNull<c_void>,
}

// SAFETY: what is there is accessed atomically only, and stays where it is until it is dropped.
unsafe impl Send for SharesView {}
// SAFETY: as above.
unsafe impl Sync for SharesView {}

impl SharesView {
    const ELEMENTS: usize = SHARES as usize + 1;
    const BYTES: NonZeroUsize = NonZeroUsize::new(Self::ELEMENTS * size_of::<AtomicI64>()).expect("not zero");

    pub(super) fn new(map: &Map) -> std::result::Result<Self, MapError> {
        let array = Array::<&MapData, i64>::try_from(map)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses; of a map with fewer elements it is refused.
        let address =
            unsafe { mmap(None, Self::BYTES, access, MapFlags::MAP_SHARED, array.map().fd().as_fd(), 0) };
        let address = address
            .map_err(|errno| MapError::IoError(io::Error::other(format!("mmap(2) of the map: {errno}"))))?;
        Ok(Self { address })
    }

    /// An element of the tracked set has become another, or came, or went.
    pub(super) fn count(&self, before: Option<Tracked>, after: Option<Tracked>) {
        for (tracked, change) in [(before, -1), (after, 1)] {
            let Some(Tracked { flags, container }) = tracked else { continue };
            self.element(SHARES).fetch_add(change, Ordering::Relaxed);
            if flags & TRACKED_COUNTED != 0 {
                self.element(share_of(container)).fetch_add(change, Ordering::Relaxed);
            }
        }
    }

    fn element(&self, index: u32) -> &AtomicI64 {
        assert!(index <= SHARES, "an element of the map");
        // SAFETY: within the mapping, aligned, and accessed in whole words by the kernel side, too.
        unsafe { self.address.cast::<AtomicI64>().add(index as usize).as_ref() }
    }
}

impl Drop for SharesView {
    fn drop(&mut self) {
        // SAFETY: the mapping made above, which is not used any more. It cannot fail with these arguments.
        let _ = unsafe { munmap(self.address, Self::BYTES.get()) };
    }
}

/// The tracked set of the running programs. Clones share it: a scan adds to it while the rings are being read.
#[derive(Clone)]
pub struct Tracker(Arc<Mutex<Tracking>>);

/// The tracked set at some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The tracked cgroups.
    pub tracked: BTreeSet<u64>,
    /// Those above them whose limits are watched.
    pub above: BTreeSet<u64>,
}

struct Tracking {
    tracked: HashMap<MapData, u64, TrackedValue>,
    ancestors: HashMap<MapData, u64, u8>,
    shares: SharesView,
}

impl Tracker {
    /// The set that these maps are.
    pub(super) fn new(mut map: impl FnMut(&'static str) -> Result<Map>) -> Result<Self> {
        fn failed(name: &str) -> impl FnOnce(MapError) -> ProbeError {
            move |source| ProbeError::Map { map: name.to_owned(), source }
        }
        Ok(Self(Arc::new(Mutex::new(Tracking {
            tracked: HashMap::try_from(map("TRACKED")?).map_err(failed("TRACKED"))?,
            ancestors: HashMap::try_from(map("ANCESTORS")?).map_err(failed("ANCESTORS"))?,
            shares: SharesView::new(&map("SHARES")?).map_err(failed("SHARES"))?,
        }))))
    }

    /// What is tracked and what is above it by now, about `most` of each at most.
    ///
    /// The keys are listed, not looked up: while a system call looks up or writes an element, the kernel skips the programs of
    /// classic tracepoints on that CPU (`bpf_disable_instrumentation` of `include/linux/bpf.h`), also those of a task that preempts
    /// the call.
    pub fn listed(&self, most: usize) -> Listed {
        let tracking = self.lock();
        // A key that goes away makes the kernel begin again. What is missing here is added once more, which changes nothing.
        Listed {
            tracked: tracking.tracked.keys().take(most).filter_map(std::result::Result::ok).collect(),
            above: tracking.ancestors.keys().take(most).filter_map(std::result::Result::ok).collect(),
        }
    }

    /// Adds a cgroup that existed before the probes to the tracked set. One that the kernel side tracks already stays
    /// as it is: false.
    ///
    /// A scan adds a cgroup *before* it lists what is below it: then each child is either listed, or made later and tracked
    /// by the kernel side, or both.
    pub fn track(&self, id: u64, cgroup: TrackedCgroup) -> io::Result<bool> {
        let Tracking { tracked, shares, .. } = &mut *self.lock();
        let value = cgroup.of(id);
        match tracked.insert(id, TrackedValue(value), BPF_NOEXIST) {
            Ok(()) => {
                shares.count(None, Some(value));
                Ok(true)
            }
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(EEXIST) => Ok(false),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Takes a cgroup out of the tracked set: one that a scan added and that was gone by then, so that the kernel will never
    /// report its release.
    pub fn untrack(&self, id: u64) -> io::Result<()> {
        let Tracking { tracked, shares, .. } = &mut *self.lock();
        let removed = tracked.get(&id, 0).and_then(|TrackedValue(value)| tracked.remove(&id).map(|()| value));
        match removed {
            Ok(value) => {
                shares.count(Some(value), None);
                Ok(())
            }
            Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Whether a cgroup is in the tracked set.
    pub fn is_tracked(&self, id: u64) -> bool {
        self.lock().tracked.get(&id, 0).is_ok()
    }

    /// Has the limits of a cgroup watched that is above tracked ones.
    pub fn track_above(&self, id: u64) -> io::Result<()> {
        self.lock().ancestors.insert(id, 0, 0).map_err(io::Error::other)
    }

    /// Whether the limits of a cgroup are watched: it is tracked, or above one that is.
    pub fn is_watched(&self, id: u64) -> bool {
        let tracking = self.lock();
        tracking.tracked.get(&id, 0).is_ok() || tracking.ancestors.get(&id, 0).is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, Tracking> {
        // What it guards is the kernel's: a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_counted_in_the_container_that_it_lies_in() {
        let of =
            |container, id| TrackedCgroup { life: TrackedLife::Unstarted, in_pods: true, container }.of(id);
        let inside = TRACKED_POD | TRACKED_CONTAINED;
        assert_eq!(of(None, 7), Tracked { flags: TRACKED_POD, container: 0 });
        assert_eq!(of(Some(7), 7), Tracked { flags: inside, container: 7 }, "its own cgroup is not in it");
        assert_eq!(of(Some(7), 8), Tracked { flags: inside | TRACKED_COUNTED, container: 7 });
    }
}
