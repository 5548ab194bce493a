//! The guard's report on itself: `kwitness guard status` connects to its socket and reads one JSON object.
//!
//! Owns the format and both ends of the socket. A client sends nothing, and is answered by a task of its own: one that does not read
//! costs a place for two seconds, and no one waits for it but those that come when all places are taken.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kwitness_service::{Binding, Socket};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Where the guard listens by default.
pub const STATUS_SOCKET: &str = "/run/kwitness/guard.sock";

/// How long either side waits for the other.
const LIMIT: Duration = Duration::from_secs(2);
/// Clients that are answered at a time. Further ones wait in the socket's backlog.
const CLIENTS: usize = 8;
/// The wait after an error of accept(2): without descriptors it fails at once, again and again.
const PAUSE: Duration = Duration::from_secs(1);
/// The largest answer that is read.
const ANSWER_MAX: u64 = 16 << 20;

/// The guard, now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its process id.
    pub pid: u32,
    /// The watchdog's; none: none looks on, and nothing is held.
    pub watchdog_pid: Option<u32>,
    /// How often another one had to be started.
    #[serde(default)]
    pub watchdog_restarts: u64,
    /// How the program is attached: `fentry` or `kprobe`.
    pub hook: String,
    /// The containers that are armed, or were and are suspended.
    pub armed: Vec<Armed>,
    /// Containers that the policy selects and that are not armed, by reason; those that are suspended among them.
    pub not_armed: BTreeMap<String, u64>,
    /// The holds that have ended last, the oldest first; at most [`HISTORY`].
    pub history: Vec<Ended>,
    /// Holds that ended with a raise in force.
    pub raised: u64,
    /// Those that did not, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Limits that were given back.
    pub returned: u64,
    /// Those that were not when it was time, by reason.
    pub not_returned: BTreeMap<String, u64>,
    /// Charges above a threshold whose task was not held, by reason.
    pub not_held: BTreeMap<String, u64>,
}

/// Holds that are remembered.
pub const HISTORY: usize = 64;

/// A container that is armed, or a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Armed {
    /// Its id of the runtime; a pod's: that of one of its containers.
    pub container_id: String,
    /// Its pod's namespace and name, and its own, as far as they are known. A pod's name is the first two.
    pub name: String,
    /// The processes that are held.
    pub held: Vec<u32>,
    /// Raises so far.
    pub raises: u32,
    /// Raises that the policy allows.
    pub budget: u32,
    /// The limit before the first raise, in bytes; none: there was none, or it has been given back.
    pub original_limit: Option<u64>,
    /// Why nothing of it is held: every raise would be refused for this reason, until its limit is another one; or no share of its
    /// limit leaves room for a hold (`noHeadroom`, `throttled`), until that changes.
    pub suspended: Option<String>,
}

/// A hold that has ended. Times are in milliseconds after the container's first process was held; none: it did not come to
/// that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// The container's id.
    pub container_id: String,
    /// The processes that were held, when it was decided.
    pub held: Vec<u32>,
    /// Pages charged when the first was held, in bytes.
    pub usage: u64,
    /// The limit then, in bytes.
    pub limit: u64,
    /// The limit after it, if it was raised and is in force.
    pub raised_to: Option<u64>,
    /// It was raised, and the daemon could not verify that: the guard has read the limits itself.
    pub unverified: bool,
    /// Why not.
    pub refused: Option<String>,
    /// The container runtime had answered.
    pub raised_ms: Option<u64>,
    /// It was decided to continue.
    pub decided_ms: u64,
    /// What that time was spent on.
    pub steps: Steps,
}

/// How long each step of a hold took, in microseconds; none: it did not come to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Steps {
    /// From the kernel's record until the guard read it.
    pub detect_us: u64,
    /// Reading the limits, and planning the raise or refusing it.
    pub decide_us: u64,
    /// Until the container runtime or the Kubernetes API answered.
    pub raise_us: Option<u64>,
    /// Until the decision: the daemon's verdict, or what came before it.
    pub verify_us: Option<u64>,
}

/// The clients of a guard.
#[derive(Debug)]
pub struct Clients {
    path: PathBuf,
    binding: Binding,
    /// The socket, which removes its file at the end; none while another process has it.
    listener: Option<(Socket, UnixListener)>,
    places: Arc<Semaphore>,
    /// Whether accepting fails at present.
    is_failing: bool,
}

/// A client that waits for its answer.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    place: OwnedSemaphorePermit,
}

impl Clients {
    /// Those that connect there, once the socket can be had. Within a tokio runtime.
    pub fn new(path: &Path) -> Self {
        let mut binding = Binding::new("--status-socket");
        let listener = binding.attempt(|| listen(path));
        let places = Arc::new(Semaphore::new(CLIENTS));
        Self { path: path.to_owned(), binding, listener, places, is_failing: false }
    }

    /// The next one, once there is a place for it. Safe to cancel.
    pub async fn next(&mut self) -> Client {
        loop {
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                unreachable!("the semaphore is never closed")
            };
            let listener = match &mut self.listener {
                Some((_, listener)) => listener,
                none => &mut none.insert(self.binding.listen(|| listen(&self.path)).await).1,
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    self.is_failing = false;
                    return Client { stream, place };
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.is_failing, true) {
                        tracing::warn!(%error, "cannot accept clients of the status socket: trying again");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

fn listen(path: &Path) -> anyhow::Result<(Socket, UnixListener)> {
    Socket::make_directory(path)?;
    let mut socket = Socket::listen(path)?;
    let listener = socket.listener()?;
    Ok((socket, listener))
}

impl Client {
    /// Answers it, and gives its place up. Does not wait for that.
    pub fn answer(self, status: &Status) {
        let Self { mut stream, place } = self;
        let Ok(mut text) = serde_json::to_vec(status) else { return };
        text.push(b'\n');
        tokio::spawn(async move {
            // A client that does not read is left alone.
            let _ = tokio::time::timeout(LIMIT, stream.write_all(&text)).await;
            drop(place);
        });
    }
}

/// Fetches the status of a guard.
///
/// # Errors
/// None listens there, or it does not answer.
pub async fn fetch(socket: &Path) -> anyhow::Result<Status> {
    let shown = socket.display();
    let request = async {
        let client = UnixStream::connect(socket).await.map_err(|error| {
            let what = match error.kind() {
                ErrorKind::PermissionDenied => format!("cannot connect to {shown}; run with sudo"),
                _ => format!("no guard answers at {shown}; start one with `kwitness guard --policy FILE`"),
            };
            anyhow::Error::from(error).context(what)
        })?;
        let mut text = Vec::new();
        client
            .take(ANSWER_MAX)
            .read_to_end(&mut text)
            .await
            .with_context(|| format!("cannot read from {shown}"))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{shown} does not answer as a guard of this version"))
    };
    let answer = tokio::time::timeout(LIMIT, request).await;
    answer.with_context(|| format!("the guard at {shown} accepts connections and does not answer"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            pid: 1,
            watchdog_pid: Some(2),
            watchdog_restarts: 0,
            hook: "fentry".to_owned(),
            armed: Vec::new(),
            not_armed: BTreeMap::from([("full".to_owned(), 3)]),
            history: Vec::new(),
            raised: 1,
            refused: BTreeMap::from([("atCeiling".to_owned(), 2)]),
            returned: 1,
            not_returned: BTreeMap::new(),
            not_held: BTreeMap::new(),
        }
    }

    #[tokio::test]
    async fn a_client_receives_the_status() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("guard.sock");
        let mut clients = Clients::new(&socket);
        let (received, ()) = tokio::join!(fetch(&socket), async { clients.next().await.answer(&status()) });
        assert_eq!(received.unwrap(), status());
        drop(clients);
        let error = fetch(&socket).await.unwrap_err().to_string();
        assert!(error.contains("no guard answers"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_another_process_has_is_served_once_it_can_be_had() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("guard.sock");
        let taken = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let mut clients = Clients::new(&socket);
        assert!(clients.binding.state().problem().is_some());
        // Its file stays, as that of a process that was killed does.
        drop(taken);
        let answering = async { clients.next().await.answer(&status()) };
        let fetching = async {
            // The next attempt is the first thing that is waited for.
            tokio::time::sleep(Duration::from_secs(60)).await;
            fetch(&socket).await
        };
        let (received, ()) = tokio::join!(fetching, answering);
        assert_eq!(received.unwrap(), status());
    }

    /// The clock runs only while everything waits.
    #[tokio::test(start_paused = true)]
    async fn clients_that_do_not_read_take_their_places_for_a_time_and_no_more() {
        let armed = Armed {
            container_id: "c".repeat(64),
            name: "n".repeat(253),
            held: Vec::new(),
            raises: 0,
            budget: 8,
            original_limit: None,
            suspended: None,
        };
        // More than a socket takes in.
        let large = Status { armed: vec![armed; 20_000], ..status() };
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("guard.sock");
        let mut clients = Clients::new(&socket);
        let mut silent = Vec::new();
        for _ in 0..CLIENTS {
            silent.push(UnixStream::connect(&socket).await.unwrap());
            clients.next().await.answer(&large);
        }
        silent.push(UnixStream::connect(&socket).await.unwrap());
        let began = tokio::time::Instant::now();
        assert!(
            tokio::time::timeout(LIMIT / 2, clients.next()).await.is_err(),
            "one more than there are places"
        );
        clients.next().await.answer(&status());
        assert!(began.elapsed() >= LIMIT, "{:?}", began.elapsed());
        let mut text = String::new();
        silent.pop().unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status());
    }
}
