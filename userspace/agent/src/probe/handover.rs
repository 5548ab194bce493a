//! From the programs of one layout to those of another, without a gap.
//!
//! ```text
//!  copy ──▶ attach the new programs ──▶ copy again ──▶ read the old rings ──▶ hand over: read the new rings, from their beginning
//!           began                       whole          for a second and more   the new set is complete, the old one removed
//! ```
//!
//! From `whole` on, everything is in both sets' records. The daemon goes on with the old ones, so that a crash before the handover
//! costs nothing: the next daemon finds the old set as complete as ever, and a new one that is half made. What it has taken from the
//! old rings, it recognizes in the new ones ([`kwitness_core::seam`]).
//!
//! What the programs remember goes with them: which cgroups are tracked, and whether a container's own program has been started in
//! each; which are above them; which processes are such programs. Each write of it is a bpf(2) call, see
//! [`Tracker::listed`](super::ring::Tracker::listed) for what that costs on newer kernels. What they remember of a write to a limit
//! file or of an OOM kill lasts as long as that does; one that has begun before `began` and is not over by the handover is not seen to
//! return.
//!
//! Owns the copying, and the old programs' descriptors. Never reads a ring.

use std::{io, path::PathBuf};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, Map, MapData, MapError},
};
use kwitness_abi::ProcessKey;
use kwitness_core::model::KernelTime;

use super::{
    capability::{CAPABILITIES, Hook, Tracepoints},
    error::{ProbeError, Result},
    loader::AttachedProgram,
    pins::{self, Old, Paths},
    ring::TrackedValue,
};

/// How often a map is copied again, and an element is compared again, that change meanwhile.
const ATTEMPTS: usize = 16;
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
                programs.push(AttachedProgram { capability: capability.name, name, fd, _link: link });
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
        let mut missing = usize::MAX;
        // Again, as long as something was missing: the new programs did not track what was made below that meanwhile.
        for _ in 0..ATTEMPTS {
            missing = copy::<u64, TrackedValue>(paths, ebpf, "TRACKED", |one, other| one.0 == other.0)?;
            if missing == 0 {
                break;
            }
        }
        if missing > 0 && new == Meanwhile::Attached {
            return Err(changes_too_fast("TRACKED"));
        }
        copy::<u64, u8>(paths, ebpf, "ANCESTORS", |_, _| true)?;
        copy::<ProcessKeyValue, u8>(paths, ebpf, "FIRST_PROCESSES", |_, _| true)?;
        Ok(())
    }
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

/// Makes each element that the old map has the same in the new one. Both may change meanwhile, for the same reasons: what is the old
/// one's is final, once an element is the same in both. How many were missing.
fn copy<K: Pod, V: Pod>(
    paths: &Paths,
    ebpf: &mut Ebpf,
    name: &str,
    is_same: impl Fn(&V, &V) -> bool,
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
        let was_missing = copy_element(&from, &mut to, &key, &is_same);
        missing += usize::from(was_missing.map_err(|source| failed(name, source))?);
    }
    Ok(missing)
}

/// Whether it was missing.
fn copy_element<K: Pod, V: Pod>(
    from: &HashMap<MapData, K, V>,
    to: &mut HashMap<&mut MapData, K, V>,
    key: &K,
    is_same: impl Fn(&V, &V) -> bool,
) -> std::result::Result<bool, MapError> {
    let mut was_missing = false;
    for _ in 0..ATTEMPTS {
        match (get(from.get(key, 0))?, get(to.get(key, 0))?) {
            (None, None) => break,
            (Some(old), Some(new)) if is_same(&old, &new) => break,
            (Some(old), new) => {
                was_missing |= new.is_none();
                to.insert(key, old, 0)?;
            }
            // It has gone since it was listed, and its end was before the new programs: they will not see it.
            (None, Some(_)) => match to.remove(key) {
                Ok(()) => {}
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(error),
            },
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

fn is_missing(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.kind() == io::ErrorKind::NotFound)
}
