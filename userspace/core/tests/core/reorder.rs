//! Records of two rings, drained at different moments, come out as they happened.

use kwitness_core::model::{CgroupId, Fact, KernelEvent, KernelTime};
use kwitness_core::reorder::{HELD_MAX, ReorderBuffer};
use proptest::prelude::*;

fn record(at: u64) -> KernelEvent {
    KernelEvent { at: KernelTime(at), cgroup: CgroupId(1), fact: Fact::Release }
}

fn times(released: impl Iterator<Item = KernelEvent>) -> Vec<u64> {
    released.map(|event| event.at.0).collect()
}

#[test]
fn what_is_younger_than_the_drain_waits() {
    let mut buffer = ReorderBuffer::default();
    // The first ring was read before a record of the second was made: 7 may have predecessors there.
    [1, 4, 2, 7].into_iter().for_each(|at| buffer.push(record(at)));
    assert_eq!(times(buffer.release(KernelTime(5))), [1, 2, 4]);
    assert_eq!(buffer.held(), 1);
    buffer.push(record(6));
    assert_eq!(times(buffer.release(KernelTime(10))), [6, 7]);
    assert_eq!(buffer.held(), 0);
}

#[test]
fn what_is_of_the_future_takes_bounded_memory_and_is_not_lost() {
    let mut buffer = ReorderBuffer::default();
    let count = HELD_MAX as u64 + 100;
    let mut out = Vec::new();
    for at in (1..=count).rev() {
        buffer.push(record(1000 + at));
    }
    out.extend(times(buffer.release(KernelTime(1))));
    assert_eq!((buffer.held(), out.len()), (HELD_MAX, 100));
    out.extend(times(buffer.release(KernelTime(u64::MAX))));
    assert_eq!(out, (1001..=1000 + count).collect::<Vec<_>>());
}

proptest! {
    /// Each drain reads one ring, then the other, while records keep coming.
    #[test]
    fn two_rings_come_out_in_order(
        records in prop::collection::vec(any::<bool>(), 0..200),
        drains in prop::collection::vec((0_usize..200, 0_usize..20, 0_usize..20), 0..20),
    ) {
        let rings: Vec<Vec<u64>> = [true, false]
            .map(|ring| (0_u64..).zip(&records).filter(|(_, which)| **which == ring).map(|(at, _)| at).collect())
            .into();
        let mut read = [0, 0];
        let mut buffer = ReorderBuffer::default();
        let mut out = Vec::new();
        let mut now = 0;
        for (begins_after, first_takes, second_takes) in drains {
            let began = now + begins_after;
            now = began;
            for (ring, takes) in [(0, first_takes), (1, second_takes)] {
                now += takes;
                while let Some(&at) = rings[ring].get(read[ring]).filter(|at| **at <= now as u64) {
                    buffer.push(record(at));
                    read[ring] += 1;
                }
            }
            out.extend(times(buffer.release(KernelTime(began as u64))));
        }
        let expected: Vec<u64> = (0..out.len() as u64).collect();
        prop_assert_eq!(out, expected);
    }
}
