//! What one container may cost the others in the journal: nothing.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroUsize;

use kwitness_api::proto::event::Kind as ApiKind;
use kwitness_core::journal::{Cursor, Piece};
use kwitness_core::model::Subject;
use proptest::prelude::*;

use super::testing::*;
use super::window::{BatchMax, Item};
use super::*;

fn of_pods(pods: &[&str]) -> Filter {
    let pods = pods.iter().map(|pod| (*pod).to_owned()).collect();
    proto::Filter { pods, ..Default::default() }.try_into().unwrap()
}

fn after(seq: u64) -> Start {
    Start::After(Position { epoch: Epoch("epoch".into()), seq })
}

async fn replay(hub: &Arc<Hub>, seq: u64, filter: Filter) -> Vec<proto::Event> {
    rest(&mut hub.watch(after(seq), false, filter).unwrap()).await
}

/// Of whom events are missing, and how many.
fn gaps(events: &[proto::Event]) -> Vec<(Option<&str>, &proto::Gap)> {
    events
        .iter()
        .filter_map(|event| match &event.kind {
            Some(ApiKind::Gap(gap)) => Some((event.container.as_ref().map(|of| of.id.as_str()), gap)),
            _ => None,
        })
        .collect()
}

fn id(subject: &Subject) -> Option<&str> {
    Some(&subject.container_id.0)
}

#[tokio::test]
async fn a_storm_of_one_container_costs_no_other_an_event() {
    let (hub, mut writer) = hub(1024);
    let (quiet, storm) = (subject(1, None), subject(2, None));
    writer.append([created(&quiet), gap()], clock());
    writer.append((0..5000).map(|_| stopped(&storm)), clock());
    writer.append([stopped(&quiet)], clock());

    assert_eq!(numbers(&replay(&hub, 0, of_pods(&["uid-1"])).await), [1, 2, 5003], "without a gap");
    let all = replay(&hub, 0, Filter::default()).await;
    let [(of, gap)] = gaps(&all[2..])[..] else { panic!("{:?}", gaps(&all)) };
    assert_eq!((of, gap.cause()), (id(&storm), proto::GapCause::ReplayExpired));
    let kept = hub.extent().events;
    assert_eq!((kept, gap.first_seq, gap.last_seq), (1024, Some(3), Some(5003 - 1022)));
    assert_eq!((gap.lost["event"], all.len() as u64), (5003 - 1024, kept + 1), "each event or its place");
    assert_eq!(all[2].position.as_ref().unwrap().seq, 5003 - 1022, "resuming after the gap skips nothing");
    assert!(hub.can_resume(&Position { epoch: Epoch("epoch".into()), seq: 0 }));

    let mut slow = hub.watch(Start::Now, true, Filter::default()).unwrap();
    slow.opening();
    writer.append((0..5000).map(|_| stopped(&storm)), clock());
    let events = decode(slow.next().await.unwrap());
    let [(of, gap)] = gaps(&events)[..] else { panic!("{:?}", gaps(&events)) };
    assert_eq!((of, gap.cause(), gap.first_seq), (id(&storm), proto::GapCause::WatcherLagged, Some(5004)));
    assert_eq!(hub.lagged(), gap.lost["event"]);
}

#[tokio::test]
async fn each_of_several_storms_is_named_and_none_is_skipped() {
    let (hub, mut writer) = hub(1024);
    let subjects = [1, 2, 3].map(|number| subject(number, None));
    let [quiet, one, other] = &subjects;
    writer.append([created(quiet)], clock());
    writer.append((0..3000).flat_map(|_| [stopped(one), stopped(other), stopped(other)]), clock());
    let all = replay(&hub, 0, Filter::default()).await;
    let mut lost = BTreeMap::new();
    gaps(&all).into_iter().for_each(|(of, gap)| *lost.entry(of).or_default() += gap.lost["event"]);
    // What is left is half each one's.
    assert!((2480..2500).contains(&lost[&id(one)]) && (5480..5500).contains(&lost[&id(other)]), "{lost:?}");
    assert_eq!(lost.values().sum::<u64>() + 1024, hub.extent().last_seq, "each event or its place");
    let position = |index: usize| all[index].position.as_ref().unwrap().seq;
    let [(first, of_one), (second, of_other), ..] = gaps(&all)[..] else { panic!("{lost:?}") };
    assert_eq!([first, second], [id(one), id(other)]);
    assert_eq!((of_one.last_seq, of_other.last_seq), (Some(position(2)), Some(position(1) + 1)));
    let rest = replay(&hub, position(1), Filter::default()).await;
    assert_eq!(gaps(&rest)[0].0, id(other), "whoever comes back in between is not left without it");
}

#[tokio::test]
async fn what_was_given_up_before_its_names_were_known_is_a_gap_once_they_are() {
    let (hub, mut writer) = hub(1024);
    let (unnamed, named) = (subject(2, None), subject(2, Some(facts("prod", "web", "nginx"))));
    let quiet = subject(1, Some(facts("prod", "db", "postgres")));
    let web = || of_pods(&["web"]);
    writer.append([created(&quiet)], clock());
    writer.append((0..3000).map(|_| stopped(&unnamed)), clock());
    assert_eq!(replay(&hub, 0, web()).await, [], "it may be anyone's");
    writer.append([updated(&named), stopped(&named)], clock());
    let events = replay(&hub, 0, web()).await;
    let [(of, gap)] = gaps(&events)[..] else { panic!("{:?}", gaps(&events)) };
    assert_eq!((of, gap.lost["event"] + events.len() as u64 - 1), (id(&named), 3002));
    assert_eq!(numbers(&replay(&hub, 0, of_pods(&["db"])).await), [1]);
    writer.append((0..3000).map(|_| stopped(&named)), clock());
    let events = replay(&hub, 0, web()).await;
    assert_eq!(gaps(&events).len(), 1, "once");
    assert_eq!(gaps(&events)[0].1.lost["event"] + events.len() as u64 - 1, 6002);
}

#[tokio::test]
async fn what_was_given_up_right_before_the_names_were_known_is_one_gap() {
    let (hub, mut writer) = hub(1024);
    let (unnamed, named) = (subject(2, None), subject(2, Some(facts("prod", "web", "nginx"))));
    let web = async |seq| {
        let events = replay(&hub, seq, of_pods(&["web"])).await;
        let found = gaps(&events).into_iter().map(|(of, gap)| {
            assert_eq!((of, gap.cause()), (id(&named), proto::GapCause::ReplayExpired));
            (gap.first_seq.unwrap(), gap.last_seq.unwrap(), gap.lost["event"])
        });
        (found.collect::<Vec<_>>(), numbers(&events))
    };
    let kept = |given_up: u64, first| (given_up..=given_up).chain(first..first + 1023).collect::<Vec<_>>();
    let quiet = subject(1, Some(facts("prod", "db", "postgres")));
    writer.append([created(&quiet)], clock());
    writer.append((0..3000).map(|_| stopped(&unnamed)), clock());
    writer.append([updated(&named)], clock());
    writer.append((0..1022).map(|_| stopped(&named)), clock());
    // The oldest event that is left is the one that names it, 3002. Who has come to any place before got none of those before.
    for seq in [0, 500, 3000, 3001] {
        assert_eq!(web(seq).await, (vec![(2, 3001, 3000)], kept(3001, 3002)), "after {seq}");
    }
    assert_eq!(web(3002).await, (vec![], (3003..=4024).collect()));
    // By what is known from the first event on, events come in time, and so does their gap.
    for (seq, lost) in [(0, 3000), (500, 2501)] {
        let events = replay(&hub, seq, of_pods(&["uid-2"])).await;
        assert_eq!(gaps(&events).iter().map(|(_, gap)| gap.lost["event"]).collect::<Vec<_>>(), [lost]);
    }
    // That event is given up, too.
    writer.append([stopped(&named)], clock());
    for seq in [0, 500, 3001] {
        assert_eq!(web(seq).await, (vec![(2, 3002, 3001)], kept(3002, 3003)), "after {seq}");
    }
    // A later one takes its place, and is not the first that names it.
    writer.append([updated(&named)], clock());
    writer.append((0..1022).map(|_| stopped(&named)), clock());
    for (seq, gap) in [(0, (2, 4025, 4024)), (500, (2, 4025, 4024)), (4000, (4001, 4025, 25))] {
        assert_eq!(web(seq).await, (vec![gap], kept(4025, 4026)), "after {seq}");
    }
}

#[tokio::test]
async fn of_containers_within_their_share_the_oldest_events_go() {
    let (hub, mut writer) = hub(1024);
    for number in 0..1000 {
        let of = subject(number, None);
        writer.append([created(&of), stopped(&of), stopped(&of)], clock());
    }
    let events = replay(&hub, 0, Filter::default()).await;
    assert_eq!(gaps(&events)[0].0, None);
    assert_eq!(numbers(&events[1..]), (3000 - 1023..=3000).collect::<Vec<_>>());
}

#[test]
fn the_memory_of_what_was_given_up_is_within_the_bound() {
    let capacity = Capacity { items: NonZeroUsize::new(1 << 20).unwrap(), bytes: 1 << 20 };
    let (hub, mut writer) = Hub::new(Epoch("epoch".into()), capacity);
    let storm = subject(2, None);
    // Between any two of the storm's, one of another container's: nothing adjacent can be put together.
    for number in 10..10_000 {
        writer.append([stopped(&storm), created(&subject(number, None))], clock());
        let extent = hub.extent();
        assert!(extent.bytes <= extent.capacity_bytes, "{extent:?}");
    }
    assert!(hub.extent().events >= 100, "{:?}", hub.extent());
}

/// An item of an owner.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Of(Option<u8>, usize);

impl Item for Of {
    type Owner = u8;
    type Index = HashMap<u8, VecDeque<u64>>;

    fn owner(&self) -> Option<u8> {
        self.0
    }

    fn gives_up(owner: u8, index: &Self::Index) -> Option<u64> {
        index.get(&owner).filter(|items| items.len() > 1)?.front().copied()
    }

    fn own_bytes(&self) -> usize {
        self.1
    }

    fn enter(&self, seq: u64, index: &mut Self::Index) -> usize {
        if let Some(owner) = self.0 {
            index.entry(owner).or_default().push_back(seq);
        }
        self.1
    }

    fn leave(&self, index: &mut Self::Index) -> usize {
        if let Some(items) = self.0.and_then(|owner| index.get_mut(&owner)) {
            items.pop_front();
        }
        self.1
    }

    fn wire_bytes(&self) -> usize {
        self.1
    }
}

const ITEMS: usize = 200;
const ITEM: usize = 1000;
/// What 64 items weigh, with their places.
const SHARE: usize = 64 * 2 * ITEM;

/// The rule, by a list.
fn push(kept: &mut Vec<(u64, Of)>, seq: u64, item: Of) {
    if kept.len() == ITEMS {
        let mut held: BTreeMap<u8, (usize, usize)> = BTreeMap::new();
        for (_, Of(owner, bytes)) in &*kept {
            if let Some(owner) = owner {
                let (weight, count) = held.entry(*owner).or_default();
                (*weight, *count) = (*weight + bytes + ITEM, *count + 1);
            }
        }
        let beyond = held.iter().filter(|(_, (weight, count))| *weight > SHARE && *count > 1);
        let most = beyond.max_by_key(|(owner, (weight, _))| (*weight, **owner)).map(|(owner, _)| *owner);
        let index = kept.iter().position(|(_, of)| most.is_none() || of.0 == most).unwrap();
        kept.remove(index);
    }
    kept.push((seq, item));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// An item is given up only by the owner that has most of all that have too much, its oldest one; every reader learns of it.
    #[test]
    fn the_window_follows_the_rule(
        items in prop::collection::vec((0_u8..20, 0_usize..ITEM), 0..1500),
        max in 1_usize..300,
    ) {
        let capacity = Capacity { items: NonZeroUsize::new(ITEMS).unwrap(), bytes: ITEMS * ITEM };
        let window = Window::<Of>::new(Epoch("epoch".into()), capacity);
        let mut kept = Vec::new();
        for (seq, (owner, bytes)) in (1..).zip(items) {
            let owner = match owner {
                0 => None,
                1..=12 => Some(0),
                13..=17 => Some(1),
                _ => Some(2),
            };
            let item = Of(owner, bytes);
            window.append([item]);
            push(&mut kept, seq, item);
        }
        let max = BatchMax { items: NonZeroUsize::new(max).unwrap(), bytes: usize::MAX };
        let (mut cursor, mut read_all) = (Cursor::after(0), Vec::new());
        let last = window.look(|journal, _| journal.last_seq());
        while cursor.seq() < last {
            let read = window.read(cursor, max, |item, _| item);
            let mut next = read.missed.map_or(cursor.seq(), |missed| missed.last) + 1;
            for piece in read.pieces {
                match piece {
                    Piece::Item(seq, item) => {
                        prop_assert_eq!(seq, next);
                        read_all.push((seq, item));
                        next += 1;
                    }
                    Piece::GivenUp(given_up) => {
                        prop_assert_eq!(given_up.first, next);
                        next = given_up.last + 1;
                    }
                }
            }
            prop_assert_eq!(read.next.seq() + 1, next);
            prop_assert!(read.next > cursor);
            cursor = read.next;
        }
        prop_assert_eq!(read_all, kept);
    }
}
