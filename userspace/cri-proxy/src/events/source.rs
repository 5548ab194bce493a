//! One source of events, followed for as long as it is wanted: connects, subscribes, reads, and begins again when that ended.
//!
//! Owns the connection and the pause between attempts. Reads always, so that no source is ever held up: its reader, the relay, waits
//! for no client. Never decides what an event is worth.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status, Streaming};

use super::super::limits;
use super::super::runtime::RuntimeSocket;
use super::METHOD;
use kwitness_api::transport::{DialError, unix_endpoint};
use kwitness_cri::{Raw, wall_clock};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);
/// A call that has not failed after that time counts as accepted: a runtime written in Go sends no headers before its first event.
const ACCEPTED: Duration = Duration::from_millis(200);
/// A stream that ends well before that time, without an event, says that there are none: CRI-O with `enable_pod_events=false`.
const AT_ONCE: Duration = Duration::from_secs(1);
/// The pause before the next attempt, doubled each time: a source is followed again soon after it is back.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// The pause when the source is there and has no events.
const PAUSE_REFUSED: Duration = Duration::from_secs(5);
/// Interval and timeout of HTTP/2 keepalive pings to the daemon. The runtime gets none: grpc-go's servers close connections that
/// send them.
const ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// Events of the last ten seconds before a source ended are requested again: they may have been in flight. Duplicates are dropped.
const UNDER_WAY: i64 = 10_000_000_000;

/// Which of the two sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// kwitness's daemon.
    Daemon,
    /// The container runtime.
    Runtime,
}

/// What a source reports to the relay.
#[derive(Debug)]
pub enum Update {
    /// It accepted the subscription.
    Open,
    /// An event.
    Event(Bytes),
    /// It is no longer followed; another attempt is made later.
    Closed(CloseReason),
}

/// Why a source is not followed.
#[derive(Clone, Debug)]
pub enum CloseReason {
    /// It cannot be reached, or broke off.
    Away(String),
    /// It is reachable and has no events: its status.
    Refused(Result<(), Status>),
}

/// Where a source is.
#[derive(Clone, Debug)]
pub enum Source {
    /// The daemon's socket.
    Daemon(PathBuf),
    /// The runtime's.
    Runtime(RuntimeSocket),
}

impl Source {
    fn kind(&self) -> SourceKind {
        match self {
            Self::Daemon(_) => SourceKind::Daemon,
            Self::Runtime(_) => SourceKind::Runtime,
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Daemon(path) => path,
            Self::Runtime(socket) => socket.path(),
        }
    }
}

/// Follows a source until it is dropped or its receiver is.
pub async fn follow(source: Source, to: mpsc::Sender<(SourceKind, Update)>) {
    let mut pause = PAUSE.0;
    let mut since = None;
    loop {
        let began = Instant::now();
        let mut attempt = Attempt { source: &source, to: &to, began, since, opened: false, events: 0 };
        let why = attempt.run().await;
        if attempt.opened && source.kind() == SourceKind::Daemon {
            since = Some(wall_clock().saturating_sub(UNDER_WAY));
        }
        pause = match (&why, attempt.opened) {
            (CloseReason::Refused(_), _) => PAUSE_REFUSED,
            (CloseReason::Away(_), true) => PAUSE.0,
            (CloseReason::Away(_), false) => (pause * 2).min(PAUSE.1),
        };
        if to.send((source.kind(), Update::Closed(why))).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

struct Attempt<'a> {
    source: &'a Source,
    to: &'a mpsc::Sender<(SourceKind, Update)>,
    began: Instant,
    /// What the daemon is to begin with, in nanoseconds of the wall clock: what happened since it was last read.
    since: Option<i64>,
    opened: bool,
    events: u64,
}

impl Attempt<'_> {
    async fn run(&mut self) -> CloseReason {
        match self.read().await {
            // The receiver is gone: what is returned does not matter.
            Ok(()) if self.began.elapsed() >= AT_ONCE || self.events > 0 => {
                CloseReason::Away("it ended the stream".to_owned())
            }
            Ok(()) => CloseReason::Refused(Ok(())),
            Err(status) if status.code() == Code::Unimplemented => CloseReason::Refused(Err(status)),
            Err(status) => CloseReason::Away(format!("{}: {}", status.code(), status.message())),
        }
    }

    async fn read(&mut self) -> Result<(), Status> {
        let mut stream = self.subscribe().await?;
        // The daemon's headers say yes; a runtime's may come with the end.
        if self.source.kind() == SourceKind::Daemon {
            self.open().await;
        }
        loop {
            let Ok(next) = timeout(ACCEPTED, stream.message()).await else {
                self.open().await;
                continue;
            };
            let Some(event) = next? else { break };
            self.open().await;
            self.events += 1;
            if self.to.send((self.source.kind(), Update::Event(event))).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn subscribe(&mut self) -> Result<Streaming<Bytes>, Status> {
        let away = |error: DialError| Status::unavailable(error.to_string());
        let mut endpoint = unix_endpoint(self.source.path()).map_err(away)?.connect_timeout(CONNECT);
        if self.source.kind() == SourceKind::Daemon {
            endpoint = endpoint
                .http2_keep_alive_interval(ALIVE.0)
                .keep_alive_timeout(ALIVE.1)
                .keep_alive_while_idle(true);
        }
        let channel = endpoint.connect().await.map_err(|error| away(error.into()))?;
        let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(limits::EVENT);
        client.ready().await.map_err(|error| away(error.into()))?;
        let mut request = Request::new(Bytes::new());
        if let Some(since) = self.since {
            request.metadata_mut().insert(kwitness_cri::SINCE, since.into());
        }
        let call = client.server_streaming(request, PathAndQuery::from_static(METHOD), Raw);
        tokio::pin!(call);
        let answer = match timeout(ACCEPTED, &mut call).await {
            Ok(answer) => answer,
            Err(_) => {
                // The daemon sends its headers at once; one that does not may hang.
                if self.source.kind() == SourceKind::Runtime {
                    self.open().await;
                }
                call.await
            }
        };
        Ok(answer?.into_inner())
    }

    async fn open(&mut self) {
        if !std::mem::replace(&mut self.opened, true) {
            // The receiver is gone: sending the next event fails, too.
            let _ = self.to.send((self.source.kind(), Update::Open)).await;
        }
    }
}
