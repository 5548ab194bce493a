//! From the programs of one layout to those of another, without a gap.
//!
//! ```text
//!  copy ──▶ attach the new programs ──▶ copy again ──▶ read the old rings ──▶ hand over: read the new rings, from their beginning
//!           began                       whole          for a second and more   the new set is complete, the old one removed
//! ```
//!
//! From `whole` on, everything is in both sets' records. The daemon goes on with the old ones, so that a crash before the handover
//! costs nothing: the next daemon finds the old set as complete as ever, and a new one that is incomplete. What it has taken from the
//! old rings, it recognizes in the new ones ([`kwitness_core::seam`]).
//!
//! What the programs remember goes with them: which cgroups are tracked, and whether a container's own program has been started in
//! each; which are above them; which processes are such programs. Each write of it is a bpf(2) call, see
//! [`Tracker::listed`](super::Tracker::listed) for what that costs on newer kernels. What they remember of a write to a limit
//! file or of an OOM kill lasts as long as that does; one that has begun before `began` and is not over by the handover is not seen to
//! return.
//!
//! Owns the copying, and the old programs' descriptors. Never reads a ring.

use std::{io, path::PathBuf};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, Map, MapData, MapError},
};
use kwitness_abi::{ProcessKey, TRACKED_STARTED, Tracked};
use kwitness_core::model::KernelTime;

use super::{
    capability::{CAPABILITIES, Hook, Tracepoints},
    choice::AttachedProgram,
    error::{ProbeError, Result},
    pins::{self, Old, Paths},
    stats::StatsReader,
    tracker::{SharesView, TrackedValue},
};

/// How often a map is copied again, and an element is compared again, that change meanwhile.
const ATTEMPTS: usize = 16;
/// `BPF_NOEXIST` and `BPF_EXIST` of `include/uapi/linux/bpf.h`.
const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;
/// Keys that are listed at most: more than the maps hold, for a key that goes away makes the kernel begin again.
const KEYS: usize = 1 << 21;

/// [`ProcessKey`] as the key of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct ProcessKeyValue(ProcessKey);

// SAFETY: `repr(C)`, integers only, padding spelled out.
unsafe impl Pod for ProcessKeyValue {}

/// When two sets of programs began to run side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// Before the first of the new programs was attached: of what was earlier, only the old ones have records.
    pub began: KernelTime,
    /// After the last was: of what is later, both have.
    pub whole: KernelTime,
}

/// What the new programs do while the old ones' maps are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meanwhile {
    /// Nothing: what changes is copied the next time.
    NotAttached,
    /// They track what is made below what they know.
    Attached,
}

/// The old programs, attached.
pub(super) struct OldPrograms {
    pub(super) old: Old,
    pub(super) programs: Vec<AttachedProgram>,
}

impl OldPrograms {
    /// Holds the old programs and their links, so that they run on.
    pub(super) fn open(old: Old, tracepoints: Tracepoints) -> Result<Self> {
        let mut programs = Vec::new();
        for capability in &CAPABILITIES {
            let hook = old.paths().hook(capability, tracepoints);
            for name in hook.iter().flat_map(Hook::programs) {
                let open = |path: PathBuf| {
                    pins::object(&path).map_err(|source| ProbeError::Program { program: name, source })
                };
                let (fd, link) = (open(old.paths().program(name))?, Some(open(old.paths().link(name))?));
                let stats = StatsReader::new(name, fd);
                programs.push(AttachedProgram { capability: capability.name, stats, _link: link });
            }
        }
        Ok(Self { old, programs })
    }

    /// Whether they serve a capability.
    pub(super) fn serve(&self, capability: &str) -> bool {
        self.programs.iter().any(|program| program.capability == capability)
    }

    /// Has the new programs know what these do. Fails if they would still miss something once they are attached.
    pub(super) fn copy_to(&self, ebpf: &mut Ebpf, new: Meanwhile) -> Result<()> {
        let paths = self.old.paths();
        let shares = ebpf.map("SHARES").ok_or(MapError::ElementNotFound).and_then(SharesView::new);
        let shares = shares.map_err(|source| failed("SHARES", source))?;
        let count = |before: Option<TrackedValue>, after: Option<TrackedValue>| {
            shares.count(before.map(|value| value.0), after.map(|value| value.0));
        };
        let mut missing = usize::MAX;
        // Again, as long as something was missing: the new programs did not track what was made below that meanwhile.
        for _ in 0..ATTEMPTS {
            missing = copy::<u64, TrackedValue>(paths, ebpf, "TRACKED", with_life, count)?;
            if missing == 0 {
                break;
            }
        }
        if missing > 0 && new == Meanwhile::Attached {
            return Err(changes_too_fast("TRACKED"));
        }
        copy::<u64, u8>(paths, ebpf, "ANCESTORS", if_missing, |_, _| {})?;
        copy::<ProcessKeyValue, u8>(paths, ebpf, "FIRST_PROCESSES", if_missing, |_, _| {})?;
        Ok(())
    }
}

/// A new element is to be what the old one is.
fn if_missing<V>(old: V, new: Option<V>) -> Option<V> {
    new.is_none().then_some(old)
}

/// Likewise; and what has been started, is started. Whose share a cgroup is counted in, each set knows for itself.
fn with_life(TrackedValue(old): TrackedValue, new: Option<TrackedValue>) -> Option<TrackedValue> {
    let Some(TrackedValue(new)) = new else { return Some(TrackedValue(old)) };
    let differs = (old.flags ^ new.flags) & TRACKED_STARTED;
    (differs != 0).then_some(TrackedValue(Tracked { flags: new.flags ^ differs, container: new.container }))
}

/// A map of a set.
pub(super) fn map(paths: &Paths, name: &str) -> Result<Map> {
    MapData::from_pin(paths.map(name)).and_then(Map::from_map_data).map_err(|source| failed(name, source))
}

fn changes_too_fast(map: &str) -> ProbeError {
    let error = io::Error::other("it changes faster than it is copied");
    failed(map, MapError::IoError(error))
}

fn failed(map: &str, source: MapError) -> ProbeError {
    ProbeError::Map { map: map.to_owned(), source }
}

/// Makes each element that the old map has the same in the new one: what `merged` gives, if that is something. Both may change
/// meanwhile, for the same reasons: what is the old one's is final, once an element is the same in both. `changed` is called with
/// what was there before and is after. How many were missing.
fn copy<K: Pod, V: Pod>(
    paths: &Paths,
    ebpf: &mut Ebpf,
    name: &str,
    merged: impl Fn(V, Option<V>) -> Option<V>,
    changed: impl Fn(Option<V>, Option<V>),
) -> Result<usize> {
    let from = HashMap::<_, K, V>::try_from(map(paths, name)?).map_err(|source| failed(name, source))?;
    let to = ebpf.map_mut(name).ok_or(MapError::ElementNotFound).and_then(HashMap::<_, K, V>::try_from);
    let mut to = to.map_err(|source| failed(name, source))?;
    let keys: std::result::Result<Vec<K>, MapError> = from.keys().take(KEYS).collect();
    let keys = keys.map_err(|source| failed(name, source))?;
    if keys.len() == KEYS {
        return Err(changes_too_fast(name));
    }
    let mut missing = 0;
    for key in keys {
        let was_missing = copy_element(&from, &mut to, &key, &merged, &changed);
        missing += usize::from(was_missing.map_err(|source| failed(name, source))?);
    }
    Ok(missing)
}

/// Whether it was missing.
fn copy_element<K: Pod, V: Pod>(
    from: &HashMap<MapData, K, V>,
    to: &mut HashMap<&mut MapData, K, V>,
    key: &K,
    merged: impl Fn(V, Option<V>) -> Option<V>,
    changed: impl Fn(Option<V>, Option<V>),
) -> std::result::Result<bool, MapError> {
    let mut was_missing = false;
    for _ in 0..ATTEMPTS {
        let (old, new) = (get(from.get(key, 0))?, get(to.get(key, 0))?);
        let (after, done) = match (old, new) {
            (None, None) => break,
            (Some(old), new) => {
                let Some(value) = merged(old, new) else { break };
                was_missing |= new.is_none();
                let only_if = if new.is_none() { BPF_NOEXIST } else { BPF_EXIST };
                (Some(value), to.insert(key, value, only_if))
            }
            // It has gone since it was listed, and its end was before the new programs: they will not see it.
            (None, Some(_)) => (None, to.remove(key)),
        };
        match done {
            Ok(()) => changed(new, after),
            Err(error) if is_other_by_now(&error) => {}
            Err(error) => return Err(error),
        }
    }
    // One that changes faster than it is copied, both sides see change.
    Ok(was_missing)
}

fn get<V>(found: std::result::Result<V, MapError>) -> std::result::Result<Option<V>, MapError> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The new programs have added or removed the element meanwhile.
fn is_other_by_now(error: &MapError) -> bool {
    use io::ErrorKind::{AlreadyExists, NotFound};
    matches!(error, MapError::SyscallError(error) if matches!(error.io_error.kind(), AlreadyExists | NotFound))
}

#[cfg(test)]
mod tests {
    use kwitness_abi::{TRACKED_COUNTED, TRACKED_POD};

    use super::*;

    #[test]
    fn a_copied_element_keeps_whose_share_it_is_counted_in() {
        let value = |flags, container| TrackedValue(Tracked { flags, container });
        let merged = |old, new| {
            with_life(old, new).map(|TrackedValue(Tracked { flags, container })| (flags, container))
        };
        let counted = TRACKED_POD | TRACKED_COUNTED;
        assert_eq!(merged(value(counted, 7), None), Some((counted, 7)), "as it was, if it is missing");
        assert_eq!(merged(value(0, 0), Some(value(counted, 7))), None);
        let started = Some((counted | TRACKED_STARTED, 7));
        assert_eq!(merged(value(TRACKED_STARTED, 0), Some(value(counted, 7))), started);
        assert_eq!(merged(value(0, 0), Some(value(counted | TRACKED_STARTED, 7))), Some((counted, 7)));
    }
}
