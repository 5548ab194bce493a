//! The first message of a gRPC body, put together from whatever pieces it comes in.
//!
//! ```text
//!   Head ── five bytes ──▶ Body ── as many as they say ──▶ Whole
//!    └─ compressed, no flag of gRPC's, or longer than is kept ──▶ Unusable
//! ```
//!
//! Owns a copy of the bytes, never more than [`limits::MESSAGE_KEPT`], and no more than have come. Total: any bytes lead to one of the
//! states, and how they are cut makes no difference. The body itself passes unchanged.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::limits;

/// gRPC's head of a message: a flag, and the length as four bytes.
const HEAD: usize = 5;

/// What has come so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum First {
    /// So many bytes of the head.
    Head([u8; HEAD], usize),
    /// Of that length.
    Body(usize, Vec<u8>),
    /// The message.
    Whole(Vec<u8>),
    /// There is nothing to be had.
    Unusable(Unusable),
}

/// Why a message is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The algorithm is named in the call's headers, which are not read.
    #[error("the message is compressed")]
    Compressed,
    /// A flag that gRPC does not have.
    #[error("the message has the unknown flag {0:#04x}")]
    Flag(u8),
    /// Longer than is kept; its length in bytes.
    #[error("the message is too long: {0} bytes")]
    Oversized(u32),
}

impl Default for First {
    fn default() -> Self {
        Self::Head([0; HEAD], 0)
    }
}

impl First {
    /// Takes the next piece of the body.
    pub fn push(&mut self, mut piece: &[u8]) {
        if let Self::Head(head, have) = self {
            let (start, rest) = piece.split_at(piece.len().min(HEAD - *have));
            head[*have..*have + start.len()].copy_from_slice(start);
            *have += start.len();
            if *have < HEAD {
                return;
            }
            piece = rest;
            *self = Self::begin(*head);
        }
        if let Self::Body(length, bytes) = self {
            bytes.extend(&piece[..piece.len().min(*length - bytes.len())]);
            if bytes.len() == *length {
                *self = Self::Whole(std::mem::take(bytes));
            }
        }
    }

    fn begin([flag, length @ ..]: [u8; HEAD]) -> Self {
        let length = u32::from_be_bytes(length);
        match (flag, usize::try_from(length)) {
            (0, Ok(length)) if length <= limits::MESSAGE_KEPT => Self::Body(length, Vec::new()),
            (0, _) => Self::Unusable(Unusable::Oversized(length)),
            (1, _) => Self::Unusable(Unusable::Compressed),
            (flag, _) => Self::Unusable(Unusable::Flag(flag)),
        }
    }
}

/// The first message of a body that is on its way.
#[derive(Clone, Debug, Default)]
pub struct Copied(Arc<Mutex<First>>);

impl Copied {
    /// The body, copied from as it passes.
    pub fn of<B>(&self, body: B) -> CopiedBody<B> {
        CopiedBody { body, first: self.clone() }
    }

    /// What has come so far.
    pub fn take(&self) -> First {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, First> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An unchanged body whose first message is copied.
#[derive(Debug)]
pub struct CopiedBody<B> {
    body: B,
    first: Copied,
}

impl<B: Body<Data = Bytes> + Unpin> Body for CopiedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.first.lock().push(data);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::framed;
    use super::*;

    fn of(bytes: &[u8]) -> First {
        let mut first = First::default();
        first.push(bytes);
        first
    }

    #[test]
    fn the_first_message_and_no_other() {
        assert_eq!(of(b""), First::default());
        assert_eq!(of(&framed(b"")), First::Whole(Vec::new()));
        assert_eq!(of(&[framed(b"one"), framed(b"two")].concat()), First::Whole(b"one".to_vec()));
        assert_eq!(of(b"\0\0\0\0\x04abc"), First::Body(4, b"abc".to_vec()));
    }

    #[test]
    fn what_is_not_kept() {
        assert_eq!(of(b"\x01\0\0\0\x01x"), First::Unusable(Unusable::Compressed));
        assert_eq!(of(b"\x7f\0\0\0\x01x"), First::Unusable(Unusable::Flag(0x7f)));
        assert_eq!(of(b"\0\xff\xff\xff\xffx"), First::Unusable(Unusable::Oversized(u32::MAX)));
        let largest = vec![7; limits::MESSAGE_KEPT];
        assert_eq!(of(&framed(&largest)), First::Whole(largest.clone()));
        let larger = framed(&[largest, vec![7]].concat());
        assert!(matches!(of(&larger), First::Unusable(Unusable::Oversized(_))));
    }

    proptest! {
        /// However the bytes are cut, and whatever they are: the same, and never more kept than came.
        #[test]
        fn cuts_make_no_difference(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..64),
                prop::collection::vec(any::<u8>(), 0..64).prop_map(|message| framed(&message).to_vec()),
            ],
            cuts in prop::collection::vec(0_usize..64, 0..8),
        ) {
            let mut first = First::default();
            let mut rest = &bytes[..];
            for cut in cuts {
                let (piece, more) = rest.split_at(cut.min(rest.len()));
                first.push(piece);
                rest = more;
            }
            first.push(rest);
            prop_assert_eq!(&first, &of(&bytes));
            if let First::Whole(message) | First::Body(_, message) = &first {
                prop_assert!(message.len() + HEAD <= bytes.len());
            }
        }
    }
}
