//! Decodes protobuf messages that may be anything, if they take no more memory than is allowed.
//!
//! Two bytes on the wire can be an entry of a list, which takes some hundred in memory: whoever limits the bytes of messages would hold
//! a hundred times as much. So fields are counted before any is decoded, and their memory is compared with the bytes.
//!
//! Owns the count, and what is said of a message that cannot be decoded: the client's request is the client's fault, a server's answer
//! is not. Never judges what a message says.

use std::iter::once;
use std::marker::PhantomData;

use bytes::{Buf as _, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost::{DecodeError, Message};
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::{Code, Status};
use tonic_prost::ProstEncoder;

/// Bytes that a field of the message is taken to need, if it may be an entry of a list.
const ENTRY: usize = 256;
/// Bytes that a field of such an entry is taken to need, if it may be one of a list: a label, a text.
const FIELD: usize = 64;
/// Bytes that an entry of [`DEEP`] is taken to need.
const DEEP_ENTRY: usize = 2 * FIELD;
/// Where else a list may be, by field numbers: `status.resources.linux` of a `ContainerStatusResponse`, with `unified` in it. What is
/// as deep elsewhere are texts only, and any of these may happen to read as fields.
const DEEP: [u32; 3] = [1, 16, 1];
/// Bytes of memory for each byte of a message.
const RATIO: usize = 4;

/// Whose messages are decoded: clients' requests to a server of ours.
#[derive(Debug)]
pub struct Requests;

/// Whose messages are decoded: a server's answers to calls of ours.
#[derive(Debug)]
pub struct Answers;

/// What a message that cannot be decoded is, by whose it is.
pub trait Received: Send + 'static {
    /// What it is called.
    const NAME: &'static str;
    /// The code of one that is no protobuf message of the expected type.
    const UNDECODABLE: Code;
}

impl Received for Requests {
    const NAME: &'static str = "request";
    // Whoever sent it is at fault.
    const UNDECODABLE: Code = Code::InvalidArgument;
}

impl Received for Answers {
    const NAME: &'static str = "answer";
    // As of `ProstCodec`: no argument of the call's is to blame.
    const UNDECODABLE: Code = Code::Internal;
}

/// As `tonic_prost::ProstCodec`, for messages that need at most four times their bytes once they are decoded, and `FREE` bytes besides.
#[derive(Debug)]
pub struct BoundedCodec<T, U, R, const FREE: usize>(PhantomData<(T, U, R)>);

impl<T, U, R, const FREE: usize> Default for BoundedCodec<T, U, R, FREE> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U, R, const FREE: usize> Codec for BoundedCodec<T, U, R, FREE>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
    R: Received,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U, R, FREE>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder::default()
    }
}

/// The decoder of [`BoundedCodec`].
#[derive(Debug)]
pub struct BoundedDecoder<U, R, const FREE: usize>(PhantomData<(U, R)>);

impl<U, R, const FREE: usize> Default for BoundedDecoder<U, R, FREE> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<U: Message + Default, R: Received, const FREE: usize> Decoder for BoundedDecoder<U, R, FREE> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let message = buffer.copy_to_bytes(buffer.remaining());
        decode::<U, R>(message, FREE).map(Some)
    }
}

fn decode<U: Message + Default, R: Received>(message: Bytes, free: usize) -> Result<U, Status> {
    if needs_more_than(&message, free) {
        // As for a message of too many bytes.
        return Err(Status::out_of_range(format!("the {} has too many fields for its bytes", R::NAME)));
    }
    U::decode(message).map_err(|error| undecodable::<R>(&error))
}

fn undecodable<R: Received>(error: &DecodeError) -> Status {
    Status::new(R::UNDECODABLE, format!("the {} cannot be decoded: {error}", R::NAME))
}

/// The status of a call whose answer has a message that cannot be decoded.
pub fn undecodable_answer(error: &DecodeError) -> Status {
    undecodable::<Answers>(error)
}

/// Whether a message is taken to need more than four times its bytes and so many besides.
fn needs_more_than(message: &[u8], free: usize) -> bool {
    let most = free + RATIO * message.len();
    let [first, second, third] = DEEP;
    let deep = |field| {
        let lists = Fields(field).filter(move |(number, _)| *number == third);
        lists.flat_map(|(_, list)| Fields(list)).map(|_| DEEP_ENTRY)
    };
    let of_entry = |(number, entry)| {
        let of_field = move |(below, field)| {
            let is_deep = (number, below) == (first, second);
            once(FIELD).chain(is_deep.then(|| deep(field)).into_iter().flatten())
        };
        once(ENTRY).chain(Fields(entry).flat_map(of_field))
    };
    let mut costs = Fields(message).flat_map(of_entry);
    costs.try_fold(0_usize, |sum, cost| Some(sum + cost).filter(|sum| *sum <= most)).is_none()
}

/// A message's fields, by number, but for single numbers: one takes two bytes at least, and four of memory for each. Ends where it
/// is no message.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let number = loop {
            let (number, wire_type) = decode_key(&mut self.0).ok()?;
            if wire_type == WireType::LengthDelimited {
                break number;
            }
            skip_field(wire_type, number, &mut self.0, DecodeContext::default()).ok()?;
        };
        let length = usize::try_from(decode_varint(&mut self.0).ok()?).ok()?;
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some((number, field))
    }
}

#[cfg(test)]
mod tests {
    use kwitness_api::proto;
    use prost::encoding::{encode_key, encode_varint};

    use super::*;

    const FREE: usize = 1 << 16;

    #[test]
    fn a_message_of_very_many_fields_is_not_decoded() {
        // Of two bytes each: an entry, and a text in one.
        let entries = |count| [0x0a_u8, 0].repeat(count);
        let most = FREE / (ENTRY - 2 * RATIO);
        assert!(needs_more_than(&entries(most + 1), FREE) && !needs_more_than(&entries(most), FREE));
        let request = |count| {
            let filter = proto::Filter { pods: vec![String::new(); count], ..Default::default() };
            proto::ListRequest { filter: Some(filter) }.encode_to_vec()
        };
        assert!(needs_more_than(&request(FREE / (FIELD - 2 * RATIO)), FREE));
        assert!(!needs_more_than(&request(4 * 256), FREE));
    }

    #[test]
    fn what_is_as_long_as_it_is_large_is_decoded_however_long() {
        let id = "0".repeat(64);
        let (from, to) = (1_000_000_000_000_000, 1_000_000_000_001_000);
        let request =
            proto::CriRequest { id: id.clone(), received: from, answered: to, ..Default::default() };
        let requests = vec![request; 1 << 12];
        let missed = vec![proto::CriRequestsMissed { id, count: 1, from, to }; 1 << 12];
        assert!(!needs_more_than(
            &proto::ReportCriRequestsRequest { requests, missed }.encode_to_vec(),
            FREE
        ));
    }

    /// A message with one field that has a length.
    fn field(number: u32, content: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        encode_key(number, WireType::LengthDelimited, &mut message);
        encode_varint(content.len() as u64, &mut message);
        [message, content.to_vec()].concat()
    }

    #[test]
    fn the_only_deeper_list_is_counted_and_a_text_that_reads_like_one_is_not() {
        // Of eight bytes each: another key, and no value.
        let unified: Vec<u8> =
            (0..FREE as u32).flat_map(|key| field(9, &field(1, &key.to_le_bytes()))).collect();
        let [first, second, third] = DEEP;
        let status = |linux: &[u8]| field(first, &field(second, &field(third, linux)));
        assert!(needs_more_than(&status(&unified), FREE));
        assert!(!needs_more_than(&status(&unified[..FREE / DEEP_ENTRY]), FREE));
        // `info` of a status and an annotation, each with lines that read as fields.
        for text in [unified, field(1, &[b'\n'; 300 << 10]), vec![b'\n'; 300 << 10]] {
            assert!(!needs_more_than(&field(2, &field(2, &text)), FREE));
            assert!(!needs_more_than(&field(1, &field(13, &field(2, &text))), FREE));
        }
    }

    #[test]
    fn what_is_no_message_is_a_clients_fault_only_if_the_client_sent_it() {
        // A pod that is not UTF-8.
        let filter = field(1, &field(1, b"\xff"));
        let (of_client, of_server) = (
            decode::<proto::ListRequest, Requests>(filter.clone().into(), FREE).unwrap_err(),
            decode::<proto::ListRequest, Answers>(filter.into(), FREE).unwrap_err(),
        );
        assert_eq!((of_client.code(), of_server.code()), (Code::InvalidArgument, Code::Internal));
        assert!(of_client.message().starts_with("the request cannot be decoded: "), "{of_client}");
        assert!(of_server.message().starts_with("the answer cannot be decoded: "), "{of_server}");
    }

    #[test]
    fn long_texts_are_no_fields_and_what_is_no_message_has_none() {
        let pods = vec!["a".repeat(FREE)];
        let filter = Some(proto::Filter { pods, ..Default::default() });
        assert!(!needs_more_than(&proto::ListRequest { filter }.encode_to_vec(), 0));
        // A length past the end, a group that does not end, a key that does not.
        for broken in [&b"\x0a\xff\x01"[..], b"\x0b\x0b\x0b", b"\xff"] {
            assert!(!needs_more_than(broken, 0), "{broken:?}");
        }
        let fields: Vec<_> = Fields(b"\x08\x01\x12\x02ab\x1d\0\0\0\0\x0a\0").collect();
        assert_eq!(fields, [(2, &b"ab"[..]), (1, b"")]);
    }
}
