//! Records, the answers to them, and the position that follows.

use opentelemetry_proto::tonic::common::v1::KeyValue;

use super::*;

fn position(seq: u64) -> Position {
    Position { epoch: "e".to_owned(), seq }
}

fn record(seq: u64, about: &str, bytes: usize) -> Record {
    let attribute = KeyValue { key: about.to_owned(), ..Default::default() };
    Record {
        resource: Resource { attributes: vec![attribute], ..Default::default() },
        log: LogRecord { time_unix_nano: seq, ..Default::default() },
        position: Some(position(seq)),
        begins: None,
        bytes,
    }
}

fn gap(progress: &Progress) -> Vec<Record> {
    let refused = progress.refused.iter().map(|refused| 1000 + refused.records);
    let unaccounted = progress.unaccounted.iter().map(|last| 2000 + last.seq);
    let lost = (progress.kubernetes_lost > 0).then_some(3000 + progress.kubernetes_lost);
    let all = refused.chain(unaccounted).chain(lost);
    all.map(|time| Record { position: None, ..record(time, "gap", 1) }).collect()
}

fn at(seq: u64) -> Progress {
    Progress { position: Some(position(seq)), ..Progress::default() }
}

/// What the records of the next batch are about, and their times.
fn take(queue: &mut Queue) -> Vec<(String, Vec<u64>)> {
    let request = queue.take(gap).unwrap();
    let groups = request.resource_logs.into_iter().map(|group| {
        let about = group.resource.unwrap().attributes[0].key.clone();
        (about, group.scope_logs[0].log_records.iter().map(|record| record.time_unix_nano).collect())
    });
    groups.collect()
}

fn queue(seqs: std::ops::RangeInclusive<u64>) -> Queue {
    let mut queue = Queue::new(1000, Progress::default());
    seqs.for_each(|seq| queue.push(record(seq, "a", 10)));
    queue
}

#[test]
fn the_position_moves_only_with_an_answer() {
    let mut queue = queue(1..=3);
    assert_eq!(take(&mut queue), [("a".to_owned(), vec![1, 2, 3])]);
    queue.push(record(4, "a", 10));
    assert_eq!(queue.take(gap), None, "one batch at a time");
    assert_eq!((queue.progress(), queue.size(), queue.oldest()), (&Progress::default(), (40, 4), Some(1)));
    queue.accepted(0, "");
    assert_eq!(queue.progress(), &at(3));
    assert_eq!((queue.size(), queue.oldest()), ((10, 1), Some(4)));
    take(&mut queue);
    queue.accepted(0, "");
    assert_eq!((queue.progress().position.as_ref(), queue.size()), (Some(&position(4)), (0, 0)));
    assert_eq!(queue.take(gap), None);
}

#[test]
fn records_are_grouped_by_what_they_are_about() {
    let mut queue = Queue::new(1000, Progress::default());
    for (seq, about) in [(1, "a"), (2, "b"), (3, "a")] {
        queue.push(record(seq, about, 1));
    }
    assert_eq!(take(&mut queue), [("a".to_owned(), vec![1, 3]), ("b".to_owned(), vec![2])]);
}

#[test]
fn a_full_queue_says_so_until_an_answer_comes() {
    let mut queue = queue(1..=99);
    assert!(queue.has_room());
    queue.push(record(100, "a", 10));
    assert!(!queue.has_room());
    take(&mut queue);
    assert!(!queue.has_room(), "what is in flight counts");
    queue.accepted(0, "");
    assert!(queue.has_room());
}

#[test]
fn batches_are_bounded_in_bytes_and_records() {
    let mut queue = Queue::new(usize::MAX, Progress::default());
    (1..=BATCH_RECORDS as u64 + 1).for_each(|seq| queue.push(record(seq, "a", 1)));
    assert_eq!(take(&mut queue)[0].1.len(), BATCH_RECORDS);
    queue.accepted(0, "");
    assert_eq!(take(&mut queue)[0].1.len(), 1);
    queue.accepted(0, "");
    for (seq, bytes) in [(1, BATCH_BYTES - 1), (2, 2), (3, 2 * BATCH_BYTES), (4, 1)] {
        queue.push(record(seq, "a", bytes));
    }
    for expected in [1, 2, 3, 4] {
        assert_eq!(take(&mut queue)[0].1, [expected], "a record that is too large goes alone");
        queue.accepted(0, "");
    }
}

#[test]
fn what_is_refused_is_a_gap_in_the_next_batch_that_arrives() {
    let mut queue = queue(1..=2);
    take(&mut queue);
    queue.refused("too old");
    let refused = |first, last, records, reason: &str| {
        vec![Refused { epoch: "e".to_owned(), first, last, records, reason: reason.to_owned() }]
    };
    let expected = Progress { refused: refused(1, 2, 2, "too old"), ..at(2) };
    assert_eq!(queue.progress(), &expected);
    assert_eq!(queue.take(gap), None, "a gap alone is not sent: it could be refused for ever");

    queue.push(record(3, "a", 10));
    assert_eq!(take(&mut queue), [("gap".to_owned(), vec![1002]), ("a".to_owned(), vec![3])]);
    queue.refused("still");
    assert_eq!(queue.progress().refused, refused(1, 3, 3, "still"), "one gap for both");

    queue.push(record(4, "a", 10));
    queue.push(record(5, "a", 10));
    assert_eq!(take(&mut queue)[0], ("gap".to_owned(), vec![1003]));
    queue.accepted(1, "one is bad");
    assert_eq!(queue.progress().refused, refused(1, 5, 4, "one is bad"), "the gap before may be the bad one");

    queue.push(record(6, "a", 10));
    take(&mut queue);
    queue.accepted(7, "more than there were");
    assert_eq!(queue.progress().refused, refused(1, 6, 5, "more than there were"));
    queue.push(record(7, "a", 10));
    take(&mut queue);
    queue.accepted(0, "");
    assert_eq!(queue.progress(), &at(7));
}

#[test]
fn a_gap_that_is_refused_is_lost_with_what_it_stood_for() {
    let mut queue = Queue::new(1000, Progress::default());
    queue.push(Record { begins: Some(4), ..record(7, "a", 10) });
    queue.push(record(8, "a", 10));
    take(&mut queue);
    queue.refused("no");
    let refused = &queue.progress().refused[0];
    assert_eq!((refused.first, refused.last), (4, 8));
}

#[test]
fn what_is_refused_of_several_epochs_is_remembered_for_each() {
    let mut queue = Queue::new(usize::MAX, Progress::default());
    let of = |epoch: &str, seq| Record {
        position: Some(Position { epoch: epoch.to_owned(), seq }),
        ..record(seq, "a", 1)
    };
    for (epoch, seq) in [("a", 8), ("a", 9), ("b", 1), ("b", 2), ("c", 1)] {
        queue.push(of(epoch, seq));
    }
    let mut messages = Vec::new();
    while queue.take(|_| Vec::new()).is_some() {
        messages.push(queue.in_flight());
        queue.refused("no");
    }
    assert_eq!(messages, [2, 2, 1], "a message has records of one epoch");
    let refused = queue.progress().refused.iter();
    let found: Vec<_> = refused.map(|of| (of.epoch.as_str(), of.first, of.last, of.records)).collect();
    assert_eq!(found, [("a", 8, 9, 2), ("b", 1, 2, 2), ("c", 1, 1, 1)]);

    for epoch in 0..2 * REFUSED_EPOCHS {
        queue.push(of(&epoch.to_string(), 1));
        queue.take(|_| Vec::new()).unwrap();
        queue.refused("no");
    }
    let refused = &queue.progress().refused;
    assert_eq!(refused.len(), REFUSED_EPOCHS);
    let records: u64 = refused.iter().map(|refused| refused.records).sum();
    assert_eq!(records, 5 + 2 * REFUSED_EPOCHS as u64, "none is forgotten");
}

#[test]
fn without_a_state_the_events_before_the_first_are_a_gap_until_it_arrives() {
    let mut queue = queue(8..=9);
    queue.begin("e", 8);
    queue.begin("e", 9);
    assert_eq!(queue.progress().unaccounted, Some(position(7)));
    assert_eq!(take(&mut queue)[0], ("gap".to_owned(), vec![2007]));
    queue.refused("no");
    assert_eq!(queue.progress().unaccounted, Some(position(7)), "it is still to be reported");
    queue.push(record(10, "a", 10));
    assert_eq!(take(&mut queue)[0], ("gap".to_owned(), vec![1002, 2007]));
    queue.accepted(0, "");
    assert_eq!(queue.progress(), &at(10));

    let mut known = Queue::new(1000, at(3));
    known.begin("e", 8);
    assert_eq!(known.progress(), &at(3), "the daemon's own gap says it");
    let mut whole = Queue::new(1000, Progress::default());
    whole.begin("e", 1);
    assert_eq!(whole.progress(), &Progress::default(), "nothing is before the first");
}

#[test]
fn lost_kubernetes_events_are_a_gap_once() {
    let mut queue = queue(1..=1);
    queue.lose_kubernetes(2);
    assert_eq!(take(&mut queue)[0], ("gap".to_owned(), vec![3002]));
    queue.lose_kubernetes(5);
    queue.accepted(0, "");
    assert_eq!(queue.progress().kubernetes_lost, 5, "those of later");
    queue.push(record(2, "a", 10));
    assert_eq!(take(&mut queue)[0], ("gap".to_owned(), vec![3005]));
    queue.accepted(0, "");
    assert_eq!(queue.progress(), &at(2));
}

#[test]
fn a_reason_is_cut() {
    let mut queue = queue(1..=1);
    take(&mut queue);
    queue.refused(&"é".repeat(REASON_BYTES));
    assert_eq!(queue.progress().refused[0].reason.len(), REASON_BYTES);
}

#[test]
fn without_a_collector_everything_counts_as_taken() {
    let mut queue = queue(1..=5);
    queue.skip();
    assert_eq!((queue.progress().position.as_ref(), queue.size()), (Some(&position(5)), (0, 0)));
    queue.skip();
    assert_eq!(queue.progress().position, Some(position(5)));
}
