//! The choice of a capability's hook: its hooks are tried in order, at loading and again at attaching, and what refuses one is put in
//! our words.
//!
//! Owns what was tried, and how a hook's programs are loaded, attached and pinned. Knows of no map and of no other capability.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    result::Result as StdResult,
};

use aya::{
    Ebpf,
    pin::PinError,
    programs::{FEntry, FExit, KProbe, Program, ProgramError, RawTracePoint, TracePoint, links::FdLink},
    sys::SyscallError,
};
use kwitness_abi::KernelLayout;
use nix::libc;

use super::{
    capability::{
        CAPABILITIES, Capability, Exclusion, Hook, HookKind, Importance, MEMORY_CHARGES, Tracepoints,
    },
    charges, environment,
    error::{ProbeError, Result, error_chain},
    layout,
    pins::{self, Origin},
    report::{Capabilities, CapabilityReport, Reason, Refusal},
    stats::StatsReader,
};

/// The directory of tracefs's `events` that all our classic tracepoints are in, but those of system calls.
const TRACE_SYSTEM: &str = "sched";
/// Where the one system call that is looked at begins and ends.
const SYSCALL_EVENTS: (&str, &str) = ("sys_enter_write", "sys_exit_write");

/// A program that serves a capability.
pub(super) struct AttachedProgram {
    pub(super) capability: &'static str,
    pub(super) stats: StatsReader,
    /// Of a pinned link: the program stays attached while this process runs, whatever becomes of the pins.
    pub(super) _link: Option<OwnedFd>,
}

/// What is known for the choice of hooks.
pub(super) struct Chooser {
    pub(super) btf: aya::Btf,
    pub(super) layout: KernelLayout,
    pub(super) exclude: Vec<Exclusion>,
    pub(super) syscalls: bool,
    /// Why no charge of memory is recorded, if so.
    pub(super) no_charges: Option<Reason>,
    /// See [`Settings::is_charged`](super::Settings::is_charged).
    pub(super) is_charged: bool,
}

/// How far the choice of a capability's hook has come.
pub(super) struct Choice {
    pub(super) capability: &'static Capability,
    /// The hooks that have not been tried.
    left: std::vec::IntoIter<Hook>,
    loaded: Option<Hook>,
    pub(super) links: Links,
    refused: Vec<Refusal>,
}

/// What keeps a capability's hook attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    /// This process: they end with it.
    Ours,
    /// Pins that this process made.
    Pinned,
    /// Pins of an earlier daemon: they were there all the time.
    Adopted,
}

/// Every capability, with nothing tried.
pub(super) fn choices() -> impl Iterator<Item = Choice> {
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
    pub(super) fn adopt(&mut self, set: &pins::Set) -> bool {
        let tracepoints = Tracepoints::of(&environment::kernel_release());
        self.loaded = set.paths().hook(self.capability, tracepoints);
        if self.loaded.is_some() {
            self.links = Links::Adopted;
        } else if set.origin() == &Origin::Adopted {
            let hooks = self.capability.hooks_in_order(tracepoints);
            hooks.iter().flat_map(Hook::programs).for_each(|program| set.paths().detach(program));
        }
        self.loaded.is_some()
    }

    /// The programs of its hook.
    pub(super) fn programs(&self, ebpf: &Ebpf, set: Option<&pins::Set>) -> Result<Vec<AttachedProgram>> {
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
            programs.push(AttachedProgram {
                capability: self.capability.name,
                stats: StatsReader::new(name, fd),
                _link: link,
            });
        }
        Ok(programs)
    }

    /// Loads the next hook that can be loaded.
    pub(super) fn advance(&mut self, ebpf: &mut Ebpf, chooser: &Chooser) {
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
    pub(super) fn attach(&mut self, ebpf: &mut Ebpf, chooser: &Chooser, set: Option<&pins::Set>) {
        while let Some(hook) = self.loaded {
            let attached = attach(ebpf, self.capability, &hook, set)
                .and_then(|links| chooser.check_rate(ebpf, self.capability, &hook, set).map(|()| links));
            match attached {
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
    pub(super) fn accept(&mut self) -> Result<()> {
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
    fn load(&self, ebpf: &mut Ebpf, capability: &Capability, hook: &Hook) -> StdResult<(), Reason> {
        if self.exclude.iter().any(|exclusion| exclusion.covers(hook)) {
            return Err(Reason::Excluded);
        }
        if hook.kind == HookKind::Syscall && !self.syscalls {
            return Err(Reason::NotEnabled);
        }
        if let Some(reason) = self.no_charges.as_ref().filter(|_| capability.name == MEMORY_CHARGES) {
            return Err(reason.clone());
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

    /// Whether the kernel calls an attached hook as often as it should; if not, it is detached.
    fn check_rate(
        &self,
        ebpf: &mut Ebpf,
        capability: &Capability,
        hook: &Hook,
        set: Option<&pins::Set>,
    ) -> StdResult<(), Reason> {
        if capability.name != MEMORY_CHARGES {
            return Ok(());
        }
        let Some(flaw) = charges::flaw(ebpf, self.is_charged) else { return Ok(()) };
        if let Some(set) = set {
            hook.programs().for_each(|name| set.paths().forget(name));
        }
        unload(ebpf, hook);
        Err(flaw)
    }
}

/// Attaches a hook's programs, and pins all their links if that is possible.
fn attach(
    ebpf: &mut Ebpf,
    capability: &Capability,
    hook: &Hook,
    set: Option<&pins::Set>,
) -> StdResult<Links, Reason> {
    let mut attach_all = || {
        if let Some(set) = set {
            let is_pinned = |name| {
                let link = attach_program(ebpf, capability, hook, name, Keep::Out)?;
                Ok(link.is_some_and(|link| pin(ebpf, name, link, set).is_ok()))
            };
            let pinned: StdResult<Vec<bool>, ProgramError> = hook.programs().map(is_pinned).collect();
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
) -> StdResult<Option<FdLink>, ProgramError> {
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
fn pin(ebpf: &mut Ebpf, name: &str, link: FdLink, set: &pins::Set) -> StdResult<(), PinError> {
    let program = ebpf.program_mut(name).ok_or_else(|| PinError::NoFd { name: name.to_owned() })?;
    program.pin(set.paths().program(name))?;
    link.pin(set.paths().link(name)).map(drop)
}

/// Takes the programs of a hook at a function out of the kernel, for one of the two is not to be had; the reason in our words.
fn refused(ebpf: &mut Ebpf, capability: &Capability, hook: &Hook, error: ProgramError, call: &str) -> Reason {
    unload(ebpf, hook);
    reason(error, call, capability, hook)
}

/// Takes a hook's programs at a function out of the kernel.
fn unload(ebpf: &mut Ebpf, hook: &Hook) {
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
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> StdResult<&'a mut P, ProgramError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name);
    program.ok_or_else(|| ProgramError::InvalidName { name: name.to_owned() })?.try_into()
}

/// A refusal in our words.
fn reason(error: ProgramError, call: &str, capability: &Capability, hook: &Hook) -> Reason {
    let missing = match hook.kind {
        HookKind::Syscall => Reason::MissingTracepoint(SYSCALL_EVENTS.0),
        HookKind::RawTracepoint | HookKind::Tracepoint => Reason::MissingTracepoint(capability.target),
        HookKind::Fentry | HookKind::Kprobe => Reason::MissingFunction(capability.target),
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

pub(super) fn report(choices: impl IntoIterator<Item = Choice>) -> Capabilities {
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
