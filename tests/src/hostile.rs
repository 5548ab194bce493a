//! A client that means harm: HTTP/2 frames made by hand, at a Unix socket, to have a server keep as much as it will.
//!
//! Each attack is bounded in count and time and stops where the server closes the connection or takes no more.

mod connection;

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{raise_descriptors, status};
use connection::{
    CONTINUATION, Connection, DATA, END_HEADERS, END_STREAM, FRAME, HEADERS, LULL, PATIENCE, PING,
    RST_STREAM, SETTINGS, frame,
};

/// The most bytes in a request to the daemon.
const LARGEST: u32 = 512 << 10;

/// A way to make a server keep memory; gives the connections, which are open still.
type Attack = fn(&Path, &str) -> Result<Vec<Connection>>;

/// Those that need no body, by name.
const ATTACKS: [(&str, Attack); 10] = [
    ("one request with 40,000 header names", many_names),
    ("20,000 requests, each reset at once", resets),
    ("a header block of 64 MB that does not end", endless_headers),
    ("100,000 empty continuations", empty_continuations),
    ("1,280 open requests, each with 4,000 header fields out of the table", header_bomb),
    ("900 connections that say no more than the preface", idle),
    ("200,000 pings without reading", pings),
    ("200,000 settings without reading", settings),
    ("900 connections that end in the middle of a frame", half_frames),
    ("100,000 requests without reading an answer", unread_answers),
];

/// Those that fill the bodies of requests: what a server keeps of these depends on the method.
const BODIES: [(&str, Attack); 5] = [
    ("as much data on 2,000 open requests as the windows allow", garbage),
    ("2,000 messages of 4 GiB by their own word", huge_messages),
    ("2,000 messages of 512 KiB but for their last byte", unfinished_messages),
    ("2,000 messages of a quarter of a million entries each, two bytes long", empty_entries),
    ("2,000 messages of as many entries as are decoded", short_entries),
];

/// Runs every attack at a server, each for itself, with requests of that method; none may make the process larger than `max` bytes,
/// and after each the server greets the next client.
pub fn attack_all(socket: &Path, path: &str, pid: u32, max: u64) -> Result<()> {
    attack_with(&ATTACKS, socket, path, pid, max)?;
    attack_with_bodies(socket, path, pid, max)
}

/// The same with those only that fill requests.
pub fn attack_with_bodies(socket: &Path, path: &str, pid: u32, max: u64) -> Result<()> {
    attack_with(&BODIES, socket, path, pid, max)
}

fn attack_with(attacks: &[(&str, Attack)], socket: &Path, path: &str, pid: u32, max: u64) -> Result<()> {
    for (name, attack) in attacks {
        let name = format!("{name}, at {path}");
        forget_peak(pid)?;
        let mut connections = attack(socket, path).with_context(|| name.clone())?;
        for connection in &mut connections {
            connection.settle().with_context(|| name.clone())?;
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
        raise_descriptors()?;
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
    connection.set_patience(Duration::from_secs(60))?;
    let first = connection.receive()?.context("the server does not greet")?;
    ensure!(first.kind == SETTINGS, "the server greets with {first:?}");
    Ok(())
}

/// The largest resident size of a process since [`forget_peak`], bytes.
fn peak(pid: u32) -> Result<u64> {
    Ok(status(pid).context("the server has ended")?.vmhwm.context("no VmHWM")? << 10)
}

/// proc_pid_clear_refs(5).
fn forget_peak(pid: u32) -> Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("reset the peak of the resident size")
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

/// The beginning of a frame, and nothing more: the rest of its head on every second connection, and half of its payload on the others.
fn half_frames(socket: &Path, path: &str) -> Result<Vec<Connection>> {
    let whole = [headers(1, &request(path)), frame(DATA, 0, 1, &vec![b'z'; FRAME])].concat();
    let head = whole.len() - FRAME;
    let parts = [&whole[..head - 4], &whole[..head + FRAME / 2]];
    let mut connections = Vec::new();
    for part in parts.into_iter().cycle().take(900) {
        let mut connection = Connection::open(socket)?;
        connection.send(part)?;
        connection.is_in_a_frame = true;
        connections.push(connection);
    }
    Ok(connections)
}

/// Whole requests, each with an empty message: whatever the server answers, it cannot send.
fn unread_answers(socket: &Path, path: &str) -> Result<Vec<Connection>> {
    const EMPTY: [u8; 5] = [0; 5];
    let block = request(path);
    let mut connections = Vec::new();
    for _ in 0..10 {
        let mut connection = Connection::open(socket)?;
        for id in streams(10_000) {
            if !connection.send(&[headers(id, &block), frame(DATA, END_STREAM, id, &EMPTY)].concat())? {
                break;
            }
        }
        connections.push(connection);
    }
    Ok(connections)
}

fn garbage(socket: &Path, path: &str) -> Result<Vec<Connection>> {
    bodies(socket, path, &unfinished(&[]))
}

fn huge_messages(socket: &Path, path: &str) -> Result<Vec<Connection>> {
    bodies(socket, path, &unfinished(&prefix(u32::MAX)))
}

fn unfinished_messages(socket: &Path, path: &str) -> Result<Vec<Connection>> {
    bodies(socket, path, &unfinished(&prefix(LARGEST)))
}

/// Whole messages, of requests that do not end, and too many entries to be decoded.
fn empty_entries(socket: &Path, path: &str) -> Result<Vec<Connection>> {
    // Field 1, with nothing in it.
    let entries = [0x0a, 0].repeat(LARGEST as usize / 2);
    bodies(socket, path, &[prefix(LARGEST), entries].concat())
}

/// The same, with no more entries than are decoded: what is decoded is kept.
fn short_entries(socket: &Path, path: &str) -> Result<Vec<Connection>> {
    // Field 1, with the number of no field, over and over.
    let entry = [&[0x0a, 62][..], &[0x78, 0].repeat(31)].concat();
    bodies(socket, path, &[prefix(LARGEST), entry.repeat(LARGEST as usize / 64)].concat())
}

/// As long as the windows allow, and one byte shorter than the largest message.
fn unfinished(beginning: &[u8]) -> Vec<u8> {
    [beginning, &vec![b'z'; LARGEST as usize - 1]].concat()
}

/// What gRPC has before each message: that it is not compressed, and its length.
fn prefix(length: u32) -> Vec<u8> {
    [&[0], &length.to_be_bytes()[..]].concat()
}

/// Requests that do not end, each with that body.
fn bodies(socket: &Path, path: &str, body: &[u8]) -> Result<Vec<Connection>> {
    let block = request(path);
    let mut connections = Vec::new();
    for _ in 0..20 {
        let mut connection = Connection::open(socket)?;
        connection.set_patience(LULL)?;
        let mut is_open = true;
        for id in streams(100) {
            is_open = is_open && connection.send(&headers(id, &block))? && connection.send_data(id, body)?;
        }
        connection.set_patience(PATIENCE)?;
        connections.push(connection);
    }
    Ok(connections)
}

#[cfg(test)]
mod tests {
    use super::connection::ACK;
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
