//! The floor for those who report processes: the kernel's own process connector (`linux/cn_proc.h`), read and printed, and nothing
//! else.
//!
//! It knows neither containers nor names, and sees the whole machine; it works in the first network namespace only.

use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use rustix::net::netlink::{CONNECTOR, SocketAddrNetlink};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

/// `CN_IDX_PROC` and `CN_VAL_PROC`; the index is the multicast group, too.
const PROC: u32 = 1;
/// `PROC_CN_MCAST_LISTEN`.
const LISTEN: u32 = 1;
/// `NLMSG_DONE`.
const DONE: u16 = 3;
/// `struct nlmsghdr` and `struct cn_msg`, before the event.
const HEADERS: usize = 16 + 20;
/// What of `struct proc_event` comes before the fields of its kind: what, CPU, time.
const EVENT: usize = 16;

/// Prints a line for each fork, exec and exit of the machine until it is ended.
pub(crate) fn listen() -> Result<()> {
    // Where another's namespaces cannot be opened, this may be the first one: the connector says if it is not.
    if let Ok(first) = File::open("/proc/1/ns/net") {
        setns(first, CloneFlags::CLONE_NEWNET).context("enter the first network namespace")?;
    }
    let kind = SocketType::DGRAM;
    let socket = socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, Some(CONNECTOR));
    let socket = socket.context("make a socket of the connector")?;
    bind(&socket, &SocketAddrNetlink::new(0, PROC)).context("join the process connector's group")?;
    let mut socket = File::from(socket);
    socket.write_all(&request()).context("ask the process connector")?;
    let mut output = BufWriter::new(std::io::stdout());
    let mut message = [0; 1024];
    loop {
        let length = match socket.read(&mut message) {
            Ok(length) => length,
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {
                writeln!(output, "lost")?;
                continue;
            }
            Err(error) => return Err(error).context("read the process connector"),
        };
        let event = message[..length].get(HEADERS..).unwrap_or_default();
        let field = |place: usize| event.get(place..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        match field(0) {
            // `PROC_EVENT_NONE`: the answer to the request.
            Some(0) => ensure!(field(EVENT) == Some(0), "the process connector refuses: {:?}", field(EVENT)),
            // Parent's and child's thread groups.
            Some(0x1) => print(&mut output, "fork", [field(EVENT + 4), field(EVENT + 12)])?,
            Some(0x2) => print(&mut output, "exec", [field(EVENT + 4), None])?,
            // Of a thread other than the first: not the process's end.
            Some(0x8000_0000) if field(EVENT) == field(EVENT + 4) => {
                print(&mut output, "exit", [field(EVENT + 4), None])?;
            }
            _ => {}
        }
    }
}

fn print(output: &mut impl std::io::Write, kind: &str, pids: [Option<u32>; 2]) -> Result<()> {
    let pids = pids.into_iter().flatten().map(|pid| format!(" {pid}")).collect::<String>();
    writeln!(output, "{kind}{pids}").context("print an event")
}

fn request() -> Vec<u8> {
    let length = (HEADERS + size_of::<u32>()) as u32;
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend([DONE, 0].map(u16::to_ne_bytes).concat());
    // No sequence, from the socket's own address; then index, value, sequence and acknowledgement of the connector.
    bytes.extend([0, 0, PROC, PROC, 0, 0].map(u32::to_ne_bytes).concat());
    bytes.extend([size_of::<u32>() as u16, 0].map(u16::to_ne_bytes).concat());
    bytes.extend(LISTEN.to_ne_bytes());
    bytes
}
