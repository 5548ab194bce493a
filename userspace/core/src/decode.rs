//! Bytes of a ring into [`KernelEvent`]s.
//!
//! Total: any bytes, aligned or not, give an event or a [`DecodeError`] that names the kind and the field; nothing
//! panics. Where a field lies is `kwitness_abi`'s matter alone: it is read at `offset_of!`, never at a number.
//!
//! Strict, for both sides are built from one contract: a length, flag or value that the contract does not
//! know is malformed, and the reader counts it as a loss. Text is the exception: a name or path that is not UTF-8 is
//! the workload's right, and is read lossily, up to its first NUL.

use std::mem::offset_of;
use std::sync::Arc;

use kwitness_abi as abi;
use kwitness_abi::RecordKind;
use thiserror::Error;

use crate::intern::Interner;
use crate::model::{
    Actor, Caller, CgroupId, ExitStatus, Fact, KernelEvent, KernelTime, LimitFile, LimitWrite, MemoryCharge,
    OomChoice, OomKill, OomScope, OomUsage, PathText, ProcKey, TaskInfo, WriteHook, WritePhase, WriteResult,
    WrittenValue,
};

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Not even a header.
    #[error("a record of {len} bytes: its header alone has {}", size_of::<abi::Header>())]
    Header {
        /// The record's length in bytes.
        len: usize,
    },
    /// No kind has that number.
    #[error("unknown record kind {number}: probes and daemon are not of the same build")]
    Kind {
        /// [`abi::Header::kind`].
        number: u16,
    },
    /// Truncated or oversized.
    #[error("{}: {len} bytes instead of {}", kind.name(), kind.record_size())]
    Size {
        /// The kind that the header gives.
        kind: RecordKind,
        /// What came.
        len: usize,
    },
    /// A value that the contract rules out.
    #[error("{}: {field} is {value:#x}", kind.name())]
    Field {
        /// The kind that the header gives.
        kind: RecordKind,
        /// The field's name in `kwitness_abi`.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
}

impl DecodeError {
    /// The kind of the malformed record, if the header has it: what the loss is counted under.
    pub fn kind(&self) -> Option<RecordKind> {
        match self {
            Self::Header { .. } | Self::Kind { .. } => None,
            Self::Size { kind, .. } | Self::Field { kind, .. } => Some(*kind),
        }
    }
}

/// Decodes one record with nothing remembered of others; a reader of many keeps a [`Decoder`].
pub fn decode(bytes: &[u8]) -> Result<KernelEvent, DecodeError> {
    Decoder::default().decode(bytes)
}

/// Decodes records, and remembers the texts that come again and again.
#[derive(Debug, Default)]
pub struct Decoder {
    texts: Interner,
}

impl Decoder {
    /// Decodes one record.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<KernelEvent, DecodeError> {
        let len = bytes.len();
        if len < size_of::<abi::Header>() {
            return Err(DecodeError::Header { len });
        }
        let (Some(number), Some(flags)) = (
            array_at(bytes, offset_of!(abi::Header, kind)).map(u16::from_ne_bytes),
            array_at(bytes, offset_of!(abi::Header, flags)).map(u16::from_ne_bytes),
        ) else {
            return Err(DecodeError::Header { len });
        };
        let kind = RecordKind::from_u16(number).ok_or(DecodeError::Kind { number })?;
        if len != kind.record_size() {
            return Err(DecodeError::Size { kind, len });
        }
        let record = Record { kind, bytes };
        record.allow_flags(flags)?;
        Ok(KernelEvent {
            at: KernelTime(record.u64(offset_of!(abi::Header, ktime))?),
            cgroup: CgroupId(record.u64(offset_of!(abi::Header, cgroup_id))?),
            fact: self.fact(record, flags)?,
        })
    }

    fn fact(&mut self, record: Record<'_>, flags: u16) -> Result<Fact, DecodeError> {
        Ok(match record.kind {
            RecordKind::CgroupMkdir => {
                let len = record.length("path_len", offset_of!(abi::CgroupMkdir, path_len), abi::PATH_CAP)?;
                // A path is met once: remembering it would only push out what is met again.
                let path = Arc::from(lossy(record.text(offset_of!(abi::CgroupMkdir, path), len)?).as_ref());
                Fact::Mkdir {
                    parent: CgroupId(record.u64(offset_of!(abi::CgroupMkdir, parent_id))?),
                    path: if flags & abi::FLAG_NAME_ONLY == 0 {
                        PathText::Full(path)
                    } else {
                        PathText::Name(path)
                    },
                    root: flags & abi::FLAG_ROOT != 0,
                    beyond_share: flags & abi::FLAG_BEYOND_SHARE != 0,
                    actor: self.actor(record, offset_of!(abi::CgroupMkdir, actor))?,
                }
            }
            RecordKind::CgroupRmdir => {
                Fact::Rmdir { actor: self.actor(record, offset_of!(abi::CgroupRemoved, actor))? }
            }
            RecordKind::CgroupRelease => Fact::Release,
            RecordKind::CgroupAttach => Fact::Attach {
                process: self.task(record, offset_of!(abi::CgroupAttach, process))?,
                actor: self.actor(record, offset_of!(abi::CgroupAttach, actor))?,
            },
            RecordKind::CgroupPopulated => match record.u32(offset_of!(abi::CgroupPopulated, populated))? {
                0 => Fact::Populated(false),
                1 => Fact::Populated(true),
                other => return Err(record.field("populated", other)),
            },
            RecordKind::TaskFork => Fact::Fork {
                child: self.task(record, offset_of!(abi::TaskFork, child))?,
                entered: flags & abi::FLAG_ENTERED != 0,
            },
            RecordKind::TaskExec => {
                let len = record.length(
                    "filename_len",
                    offset_of!(abi::TaskExec, filename_len),
                    abi::FILENAME_CAP,
                )?;
                Fact::Exec {
                    process: self.task(record, offset_of!(abi::TaskExec, process))?,
                    program: self.texts.text(record.text(offset_of!(abi::TaskExec, filename), len)?),
                    first: flags & abi::FLAG_FIRST != 0,
                }
            }
            RecordKind::TaskExit => Fact::Exit {
                process: self.task(record, offset_of!(abi::TaskExit, process))?,
                status: record.exit_status(offset_of!(abi::TaskExit, wait_status))?,
                first: flags & abi::FLAG_FIRST_EXIT != 0,
            },
            RecordKind::LimitWriteBegan | RecordKind::LimitWriteReturned => {
                Fact::LimitWrite(Box::new(self.limit_write(record, flags)?))
            }
            RecordKind::OomKill => Fact::OomKill(Box::new(self.oom_kill(record, flags)?)),
            RecordKind::MemoryCharge => Fact::MemoryCharge(Box::new(self.memory_charge(record, flags)?)),
        })
    }

    fn limit_write(&mut self, record: Record<'_>, flags: u16) -> Result<LimitWrite, DecodeError> {
        let number = record.u32(offset_of!(abi::LimitWrite, limit_file))?;
        Ok(LimitWrite {
            limit_file: LimitFile::from_number(number).ok_or(record.field("limit_file", number))?,
            phase: match record.kind {
                RecordKind::LimitWriteReturned => WritePhase::Returned {
                    result: record.write_result(offset_of!(abi::LimitWrite, result))?,
                    at: Some(KernelTime(record.u64(offset_of!(abi::Header, ktime))?)),
                },
                _ => WritePhase::Began,
            },
            value: Some(self.written_value(record)?),
            writer: self.caller(record, offset_of!(abi::LimitWrite, writer))?,
            began: Some(KernelTime(record.u64(offset_of!(abi::LimitWrite, began))?)),
            seen_by: match () {
                () if flags & abi::FLAG_SYSCALL != 0 => WriteHook::Syscall,
                () if flags & abi::FLAG_KPROBE != 0 => WriteHook::Kprobe,
                () => WriteHook::Fentry,
            },
        })
    }

    fn written_value(&mut self, record: Record<'_>) -> Result<WrittenValue, DecodeError> {
        let len = record.u32(offset_of!(abi::LimitWrite, value_len))? as usize;
        let text = record.text(offset_of!(abi::LimitWrite, value), abi::VALUE_CAP)?;
        Ok(WrittenValue { text: self.texts.text(text.trim_ascii()), truncated: len >= abi::VALUE_CAP })
    }

    fn oom_kill(&mut self, record: Record<'_>, flags: u16) -> Result<OomKill, DecodeError> {
        let is = |flag| flags & flag != 0;
        let either = |first, second| match (is(first), is(second)) {
            (true, true) => Err(record.field("flags", flags.into())),
            (first, second) => Ok((first, second)),
        };
        Ok(OomKill {
            victim: self.task(record, offset_of!(abi::OomKill, victim))?,
            choice: match either(abi::FLAG_OOM_CHOSEN, abi::FLAG_OOM_MEMBER)? {
                (true, _) => Some(OomChoice::Chosen),
                (_, true) => Some(OomChoice::GroupMember),
                (false, false) => None,
            },
            scope: match either(abi::FLAG_OOM_LIMIT, abi::FLAG_OOM_GLOBAL)? {
                (true, _) => {
                    Some(OomScope::Limit(CgroupId(record.u64(offset_of!(abi::OomKill, limit_cgroup))?)))
                }
                (_, true) => Some(OomScope::Machine),
                (false, false) => None,
            },
            usage: if is(abi::FLAG_OOM_USAGE) {
                Some(OomUsage {
                    usage: record.u64(offset_of!(abi::OomKill, usage))?,
                    limit: record.u64(offset_of!(abi::OomKill, limit))?,
                })
            } else {
                None
            },
            trigger: self.caller(record, offset_of!(abi::OomKill, trigger))?,
        })
    }

    fn memory_charge(&mut self, record: Record<'_>, flags: u16) -> Result<MemoryCharge, DecodeError> {
        let at = record.u64(offset_of!(abi::Header, ktime))?;
        let earlier_at = record.u64(offset_of!(abi::MemoryCharge, earlier_at))?;
        let earlier_usage = record.u64(offset_of!(abi::MemoryCharge, earlier_usage))?;
        let charger = offset_of!(abi::MemoryCharge, charger);
        Ok(MemoryCharge {
            usage: record.u64(offset_of!(abi::MemoryCharge, usage))?,
            limit: record.u64(offset_of!(abi::MemoryCharge, limit))?,
            earlier: (earlier_at < at).then_some((KernelTime(earlier_at), earlier_usage)),
            suppressed: record.u64(offset_of!(abi::MemoryCharge, suppressed))?,
            above: record.u32(offset_of!(abi::MemoryCharge, above))? as usize,
            charger: (flags & abi::FLAG_CHARGER != 0).then(|| self.caller(record, charger)).transpose()?,
        })
    }

    fn caller(&mut self, record: Record<'_>, base: usize) -> Result<Caller, DecodeError> {
        let actor = base + offset_of!(abi::Caller, actor);
        let Actor { pid, comm } = self.actor(record, actor)?;
        Ok(Caller {
            pid: non_zero(pid),
            tid: Some(record.u32(actor + offset_of!(abi::Actor, tid))?),
            start: Some(KernelTime(record.u64(base + offset_of!(abi::Caller, start_boottime))?)),
            comm: Some(comm),
            cgroup: Some(CgroupId(record.u64(base + offset_of!(abi::Caller, cgroup_id))?)),
        })
    }

    fn task(&mut self, record: Record<'_>, base: usize) -> Result<TaskInfo, DecodeError> {
        Ok(TaskInfo {
            key: ProcKey {
                pid: record.u32(base + offset_of!(abi::Process, pid))?,
                start: KernelTime(record.u64(base + offset_of!(abi::Process, start_boottime))?),
            },
            ppid: record.u32(base + offset_of!(abi::Process, ppid))?,
            mnt_ns: non_zero(record.u32(base + offset_of!(abi::Process, mnt_ns))?),
            parent_mnt_ns: non_zero(record.u32(base + offset_of!(abi::Process, parent_mnt_ns))?),
            comm: self.texts.text(record.text(base + offset_of!(abi::Process, comm), abi::COMM_LEN)?),
        })
    }

    fn actor(&mut self, record: Record<'_>, base: usize) -> Result<Actor, DecodeError> {
        Ok(Actor {
            pid: record.u32(base + offset_of!(abi::Actor, pid))?,
            comm: self.texts.text(record.text(base + offset_of!(abi::Actor, comm), abi::COMM_LEN)?),
        })
    }
}

/// Bytes whose length is their kind's.
#[derive(Clone, Copy)]
struct Record<'a> {
    kind: RecordKind,
    bytes: &'a [u8],
}

impl<'a> Record<'a> {
    fn array<const N: usize>(self, offset: usize) -> Result<[u8; N], DecodeError> {
        array_at(self.bytes, offset).ok_or(DecodeError::Size { kind: self.kind, len: self.bytes.len() })
    }

    fn u32(self, offset: usize) -> Result<u32, DecodeError> {
        self.array(offset).map(u32::from_ne_bytes)
    }

    fn u64(self, offset: usize) -> Result<u64, DecodeError> {
        self.array(offset).map(u64::from_ne_bytes)
    }

    /// `len` bytes, up to the first NUL.
    fn text(self, offset: usize, len: usize) -> Result<&'a [u8], DecodeError> {
        let bytes = self
            .bytes
            .get(offset..offset + len)
            .ok_or(DecodeError::Size { kind: self.kind, len: self.bytes.len() })?;
        Ok(bytes.split(|&byte| byte == 0).next().unwrap_or_default())
    }

    /// The length of a text that shares `cap` bytes with its NUL.
    fn length(self, field: &'static str, offset: usize, cap: usize) -> Result<usize, DecodeError> {
        let raw = self.u32(offset)?;
        match usize::try_from(raw) {
            Ok(len) if len < cap => Ok(len),
            _ => Err(self.field(field, raw)),
        }
    }

    /// What write(2) returned: bytes written, or a negative errno (`MAX_ERRNO` of the kernel's `include/linux/err.h`).
    fn write_result(self, offset: usize) -> Result<WriteResult, DecodeError> {
        const LOWEST: i64 = -4095;
        match self.array(offset).map(i64::from_ne_bytes)? {
            0.. => Ok(WriteResult::Accepted),
            result @ LOWEST..0 => {
                Ok(WriteResult::Refused { errno: i32::try_from(-result).unwrap_or(i32::MAX) })
            }
            other => {
                Err(DecodeError::Field { kind: self.kind, field: "result", value: other.cast_unsigned() })
            }
        }
    }

    fn exit_status(self, offset: usize) -> Result<ExitStatus, DecodeError> {
        const CORE_DUMPED: u32 = 0x80;
        const STOPPED: u32 = 0x7f;
        let status = self.u32(offset)?;
        let [low, code, 0, 0] = status.to_le_bytes() else {
            return Err(self.field("wait_status", status));
        };
        match status & 0x7f {
            0 if u32::from(low) & CORE_DUMPED == 0 => Ok(ExitStatus::Code(code)),
            0 | STOPPED => Err(self.field("wait_status", status)),
            _ => {
                Ok(ExitStatus::Signal { signal: low & 0x7f, core_dumped: u32::from(low) & CORE_DUMPED != 0 })
            }
        }
    }

    fn allow_flags(self, flags: u16) -> Result<(), DecodeError> {
        let known = match self.kind {
            RecordKind::CgroupMkdir => abi::FLAG_ROOT | abi::FLAG_NAME_ONLY | abi::FLAG_BEYOND_SHARE,
            RecordKind::TaskFork => abi::FLAG_ENTERED,
            RecordKind::TaskExec => abi::FLAG_FIRST,
            RecordKind::TaskExit => abi::FLAG_FIRST_EXIT,
            RecordKind::LimitWriteBegan | RecordKind::LimitWriteReturned => {
                abi::FLAG_KPROBE | abi::FLAG_SYSCALL
            }
            RecordKind::OomKill => {
                abi::FLAG_OOM_USAGE
                    | abi::FLAG_OOM_LIMIT
                    | abi::FLAG_OOM_GLOBAL
                    | abi::FLAG_OOM_CHOSEN
                    | abi::FLAG_OOM_MEMBER
            }
            RecordKind::MemoryCharge => abi::FLAG_CHARGER,
            RecordKind::CgroupRmdir
            | RecordKind::CgroupRelease
            | RecordKind::CgroupAttach
            | RecordKind::CgroupPopulated => 0,
        };
        if flags & !known == 0 { Ok(()) } else { Err(self.field("flags", flags.into())) }
    }

    fn field(self, field: &'static str, value: u32) -> DecodeError {
        DecodeError::Field { kind: self.kind, field, value: value.into() }
    }
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn non_zero(raw: u32) -> Option<u32> {
    (raw != 0).then_some(raw)
}

fn lossy(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
