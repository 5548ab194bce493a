//! Mutated messages of a real container runtime at everything here that reads what others wrote: the splitter of the observed, the decoders
//! of the CRI's subset, and the stream of events as it comes over the wire.
//!
//! The corpus in `tests/corpus/cri` was recorded from containerd (`KWITNESS_CORPUS`, see CONTRIBUTING.md). `PROPTEST_CASES` says how many
//! cases are tried.

use std::path::Path;
use std::sync::LazyLock;

use bytes::Bytes;
use http_body::Frame;
use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message;

use super::events::{Dedup, Seen};
use super::first::First;
use super::requests::requested;
use super::testing::{body, framed};
use kwitness_api::proto::CriMethod;
use kwitness_cri::{Raw, events as wire, runtime as cri};

/// Of one message; far more than any mutation makes of one.
const LARGEST: usize = 1 << 20;

static CORPUS: LazyLock<Vec<Bytes>> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus/cri");
    let mut files: Vec<_> = directory.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let corpus: Vec<Bytes> = files.iter().map(|file| std::fs::read(file).unwrap().into()).collect();
    assert!(corpus.len() >= 10, "the corpus is in {}", directory.display());
    corpus
});

/// What becomes of a message.
#[derive(Clone, Debug)]
enum Mutation {
    Set(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
    /// The end of another one.
    Splice(Index, Index, Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    prop_oneof![
        (at(), prop_oneof![any::<u8>(), Just(0x80), Just(0xff), Just(0)])
            .prop_map(|(at, byte)| Mutation::Set(at, byte)),
        at().prop_map(Mutation::Cut),
        (at(), prop::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        (at(), 1_usize..40).prop_map(|(at, length)| Mutation::Remove(at, length)),
        (at(), 1_usize..400).prop_map(|(at, length)| Mutation::Repeat(at, length)),
        (at(), at(), at()).prop_map(|(at, other, from)| Mutation::Splice(at, other, from)),
    ]
}

fn mutate(message: &mut Vec<u8>, mutation: &Mutation) {
    if message.is_empty() {
        message.push(0);
    }
    let end = |at: usize, length: usize, bytes: &[u8]| bytes.len().min(at + length);
    match mutation {
        Mutation::Set(at, byte) => *at.get_mut(message) = *byte,
        Mutation::Cut(at) => message.truncate(at.index(message.len())),
        Mutation::Insert(at, bytes) => {
            let at = at.index(message.len());
            message.splice(at..at, bytes.iter().copied());
        }
        Mutation::Remove(at, length) => {
            let at = at.index(message.len());
            message.drain(at..end(at, *length, message));
        }
        Mutation::Repeat(at, length) => {
            let at = at.index(message.len());
            message.extend_from_within(at..end(at, *length, message));
        }
        Mutation::Splice(at, other, from) => {
            message.truncate(at.index(message.len()));
            let other = other.get(&CORPUS);
            message.extend(other.get(from.index(other.len().max(1))..).unwrap_or_default());
        }
    }
}

/// A message of the corpus, as it is or after some mutations.
fn message() -> impl Strategy<Value = Vec<u8>> {
    (any::<Index>(), prop::collection::vec(mutation(), 0..6)).prop_map(|(which, mutations)| {
        let mut message = which.get(&CORPUS).to_vec();
        mutations.iter().for_each(|mutation| mutate(&mut message, mutation));
        message.truncate(LARGEST);
        message
    })
}

/// The bytes in pieces.
fn pieces(bytes: &[u8], cuts: &[Index]) -> Vec<Bytes> {
    let mut places: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| Bytes::copy_from_slice(&bytes[pair[0]..pair[1]])).collect()
}

/// Whether it can be decoded as that; then it is the same after having been encoded again.
fn decodes<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> bool {
    let Ok(message) = M::decode(bytes) else { return false };
    assert_eq!(M::decode(message.encode_to_vec().as_slice()).as_ref(), Ok(&message));
    true
}

/// Runs every decoder of foreign messages; returns how many succeeded.
fn read(bytes: &[u8]) -> usize {
    let methods = [
        CriMethod::CreateContainer,
        CriMethod::UpdateContainerResources,
        CriMethod::UpdatePodSandboxResources,
    ];
    let created = || Some("created".to_owned());
    let observed = methods.into_iter().filter(|method| requested(*method, bytes, created()).is_ok()).count();
    let decoded = [
        decodes::<cri::CreateContainerResponse>(bytes),
        decodes::<cri::VersionResponse>(bytes),
        decodes::<cri::ListPodSandboxResponse>(bytes),
        decodes::<cri::ListContainersResponse>(bytes),
        decodes::<cri::ContainerStatusResponse>(bytes),
        decodes::<wire::ListPodSandboxResponse>(bytes),
        decodes::<wire::ListContainersResponse>(bytes),
        decodes::<wire::PodSandboxStatusResponse>(bytes),
        decodes::<wire::PodSandboxStatus>(bytes),
        decodes::<wire::ContainerStatusResponse>(bytes),
        decodes::<wire::ContainerStatus>(bytes),
        decodes::<wire::ContainerEventResponse>(bytes),
        Seen::default().check(bytes, 0) != Dedup::Undecodable,
    ];
    observed + decoded.into_iter().filter(|is| *is).count()
}

#[test]
fn every_message_of_the_corpus_can_be_read() {
    for message in &*CORPUS {
        assert!(read(message) > 0, "{message:?}");
        assert!(message.len() < LARGEST);
    }
}

/// What comes of a stream of messages that comes in these pieces.
fn streamed(pieces: Vec<Bytes>) -> Vec<Bytes> {
    let body = body(pieces.into_iter().map(Frame::data));
    let mut stream = tonic::codec::Streaming::new_request(Raw, body, None, Some(LARGEST));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut messages = Vec::new();
    while let Some(message) = runtime.block_on(stream.message()).unwrap() {
        messages.push(message);
    }
    messages
}

proptest! {
    #[test]
    fn no_message_is_a_panic(message in message()) {
        read(&message);
    }

    /// Between messages that are none, each that is one arrives, however the bytes are cut.
    #[test]
    fn no_message_is_lost_to_another(
        messages in prop::collection::vec(message(), 1..6),
        cuts in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        let bytes = messages.iter().map(|message| framed(message)).collect::<Vec<_>>().concat();
        let pieces = pieces(&bytes, &cuts);
        let mut first = First::default();
        pieces.iter().for_each(|piece| first.push(piece));
        let kept = messages[0].len() <= super::limits::MESSAGE_KEPT;
        prop_assert_eq!(first == First::Whole(messages[0].clone()), kept);
        prop_assert_eq!(streamed(pieces), messages);
    }

    /// Heads that say anything: however the bytes are cut, the same is kept, and no more than came.
    #[test]
    fn what_is_no_frame_is_the_same_however_it_is_cut(
        mut bytes in message(),
        head in prop::option::of(any::<[u8; 5]>()),
        cuts in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        bytes.splice(0..0, head.into_iter().flatten());
        let (mut whole, mut cut) = (First::default(), First::default());
        whole.push(&bytes);
        pieces(&bytes, &cuts).iter().for_each(|piece| cut.push(piece));
        prop_assert_eq!(&whole, &cut);
        if let First::Whole(kept) | First::Body(_, kept) = whole {
            prop_assert!(kept.len() + 5 <= bytes.len() && kept.len() <= super::limits::MESSAGE_KEPT);
        }
    }
}
