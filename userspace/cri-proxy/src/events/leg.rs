//! One source of events, followed for as long as it is wanted: connects, subscribes, reads, and begins again when that ended.
//!
//! Owns the connection and the pause between attempts. Reads always, so that no source is ever held up: its reader, the relay, waits
//! for no client. Never decides what an event is worth.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::Uri;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status, Streaming};

use super::super::limits;
use super::super::runtime::RuntimeSocket;
use super::METHOD;
use kwitness_cri::Raw;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);
/// A call that has not failed after that time is taken: a runtime written in Go sends no headers before its first event.
const TAKEN: Duration = Duration::from_millis(200);
/// A stream that ends well before that time, without an event, says that there are none: CRI-O with `enable_pod_events=false`.
const AT_ONCE: Duration = Duration::from_secs(1);
/// The pause before the next attempt, doubled each time: a source is followed again soon after it is back.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// The pause when the source is there and has no events.
const PAUSE_REFUSED: Duration = Duration::from_secs(5);
/// How often the daemon is asked whether it still lives, and how long it may take to answer. A runtime is never asked: grpc-go's
/// servers close connections on which that is done.
const ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// Events of the last ten seconds before a source ended are asked for again: they may have been under way. Doubles are left out.
const UNDER_WAY: i64 = 10_000_000_000;

/// Who tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// kwitness's daemon.
    Daemon,
    /// The container runtime.
    Runtime,
}

/// What the relay hears of a source.
#[derive(Debug)]
pub enum Told {
    /// It took the subscription.
    Open,
    /// An event.
    Event(Bytes),
    /// It is no longer followed; another attempt is made later.
    Closed(Why),
}

/// Why a source is not followed.
#[derive(Clone, Debug)]
pub enum Why {
    /// It cannot be reached, or broke off.
    Away(String),
    /// It is there, and has no events to tell: how it said so.
    Refused(Result<(), Status>),
}

/// Where a source is.
#[derive(Clone, Debug)]
pub enum Place {
    /// The daemon's socket.
    Daemon(PathBuf),
    /// The runtime's.
    Runtime(RuntimeSocket),
}

impl Place {
    fn who(&self) -> Who {
        match self {
            Self::Daemon(_) => Who::Daemon,
            Self::Runtime(_) => Who::Runtime,
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Daemon(path) => path,
            Self::Runtime(socket) => socket.path(),
        }
    }
}

/// Follows a source until it is dropped or nobody listens.
pub async fn follow(place: Place, to: mpsc::Sender<(Who, Told)>) {
    let mut pause = PAUSE.0;
    let mut since = None;
    loop {
        let began = Instant::now();
        let mut attempt = Attempt { place: &place, to: &to, began, since, opened: false, events: 0 };
        let why = attempt.run().await;
        if attempt.opened && place.who() == Who::Daemon {
            since = Some(wall_clock().saturating_sub(UNDER_WAY));
        }
        pause = match (&why, attempt.opened) {
            (Why::Refused(_), _) => PAUSE_REFUSED,
            (Why::Away(_), true) => PAUSE.0,
            (Why::Away(_), false) => (pause * 2).min(PAUSE.1),
        };
        if to.send((place.who(), Told::Closed(why))).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

struct Attempt<'a> {
    place: &'a Place,
    to: &'a mpsc::Sender<(Who, Told)>,
    began: Instant,
    /// What the daemon is to begin with, in nanoseconds of the wall clock: what happened since it was last read.
    since: Option<i64>,
    opened: bool,
    events: u64,
}

impl Attempt<'_> {
    async fn run(&mut self) -> Why {
        match self.read().await {
            // Nobody listens: what is returned does not matter.
            Ok(()) if self.began.elapsed() >= AT_ONCE || self.events > 0 => {
                Why::Away("it ended the stream".to_owned())
            }
            Ok(()) => Why::Refused(Ok(())),
            Err(status) if status.code() == Code::Unimplemented => Why::Refused(Err(status)),
            Err(status) => Why::Away(format!("{}: {}", status.code(), status.message())),
        }
    }

    async fn read(&mut self) -> Result<(), Status> {
        let mut stream = self.subscribe().await?;
        // The daemon's headers say yes; a runtime's may come with the end.
        if self.place.who() == Who::Daemon {
            self.open().await;
        }
        loop {
            let Ok(next) = timeout(TAKEN, stream.message()).await else {
                self.open().await;
                continue;
            };
            let Some(event) = next? else { break };
            self.open().await;
            self.events += 1;
            if self.to.send((self.place.who(), Told::Event(event))).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn subscribe(&mut self) -> Result<Streaming<Bytes>, Status> {
        let path = self.place.path();
        let away = |error: tonic::transport::Error| Status::unavailable(super::super::innermost(&error));
        let mut endpoint = Endpoint::from_shared(format!("unix://{}", path.display()))
            .map_err(away)?
            .connect_timeout(CONNECT)
            // What the kubelet calls itself by; some servers refuse other names.
            .origin(Uri::from_static("http://localhost"));
        if self.place.who() == Who::Daemon {
            endpoint = endpoint
                .http2_keep_alive_interval(ALIVE.0)
                .keep_alive_timeout(ALIVE.1)
                .keep_alive_while_idle(true);
        }
        let channel = endpoint.connect().await.map_err(away)?;
        let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(limits::EVENT);
        client.ready().await.map_err(away)?;
        let mut request = Request::new(Bytes::new());
        if let Some(since) = self.since {
            request.metadata_mut().insert(kwitness_cri::SINCE, since.into());
        }
        let call = client.server_streaming(request, PathAndQuery::from_static(METHOD), Raw);
        tokio::pin!(call);
        let answer = match timeout(TAKEN, &mut call).await {
            Ok(answer) => answer,
            Err(_) => {
                // The daemon sends its headers at once; one that does not may hang.
                if self.place.who() == Who::Runtime {
                    self.open().await;
                }
                call.await
            }
        };
        Ok(answer?.into_inner())
    }

    async fn open(&mut self) {
        if !std::mem::replace(&mut self.opened, true) {
            // Nobody listens: the next event tells.
            let _ = self.to.send((self.place.who(), Told::Open)).await;
        }
    }
}

/// Nanoseconds since the Unix epoch.
fn wall_clock() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}
