//! How the answer to `List` becomes bytes: it is encoded before ([`crate::wire::containers`]). Never decides what is in it.

use bytes::BufMut as _;
use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder};

use crate::wire::RequestDecoder;
use kwitness_api::proto;

/// An encoded `kwitness.v1alpha1.ListResponse`.
#[derive(Debug)]
pub struct Listed(pub(super) Vec<u8>);

/// The codec of `List`: encoded answers out, requests in.
#[derive(Debug, Default)]
pub struct ListCodec;

impl Codec for ListCodec {
    type Encode = Listed;
    type Decode = proto::ListRequest;
    type Encoder = Self;
    type Decoder = RequestDecoder<proto::ListRequest>;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        RequestDecoder::default()
    }
}

impl Encoder for ListCodec {
    type Item = Listed;
    type Error = Status;

    fn encode(&mut self, Listed(bytes): Listed, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(bytes.len());
        buf.put_slice(&bytes);
        Ok(())
    }
}
