//! An HTTP/2 connection whose frames are made by hand: what is sent may be wrong in every way, but for the windows of data.
//!
//! Owns the stream and its account of the windows. Never answers the server.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest frame that every server takes.
pub(super) const FRAME: usize = 16_384;
/// A server that takes nothing for so long has had enough.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// A window that does not open for so long stays closed.
pub(super) const LULL: Duration = Duration::from_millis(300);
/// A window that no one has said anything about (RFC 9113, 6.9.2).
const WINDOW: i64 = 65_535;

/// RFC 9113, section 6: types and flags of frames.
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
/// A setting (section 6.5.2).
const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];

/// A connection with its preface sent.
#[derive(Debug)]
pub(super) struct Connection {
    stream: BufReader<UnixStream>,
    windows: Windows,
    /// What was sent last is no whole frame: nothing that follows would be understood.
    pub(super) is_in_a_frame: bool,
}

/// How much may still be sent (RFC 9113, section 5.2).
#[derive(Debug)]
struct Windows {
    connection: i64,
    /// Of a stream that begins.
    initial: i64,
    streams: BTreeMap<u32, i64>,
    /// Streams of which the server wants no more.
    ended: BTreeSet<u32>,
}

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Connection {
    pub(super) fn open(socket: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_write_timeout(Some(PATIENCE)).context("limit the time of writes")?;
        stream.set_read_timeout(Some(PATIENCE)).context("limit the time of reads")?;
        let windows =
            Windows { connection: WINDOW, initial: WINDOW, streams: BTreeMap::new(), ended: BTreeSet::new() };
        let mut connection = Self { stream: BufReader::new(stream), windows, is_in_a_frame: false };
        connection.send(PREFACE)?;
        connection.send(&frame(SETTINGS, 0, 0, &[]))?;
        Ok(connection)
    }

    /// Whether the server took it.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<bool> {
        match self.stream.get_mut().write_all(bytes) {
            Ok(()) => Ok(true),
            Err(error) if has_ended(error.kind()) => Ok(false),
            Err(error) => Err(error).context("write to the server"),
        }
    }

    /// Sends data on a stream, no more than the windows allow; whether any of them may open again.
    pub(super) fn send_data(&mut self, stream: u32, mut data: &[u8]) -> Result<bool> {
        while !data.is_empty() && !self.windows.ended.contains(&stream) {
            let room = usize::try_from(self.windows.room(stream)).unwrap_or(0).min(FRAME).min(data.len());
            if room == 0 {
                let Some(frame) = self.receive()? else { return Ok(false) };
                self.windows.update(&frame);
                continue;
            }
            let (part, rest) = data.split_at(room);
            if !self.send(&frame(DATA, 0, stream, part))? {
                return Ok(false);
            }
            self.windows.sent(stream, room);
            data = rest;
        }
        Ok(true)
    }

    /// The next frame; none: the server has closed the connection or says nothing any more.
    pub(super) fn receive(&mut self) -> Result<Option<Frame>> {
        match self.read_frame() {
            Ok(frame) => Ok(Some(frame)),
            Err(error) if has_ended(error.kind()) => Ok(None),
            Err(error) => Err(error).context("read from the server"),
        }
    }

    fn read_frame(&mut self) -> std::io::Result<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head)?;
        let [long, middle, short, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, long, middle, short]) as usize];
        self.stream.read_exact(&mut payload)?;
        Ok(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }

    /// How long the server may say nothing.
    pub(super) fn set_patience(&self, patience: Duration) -> Result<()> {
        self.stream.get_ref().set_read_timeout(Some(patience)).context("limit the time of reads")
    }

    /// Returns once the server has taken all that was sent, has closed the connection, or says nothing any more.
    pub(super) fn settle(&mut self) -> Result<()> {
        const MARK: &[u8] = b"all sent";
        if self.is_in_a_frame || !self.send(&frame(PING, 0, 0, MARK))? {
            return Ok(());
        }
        while let Some(frame) = self.receive()? {
            if (frame.kind, frame.flags, &*frame.payload) == (PING, ACK, MARK) {
                break;
            }
        }
        Ok(())
    }
}

impl Windows {
    fn room(&self, stream: u32) -> i64 {
        self.streams.get(&stream).copied().unwrap_or(self.initial).min(self.connection)
    }

    fn sent(&mut self, stream: u32, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.connection -= bytes;
        *self.streams.entry(stream).or_insert(self.initial) -= bytes;
    }

    fn update(&mut self, frame: &Frame) {
        match frame.kind {
            SETTINGS => {
                for setting in frame.payload.chunks_exact(6) {
                    let (name, value) = setting.split_at(2);
                    if name == INITIAL_WINDOW_SIZE {
                        let value = number(value);
                        self.streams.values_mut().for_each(|window| *window += value - self.initial);
                        self.initial = value;
                    }
                }
            }
            WINDOW_UPDATE if frame.stream == 0 => self.connection += number(&frame.payload),
            WINDOW_UPDATE => {
                *self.streams.entry(frame.stream).or_insert(self.initial) += number(&frame.payload);
            }
            RST_STREAM => {
                self.ended.insert(frame.stream);
            }
            HEADERS if frame.flags & END_STREAM != 0 => {
                self.ended.insert(frame.stream);
            }
            _ => {}
        }
    }
}

/// Of four bytes.
fn number(bytes: &[u8]) -> i64 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes).into())
}

fn has_ended(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::BrokenPipe
            | ErrorKind::ConnectionReset
            | ErrorKind::UnexpectedEof
            | ErrorKind::WouldBlock
            | ErrorKind::TimedOut
    )
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_keeps_to_the_windows() {
        let mut windows =
            Windows { connection: WINDOW, initial: WINDOW, streams: BTreeMap::new(), ended: BTreeSet::new() };
        windows.sent(1, 60_000);
        assert_eq!((windows.room(1), windows.room(3)), (5535, 5535));
        let mut update = |kind, stream, payload: &[u8]| {
            windows.update(&Frame { kind, flags: 0, stream, payload: payload.to_vec() });
            (windows.room(1), windows.room(3))
        };
        assert_eq!(update(WINDOW_UPDATE, 0, &[0, 1, 0, 0]), (5535, WINDOW));
        assert_eq!(update(WINDOW_UPDATE, 1, &[0, 0, 0, 1]), (5536, WINDOW));
        assert_eq!(update(SETTINGS, 0, &[0, 4, 0, 0, 0xff, 0xfe]), (5535, WINDOW - 1));
        update(RST_STREAM, 1, &[0; 4]);
        assert_eq!(windows.ended, BTreeSet::from([1]));
    }
}
