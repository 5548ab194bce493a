//! What goes to a watcher in one message, and how it becomes bytes: events are not encoded again, their pieces are
//! put together. Never decides what a watcher gets.

use bytes::BufMut;
use kwitness_core::journal::Epoch;
use kwitness_core::model::Subject;
use prost::Message as _;
use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder};

use super::Entry;
use crate::wire::RequestDecoder;
use kwitness_api::{EventKind, proto};

/// One `kwitness.v1alpha1.WatchResponse` in the making.
#[derive(Debug)]
pub struct Batch {
    pub(super) begins_after: Option<proto::Position>,
    /// An encoded `kwitness.v1alpha1.Snapshot`.
    pub(super) snapshot: Option<Vec<u8>>,
    pub(super) epoch: Epoch,
    pub(super) items: Vec<Item>,
}

#[derive(Debug)]
pub(super) enum Item {
    /// From the journal, with its number.
    Recorded(u64, Entry),
    /// For this watcher alone: a gap.
    Own(Box<proto::Event>),
}

/// The tag of `WatchResponse.snapshot`: field 1, length-delimited.
const SNAPSHOT_TAG: u8 = 1 << 3 | 2;
/// The tag of `WatchResponse.events`: field 2, length-delimited.
const EVENTS_TAG: u8 = 2 << 3 | 2;

impl Batch {
    /// Puts an encoded `kwitness.v1alpha1.Snapshot` into the batch.
    pub fn with_snapshot(mut self, snapshot: Vec<u8>) -> Self {
        self.snapshot = Some(snapshot);
        self
    }

    /// The kinds of the events, each with its container; none has a gap or what else concerns all.
    pub fn facts(&self) -> impl Iterator<Item = (EventKind, Option<&Subject>)> {
        self.items.iter().map(|item| match item {
            Item::Recorded(_, entry) => (entry.kind, entry.subject.as_ref().map(|of| &*of.subject)),
            Item::Own(_) => (EventKind::Gap, None),
        })
    }

    pub(super) fn encode(mut self, buf: &mut impl BufMut) -> Result<(), prost::EncodeError> {
        if let Some(snapshot) = self.snapshot.take() {
            buf.put_u8(SNAPSHOT_TAG);
            prost::encode_length_delimiter(snapshot.len(), buf)?;
            buf.put_slice(&snapshot);
        }
        let begins_after = self.begins_after.take();
        proto::WatchResponse { begins_after, ..Default::default() }.encode(buf)?;
        let mut position = proto::Position { epoch: self.epoch.0.to_string(), seq: 0 };
        for item in &self.items {
            buf.put_u8(EVENTS_TAG);
            match item {
                Item::Recorded(seq, entry) => {
                    position.seq = *seq;
                    let head = proto::Event { position: Some(position), ..Default::default() };
                    let subject = entry.subject.as_ref().map_or(&[][..], |subject| &subject.bytes);
                    let length = head.encoded_len() + subject.len() + entry.body.len();
                    prost::encode_length_delimiter(length, buf)?;
                    head.encode(buf)?;
                    buf.put_slice(subject);
                    buf.put_slice(&entry.body);
                    position = head.position.unwrap_or_default();
                }
                Item::Own(event) => event.encode_length_delimited(buf)?,
            }
        }
        Ok(())
    }
}

/// The codec of `Watch`: batches out, requests in.
#[derive(Debug, Default)]
pub struct BatchCodec;

impl Codec for BatchCodec {
    type Encode = Batch;
    type Decode = proto::WatchRequest;
    type Encoder = Self;
    type Decoder = RequestDecoder<proto::WatchRequest>;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        RequestDecoder::default()
    }
}

impl Encoder for BatchCodec {
    type Item = Batch;
    type Error = Status;

    fn encode(&mut self, batch: Batch, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        batch.encode(buf).map_err(|error| Status::internal(error.to_string()))
    }
}
