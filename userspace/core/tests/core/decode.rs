//! The decoder against the contract, and against everything that is not it.

use std::mem::offset_of;

use kwitness_abi as abi;
use kwitness_abi::RecordKind;
use kwitness_core::decode::{DecodeError, Decoder, decode};
use kwitness_core::model::{
    Actor, Caller, CgroupId, ExitStatus, Fact, KernelEvent, KernelTime, LimitFile, LimitWrite, MemoryCharge,
    OomChoice, OomKill, OomScope, OomUsage, PathText, ProcKey, TaskInfo, WriteHook, WritePhase, WriteResult,
    WrittenValue,
};
use proptest::prelude::*;

/// A record of a kind, written field by field where the contract says.
struct Bytes(Vec<u8>);

impl Bytes {
    fn new(kind: RecordKind, flags: u16) -> Self {
        Self(vec![0; kind.record_size()])
            .put(offset_of!(abi::Header, ktime), &1_000_u64.to_ne_bytes())
            .put(offset_of!(abi::Header, cgroup_id), &42_u64.to_ne_bytes())
            .put(offset_of!(abi::Header, kind), &(kind as u16).to_ne_bytes())
            .put(offset_of!(abi::Header, flags), &flags.to_ne_bytes())
            .put(offset_of!(abi::Header, cpu), &3_u32.to_ne_bytes())
    }

    fn put(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn actor(self, base: usize) -> Self {
        self.put(base + offset_of!(abi::Actor, pid), &7_u32.to_ne_bytes())
            .put(base + offset_of!(abi::Actor, tid), &8_u32.to_ne_bytes())
            .put(base + offset_of!(abi::Actor, comm), b"runc\0stale")
    }

    fn process(self, base: usize) -> Self {
        self.put(base + offset_of!(abi::Process, start_boottime), &900_u64.to_ne_bytes())
            .put(base + offset_of!(abi::Process, pid), &100_u32.to_ne_bytes())
            .put(base + offset_of!(abi::Process, ppid), &99_u32.to_ne_bytes())
            .put(base + offset_of!(abi::Process, mnt_ns), &5_u32.to_ne_bytes())
            .put(base + offset_of!(abi::Process, comm), b"0123456789abcde\0")
    }

    fn fact(&self) -> Result<Fact, DecodeError> {
        decode(&self.0).map(|event| {
            assert_eq!((event.at, event.cgroup), (KernelTime(1_000), CgroupId(42)));
            event.fact
        })
    }
}

fn actor() -> Actor {
    Actor { pid: 7, comm: "runc".into() }
}

fn process() -> TaskInfo {
    TaskInfo {
        key: ProcKey { pid: 100, start: KernelTime(900) },
        ppid: 99,
        mnt_ns: Some(5),
        parent_mnt_ns: None,
        comm: "0123456789abcde".into(),
    }
}

fn mkdir(flags: u16, path: &[u8]) -> Bytes {
    Bytes::new(RecordKind::CgroupMkdir, flags)
        .put(offset_of!(abi::CgroupMkdir, parent_id), &41_u64.to_ne_bytes())
        .actor(offset_of!(abi::CgroupMkdir, actor))
        .put(offset_of!(abi::CgroupMkdir, path_len), &(path.len() as u32).to_ne_bytes())
        .put(offset_of!(abi::CgroupMkdir, path), path)
}

fn exec(flags: u16, filename: &[u8]) -> Bytes {
    Bytes::new(RecordKind::TaskExec, flags)
        .process(offset_of!(abi::TaskExec, process))
        .put(offset_of!(abi::TaskExec, filename_len), &(filename.len() as u32).to_ne_bytes())
        .put(offset_of!(abi::TaskExec, filename), filename)
}

fn exit(wait_status: u32) -> Bytes {
    Bytes::new(RecordKind::TaskExit, 0)
        .process(offset_of!(abi::TaskExit, process))
        .put(offset_of!(abi::TaskExit, wait_status), &wait_status.to_ne_bytes())
}

fn populated(value: u32) -> Bytes {
    Bytes::new(RecordKind::CgroupPopulated, 0)
        .put(offset_of!(abi::CgroupPopulated, populated), &value.to_ne_bytes())
}

impl Bytes {
    fn caller(self, base: usize) -> Self {
        self.put(base + offset_of!(abi::Caller, start_boottime), &800_u64.to_ne_bytes())
            .put(base + offset_of!(abi::Caller, cgroup_id), &77_u64.to_ne_bytes())
            .actor(base + offset_of!(abi::Caller, actor))
    }
}

fn caller() -> Caller {
    Caller {
        pid: Some(7),
        tid: Some(8),
        start: Some(KernelTime(800)),
        comm: Some("runc".into()),
        cgroup: Some(CgroupId(77)),
    }
}

/// A write of `len` bytes that begin with `value`.
fn limit_write(kind: RecordKind, flags: u16, value: &[u8], len: usize) -> Bytes {
    Bytes::new(kind, flags)
        .put(offset_of!(abi::LimitWrite, began), &990_u64.to_ne_bytes())
        .caller(offset_of!(abi::LimitWrite, writer))
        .put(offset_of!(abi::LimitWrite, limit_file), &LimitFile::CpuMax.number().to_ne_bytes())
        .put(offset_of!(abi::LimitWrite, value_len), &(len as u32).to_ne_bytes())
        .put(offset_of!(abi::LimitWrite, value), value)
}

fn returned(result: i64) -> Bytes {
    let text = b"50000 100000\n";
    limit_write(RecordKind::LimitWriteReturned, 0, text, text.len())
        .put(offset_of!(abi::LimitWrite, result), &result.to_ne_bytes())
}

fn oom_kill(flags: u16) -> Bytes {
    Bytes::new(RecordKind::OomKill, flags)
        .process(offset_of!(abi::OomKill, victim))
        .caller(offset_of!(abi::OomKill, trigger))
        .put(offset_of!(abi::OomKill, limit_cgroup), &41_u64.to_ne_bytes())
        .put(offset_of!(abi::OomKill, usage), &16_000_u64.to_ne_bytes())
        .put(offset_of!(abi::OomKill, limit), &16_384_u64.to_ne_bytes())
}

fn memory_charge(flags: u16, earlier_at: u64) -> Bytes {
    Bytes::new(RecordKind::MemoryCharge, flags)
        .put(offset_of!(abi::MemoryCharge, usage), &81_u64.to_ne_bytes())
        .put(offset_of!(abi::MemoryCharge, limit), &100_u64.to_ne_bytes())
        .put(offset_of!(abi::MemoryCharge, earlier_at), &earlier_at.to_ne_bytes())
        .put(offset_of!(abi::MemoryCharge, earlier_usage), &70_u64.to_ne_bytes())
        .put(offset_of!(abi::MemoryCharge, suppressed), &6_u64.to_ne_bytes())
        .put(offset_of!(abi::MemoryCharge, above), &1_u32.to_ne_bytes())
        .caller(offset_of!(abi::MemoryCharge, charger))
}

fn every_kind() -> Vec<Bytes> {
    vec![
        mkdir(abi::FLAG_ROOT, b"/kubepods"),
        Bytes::new(RecordKind::CgroupRmdir, 0).actor(offset_of!(abi::CgroupRemoved, actor)),
        Bytes::new(RecordKind::CgroupRelease, 0),
        Bytes::new(RecordKind::CgroupAttach, 0)
            .process(offset_of!(abi::CgroupAttach, process))
            .actor(offset_of!(abi::CgroupAttach, actor)),
        populated(1),
        Bytes::new(RecordKind::TaskFork, abi::FLAG_ENTERED).process(offset_of!(abi::TaskFork, child)),
        exec(abi::FLAG_FIRST, b"/bin/sh"),
        exit(0x0300),
        limit_write(RecordKind::LimitWriteBegan, 0, b"max", 3),
        returned(13),
        oom_kill(abi::FLAG_OOM_USAGE | abi::FLAG_OOM_LIMIT | abi::FLAG_OOM_CHOSEN),
        memory_charge(abi::FLAG_CHARGER, 900),
    ]
}

#[test]
fn every_kind_decodes() {
    let facts: Vec<_> = every_kind().iter().map(Bytes::fact).collect();
    assert_eq!(
        facts,
        [
            Ok(Fact::Mkdir {
                parent: CgroupId(41),
                path: PathText::Full("/kubepods".into()),
                root: true,
                beyond_share: false,
                actor: actor()
            }),
            Ok(Fact::Rmdir { actor: actor() }),
            Ok(Fact::Release),
            Ok(Fact::Attach { process: process(), actor: actor() }),
            Ok(Fact::Populated(true)),
            Ok(Fact::Fork { child: process(), entered: true }),
            Ok(Fact::Exec { process: process(), program: "/bin/sh".into(), first: true }),
            Ok(Fact::Exit { process: process(), status: ExitStatus::Code(3), first: false }),
            Ok(Fact::LimitWrite(Box::new(LimitWrite {
                limit_file: LimitFile::CpuMax,
                phase: WritePhase::Began,
                value: Some(WrittenValue { text: "max".into(), truncated: false }),
                writer: caller(),
                began: Some(KernelTime(990)),
                seen_by: WriteHook::Fentry,
            }))),
            Ok(Fact::LimitWrite(Box::new(LimitWrite {
                limit_file: LimitFile::CpuMax,
                phase: WritePhase::Returned { result: WriteResult::Accepted, at: Some(KernelTime(1_000)) },
                value: Some(WrittenValue { text: "50000 100000".into(), truncated: false }),
                writer: caller(),
                began: Some(KernelTime(990)),
                seen_by: WriteHook::Fentry,
            }))),
            Ok(Fact::OomKill(Box::new(OomKill {
                victim: process(),
                choice: Some(OomChoice::Chosen),
                scope: Some(OomScope::Limit(CgroupId(41))),
                usage: Some(OomUsage { usage: 16_000, limit: 16_384 }),
                trigger: caller(),
            }))),
            Ok(Fact::MemoryCharge(Box::new(MemoryCharge {
                usage: 81,
                limit: 100,
                earlier: Some((KernelTime(900), 70)),
                suppressed: 6,
                above: 1,
                charger: Some(caller()),
            }))),
        ]
    );
}

#[test]
fn who_charged_and_usage_before_may_be_unknown() {
    let Ok(Fact::MemoryCharge(charge)) = memory_charge(0, 1_000).fact() else { panic!("no charge") };
    assert_eq!((charge.charger, charge.earlier), (None, None));
}

#[test]
fn a_name_alone_is_distinguished_from_a_path() {
    let Ok(Fact::Mkdir { path, root, .. }) = mkdir(abi::FLAG_NAME_ONLY, b"container").fact() else {
        panic!("no mkdir")
    };
    assert_eq!((path, root), (PathText::Name("container".into()), false));
}

#[test]
fn a_cgroup_beyond_its_containers_share_is_distinguished() {
    let beyond = |flags| match mkdir(flags, b"/kubepods/poda").fact() {
        Ok(Fact::Mkdir { beyond_share, .. }) => beyond_share,
        other => panic!("{other:?}"),
    };
    assert!(beyond(abi::FLAG_BEYOND_SHARE) && !beyond(0));
}

#[test]
fn wait_statuses() {
    let status = |raw| match exit(raw).fact() {
        Ok(Fact::Exit { status, .. }) => Ok(status),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    };
    assert_eq!(status(0), Ok(ExitStatus::Code(0)));
    assert_eq!(status(0xff00), Ok(ExitStatus::Code(255)));
    assert_eq!(status(9), Ok(ExitStatus::Signal { signal: 9, core_dumped: false }));
    assert_eq!(status(0x80 | 11), Ok(ExitStatus::Signal { signal: 11, core_dumped: true }));
    assert_eq!(status(64), Ok(ExitStatus::Signal { signal: 64, core_dumped: false }));
    // Stopped by a signal, a core dump without one, more than 16 bits: no exit has those.
    for raw in [0x137f, 0x80, 0x1_0000, u32::MAX] {
        assert_eq!(status(raw), Err(format!("task_exit: wait_status is {raw:#x}")));
    }
}

#[test]
fn a_writer_outside_of_the_nodes_pid_namespace_has_no_pid() {
    let pid =
        offset_of!(abi::LimitWrite, writer) + offset_of!(abi::Caller, actor) + offset_of!(abi::Actor, pid);
    let Ok(Fact::LimitWrite(write)) = returned(13).put(pid, &0_u32.to_ne_bytes()).fact() else {
        panic!("no write")
    };
    assert_eq!(write.writer, Caller { pid: None, ..caller() });
}

#[test]
fn what_a_write_to_a_limit_returned() {
    let result = |raw| match returned(raw).fact() {
        Ok(Fact::LimitWrite(write)) => Ok(write.phase),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    };
    let phase = |result| Ok(WritePhase::Returned { result, at: Some(KernelTime(1_000)) });
    assert_eq!(result(0), phase(WriteResult::Accepted));
    assert_eq!(result(-22), phase(WriteResult::Refused { errno: 22 }));
    assert_eq!(result(-4095), phase(WriteResult::Refused { errno: 4095 }));
    assert_eq!(result(-4096), Err("limit_write_returned: result is 0xfffffffffffff000".to_owned()));
    let unknown = returned(0).put(offset_of!(abi::LimitWrite, limit_file), &0x1ff_u32.to_ne_bytes());
    assert_eq!(
        unknown.fact().map_err(|error| error.to_string()),
        Err("limit_write_returned: limit_file is 0x1ff".to_owned())
    );
}

#[test]
fn a_write_says_how_it_was_seen() {
    for (flag, hook) in [
        (0, WriteHook::Fentry),
        (abi::FLAG_KPROBE, WriteHook::Kprobe),
        (abi::FLAG_SYSCALL, WriteHook::Syscall),
    ] {
        let Ok(Fact::LimitWrite(write)) = limit_write(RecordKind::LimitWriteBegan, flag, b"1", 1).fact()
        else {
            panic!("no write")
        };
        assert_eq!(write.seen_by, hook);
    }
}

#[test]
fn a_written_value_may_be_longer_than_what_is_kept_of_it() {
    let written =
        |value: &[u8], len| match limit_write(RecordKind::LimitWriteBegan, abi::FLAG_KPROBE, value, len)
            .fact()
        {
            Ok(Fact::LimitWrite(write)) => {
                assert_eq!(write.seen_by, WriteHook::Kprobe);
                write.value
            }
            other => panic!("{other:?}"),
        };
    let value = |text: &str, truncated| Some(WrittenValue { text: text.into(), truncated });
    assert_eq!(written(b"", 0), value("", false));
    assert_eq!(written(b" 1G \n", 5), value("1G", false));
    let full = [b'7'; abi::VALUE_CAP - 1];
    let text = "7".repeat(full.len());
    assert_eq!(written(&full, full.len()), value(&text, false));
    assert_eq!(written(&full, full.len() + 1), value(&text, true));
    assert_eq!(written(&full, u32::MAX as usize), value(&text, true));
}

#[test]
fn what_is_known_of_an_oom_kill() {
    let kill = |flags| match oom_kill(flags).fact() {
        Ok(Fact::OomKill(kill)) => Ok((kill.choice, kill.scope, kill.usage)),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    };
    assert_eq!(kill(0), Ok((None, None, None)));
    assert_eq!(
        kill(abi::FLAG_OOM_MEMBER | abi::FLAG_OOM_GLOBAL),
        Ok((Some(OomChoice::GroupMember), Some(OomScope::Machine), None))
    );
    // Chosen and not chosen, a limit's and the machine's: no kill is both.
    for flags in [abi::FLAG_OOM_MEMBER | abi::FLAG_OOM_CHOSEN, abi::FLAG_OOM_LIMIT | abi::FLAG_OOM_GLOBAL] {
        assert_eq!(kill(flags), Err(format!("oom_kill: flags is {flags:#x}")));
    }
}

#[test]
fn text_is_read_up_to_its_first_nul_and_lossily() {
    let program = |bytes: &[u8]| match exec(0, bytes).fact() {
        Ok(Fact::Exec { program, .. }) => program.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(program(b""), "");
    assert_eq!(program(b"/bin/a\0b"), "/bin/a");
    assert_eq!(program(b"/bin/\xff\xfe"), "/bin/\u{fffd}\u{fffd}");
    let longest = vec![b'x'; abi::FILENAME_CAP - 1];
    assert_eq!(program(&longest).len(), abi::FILENAME_CAP - 1);

    // A comm without a NUL is its whole field.
    let full = exit(0)
        .put(offset_of!(abi::TaskExit, process) + offset_of!(abi::Process, comm), &[b'c'; abi::COMM_LEN]);
    let Ok(Fact::Exit { process, .. }) = full.fact() else { panic!("no exit") };
    assert_eq!(&*process.comm, "c".repeat(abi::COMM_LEN));
}

#[test]
fn errors_name_kind_and_field() {
    let message = |bytes: &[u8]| match decode(bytes) {
        Err(error) => error.to_string(),
        Ok(event) => panic!("{event:?}"),
    };
    assert_eq!(message(&[0; 5]), "a record of 5 bytes: its header alone has 24");
    let unknown = exit(0).put(offset_of!(abi::Header, kind), &13_u16.to_ne_bytes());
    assert_eq!(message(&unknown.0), "unknown record kind 13: probes and daemon are not of the same build");
    assert_eq!(message(&exit(0).0[..71]), "task_exit: 71 bytes instead of 72");
    assert_eq!(message(&populated(2).0), "cgroup_populated: populated is 0x2");
    let too_long =
        exec(0, b"").put(offset_of!(abi::TaskExec, filename_len), &(abi::FILENAME_CAP as u32).to_ne_bytes());
    assert_eq!(message(&too_long.0), "task_exec: filename_len is 0x100");
    let flagged = exit(0).put(offset_of!(abi::Header, flags), &abi::FLAG_ROOT.to_ne_bytes());
    assert_eq!(message(&flagged.0), "task_exit: flags is 0x1");
    assert_eq!(decode(&flagged.0).map_err(|error| error.kind()), Err(Some(RecordKind::TaskExit)));
}

#[test]
fn no_other_length_will_do() {
    for bytes in every_kind() {
        for len in 0..bytes.0.len() {
            assert!(decode(&bytes.0[..len]).is_err(), "{len} of {bytes:?}", bytes = bytes.0);
        }
        let mut longer = bytes.0.clone();
        longer.push(0);
        assert!(matches!(decode(&longer), Err(DecodeError::Size { .. })));
    }
}

#[test]
fn alignment_does_not_matter() {
    for bytes in every_kind() {
        for shift in 0..8 {
            let mut shifted = vec![0xaa; shift];
            shifted.extend(&bytes.0);
            assert_eq!(decode(&shifted[shift..]), decode(&bytes.0));
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_decode_or_say_why(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        let _ = decode(&bytes);
    }

    /// Random bytes that get past the first checks.
    #[test]
    fn any_body_decodes_or_says_why(
        kind in prop::sample::select(RecordKind::ALL.to_vec()),
        flags in 0_u16..2048,
        body in prop::collection::vec(any::<u8>(), 600),
        short in prop::bool::weighted(0.2),
    ) {
        let mut bytes = Bytes::new(kind, flags).0;
        let header = size_of::<abi::Header>();
        let len = bytes.len();
        bytes[header..].copy_from_slice(&body[..len - header]);
        if short {
            bytes.pop();
        }
        match decode(&bytes) {
            Ok(event) => prop_assert!(!short && event.cgroup == CgroupId(42)),
            Err(error) => prop_assert_eq!(error.kind(), Some(kind)),
        }
    }

    /// What a decoder remembers never changes what it says.
    #[test]
    fn memory_does_not_show(records in prop::collection::vec((0_usize..11, "[a-c]{0,3}"), 1..50)) {
        let mut decoder = Decoder::default();
        for (which, name) in records {
            let bytes = match which {
                6 => exec(0, name.as_bytes()),
                0 => mkdir(0, name.as_bytes()),
                _ => every_kind().swap_remove(which),
            };
            let expected: Result<KernelEvent, _> = decode(&bytes.0);
            prop_assert_eq!(decoder.decode(&bytes.0), expected);
        }
    }
}
