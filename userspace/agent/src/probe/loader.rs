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
//! Owns the choice of hooks and the maps' sizes. Never reads a ring.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{HashMap, MapError, lpm_trie::Key, lpm_trie::LpmTrie},
    pin::PinError,
    programs::{FEntry, FExit, KProbe, Program, ProgramError, RawTracePoint, TracePoint, links::FdLink},
    sys::SyscallError,
};
use kwitness_abi::{KernelLayout, LIMIT_FILE_NAME_CAP, LimitFileName, Pattern};
use kwitness_btf::Btf;
use kwitness_core::model::LimitFile;
use kwitness_service::InstanceLock;
use nix::{libc, sys::resource};

use super::{
    capability::{CAPABILITIES, Capability, Hook, HookKind, Importance, Tracepoints},
    counters,
    environment::{self, BTF_PATH, Lockdown},
    error::{ProbeError, Result},
    handover::{Meanwhile, OldPrograms, Overlap},
    layout,
    object::OBJECT,
    pins::{self, Old, Origin, Unpinned},
    report::{Capabilities, CapabilityReport, Reason, Refusal},
    ring::Running,
    settings::{MAX_ROOTS, ProbeLog, Settings},
};
use crate::clock::Clock;

/// Bytes of the ring of what workloads write to limits of their own: 2,000 records of writes without a reader. How fast they
/// come is bounded in the kernel, see [`kwitness_abi::Budget`].
const OWN_WRITES_RING: u32 = 512 << 10;
/// The directory of tracefs's `events` that all our classic tracepoints are in, but those of system calls.
const TRACE_SYSTEM: &str = "sched";
/// Where the one system call that is looked at begins and ends.
const SYSCALL_EVENTS: (&str, &str) = ("sys_enter_write", "sys_exit_write");

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
    lock: Option<InstanceLock>,
    pinned: std::result::Result<pins::Set, Unpinned>,
}

/// The programs run; what they record waits in the rings.
pub struct Attached {
    pub(super) ebpf: Ebpf,
    pub(super) capabilities: Capabilities,
    pub(super) log: ProbeLog,
    pub(super) lock: Option<InstanceLock>,
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

/// A program that serves a capability.
pub(super) struct AttachedProgram {
    pub(super) capability: &'static str,
    pub(super) name: &'static str,
    pub(super) fd: OwnedFd,
    /// Of a pinned link: the program stays attached while this process runs, whatever becomes of the pins.
    pub(super) _link: Option<OwnedFd>,
}

/// What is known for the choice of hooks.
struct Chooser {
    btf: aya::Btf,
    layout: KernelLayout,
    exclude: Vec<super::capability::Exclusion>,
    syscalls: bool,
}

/// How far the choice of a capability's hook has come.
struct Choice {
    capability: &'static Capability,
    /// The hooks that have not been tried.
    left: std::vec::IntoIter<Hook>,
    loaded: Option<Hook>,
    links: Links,
    refused: Vec<Refusal>,
}

/// What keeps a capability's hook attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Links {
    /// This process: they end with it.
    Ours,
    /// Pins that this process made.
    Pinned,
    /// Pins of an earlier daemon: they were there all the time.
    Adopted,
}

impl Loaded {
    /// Makes the maps, loads the best hook for each capability.
    pub fn load(settings: &Settings) -> Result<Self> {
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
        let lock = settings.lock_file.as_deref().map(InstanceLock::acquire).transpose()?;
        let pinned = pins::take(settings);
        let mut loaded = Self::open(settings, lock, pinned)?;
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
    fn open(
        settings: &Settings,
        lock: Option<InstanceLock>,
        pinned: std::result::Result<pins::Set, Unpinned>,
    ) -> Result<Self> {
        let bytes = fs::read(BTF_PATH).map_err(ProbeError::NoBtf)?;
        let layout = layout::resolve(&Btf::parse(&bytes)?);
        let btf = aya::Btf::parse(&bytes, aya::Endianness::default())
            .map_err(|error| ProbeError::Object(EbpfError::BtfError(error)))?;
        drop(bytes);
        // Kernels before 5.11 count maps against this limit. Without the right to raise it, creating the maps fails, with an error of its own.
        let _ = resource::setrlimit(
            resource::Resource::RLIMIT_MEMLOCK,
            resource::RLIM_INFINITY,
            resource::RLIM_INFINITY,
        );
        let tracked = settings.tracked_capacity.get();
        let mut loader = EbpfLoader::new();
        if let Ok(set) = &pinned {
            for map in pins::MAPS {
                loader.map_pin_path(map, set.paths().map(map));
            }
        }
        let mut ebpf = loader
            .btf(Some(&btf))
            .override_global("LAYOUT", &LayoutGlobal(layout), true)
            .override_global("SUBTREE", &settings.subtree, true)
            .override_global("CAPACITY", &tracked, true)
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
        let chooser = Chooser { btf, layout, exclude: settings.exclude.clone(), syscalls: settings.syscalls };
        let choices = choices().collect();
        Ok(Self { ebpf, chooser, choices, log: settings.log, lock, pinned })
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
        let Self { ebpf, choices, log, lock, pinned, .. } = self;
        // A capability without a hook may have a substitute, which is no program.
        let is_read_on =
            |name: &str| replaces.as_ref().is_some_and(|(old, _): &(OldPrograms, Overlap)| old.serve(name));
        let is_new = |choice: &&Choice| choice.links != Links::Adopted && !is_read_on(choice.capability.name);
        let new = choices.iter().filter(is_new).map(|choice| choice.capability.name).collect();
        Ok(Attached { new, replaces, capabilities: report(choices), ebpf, log, lock, programs, pinned })
    }
}

impl Attached {
    /// What serves each capability.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// What was not recorded before this process attached it, by capability. One that has no hook, and no substitute either, never
    /// is.
    pub fn unrecorded(&self, capabilities: &Capabilities) -> Vec<&'static str> {
        let served = capabilities
            .reports
            .iter()
            .filter(|report| report.chosen.is_some() || report.substitute.is_some());
        served.map(|report| report.capability.name).filter(|name| self.new.contains(name)).collect()
    }

    /// Whether an earlier daemon's counters are counted on: its programs were adopted, or are read on.
    pub fn counts_go_on(&self) -> bool {
        self.replaces.is_some() || self.pinned.as_ref().is_ok_and(|set| *set.origin() == Origin::Adopted)
    }

    /// The object with its programs attached, for a reader other than [`Running`].
    pub fn into_ebpf(self) -> Ebpf {
        self.ebpf
    }

    /// Opens the rings for reading. Within a tokio runtime.
    pub fn run(self) -> Result<Running> {
        Running::new(self)
    }
}

/// The offsets in this kernel's structures, as the programs' global `LAYOUT` has them: for a loader other than [`Loaded`].
pub fn kernel_layout() -> Result<impl aya::Pod> {
    let bytes = fs::read(BTF_PATH).map_err(ProbeError::NoBtf)?;
    Ok(LayoutGlobal(layout::resolve(&Btf::parse(&bytes)?)))
}

/// Reports what this kernel offers, by loading and attaching everything for a moment. Acquires no lock: it disturbs no
/// running daemon. What prevents every program (no BTF, no memory for a map) is one error; what prevents a single hook is
/// in its capability's refusals.
pub fn survey(settings: &Settings) -> Result<Capabilities> {
    let Loaded { mut ebpf, chooser, mut choices, .. } = Loaded::open(settings, None, Err(Unpinned::Off))?;
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
            tracing::info!(set = %programs.old.paths(), "reading the programs of another layout on for a while");
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
    tracing::warn!(set, error, "the programs of another layout cannot be read on; they are removed");
    if let Err(error) = old.remove() {
        tracing::warn!(set, %error, "cannot remove the programs of another layout");
    }
}

/// Every capability, with nothing tried.
fn choices() -> impl Iterator<Item = Choice> {
    let tracepoints = Tracepoints::of(&environment::kernel_release());
    CAPABILITIES.iter().map(move |capability| Choice {
        capability,
        left: capability.hooks_in_order(tracepoints).into_iter(),
        loaded: None,
        links: Links::Ours,
        refused: Vec::new(),
    })
}

impl Choice {
    /// Takes over the hook that an earlier daemon has attached; false if there is none. One that is not whole is detached: beside
    /// the one that takes its place, its programs would record everything a second time.
    fn adopt(&mut self, set: &pins::Set) -> bool {
        let tracepoints = Tracepoints::of(&environment::kernel_release());
        self.loaded = set.paths().hook(self.capability, tracepoints);
        if self.loaded.is_some() {
            self.links = Links::Adopted;
        } else if set.origin() == &Origin::Adopted {
            let hooks = self.capability.hooks_in_order(tracepoints);
            hooks.iter().flat_map(Hook::programs).for_each(|program| set.paths().forget(program));
        }
        self.loaded.is_some()
    }

    /// The programs of its hook.
    fn programs(&self, ebpf: &Ebpf, set: Option<&pins::Set>) -> Result<Vec<AttachedProgram>> {
        let mut programs = Vec::new();
        for name in self.loaded.iter().flat_map(Hook::programs) {
            let fd = match (set, ebpf.program(name)) {
                (Some(set), _) if self.links == Links::Adopted => pins::object(&set.paths().program(name)),
                (_, Some(program)) => program
                    .fd()
                    .map_err(io::Error::other)
                    .and_then(|program| program.as_fd().try_clone_to_owned()),
                (_, None) => Err(io::ErrorKind::NotFound.into()),
            };
            let failed = |source| ProbeError::Program { program: name, source };
            let link = match (set, self.links) {
                (Some(set), Links::Pinned | Links::Adopted) => Some(pins::object(&set.paths().link(name))),
                _ => None,
            };
            let (fd, link) = (fd.map_err(failed)?, link.transpose().map_err(failed)?);
            programs.push(AttachedProgram { capability: self.capability.name, name, fd, _link: link });
        }
        Ok(programs)
    }

    /// Loads the next hook that can be loaded.
    fn advance(&mut self, ebpf: &mut Ebpf, chooser: &Chooser) {
        self.loaded = None;
        for hook in self.left.by_ref() {
            match chooser.load(ebpf, self.capability, &hook) {
                Ok(()) => {
                    self.loaded = Some(hook);
                    return;
                }
                Err(reason) => self.refused.push(Refusal { hook, reason }),
            }
        }
    }

    /// Attaches the loaded hook, or the next one that can be loaded and attached.
    fn attach(&mut self, ebpf: &mut Ebpf, chooser: &Chooser, set: Option<&pins::Set>) {
        while let Some(hook) = self.loaded {
            match attach(ebpf, self.capability, &hook, set) {
                Ok(links) => {
                    self.links = links;
                    return;
                }
                Err(reason) => self.refused.push(Refusal { hook, reason }),
            }
            self.advance(ebpf, chooser);
        }
    }

    /// An error if a vital capability is left without a hook.
    fn accept(&mut self) -> Result<()> {
        match (self.loaded, self.capability.importance) {
            (None, Importance::Vital) => Err(ProbeError::MissingCapability {
                capability: self.capability,
                refused: std::mem::take(&mut self.refused),
            }),
            _ => Ok(()),
        }
    }
}

impl Chooser {
    fn load(&self, ebpf: &mut Ebpf, capability: &Capability, hook: &Hook) -> std::result::Result<(), Reason> {
        if self.exclude.iter().any(|exclusion| exclusion.covers(hook)) {
            return Err(Reason::Excluded);
        }
        if hook.kind == HookKind::Syscall && !self.syscalls {
            return Err(Reason::NotEnabled);
        }
        let missing = layout::missing(&self.layout, &[capability.fields, hook.fields].concat());
        if !missing.is_empty() {
            return Err(Reason::MissingFields(missing));
        }
        let loaded = hook.programs().try_for_each(|name| match hook.kind {
            HookKind::RawTracepoint => program::<RawTracePoint>(ebpf, name)?.load(),
            HookKind::Tracepoint | HookKind::Syscall => program::<TracePoint>(ebpf, name)?.load(),
            HookKind::Fentry if name == hook.program => {
                program::<FEntry>(ebpf, name)?.load(capability.target, &self.btf)
            }
            HookKind::Fentry => program::<FExit>(ebpf, name)?.load(capability.target, &self.btf),
            HookKind::Kprobe => program::<KProbe>(ebpf, name)?.load(),
        });
        loaded.map_err(|error| refused(ebpf, capability, hook, error, "BPF_PROG_LOAD"))
    }
}

/// Attaches a hook's programs, and pins all their links if that is possible.
fn attach(
    ebpf: &mut Ebpf,
    capability: &Capability,
    hook: &Hook,
    set: Option<&pins::Set>,
) -> std::result::Result<Links, Reason> {
    let mut attach_all = || {
        if let Some(set) = set {
            let is_pinned = |name| {
                let link = attach_program(ebpf, capability, hook, name, Keep::Out)?;
                Ok(link.is_some_and(|link| pin(ebpf, name, link, set).is_ok()))
            };
            let pinned: std::result::Result<Vec<bool>, ProgramError> =
                hook.programs().map(is_pinned).collect();
            if pinned.as_ref().is_ok_and(|pinned| !pinned.contains(&false)) {
                return Ok(Links::Pinned);
            }
            // A link that cannot be pinned is gone by now, and with these so are the others; also those of a hook that is refused.
            hook.programs().for_each(|name| set.paths().forget(name));
            pinned?;
        }
        hook.programs()
            .try_for_each(|name| attach_program(ebpf, capability, hook, name, Keep::In).map(drop))?;
        Ok(Links::Ours)
    };
    let attached = attach_all();
    let call = match hook.kind {
        HookKind::RawTracepoint | HookKind::Fentry => "BPF_RAW_TRACEPOINT_OPEN",
        HookKind::Tracepoint | HookKind::Kprobe | HookKind::Syscall => "perf_event_open",
    };
    attached.map_err(|error| refused(ebpf, capability, hook, error, call))
}

/// Whose a new link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    /// The loaded object's: it ends with that.
    In,
    /// The caller's.
    Out,
}

/// Attaches a program. The link, if it is to be the caller's, and is of a kind that can be.
fn attach_program(
    ebpf: &mut Ebpf,
    capability: &Capability,
    hook: &Hook,
    name: &str,
    keep: Keep,
) -> std::result::Result<Option<FdLink>, ProgramError> {
    macro_rules! attached {
        ($kind:ty, |$program:ident| $attach:expr) => {{
            let $program = program::<$kind>(ebpf, name)?;
            let id = $attach?;
            match keep {
                Keep::In => Ok(None),
                Keep::Out => Ok($program.take_link(id)?.try_into().ok()),
            }
        }};
    }
    match hook.kind {
        HookKind::RawTracepoint => attached!(RawTracePoint, |program| program.attach(capability.target)),
        HookKind::Tracepoint => {
            attached!(TracePoint, |program| program.attach(TRACE_SYSTEM, capability.target))
        }
        HookKind::Fentry if name == hook.program => attached!(FEntry, |program| program.attach()),
        HookKind::Fentry => attached!(FExit, |program| program.attach()),
        HookKind::Kprobe => attached!(KProbe, |program| program.attach(capability.target, 0)),
        HookKind::Syscall => {
            let event = if name == hook.program { SYSCALL_EVENTS.0 } else { SYSCALL_EVENTS.1 };
            attached!(TracePoint, |program| program.attach("syscalls", event))
        }
    }
}

/// Has a program and its link outlive this process.
fn pin(ebpf: &mut Ebpf, name: &str, link: FdLink, set: &pins::Set) -> std::result::Result<(), PinError> {
    let program = ebpf.program_mut(name).ok_or_else(|| PinError::NoFd { name: name.to_owned() })?;
    program.pin(set.paths().program(name))?;
    link.pin(set.paths().link(name)).map(drop)
}

/// Takes the programs of a hook at a function out of the kernel, for one of the two is not to be had; the reason in our words.
fn refused(ebpf: &mut Ebpf, capability: &Capability, hook: &Hook, error: ProgramError, call: &str) -> Reason {
    for name in hook.programs() {
        // One that is not loaded needs no unloading.
        let _ = match hook.kind {
            HookKind::RawTracepoint | HookKind::Tracepoint => Ok(()),
            HookKind::Fentry if name == hook.program => {
                program::<FEntry>(ebpf, name).and_then(FEntry::unload)
            }
            HookKind::Fentry => program::<FExit>(ebpf, name).and_then(FExit::unload),
            HookKind::Kprobe => program::<KProbe>(ebpf, name).and_then(KProbe::unload),
            HookKind::Syscall => program::<TracePoint>(ebpf, name).and_then(TracePoint::unload),
        };
    }
    reason(error, call, capability, hook)
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> std::result::Result<&'a mut P, ProgramError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name);
    program.ok_or_else(|| ProgramError::InvalidName { name: name.to_owned() })?.try_into()
}

/// A refusal in our words.
fn reason(error: ProgramError, call: &str, capability: &Capability, hook: &Hook) -> Reason {
    let missing = match hook.at_return {
        _ if hook.kind == HookKind::Syscall => Reason::MissingTracepoint(SYSCALL_EVENTS.0),
        None => Reason::MissingTracepoint(capability.target),
        Some(_) => Reason::MissingFunction(capability.target),
    };
    let (call, io_error, detail) = match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            (call, io_error, last_line(&verifier_log.to_string()))
        }
        ProgramError::SyscallError(SyscallError { call, io_error }) => {
            if io_error.raw_os_error() == Some(libc::ENOENT) {
                return missing;
            }
            (call, io_error, None)
        }
        ProgramError::Btf(_) => return missing,
        other => {
            return Reason::Kernel { call: call.to_owned(), errno: None, detail: Some(error_chain(&other)) };
        }
    };
    Reason::Kernel { call: call.to_owned(), errno: io_error.raw_os_error(), detail }
}

/// The verifier's last word; what follows it is statistics.
fn last_line(log: &str) -> Option<String> {
    let mut lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    let is_statistics =
        |line: &str| ["processed ", "verification time", "stack depth"].iter().any(|s| line.starts_with(s));
    lines.rfind(|line| !is_statistics(line)).map(str::to_owned)
}

fn report(choices: impl IntoIterator<Item = Choice>) -> Capabilities {
    let report = |Choice { capability, loaded, refused, .. }| CapabilityReport {
        capability,
        chosen: loaded,
        substitute: None,
        refused,
    };
    Capabilities {
        kernel: environment::kernel_release(),
        environment: environment::check(),
        reports: choices.into_iter().map(report).collect(),
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

/// An error with its causes, in one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}
