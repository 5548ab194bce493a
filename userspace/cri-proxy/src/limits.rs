//! Every bound of the proxy, with what happens at it.

use std::time::Duration;

/// Calls at a time on one connection; a client's library keeps further ones back. grpc-go's servers set no limit, and a
/// kubelet's calls are fewer than its pods.
pub const CALLS: u32 = 10_000;

/// How long the runtime may take to say anything at all on a new connection before the calls on it fail: the time that grpc-go gives
/// a connection attempt (`minConnectTimeout`).
pub const RUNTIME_SILENCE: Duration = Duration::from_secs(20);

/// A connection to the runtime without a call for one to two such intervals is closed, for each costs some 20 KiB. The next call makes
/// another, which takes less time than the call.
pub const RUNTIME_IDLE: Duration = Duration::from_secs(10);

/// How long a full queue of connections at the runtime's socket is waited for.
pub const FULL_QUEUE: Duration = Duration::from_secs(2);

/// Bytes of one call's data that may wait in the proxy, each way; then its sender waits, and no other.
pub const STREAM_WINDOW: u32 = 256 << 10;

/// Bytes of all calls' data of one connection that may wait in the proxy, each way: 256 calls that are not read do not stop the
/// others of the same client; nothing stops another client.
pub const CONNECTION_WINDOW: u32 = 64 << 20;

/// Bytes that wait to be written to a socket, for one call; then its sender waits.
pub const SEND_BUFFER: usize = 64 << 10;

/// Bytes of metadata in one direction of one call (RFC 9113, 6.5.2); a call with more is reset. A status with its details is far smaller.
pub const HEADERS: u32 = 1 << 20;

/// Bytes of memory that all clients together may cost, with what waits for them from the runtime; at more, the largest connection of the
/// client that uses most is closed. Below the unit's `MemoryMax=512M` by what the program itself takes, and by what one read of a
/// connection can add.
pub const CLIENTS_MEMORY: i64 = 256 << 20;

/// Bytes of memory that one connection's calls may hold; at more, further calls are answered with `RESOURCE_EXHAUSTED`.
pub const CALLS_MEMORY: i64 = 64 << 20;

/// Calls that a client cancels before the proxy has looked at them; at more the connection is ended (CVE-2023-44487).
pub const CANCELLED_EARLY: usize = 1024;

/// How long calls in flight may take to end after SIGTERM. What comes later waits at the listening socket for
/// the next instance, and the program is ended after [`kwitness_service::Signals`] have waited two seconds, so this must stay short.
pub const DRAIN: Duration = Duration::from_millis(1500);

/// How long the daemon may take after that for what is to be reported, within the same two seconds. The rest is for the next proxy.
pub const LAST_REPORTS: Duration = Duration::from_millis(300);

/// Streams of events of all clients together, as many as the daemon allows; for one more, one of the client with most ends with
/// `RESOURCE_EXHAUSTED`. What waits for one is shared with the others, its place in each queue is not.
pub const EVENT_STREAMS: usize = 64;

/// Of these, those that a process keeps whatever others of its user do: a kubelet has one.
pub const EVENT_STREAMS_KEPT: usize = 1;

/// Bytes of events that wait for one client. At more its stream is ended with `RESOURCE_EXHAUSTED`, which a kubelet answers with a full
/// relist: the stream has no way to report a loss. Events are shared, so this is the bound for all clients together, too.
pub const EVENTS_WAITING: usize = 16 << 20;

/// The largest event that is accepted: the kubelet's own limit for a message.
pub const EVENT: usize = 16 << 20;

/// Containers whose forwarded events are remembered; the oldest is forgotten first, and its events could then be forwarded twice.
pub const CONTAINERS_SEEN: usize = 8192;

/// Events on their way from a source to the relay, which never waits for a client: at more the source waits that moment.
pub const EVENTS_FROM_SOURCE: usize = 64;

/// How long the answer to a call that starts something waits for its event. Longer than the daemon takes on a node that starts many pods
/// at once; far shorter than a kubelet waits for a call (2 min).
pub const ANSWER_HELD: Duration = Duration::from_secs(5);

/// Such answers at a time, of all clients; further ones are passed on at once. A kubelet starts fewer at a time.
pub const ANSWERS_HELD: usize = 256;

/// Observed calls of one connection at a time, more than a kubelet has in flight; further ones are reported as missed. What is copied of
/// them is in its [`CALLS_MEMORY`].
pub const CALLS_OBSERVED: usize = 256;

/// Bytes of a message that are kept for that. A container's creation takes some thousand; a larger one is reported as missed.
pub const MESSAGE_KEPT: usize = 64 << 10;

/// Bytes of requests that wait for the daemon, of all containers together, each of which has six at most: some ten thousand, more than the
/// daemon remembers containers. Of more, the oldest are reported as missed.
pub const REQUESTS_WAITING: usize = 4 << 20;

/// Bytes of the file with what waits for the daemon when the proxy ends: more than [`REQUESTS_WAITING`] come to, encoded, with what was
/// missed. A larger file is none of a proxy's.
pub const REQUESTS_LEFT: u64 = 8 << 20;
