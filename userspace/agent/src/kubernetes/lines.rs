//! An answer's body, in bounded pieces: as a whole, or line by line.

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;

use super::failure::Failure;

/// A line of a watch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// As a whole, without what ends it.
    Whole(Bytes),
    /// It was longer than is taken in, and was passed over.
    TooLong,
}

/// The lines of a body. At most one line is held.
#[derive(Debug)]
pub(super) struct Lines<B> {
    body: B,
    held: BytesMut,
    /// How much of that has no end of a line.
    searched: usize,
    max: usize,
    is_too_long: bool,
}

impl<B> Lines<B>
where
    B: Body<Data = Bytes, Error = kube::Error> + Unpin,
{
    /// Of lines of so many bytes at most.
    pub(super) fn new(body: B, max: usize) -> Self {
        Self { body, held: BytesMut::new(), searched: 0, max, is_too_long: false }
    }

    /// The next one, and how many bytes were received for it; none: the body has ended. What no newline ends is no line.
    pub(super) async fn next(&mut self) -> Result<Option<(Line, usize)>, Failure> {
        let mut received = 0;
        loop {
            if let Some(end) = self.held[self.searched..].iter().position(|byte| *byte == b'\n') {
                let mut line = self.held.split_to(self.searched + end + 1);
                self.searched = 0;
                line.truncate(line.len() - 1);
                if std::mem::take(&mut self.is_too_long) || line.len() > self.max {
                    return Ok(Some((Line::TooLong, received)));
                }
                if !line.trim_ascii().is_empty() {
                    return Ok(Some((Line::Whole(line.freeze()), received)));
                }
                continue;
            }
            if self.is_too_long || self.held.len() > self.max {
                self.is_too_long = true;
                self.held = BytesMut::new();
            }
            self.searched = self.held.len();
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Failure::of_call(&error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        received += data.len();
                        self.held.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

/// A whole body of so many bytes at most; none: it has more.
pub(super) async fn whole<B>(mut body: B, max: usize) -> Result<Option<Bytes>, Failure>
where
    B: Body<Data = Bytes, Error = kube::Error> + Unpin,
{
    let mut held = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::of_call(&error))?;
        if let Ok(data) = frame.into_data() {
            if held.len() + data.len() > max {
                return Ok(None);
            }
            held.extend_from_slice(&data);
        }
    }
    Ok(Some(held.freeze()))
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;

    use super::*;

    fn body(pieces: &[&str]) -> impl Body<Data = Bytes, Error = kube::Error> + Unpin {
        let frames: Vec<_> = pieces
            .iter()
            .map(|piece| Ok(http_body::Frame::data(Bytes::copy_from_slice(piece.as_bytes()))))
            .collect();
        StreamBody::new(futures_util::stream::iter(frames))
    }

    async fn lines(pieces: &[&str]) -> Vec<Line> {
        let mut lines = Lines::new(body(pieces), 4);
        let mut all = Vec::new();
        while let Some((line, _)) = lines.next().await.unwrap() {
            all.push(line);
        }
        all
    }

    #[tokio::test]
    async fn lines_are_cut_wherever_the_pieces_are() {
        let whole = |text: &'static str| Line::Whole(Bytes::from_static(text.as_bytes()));
        assert_eq!(
            lines(&["a", "b\nc", "d\n", "\n \nefgh\ni"]).await,
            [whole("ab"), whole("cd"), whole("efgh")]
        );
        assert_eq!(lines(&["abcde\nf\n"]).await, [Line::TooLong, whole("f")]);
        assert_eq!(lines(&["abcde", "fghij", "k\nl\n"]).await, [Line::TooLong, whole("l")]);
    }

    #[tokio::test]
    async fn a_body_is_bounded() {
        assert_eq!(whole(body(&["ab", "cd"]), 4).await.unwrap().as_deref(), Some(&b"abcd"[..]));
        assert_eq!(whole(body(&["ab", "cd", "e"]), 4).await.unwrap(), None);
    }
}
