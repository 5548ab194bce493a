//! Writes to limit files as fanotify reports them: the way that is left where no program can be at the kernel's function.
//!
//! ```text
//!  cgroup2 ──FAN_MODIFY──▶ a thread: file, cgroup, writer's pid ──▶ KernelEvent ──▶ the engine
//! ```
//!
//! The kernel reports a write that it accepted after its return: neither the text, nor a refusal, nor when the write began. Opening a
//! file to truncate it, as a shell's `>` does, gives the same notice with newer kernels, whatever becomes of the write that
//! follows. So what became of a write is unknown here, and what the file says is read back. Writes by one process to one file
//! merge while they wait. The writer's name and cgroup are read from procfs when the notice arrives; of one that has ended by
//! then, the pid is all there is.
//!
//! Where the kernel can name a file by its directory's handle and its own name (cgroup2 on 6.12, not yet on 6.1), the handle is the
//! cgroup's id. Older kernels hand out an open descriptor of the file instead, whose link in procfs is the path.
//!
//! The thread waits for the engine while its inbox is full; meanwhile the notices wait in the kernel, 16,384 of them
//! (`fs.fanotify.max_queued_events`). What exceeds that is lost, and reported as a loss. So is what read(2) fails at: with
//! descriptors it opens the file, and the notice is gone if it cannot (`EMFILE`, `ENOMEM`). The thread waits and goes on.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Instant;
use std::{fs, thread};

use kwitness_core::model::{
    Caller, CgroupId, Fact, GapCause, KernelEvent, KernelTime, LimitFile, LimitWrite, Loss, Observation,
    WriteHook, WritePhase, WriteResult,
};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use tokio::sync::mpsc;

use super::attempts::{Attempts, WatchState};
use super::{CgroupFs, Directory, gone, process};
use crate::clock::Clock;
use crate::probe::Tracker;

/// Bytes of notices that are read at a time.
const BUFFER: usize = 64 * 1024;

/// Why fanotify cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{call} was refused")]
pub struct WatchError {
    call: &'static str,
    source: Errno,
}

/// Notices about the cgroup2 file system.
#[derive(Debug)]
pub struct Watch {
    fanotify: Fanotify,
    naming: Naming,
    cgroups: CgroupFs,
}

/// How a notice names a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    /// By its directory's handle and its own name.
    Handle,
    /// By an open descriptor.
    Descriptor,
}

/// A file was written to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Notice {
    pid: i32,
    cgroup: CgroupId,
    limit_file: LimitFile,
}

/// What a batch of notices says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Batch {
    notices: Vec<Notice>,
    /// Others were lost.
    overflow: bool,
}

impl Watch {
    /// Asks for notices; those from now on wait in the kernel.
    ///
    /// # Errors
    /// The kernel refuses: fanotify takes `CAP_SYS_ADMIN` in the initial user namespace.
    pub fn open(cgroups: CgroupFs) -> Result<Self, WatchError> {
        let by_handle = InitFlags::from_bits_retain(libc::FAN_REPORT_DFID_NAME);
        let opened = Self::mark(&cgroups, by_handle).map(|fanotify| (fanotify, Naming::Handle));
        let opened = opened.or_else(|_| {
            Self::mark(&cgroups, InitFlags::empty()).map(|fanotify| (fanotify, Naming::Descriptor))
        });
        opened.map(|(fanotify, naming)| Self { fanotify, naming, cgroups })
    }

    fn mark(cgroups: &CgroupFs, naming: InitFlags) -> Result<Fanotify, WatchError> {
        let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK | naming;
        let fanotify = Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC)
            .map_err(|source| WatchError { call: "fanotify_init", source })?;
        let flags = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
        let root = fs::File::open(cgroups.mount_point())
            .map_err(|error| WatchError { call: "open", source: errno(&error) })?;
        fanotify
            .mark(flags, MaskFlags::FAN_MODIFY, &root, None::<&Path>)
            .map_err(|source| WatchError { call: "fanotify_mark", source })?;
        Ok(fanotify)
    }

    /// Sends `to` what is written to limits of the cgroups that `tracker` has, until the receiver is gone. What is returned
    /// says whether they can be read.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn run(self, tracker: Tracker, to: mpsc::Sender<Observation>) -> io::Result<WatchState> {
        let state = WatchState::default();
        let attempts = Attempts::new(state.clone());
        let body = move || {
            let event = |notice: Notice, at| {
                tracker.is_watched(notice.cgroup.0).then(|| event(&notice, at, &self.cgroups))
            };
            follow(|patience| self.wait(patience), attempts, event, &to);
        };
        thread::Builder::new().name("limit-writes".to_owned()).spawn(body)?;
        Ok(state)
    }

    /// Waits for notices, so long at most.
    fn wait(&self, patience: PollTimeout) -> nix::Result<Batch> {
        let mut poll = [PollFd::new(self.fanotify.as_fd(), PollFlags::POLLIN)];
        let mut buffer = match self.naming {
            Naming::Handle => vec![0; BUFFER],
            // One at a time: after the first, read(2) does not say that it could not open another's file.
            Naming::Descriptor => vec![0; METADATA_LEN],
        };
        let read = nix::poll::poll(&mut poll, patience).and_then(|ready| match ready {
            0 => Ok(0),
            _ => nix::unistd::read(&self.fanotify, &mut buffer),
        });
        match (read, self.naming) {
            (Ok(length), Naming::Handle) => Ok(parse(&buffer[..length])),
            (Ok(length), Naming::Descriptor) => Ok(opened(&buffer[..length])),
            // A file is no device that could be missing: it is gone, with its cgroup.
            (Err(Errno::EINTR | Errno::EAGAIN | Errno::ENODEV), _) => Ok(Batch::default()),
            (Err(error), _) => Err(error),
        }
    }
}

/// Sends `to` what notices say and that some were lost, until the receiver is gone.
fn follow(
    mut wait: impl FnMut(PollTimeout) -> nix::Result<Batch>,
    mut attempts: Attempts,
    event: impl Fn(Notice, KernelTime) -> Option<KernelEvent>,
    to: &mpsc::Sender<Observation>,
) {
    let mut looked = Clock::read().now();
    loop {
        let read = wait(attempts.patience());
        let (batch, pause) = attempts.judge(read, Instant::now());
        let Batch { notices, overflow: is_lossy } =
            batch.unwrap_or(Batch { overflow: true, ..Batch::default() });
        let now = Clock::read().now();
        let writes = notices.into_iter().filter_map(|notice| event(notice, now)).map(Observation::Kernel);
        let loss = is_lossy.then(|| overflow(looked, now));
        looked = now;
        for observation in writes.chain(loss) {
            if to.blocking_send(observation).is_err() {
                return;
            }
        }
        thread::sleep(pause);
    }
}

fn event(notice: &Notice, at: KernelTime, cgroups: &CgroupFs) -> KernelEvent {
    let write = LimitWrite {
        limit_file: notice.limit_file,
        phase: WritePhase::Returned { result: WriteResult::Unknown, at: None },
        value: None,
        writer: writer(notice.pid, cgroups),
        began: None,
        seen_by: WriteHook::Fanotify,
    };
    KernelEvent { at, cgroup: notice.cgroup, fact: Fact::LimitWrite(Box::new(write)) }
}

/// What procfs says of the writer, if it still runs.
fn writer(pid: i32, cgroups: &CgroupFs) -> Caller {
    let Some(process) = process::read(pid) else {
        // 0 is a process of a pid namespace that is not ours.
        return Caller { pid: u32::try_from(pid).ok().filter(|pid| *pid != 0), ..Caller::default() };
    };
    Caller {
        pid: Some(process.task.key.pid),
        tid: None,
        start: Some(process.task.key.start),
        comm: Some(process.task.comm),
        cgroup: cgroup_of(pid, cgroups),
    }
}

fn cgroup_of(pid: i32, cgroups: &CgroupFs) -> Option<CgroupId> {
    cgroups.open(&cgroups.path_of(pid)?).ok()?.id().ok()
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

fn overflow(from: KernelTime, to: KernelTime) -> Observation {
    Observation::Lost(Loss {
        from,
        to,
        cause: GapCause::WatchOverflow,
        lost: BTreeMap::new(),
        by_container: BTreeMap::new(),
        capabilities: Vec::new(),
    })
}

/// Reads a notice by descriptor, which is closed.
fn opened(event: &[u8]) -> Batch {
    let mask = u64_at(event, 8).unwrap_or_default();
    let mut batch = Batch { overflow: mask & libc::FAN_Q_OVERFLOW != 0, ..Batch::default() };
    let field = |offset| u32_at(event, offset).map(u32::cast_signed);
    // An overflow has none (`FAN_NOFD`).
    let descriptor = field(16).filter(|descriptor| *descriptor >= 0);
    if let Some((descriptor, pid)) = descriptor.zip(field(20)) {
        match by_descriptor(descriptor, pid) {
            Ok(notice) => batch.notices.extend(notice),
            Err(_) => batch.overflow = true,
        }
        // Whatever it says, the descriptor is closed.
        _ = nix::unistd::close(descriptor);
    }
    batch
}

/// None: it is no limit file, or its cgroup is gone. An error: the kernel does not say which file it is, as of a path that is too
/// long, or which cgroup.
fn by_descriptor(descriptor: i32, pid: i32) -> io::Result<Option<Notice>> {
    let path = fs::read_link(format!("/proc/self/fd/{descriptor}"))?;
    let limit_file = path.file_name().and_then(|name| name.to_str()?.parse().ok());
    let Some((limit_file, directory)) = limit_file.zip(path.parent()) else { return Ok(None) };
    match Directory::open(directory).and_then(|directory| directory.id()) {
        Ok(cgroup) => Ok(Some(Notice { pid, cgroup, limit_file })),
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads notices by handle, `struct fanotify_event_metadata` of `include/uapi/linux/fanotify.h` each, followed by one
/// `struct fanotify_event_info_fid` or more. Records of another shape are skipped.
fn parse(mut bytes: &[u8]) -> Batch {
    let mut batch = Batch::default();
    while let Some(length) = u32_at(bytes, 0).map(|length| length as usize) {
        let Some(event) = bytes.get(..length).filter(|event| event.len() >= METADATA_LEN) else { break };
        bytes = &bytes[length..];
        if u64_at(event, 8).is_some_and(|mask| mask & libc::FAN_Q_OVERFLOW != 0) {
            batch.overflow = true;
        }
        batch.notices.extend(notice(event));
    }
    batch
}

/// `sizeof(struct fanotify_event_metadata)`.
const METADATA_LEN: usize = 24;

fn notice(event: &[u8]) -> Option<Notice> {
    /// `FILEID_KERNFS` of the kernel's `include/linux/exportfs.h`.
    const KERNFS: u32 = 0xfe;
    let pid = u32_at(event, 20)?.cast_signed();
    let mut info = event.get(METADATA_LEN..)?;
    loop {
        let kind = *info.first()?;
        let length = usize::from(u16_at(info, 2)?);
        let (record, rest) = info.split_at_checked(length).filter(|_| length > 0)?;
        info = rest;
        if kind != libc::FAN_EVENT_INFO_TYPE_DFID_NAME {
            continue;
        }
        // The header, the file system's id of 8 bytes, the handle's length and type, the handle, the name.
        let (handle_len, handle_type) = (u32_at(record, 12)?, u32_at(record, 16)?);
        if handle_type != KERNFS || handle_len != 8 {
            return None;
        }
        let cgroup = CgroupId(u64_at(record, 20)?);
        let name = record.get(28..)?.split(|byte| *byte == 0).next()?;
        let limit_file = std::str::from_utf8(name).ok()?.parse().ok()?;
        return Some(Notice { pid, cgroup, limit_file });
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().copied().map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A notice as the kernel writes it.
    fn bytes_of(mask: u64, pid: i32, cgroup: u64, name: &str) -> Vec<u8> {
        let mut info = vec![libc::FAN_EVENT_INFO_TYPE_DFID_NAME, 0, 0, 0];
        info.extend([0; 8]);
        info.extend(8_u32.to_ne_bytes());
        info.extend(0xfe_u32.to_ne_bytes());
        info.extend(cgroup.to_ne_bytes());
        info.extend(name.bytes().chain([0]));
        info.resize(info.len().next_multiple_of(4), 0);
        let length = u16::try_from(info.len()).unwrap();
        info[2..4].copy_from_slice(&length.to_ne_bytes());
        let mut event = Vec::new();
        event.extend((METADATA_LEN as u32 + u32::from(length)).to_ne_bytes());
        event.extend([3, 0]);
        event.extend((METADATA_LEN as u16).to_ne_bytes());
        event.extend(mask.to_ne_bytes());
        event.extend((-1_i32).to_ne_bytes());
        event.extend(pid.to_ne_bytes());
        event.extend(info);
        event
    }

    #[test]
    fn notices_of_limits_are_read_and_others_passed_over() {
        let bytes = [
            bytes_of(libc::FAN_MODIFY, 7, 42, "memory.max"),
            bytes_of(libc::FAN_MODIFY, 7, 42, "cgroup.procs"),
            bytes_of(libc::FAN_MODIFY, 8, 43, "hugetlb.2MB.max"),
        ]
        .concat();
        let notice = |pid, cgroup, limit_file: &str| Notice {
            pid,
            cgroup: CgroupId(cgroup),
            limit_file: limit_file.parse().unwrap(),
        };
        let expected = vec![notice(7, 42, "memory.max"), notice(8, 43, "hugetlb.2MB.max")];
        assert_eq!(parse(&bytes), Batch { notices: expected, overflow: false });
        // An overflow has no file.
        let mut overflow = bytes_of(libc::FAN_Q_OVERFLOW, 0, 0, "");
        overflow.truncate(METADATA_LEN);
        overflow[..4].copy_from_slice(&(METADATA_LEN as u32).to_ne_bytes());
        assert_eq!(parse(&overflow), Batch { notices: Vec::new(), overflow: true });
    }

    #[test]
    fn an_error_is_a_loss_and_what_comes_after_it_is_read() {
        let limit_file = LimitFile::MemoryMax;
        let notice = Notice { pid: 0, cgroup: CgroupId(42), limit_file };
        let read = || Ok(Batch { notices: vec![notice.clone()], overflow: false });
        let mut reads = vec![Err(Errno::EMFILE), read(), Err(Errno::ENFILE)].into_iter();
        let state = WatchState::default();
        let attempts = Attempts::new(state.clone());
        let (to, mut from) = mpsc::channel(1);
        // Ends as the engine does: its inbox is gone.
        let wait = |_: PollTimeout| reads.next().unwrap_or(Err(Errno::EBADF));
        let at_nowhere = |notice: Notice, at| Some(event(&notice, at, &CgroupFs::at(Path::new("/nowhere"))));
        thread::scope(|scope| {
            scope.spawn(|| follow(wait, attempts, at_nowhere, &to));
            let observed: Vec<_> = (0..3).map(|_| from.blocking_recv().unwrap()).collect();
            let is_loss = |observation: &Observation| {
                matches!(observation, Observation::Lost(Loss { cause: GapCause::WatchOverflow, .. }))
            };
            assert!(is_loss(&observed[0]) && is_loss(&observed[2]), "{observed:?}");
            let Observation::Kernel(KernelEvent { cgroup, .. }) = &observed[1] else {
                panic!("{observed:?}")
            };
            assert_eq!(*cgroup, notice.cgroup);
            assert!(state.problem().is_some());
            drop(from);
        });
    }

    #[test]
    fn a_notice_by_descriptor_closes_it() {
        let file = fs::File::open("/proc/self/comm").unwrap();
        let descriptor = std::os::fd::IntoRawFd::into_raw_fd(file);
        let mut bytes = bytes_of(libc::FAN_MODIFY, 7, 42, "");
        bytes.truncate(METADATA_LEN);
        bytes[16..20].copy_from_slice(&descriptor.to_ne_bytes());
        assert_eq!(opened(&bytes), Batch::default(), "it is no limit file");
        // Others of this process may have been given the number since, but not for that file.
        let link = fs::read_link(format!("/proc/self/fd/{descriptor}"));
        assert!(link.ok().is_none_or(|path| !path.ends_with("comm")));
        bytes[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        bytes[8..16].copy_from_slice(&libc::FAN_Q_OVERFLOW.to_ne_bytes());
        assert_eq!(opened(&bytes), Batch { notices: Vec::new(), overflow: true });
    }

    #[test]
    fn of_a_writer_that_has_ended_the_pid_is_reported() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let nowhere = CgroupFs::at(Path::new("/nowhere"));
        let gone = writer(pid.cast_signed(), &nowhere);
        assert_eq!(gone, Caller { pid: Some(pid), ..Caller::default() });
        let own = writer(std::process::id().cast_signed(), &nowhere);
        assert!(own.comm.is_some() && own.start.is_some() && own.cgroup.is_none(), "{own:?}");
        assert_eq!(writer(0, &nowhere), Caller::default(), "of another pid namespace");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            parse(&bytes);
        }

        #[test]
        fn no_change_and_no_cut_panics(cut in 0_usize..80, changes: Vec<(prop::sample::Index, u8)>) {
            let mut bytes = bytes_of(libc::FAN_MODIFY, 7, 42, "memory.max");
            for (index, byte) in changes {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            bytes.truncate(cut);
            parse(&bytes);
        }
    }
}
