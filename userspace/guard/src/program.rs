//! The BPF program and its maps: loading, arming, the lease, who is held.
//!
//! Owns the object and every access to its maps. Decides nothing: what is written there comes from [`crate::policy`], and who
//! is continued is decided elsewhere. All `unsafe` of the guard is here.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::pin::PinError;
use aya::programs::{FEntry, KProbe, ProgramError as AyaProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use kwitness_abi::{Armed, GUARD_LEVELS, GuardLayout, Hold, Lease, ProcessKey, Spared};
use kwitness_api::causes;
use kwitness_btf::{BTF_PATH, Btf, BtfError};
use kwitness_service::charge_calls::Flaw;
use nix::time::{ClockId, clock_gettime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::calls;
use crate::layout;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/kwitness-guard.o"));

/// How long the program may hold processes after a heartbeat.
pub const LEASE: Duration = Duration::from_millis(1000);

/// The function that charges pages to a cgroup.
const TARGET: &str = "page_counter_try_charge";

/// Values of the maps, for `aya::Pod` is a foreign trait.
macro_rules! pod {
    ($($name:ident($type:ty);)*) => {$(
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        struct $name($type);

        // SAFETY: `repr(C)`, integers only, without padding (asserted in the abi crate).
        unsafe impl aya::Pod for $name {}
    )*};
}

pod! {
    LayoutValue(GuardLayout);
    LeaseValue(Lease);
    ArmedValue(Armed);
    KeyValue(ProcessKey);
    HoldValue(Hold);
}

/// Why the program cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The kernel does not publish its types.
    #[error("cannot read {BTF_PATH}: use a kernel built with CONFIG_DEBUG_INFO_BTF=y, with sysfs on /sys")]
    NoBtf(#[source] io::Error),
    /// What it publishes makes no sense.
    #[error("cannot parse {BTF_PATH}: report it with the kernel's version")]
    Btf(#[from] BtfError),
    /// The pids in the records are not those of this process.
    #[error(
        "this process is not in the host's pid namespace: it could not continue what it holds. In Kubernetes, set \
         hostPID: true"
    )]
    PidNamespace,
    /// A field is not there.
    #[error("this kernel has no {}: report it with the kernel's version", .0.join(", "))]
    MissingFields(Vec<String>),
    /// The object is refused.
    #[error("cannot load the program's maps: run as root, or with CAP_BPF and CAP_PERFMON")]
    Object(#[source] EbpfError),
    /// No way to attach it.
    #[error(
        "no program can be attached to {TARGET}: fentry: {fentry}; kprobe: {kprobe}. Kernel lockdown and kernels without \
         CONFIG_KPROBES forbid both; the guard needs one of them"
    )]
    Hook {
        /// Why not by fentry.
        fentry: String,
        /// Why not by a kprobe.
        kprobe: String,
    },
    /// It would cost too much, or see nothing.
    #[error("no process can be held by {TARGET}: {0}. Report it with the kernel's version")]
    Calls(Flaw),
    /// A map cannot be read or written.
    #[error("map {name}")]
    Map {
        /// The map.
        name: &'static str,
        /// The error of the map.
        source: MapError,
    },
    /// The object has not the map that it should have.
    #[error("the object has no map {0} of the expected type: the build is broken")]
    NoMap(&'static str),
    /// The ring cannot be waited for.
    #[error("cannot wait for the ring")]
    Wait(#[source] io::Error),
    /// Lease and holds cannot be pinned.
    #[error(
        "cannot pin the records in {}: it must be in a BPF file system (`mount -t bpf bpf /sys/fs/bpf`)", directory.display()
    )]
    Pin {
        /// The directory.
        directory: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The time that the program reads: `CLOCK_BOOTTIME` in nanoseconds.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
    time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// A duration as the program counts it.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// CPUs of the node that run processes; more than there can be, if that cannot be read.
pub(crate) fn cpus() -> u64 {
    aya::util::online_cpus().map_or(u64::MAX, |cpus| cpus.len() as u64)
}

/// The names under which lease and holds are pinned.
const PINNED: [&str; 2] = ["lease", "held"];

/// Removes what is pinned there, if anything is.
fn unpin(directory: &Path) -> io::Result<()> {
    for name in PINNED {
        match std::fs::remove_file(directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Who is held, as the program recorded it, and until when anything may be held: what guard and watchdog both see.
pub struct Records {
    lease: Array<MapData, LeaseValue>,
    held: HashMap<MapData, KeyValue, HoldValue>,
}

impl Records {
    /// Every process that is recorded as held. One that is added meanwhile may be missing.
    pub fn held(&self) -> Result<Vec<(ProcessKey, Hold)>, ProgramError> {
        let error = |source| ProgramError::Map { name: "HELD", source };
        let mut seen = HashSet::new();
        let mut all = Vec::new();
        for entry in self.held.iter() {
            let (KeyValue(key), HoldValue(hold)) = entry.map_err(error)?;
            // An entry that is removed meanwhile makes the kernel begin again.
            if seen.insert((key.pid, key.start_boottime)) {
                all.push((key, hold));
            }
        }
        Ok(all)
    }

    /// The lease.
    pub fn lease(&self) -> Result<Lease, ProgramError> {
        let LeaseValue(lease) =
            self.lease.get(&0, 0).map_err(|source| ProgramError::Map { name: "LEASE", source })?;
        Ok(lease)
    }

    /// Replaces it.
    pub fn set_lease(&mut self, lease: Lease) -> Result<(), ProgramError> {
        let set = self.lease.set(0, LeaseValue(lease), 0);
        set.map_err(|source| ProgramError::Map { name: "LEASE", source })
    }

    /// Removes the record of a process that has been seen running, or is gone: it may be held again from now on.
    pub fn release(&mut self, key: ProcessKey) -> Result<(), ProgramError> {
        removed(self.held.remove(&KeyValue(key)), "HELD")
    }

    /// Those that a guard pinned in that directory; none: there are none.
    pub fn pinned(directory: &Path) -> Result<Option<Self>, ProgramError> {
        let [lease, held] = PINNED.map(|name| {
            let path = directory.join(name);
            path.exists().then(|| MapData::from_pin(path)).transpose()
        });
        let error = |name| move |source| ProgramError::Map { name, source };
        match (lease.map_err(error("LEASE"))?, held.map_err(error("HELD"))?) {
            (Some(lease), Some(held)) => Self::new(Map::Array(lease), Map::HashMap(held)).map(Some),
            _ => Ok(None),
        }
    }

    fn new(lease: Map, held: Map) -> Result<Self, ProgramError> {
        Ok(Self {
            lease: Array::try_from(lease).map_err(|source| ProgramError::Map { name: "LEASE", source })?,
            held: HashMap::try_from(held).map_err(|source| ProgramError::Map { name: "HELD", source })?,
        })
    }
}

/// The program, attached. It holds nothing until the lease is set; when this is dropped, it is gone.
pub struct Program {
    /// Keeps the program attached.
    _ebpf: Ebpf,
    /// How it is attached.
    pub hook: &'static str,
    /// Lease and holds.
    pub records: Records,
    armed: HashMap<MapData, u64, ArmedValue>,
    spared: PerCpuArray<MapData, u64>,
    calls: PerCpuArray<MapData, u64>,
    wake: AsyncFd<RingBuf<MapData>>,
    directory: PathBuf,
}

impl Program {
    /// Loads and attaches it, and pins lease and holds in that directory, whatever was pinned there. Within a tokio runtime.
    pub fn load(directory: &Path) -> Result<Self, ProgramError> {
        if !kwitness_service::in_initial_pid_namespace() {
            return Err(ProgramError::PidNamespace);
        }
        let bytes = std::fs::read(BTF_PATH).map_err(ProgramError::NoBtf)?;
        let layout =
            layout::resolve(&Btf::parse(&bytes)?, layout::nodes()).map_err(ProgramError::MissingFields)?;
        let btf = aya::Btf::parse(&bytes, aya::Endianness::default())
            .map_err(|error| ProgramError::Object(EbpfError::BtfError(error)))?;
        drop(bytes);
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("LAYOUT", &LayoutValue(layout), true)
            .load(OBJECT)
            .map_err(ProgramError::Object)?;
        let hook = attach(&mut ebpf, &btf)?;
        let mut take = |name| ebpf.take_map(name).ok_or(ProgramError::NoMap(name));
        let (lease, held) = (take("LEASE")?, take("HELD")?);
        let pin_error = |source| ProgramError::Pin { directory: directory.to_owned(), source };
        std::fs::create_dir_all(directory).and_then(|()| unpin(directory)).map_err(pin_error)?;
        for (map, name) in [&lease, &held].into_iter().zip(PINNED) {
            map.pin(directory.join(name)).map_err(|error| match error {
                PinError::SyscallError(error) => pin_error(error.io_error),
                other => pin_error(io::Error::other(other)),
            })?;
        }
        let map_error = |name| move |source| ProgramError::Map { name, source };
        let wake = RingBuf::try_from(take("WAKE")?).map_err(map_error("WAKE"))?;
        // SAFETY: the ring owns its descriptor, and nothing replaces or closes it before the `AsyncFd` is dropped.
        let wake = unsafe { AsyncFd::register_with_interest(wake, Interest::READABLE) };
        let wake = wake.map_err(|error| ProgramError::Wait(error.into()))?;
        let this = Self {
            calls: PerCpuArray::try_from(take("CALLS")?).map_err(map_error("CALLS"))?,
            armed: HashMap::try_from(take("ARMED")?).map_err(map_error("ARMED"))?,
            spared: PerCpuArray::try_from(take("SPARED")?).map_err(map_error("SPARED"))?,
            wake,
            records: Records::new(lease, held)?,
            _ebpf: ebpf,
            hook,
            directory: directory.to_owned(),
        };
        // Before the first lease, for only then the program counts.
        match calls::flaw(|| sum(&this.calls, 0, "CALLS"))? {
            Some(flaw) => this.unload().and(Err(ProgramError::Calls(flaw))),
            None => Ok(this),
        }
    }

    /// Detaches it, and removes what is pinned: nothing is held.
    pub fn unload(self) -> Result<(), ProgramError> {
        unpin(&self.directory)
            .map_err(|source| ProgramError::Pin { directory: self.directory.clone(), source })
    }

    /// Arms a cgroup, or changes how it is armed.
    pub fn arm(&mut self, cgroup_id: u64, armed: Armed) -> Result<(), ProgramError> {
        let insert = self.armed.insert(cgroup_id, ArmedValue(armed), 0);
        insert.map_err(|source| ProgramError::Map { name: "ARMED", source })
    }

    /// Disarms it, if it is armed.
    pub fn disarm(&mut self, cgroup_id: u64) -> Result<(), ProgramError> {
        removed(self.armed.remove(&cgroup_id), "ARMED")
    }

    /// How often a task above the threshold was not held, by reason; reasons that never occurred are left out.
    pub fn spared(&self) -> Result<Vec<(&'static str, u64)>, ProgramError> {
        let mut all = Vec::new();
        for reason in Spared::ALL {
            let count = sum(&self.spared, reason as u32, "SPARED")?;
            if count > 0 {
                all.push((reason.name(), count));
            }
        }
        Ok(all)
    }

    /// Waits until a process has been held. Safe to cancel.
    pub async fn woken(&self) -> io::Result<()> {
        self.wake.readable().await?.clear_ready();
        Ok(())
    }

    /// Empties the ring: what it says has been seen. The kernel wakes its reader for the next record only then.
    pub fn drain(&mut self) {
        while self.wake.get_mut().next().is_some() {}
    }
}

/// What all CPUs have counted.
fn sum(counters: &PerCpuArray<MapData, u64>, index: u32, name: &'static str) -> Result<u64, ProgramError> {
    let per_cpu = counters.get(&index, 0).map_err(|source| ProgramError::Map { name, source })?;
    Ok(per_cpu.iter().sum())
}

/// What removing an entry came to. One that is not there any more was removed by another process: by the watchdog of a dead
/// guard, which the next guard may be quicker than.
fn removed(result: Result<(), MapError>, name: &'static str) -> Result<(), ProgramError> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(nix::libc::ENOENT) => {
            Ok(())
        }
        Err(source) => Err(ProgramError::Map { name, source }),
    }
}

/// The bit of a level in [`Lease::levels`], from a cgroup's path; none: it is too deep to be armed.
pub fn level_bit(cgroup_path: &str) -> Option<u64> {
    let level = cgroup_path.split('/').filter(|name| !name.is_empty()).count();
    (level < GUARD_LEVELS as usize).then(|| 1 << level)
}

fn attach(ebpf: &mut Ebpf, btf: &aya::Btf) -> Result<&'static str, ProgramError> {
    let fentry = (|| -> Result<(), AyaProgramError> {
        let program: &mut FEntry = program(ebpf, "charge_fentry")?.try_into()?;
        program.load(TARGET, btf)?;
        program.attach().map(drop)
    })();
    let Err(fentry) = fentry else { return Ok("fentry") };
    let kprobe = (|| -> Result<(), AyaProgramError> {
        let program: &mut KProbe = program(ebpf, "charge_kprobe")?.try_into()?;
        program.load()?;
        program.attach(TARGET, 0).map(drop)
    })();
    let Err(kprobe) = kprobe else { return Ok("kprobe") };
    let words = |error: AyaProgramError| one_line(&error);
    Err(ProgramError::Hook { fentry: words(fentry), kprobe: words(kprobe) })
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::programs::Program, AyaProgramError> {
    ebpf.program_mut(name).ok_or_else(|| AyaProgramError::InvalidName { name: name.to_owned() })
}

/// An error and its causes in one line.
fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let words: Vec<_> =
        causes(error).map(|cause| cause.to_string().trim_end().replace('\n', " | ")).collect();
    words.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_another_process_removed_is_removed() {
        let failed = |errno| {
            let io_error = io::Error::from_raw_os_error(errno);
            MapError::SyscallError(aya::sys::SyscallError { call: "bpf_map_delete_elem", io_error })
        };
        assert!(removed(Ok(()), "HELD").is_ok());
        assert!(removed(Err(MapError::KeyNotFound), "HELD").is_ok());
        assert!(removed(Err(failed(nix::libc::ENOENT)), "HELD").is_ok());
        assert!(removed(Err(failed(nix::libc::EPERM)), "HELD").is_err());
    }

    #[test]
    fn a_cgroup_is_armed_at_its_depth() {
        assert_eq!(level_bit("/"), Some(1));
        assert_eq!(level_bit("/kubepods/burstable/pod1/c"), Some(1 << 4));
        assert_eq!(level_bit("kubepods/"), Some(1 << 1));
        assert_eq!(level_bit(&"/x".repeat(15)), Some(1 << 15));
        assert_eq!(level_bit(&"/x".repeat(16)), None);
    }
}
