//! From the object to running programs, one state a type:
//!
//! ```text
//!  Settings ──load──▶ Loaded ──attach──▶ Attached ──run──▶ Running (module `ring`)
//!             │          │                  │
//!             │          │                  └─ records wait in the rings, unread
//!             │          └─ maps exist, roots are configured, each capability has its best loadable hook
//!             └─ privileges, lock, BTF, object: any failure is final and has its own error
//! ```
//!
//! For each capability the hooks are tried in order, at loading and again at attaching: a hook that is refused is noted with the
//! kernel's answer, and the next one takes its place. A capability left without a hook is an error if it is vital, otherwise a
//! line in the capability report.
//!
//! Owns the maps' sizes and what they are filled with; a capability's choice is `choice`'s. Never reads a ring.

use std::fs;

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{HashMap, MapError, lpm_trie::Key, lpm_trie::LpmTrie},
};
use kwitness_abi::{KernelLayout, LIMIT_FILE_NAME_CAP, LimitFileName, Pattern};
use kwitness_btf::{BTF_PATH, Btf};
use kwitness_core::model::LimitFile;
use nix::{libc, sys::resource};

use super::{
    capability::{MEMORY_CHARGES, Tracepoints},
    charges,
    choice::{AttachedProgram, Choice, Chooser, Links, choices, report},
    counters,
    environment::{self, Lockdown},
    error::{ProbeError, Result, error_chain},
    handover::{Meanwhile, OldPrograms, Overlap},
    layout,
    object::OBJECT,
    pins::{self, Old, Origin, Unpinned},
    report::{Capabilities, Reason},
    settings::{Charges, MAX_ROOTS, ProbeLog, Settings},
};
use crate::clock::Clock;

/// Bytes of the ring of what workloads write to limits of their own: 2,000 records of writes without a reader. How fast they
/// come is bounded in the kernel, see [`kwitness_abi::Budget`].
const OWN_WRITES_RING: u32 = 512 << 10;

/// [`KernelLayout`] as the value of a global.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct LayoutGlobal(KernelLayout);

// SAFETY: `repr(C)`, integers only, without padding (asserted in the abi crate).
unsafe impl aya::Pod for LayoutGlobal {}

/// The programs are in the kernel, and none is attached.
pub struct Loaded {
    ebpf: Ebpf,
    chooser: Chooser,
    choices: Vec<Choice>,
    log: ProbeLog,
    pinned: std::result::Result<pins::Set, Unpinned>,
}

/// The programs run; what they record waits in the rings.
pub struct Attached {
    pub(super) ebpf: Ebpf,
    pub(super) capabilities: Capabilities,
    pub(super) log: ProbeLog,
    /// Every attached program.
    pub(super) programs: Vec<AttachedProgram>,
    /// The capabilities whose hooks were attached by this process, or that have none. Without those that the programs serve which are
    /// read on.
    pub(super) new: Vec<&'static str>,
    /// The programs that are read on until these take over.
    pub(super) replaces: Option<(OldPrograms, Overlap)>,
    /// What outlives this process; or why nothing does.
    pub pinned: std::result::Result<pins::Set, Unpinned>,
}

impl Loaded {
    /// Makes the maps, loads the best hook for each capability.
    pub fn load(settings: &Settings) -> Result<Self> {
        check_process()?;
        let pinned = pins::take(settings);
        let mut loaded = Self::open(settings, pinned)?;
        for choice in &mut loaded.choices {
            if let Ok(set) = &loaded.pinned
                && choice.adopt(set)
            {
                continue;
            }
            choice.advance(&mut loaded.ebpf, &loaded.chooser);
            choice.accept()?;
        }
        Ok(loaded)
    }

    /// Everything but the programs.
    fn open(settings: &Settings, pinned: std::result::Result<pins::Set, Unpinned>) -> Result<Self> {
        let bytes = fs::read(BTF_PATH).map_err(ProbeError::NoBtf)?;
        let layout = layout::resolve(&Btf::parse(&bytes)?);
        let missing = layout::missing(&layout, &layout::PID_FIELDS);
        if settings.pid_namespace.is_some() && !missing.is_empty() {
            return Err(ProbeError::PidNamespace { missing });
        }
        let btf = aya::Btf::parse(&bytes, aya::Endianness::default())
            .map_err(|error| ProbeError::Object(EbpfError::BtfError(error)))?;
        drop(bytes);
        // Kernels before 5.11 count maps against this limit. Without the right to raise it, creating the maps fails, with an
        // error of its own.
        let _ = resource::setrlimit(
            resource::Resource::RLIMIT_MEMLOCK,
            resource::RLIM_INFINITY,
            resource::RLIM_INFINITY,
        );
        let tracked = settings.tracked_capacity.get();
        let no_charges = match &settings.charges {
            Charges::Across(_) => None,
            Charges::Off => Some(Reason::Excluded),
            Charges::Untracked => Some(Reason::MemoryInV1),
        };
        let mut loader = EbpfLoader::new();
        if let Ok(set) = &pinned {
            for map in pins::MAPS {
                loader.map_pin_path(map, set.paths().map(map));
            }
        }
        let mut ebpf = loader
            .btf(Some(&btf))
            .override_global("LAYOUT", &LayoutGlobal(layout), true)
            .override_global("TOP", &settings.top, true)
            .override_global("SUBTREE", &settings.subtree, true)
            .override_global("PID_NAMESPACE", &settings.pid_namespace.unwrap_or(0), true)
            .override_global("CAPACITY", &tracked, true)
            .override_global("CHARGES", &charges::global(&settings.charges), true)
            .override_global(aya_log::LEVEL, &settings.log.level(), true)
            .map_max_entries("LIFECYCLE", settings.lifecycle_ring.get())
            .map_max_entries("TASKS", settings.tasks_ring.get())
            .map_max_entries("FORKS", settings.forks_ring.get())
            .map_max_entries("OWN_WRITES", OWN_WRITES_RING)
            .map_max_entries("TRACKED", tracked)
            .map_max_entries("FIRST_PROCESSES", tracked)
            .map_max_entries("ROOTS", MAX_ROOTS)
            .map_max_entries("COUNTERS", counters::elements().map_err(ProbeError::Cpus)?)
            .load(OBJECT)
            .map_err(object_error)?;
        // An adopted set has them, and each write would cost records, see [`Tracker::listed`](super::Tracker::listed).
        if pinned.as_ref().ok().is_none_or(|set| set.origin() != &Origin::Adopted) {
            configure_roots(&mut ebpf, settings)?;
            configure_limit_files(&mut ebpf)?;
        }
        let (exclude, syscalls) = (settings.exclude.clone(), settings.syscalls);
        let chooser = Chooser { btf, layout, exclude, syscalls, no_charges, is_charged: settings.is_charged };
        let choices = choices().collect();
        Ok(Self { ebpf, chooser, choices, log: settings.log, pinned })
    }

    /// Attaches every loaded program; beside those of another layout, if those can be read on.
    pub fn attach(mut self) -> Result<Attached> {
        let old = self.pinned.as_mut().ok().and_then(pins::Set::take_old);
        let old = old.and_then(open_old).and_then(|old| copied(old, &mut self.ebpf, Meanwhile::NotAttached));
        let began = Clock::read().now();
        let set = self.pinned.as_ref().ok();
        // An adopted set stays as it was left: what it has not is attached anew by each daemon, and ends with it.
        let made = set.filter(|set| set.origin() != &Origin::Adopted);
        for choice in self.choices.iter_mut().filter(|choice| choice.links != Links::Adopted) {
            choice.attach(&mut self.ebpf, &self.chooser, made);
            choice.accept()?;
        }
        let whole = Clock::read().now();
        let mut programs = Vec::new();
        for choice in &self.choices {
            programs.extend(choice.programs(&self.ebpf, set)?);
        }
        // Again: what has come between the first time and the attaching. The rest, the new programs have seen.
        let old = old.and_then(|old| copied(old, &mut self.ebpf, Meanwhile::Attached));
        let replaces = old.map(|old| (old, Overlap { began, whole }));
        let Self { ebpf, choices, log, pinned, .. } = self;
        // A capability without a hook may have a substitute, which is no program.
        let is_read_on =
            |name: &str| replaces.as_ref().is_some_and(|(old, _): &(OldPrograms, Overlap)| old.serve(name));
        let is_new = |choice: &&Choice| choice.links != Links::Adopted && !is_read_on(choice.capability.name);
        let new = choices.iter().filter(is_new).map(|choice| choice.capability.name).collect();
        Ok(Attached { new, replaces, capabilities: report(choices), ebpf, log, programs, pinned })
    }
}

impl Attached {
    /// What serves each capability.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// What was not recorded before this process attached it, by capability. One that has no hook, and no substitute either, never
    /// is; nor is what is sampled.
    pub fn unrecorded(&self, capabilities: &Capabilities) -> Vec<&'static str> {
        let served = capabilities
            .reports
            .iter()
            .filter(|report| report.chosen.is_some() || report.substitute.is_some())
            .filter(|report| report.chosen.is_some() || report.capability.name != MEMORY_CHARGES);
        served.map(|report| report.capability.name).filter(|name| self.new.contains(name)).collect()
    }

    /// Whether an earlier daemon's counters are counted on: its programs were adopted, or are read on.
    pub fn counts_go_on(&self) -> bool {
        self.replaces.is_some() || self.pinned.as_ref().is_ok_and(|set| *set.origin() == Origin::Adopted)
    }

    /// The object with its programs attached, for a reader other than [`Running`](super::Running).
    pub fn into_ebpf(self) -> Ebpf {
        self.ebpf
    }
}

/// The offsets in this kernel's structures, as the programs' global `LAYOUT` has them: for a loader other than [`Loaded`].
pub fn kernel_layout() -> Result<impl aya::Pod> {
    let bytes = fs::read(BTF_PATH).map_err(ProbeError::NoBtf)?;
    Ok(LayoutGlobal(layout::resolve(&Btf::parse(&bytes)?)))
}

/// Whether this process may load probes at all, whatever the kernel offers.
pub fn check_process() -> Result<()> {
    let missing = environment::missing_privileges();
    if !missing.is_empty() {
        return Err(ProbeError::Unprivileged { missing });
    }
    if environment::lockdown() == Some(Lockdown::Confidentiality) {
        return Err(ProbeError::Lockdown);
    }
    if let Some(offset) = kwitness_service::boot_time_offset() {
        return Err(ProbeError::TimeNamespace { offset });
    }
    Ok(())
}

/// Whether this kernel loads the programs, the verifier included: they are loaded as [`Loaded::load`] does, and given up. Nothing is
/// attached or pinned, so that no running daemon is disturbed.
pub fn check_loads(settings: &Settings) -> Result<()> {
    let Loaded { mut ebpf, chooser, choices, .. } = Loaded::open(settings, Err(Unpinned::Off))?;
    for mut choice in choices {
        choice.advance(&mut ebpf, &chooser);
        choice.accept()?;
    }
    Ok(())
}

/// Reports what this kernel offers, by loading and attaching everything for a moment. Needs no lock: it disturbs no
/// running daemon. What prevents every program (no BTF, no memory for a map) is one error; what prevents a single hook is
/// in its capability's refusals.
pub fn survey(settings: &Settings) -> Result<Capabilities> {
    let Loaded { mut ebpf, chooser, mut choices, .. } = Loaded::open(settings, Err(Unpinned::Off))?;
    for choice in &mut choices {
        choice.advance(&mut ebpf, &chooser);
        choice.attach(&mut ebpf, &chooser, None);
    }
    Ok(report(choices))
}

/// Holds the programs of another layout.
fn open_old(old: Old) -> Option<OldPrograms> {
    let tracepoints = Tracepoints::of(&environment::kernel_release());
    match OldPrograms::open(old.clone(), tracepoints) {
        Ok(programs) => {
            tracing::info!(set = %programs.old.paths(), "still reading the previous programs");
            Some(programs)
        }
        Err(error) => {
            give_up(old, &error);
            None
        }
    }
}

/// Has the new programs know what those of another layout do.
fn copied(old: OldPrograms, ebpf: &mut Ebpf, new: Meanwhile) -> Option<OldPrograms> {
    match old.copy_to(ebpf, new) {
        Ok(()) => Some(old),
        Err(error) => {
            give_up(old.old, &error);
            None
        }
    }
}

/// Removes programs that cannot be read on: what they recorded is a gap.
fn give_up(old: Old, error: &ProbeError) {
    let (set, error) = (old.paths().to_string(), error_chain(error));
    tracing::warn!(set, error, "cannot read the previous programs; removing them");
    if let Err(error) = old.remove() {
        tracing::warn!(set, %error, "cannot remove the previous programs");
    }
}

fn configure_roots(ebpf: &mut Ebpf, settings: &Settings) -> Result<()> {
    let failed = |source| ProbeError::Map { map: "ROOTS".to_owned(), source };
    let mut roots: LpmTrie<_, Pattern, u8> =
        ebpf.map_mut("ROOTS").ok_or(MapError::ElementNotFound).and_then(TryInto::try_into).map_err(failed)?;
    for root in &settings.roots {
        let (bits, text) = root.key();
        roots.insert(&Key::new(bits, text), 0, 0).map_err(failed)?;
    }
    Ok(())
}

fn configure_limit_files(ebpf: &mut Ebpf) -> Result<()> {
    let failed = |source| ProbeError::Map { map: "LIMIT_FILES".to_owned(), source };
    let mut limit_files: HashMap<_, LimitFileName, u32> = ebpf
        .map_mut("LIMIT_FILES")
        .ok_or(MapError::ElementNotFound)
        .and_then(TryInto::try_into)
        .map_err(failed)?;
    for limit_file in LimitFile::all() {
        let mut name = [0; LIMIT_FILE_NAME_CAP];
        for (place, byte) in name.iter_mut().zip(limit_file.to_string().bytes()) {
            *place = byte;
        }
        limit_files.insert(name, limit_file.number(), 0).map_err(failed)?;
    }
    Ok(())
}

fn object_error(error: EbpfError) -> ProbeError {
    match error {
        // Before 5.11 a memlock limit that is too low is EPERM; privileges have been checked.
        EbpfError::MapError(MapError::CreateError { name: map, io_error: source })
            if matches!(source.raw_os_error(), Some(libc::ENOMEM | libc::EPERM)) =>
        {
            let memlock = match resource::getrlimit(resource::Resource::RLIMIT_MEMLOCK) {
                Ok((resource::RLIM_INFINITY, _)) => "unlimited".to_owned(),
                Ok((bytes, _)) => format!("{bytes} bytes"),
                Err(_) => "unknown".to_owned(),
            };
            ProbeError::Memory { map, memlock, source }
        }
        EbpfError::MapError(MapError::CreateError { name, io_error }) => {
            ProbeError::Map { map: name.clone(), source: MapError::CreateError { name, io_error } }
        }
        other => ProbeError::Object(other),
    }
}
