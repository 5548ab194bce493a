//! How many records a second the core takes, on one CPU: a shell's `fork, exec, exit` over and over in a number of
//! containers, as bytes of the rings.
//!
//! ```text
//! cargo run --release -p kwitness-core --example throughput [CONTAINERS]
//! ```

use std::hint::black_box;
use std::mem::offset_of;
use std::time::Instant;

use kwitness_abi as abi;
use kwitness_abi::RecordKind;
use kwitness_core::decode::Decoder;
use kwitness_core::lifecycle::{Bounds, Lifecycle};
use kwitness_core::model::{KernelTime, Observation, Output, Scan, ScanReason};
use kwitness_core::reorder::ReorderBuffer;

/// Records a drain.
const BATCH: usize = 4096;
const BATCHES: usize = 100;
const ROUNDS: usize = 7;

fn main() {
    let containers = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(100);
    let batches: Vec<Vec<Vec<u8>>> = Workload::new(containers).batches();
    let records = (BATCH * BATCHES) as f64;
    println!("{containers} containers, {records} records a round, the median of {ROUNDS} rounds");
    report("decode", records, || {
        let mut decoder = Decoder::default();
        for record in batches.iter().flatten() {
            let _ = black_box(decoder.decode(record));
        }
    });
    report("decode, merge", records, || {
        let (mut decoder, mut merge) = (Decoder::default(), ReorderBuffer::default());
        for batch in &batches {
            batch.iter().filter_map(|record| decoder.decode(record).ok()).for_each(|event| merge.push(event));
            merge.release(KernelTime(u64::MAX)).for_each(|event| drop(black_box(event)));
        }
    });
    report("decode, merge, observe", records, || {
        let (mut decoder, mut merge) = (Decoder::default(), ReorderBuffer::default());
        let mut machine = machine(containers, &mut decoder);
        let mut output = Output::default();
        for batch in &batches {
            batch.iter().filter_map(|record| decoder.decode(record).ok()).for_each(|event| merge.push(event));
            for event in merge.release(KernelTime(u64::MAX)) {
                machine.observe(Observation::Kernel(event), &mut output);
            }
            black_box(&output.events);
            output.events.clear();
        }
        assert_eq!(machine.counters(), Default::default());
    });
}

fn report(what: &str, records: f64, mut round: impl FnMut()) {
    let mut nanoseconds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed().as_secs_f64() * 1e9 / records
        })
        .collect();
    nanoseconds.sort_by(f64::total_cmp);
    let median = nanoseconds[ROUNDS / 2];
    println!(
        "{what:<24} {median:6.1} ns a record ({:.1} to {:.1}), {:.2} M/s",
        nanoseconds[0],
        nanoseconds[ROUNDS - 1],
        1e3 / median
    );
}

/// A machine that follows these containers already.
fn machine(containers: u64, decoder: &mut Decoder) -> Lifecycle {
    let mut machine = Lifecycle::new(Bounds::default());
    let mut output = Output::default();
    let scan = Scan::empty(ScanReason::Initial, KernelTime(0));
    machine.observe(Observation::Scan(scan), &mut output);
    for container in 0..containers {
        let record = mkdir(container);
        if let Ok(event) = decoder.decode(&record) {
            machine.observe(Observation::Kernel(event), &mut output);
        }
    }
    assert_eq!(machine.containers().count() as u64, containers);
    machine
}

struct Workload {
    containers: u64,
    time: u64,
    pid: u32,
}

impl Workload {
    fn new(containers: u64) -> Self {
        Self { containers, time: 1_000, pid: 1_000 }
    }

    /// `fork, exec, exit` by sixteen shells at a time.
    fn batches(mut self) -> Vec<Vec<Vec<u8>>> {
        let mut records = Vec::with_capacity(BATCH * BATCHES);
        while records.len() < BATCH * BATCHES {
            let pids: Vec<u32> = (self.pid..self.pid + 16).collect();
            self.pid += 16;
            for kind in [RecordKind::TaskFork, RecordKind::TaskExec, RecordKind::TaskExit] {
                for &pid in &pids {
                    records.push(self.record(kind, pid));
                }
            }
        }
        records.truncate(BATCH * BATCHES);
        records.chunks(BATCH).map(<[_]>::to_vec).collect()
    }

    fn record(&mut self, kind: RecordKind, pid: u32) -> Vec<u8> {
        const PROGRAMS: [&[u8]; 4] =
            [b"/usr/bin/true", b"/bin/ls", b"/usr/local/bin/probe-http", b"/bin/cat"];
        self.time += 700;
        let program = PROGRAMS[pid as usize % PROGRAMS.len()];
        let mut bytes = vec![0; kind.record_size()];
        header(&mut bytes, kind, self.time, cgroup_id(u64::from(pid) % self.containers));
        let process = size_of::<abi::Header>();
        put(&mut bytes, process + offset_of!(abi::Process, start_boottime), &u64::from(pid).to_ne_bytes());
        put(&mut bytes, process + offset_of!(abi::Process, pid), &pid.to_ne_bytes());
        put(&mut bytes, process + offset_of!(abi::Process, mnt_ns), &7_u32.to_ne_bytes());
        put(&mut bytes, process + offset_of!(abi::Process, parent_mnt_ns), &7_u32.to_ne_bytes());
        put(&mut bytes, process + offset_of!(abi::Process, comm), &program[program.len() - 2..]);
        if kind == RecordKind::TaskExec {
            put(&mut bytes, offset_of!(abi::TaskExec, filename_len), &(program.len() as u32).to_ne_bytes());
            put(&mut bytes, offset_of!(abi::TaskExec, filename), program);
        }
        bytes
    }
}

fn cgroup_id(container: u64) -> u64 {
    1_000 + container
}

fn mkdir(container: u64) -> Vec<u8> {
    let kind = RecordKind::CgroupMkdir;
    let mut bytes = vec![0; kind.record_size()];
    header(&mut bytes, kind, 1, cgroup_id(container));
    let path = format!("/kubepods/pod{container}/{container:064x}");
    put(&mut bytes, offset_of!(abi::CgroupMkdir, path_len), &(path.len() as u32).to_ne_bytes());
    put(&mut bytes, offset_of!(abi::CgroupMkdir, path), path.as_bytes());
    bytes
}

fn header(bytes: &mut [u8], kind: RecordKind, time: u64, cgroup: u64) {
    put(bytes, offset_of!(abi::Header, ktime), &time.to_ne_bytes());
    put(bytes, offset_of!(abi::Header, cgroup_id), &cgroup.to_ne_bytes());
    put(bytes, offset_of!(abi::Header, kind), &(kind as u16).to_ne_bytes());
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}
