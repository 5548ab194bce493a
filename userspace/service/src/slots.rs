//! Who is connected, and whose connection goes when there are too many: the rule for whatever clients share ([`gives_way`]), and who
//! has what of it ([`Shares`]).
//!
//! ```text
//!  new connection ──▶ room? ── yes ──▶ Slot
//!                       └─ no ──▶ of the user with most connections the process with most: its newest is shut down
//! ```
//!
//! So one client that opens connections without end closes its own, and every other client can connect. Of the user of the new
//! connection only a process with more than [`KEPT`] has to give one up: many processes of one user keep further ones of the same
//! user out, and none that is connected.
//!
//! Owns the account of what is open. Never reads from a connection, nor closes its descriptor.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::socket::{Shutdown, shutdown};
use tokio::net::UnixStream;

/// Connections that a process keeps whatever others of its user do: more than a client opens that has one for each thing it does.
pub(crate) const KEPT: usize = 16;
/// Connections that were shut down and whose server has not dropped them yet, at most: each still has its descriptor.
const ENDING: usize = 64;

/// Of all connections of a listener, in the order in which they came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Who is at the other end: a process, of a user, as far as the kernel says so (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The user's ID.
    pub user: Option<u32>,
    /// The process' ID.
    pub process: Option<i32>,
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The connection.
    pub connection: ConnectionId,
    /// Who made it.
    pub peer: Peer,
}

/// Whose calls share something with those of others: a process, or a connection where the kernel names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// The process, however many connections it has.
    Process(Peer),
    /// The connection.
    Connection {
        /// The user's ID, as far as it is known.
        user: Option<u32>,
        /// The connection.
        id: ConnectionId,
    },
}

impl From<Origin> for Client {
    fn from(Origin { connection, peer }: Origin) -> Self {
        match peer.process {
            Some(_) => Self::Process(peer),
            None => Self::Connection { user: peer.user, id: connection },
        }
    }
}

impl Sharer for Client {
    fn user(self) -> Option<u32> {
        match self {
            Self::Process(Peer { user, .. }) | Self::Connection { user, .. } => user,
        }
    }
}

/// Who shares something with others.
pub trait Sharer: Copy + Eq {
    /// The user whose it is, as far as that is known.
    fn user(self) -> Option<u32>;
}

impl Sharer for Peer {
    fn user(self) -> Option<u32> {
        self.user
    }
}

/// What one client holds of something that all share.
#[derive(Clone, Copy, Debug)]
pub struct Held<C = Peer> {
    /// Who holds them.
    pub by: C,
    /// Number of them.
    pub count: usize,
    /// Which is its newest, of all in the order in which they came.
    pub newest: u64,
}

/// Who gives up its newest one where there is no room for one more of `new`: of the user with most the process with most. None: `new`
/// itself, or another process of its user that has no more than `kept`; then there is no room.
pub fn gives_way<C: Sharer>(held: impl Iterator<Item = Held<C>> + Clone, new: C, kept: usize) -> Option<C> {
    let mut users: BTreeMap<Option<u32>, usize> = BTreeMap::from([(new.user(), 1)]);
    for Held { by, count, .. } in held.clone() {
        *users.entry(by.user()).or_default() += count;
    }
    let Held { by, count, .. } = held.max_by_key(|Held { by, count, newest }| {
        (users.get(&by.user()).copied(), count + usize::from(*by == new), *newest)
    })?;
    (by.user() != new.user() || by != new && count > kept).then_some(by)
}

/// Who has what of something that all share, each numbered in the order in which they came.
#[derive(Debug)]
pub struct Shares<C, T> {
    /// Without clients that have none.
    of: BTreeMap<C, BTreeMap<u64, T>>,
    count: usize,
    last: u64,
}

impl<C, T> Default for Shares<C, T> {
    fn default() -> Self {
        Self { of: BTreeMap::new(), count: 0, last: 0 }
    }
}

impl<C: Copy + Ord, T> Shares<C, T> {
    /// How many all have together.
    pub fn count(&self) -> usize {
        self.count
    }

    /// One more; its number.
    pub fn add(&mut self, client: C, one: T) -> u64 {
        (self.count, self.last) = (self.count + 1, self.last + 1);
        self.of.entry(client).or_default().insert(self.last, one);
        self.last
    }

    /// What each client has, for [`gives_way`].
    pub fn held(&self) -> impl Iterator<Item = Held<C>> + Clone {
        self.of.iter().map(|(client, ones)| Held {
            by: *client,
            count: ones.len(),
            newest: ones.last_key_value().map_or(0, |(number, _)| *number),
        })
    }

    /// Takes away a client's newest one; none: it has none.
    pub fn remove_newest(&mut self, client: C) -> Option<T> {
        let number = *self.of.get(&client)?.last_key_value()?.0;
        self.remove(client, number)
    }

    /// Takes away the one with that number; none: it has been taken away.
    pub fn remove(&mut self, client: C, number: u64) -> Option<T> {
        let ones = self.of.get_mut(&client)?;
        let one = ones.remove(&number)?;
        if ones.is_empty() {
            self.of.remove(&client);
        }
        self.count -= 1;
        Some(one)
    }
}

impl Peer {
    pub(crate) fn of(stream: &UnixStream) -> Self {
        let credentials = stream.peer_cred().ok();
        // 0: this process' PID namespace does not have it.
        let process = credentials.and_then(|of| of.pid()).filter(|process| *process > 0);
        Self { user: credentials.map(|of| of.uid()), process }
    }
}

/// What became of a new connection.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// There was room.
    Room(Slot),
    /// In the place of one of that peer.
    InPlaceOf(Slot, Peer),
    /// It is one too many itself.
    Refused,
}

/// All places. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Slots(Arc<Mutex<Open>>);

#[derive(Debug)]
struct Open {
    max: usize,
    connections: Shares<Peer, RawFd>,
    /// Of those that were shut down.
    ending: usize,
}

impl Slots {
    pub(crate) fn new(max: usize) -> Self {
        Self(Arc::new(Mutex::new(Open { max, connections: Shares::default(), ending: 0 })))
    }

    /// Makes room for a connection, if it can. The slot has to be dropped before the stream.
    pub(crate) fn admit(&self, peer: Peer, stream: &UnixStream) -> Admitted {
        let mut open = self.lock();
        let slot = |open: &mut Open| {
            let id = ConnectionId(open.connections.add(peer, stream.as_raw_fd()));
            Slot { slots: self.clone(), peer, id }
        };
        if open.connections.count() < open.max {
            return Admitted::Room(slot(&mut open));
        }
        match gives_way(open.connections.held(), peer, KEPT) {
            Some(other) if open.ending < ENDING => {
                open.shut_down_newest(other);
                Admitted::InPlaceOf(slot(&mut open), other)
            }
            _ => Admitted::Refused,
        }
    }

    /// Nothing that could panic runs while it is held.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn shut_down_newest(&mut self, peer: Peer) {
        if let Some(descriptor) = self.connections.remove_newest(peer) {
            self.ending += 1;
            // It is open as long as it was listed here. A client that is gone already needs no more.
            let _ = shutdown(descriptor, Shutdown::Both);
        }
    }
}

/// A connection's place.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Slots,
    peer: Peer,
    id: ConnectionId,
}

impl Slot {
    pub(crate) fn id(&self) -> ConnectionId {
        self.id
    }

    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.slots.lock();
        if open.connections.remove(self.peer, self.id.0).is_none() {
            open.ending -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _};
    use std::os::unix::net;

    use super::*;

    const fn peer(user: u32, process: i32) -> Peer {
        Peer { user: Some(user), process: Some(process) }
    }

    /// A connection's two ends; the slot goes before the server's.
    struct Pair {
        slot: Option<Slot>,
        _server: UnixStream,
        client: net::UnixStream,
    }

    impl Pair {
        fn is_open(&self) -> bool {
            (&self.client).read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        }
    }

    fn counts(slots: &Slots) -> (usize, usize) {
        let open = slots.lock();
        (open.connections.count(), open.ending)
    }

    fn connect(slots: &Slots, peer: Peer) -> Pair {
        let (server, client) = net::UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        client.set_nonblocking(true).unwrap();
        let server = UnixStream::from_std(server).unwrap();
        let slot = match slots.admit(peer, &server) {
            Admitted::Room(slot) | Admitted::InPlaceOf(slot, _) => Some(slot),
            Admitted::Refused => None,
        };
        Pair { slot, _server: server, client }
    }

    #[tokio::test]
    async fn who_has_most_gives_one_up_and_nobody_else() {
        let slots = Slots::new(40);
        let honest: Vec<_> = (0..3).map(|_| connect(&slots, peer(0, 1))).collect();
        let mut many: Vec<_> = (0..37).map(|_| connect(&slots, peer(0, 2))).collect();
        assert!(connect(&slots, peer(0, 2)).slot.is_none(), "its own is one too many");
        let new = connect(&slots, peer(0, 3));
        assert!(new.slot.is_some());
        let closed = many.pop().unwrap();
        assert!(!closed.is_open());
        assert!(honest.iter().chain(&many).all(Pair::is_open));
        drop(closed);
        assert_eq!(counts(&slots), (40, 0));
        drop((honest, many, new));
        assert_eq!(counts(&slots), (0, 0));
        assert!(slots.lock().connections.of.is_empty());
    }

    #[tokio::test]
    async fn many_processes_of_one_user_keep_no_other_user_out() {
        let slots = Slots::new(40);
        let clients: Vec<_> = (0..3).map(|_| connect(&slots, peer(0, 1))).collect();
        let forks: Vec<_> = (0..37).map(|process| connect(&slots, peer(1000, 100 + process))).collect();
        let other = connect(&slots, peer(0, 2));
        assert!(other.slot.is_some(), "another user's");
        assert!(connect(&slots, peer(1000, 500)).slot.is_none(), "the same user's");
        assert!(
            clients.iter().all(Pair::is_open),
            "they have more than each of them, but are another user's"
        );
        assert_eq!(forks.iter().filter(|fork| !fork.is_open()).count(), 1);
        let slots = Slots::new(10);
        let clients: Vec<_> = (0..3).map(|_| connect(&slots, peer(0, 1))).collect();
        let _forks: Vec<_> = (0..7).map(|process| connect(&slots, peer(0, 100 + process))).collect();
        assert!(connect(&slots, peer(0, 2)).slot.is_none() && clients.iter().all(Pair::is_open));
    }

    #[tokio::test]
    async fn those_that_are_shut_down_are_bounded_until_they_are_dropped() {
        const MAX: usize = 3 * ENDING;
        let slots = Slots::new(MAX);
        let many: Vec<_> = (0..MAX).map(|_| connect(&slots, peer(1000, 1))).collect();
        let others: Vec<_> = (0..ENDING).map(|_| connect(&slots, peer(0, 1))).collect();
        assert!(others.iter().all(|other| other.slot.is_some()));
        assert!(connect(&slots, peer(0, 1)).slot.is_none(), "not before one of them is gone");
        assert_eq!(counts(&slots), (MAX, ENDING));
        drop(many);
        assert_eq!(counts(&slots).1, 0);
        assert!(connect(&slots, peer(0, 1)).slot.is_some());
    }
}
