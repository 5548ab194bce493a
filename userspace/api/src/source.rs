//! Where events and snapshots come from: a daemon, or a recording of one. The one interface of everything that shows them.

use crate::client::{self, Client, Item, Watch};
use crate::proto;
use crate::recording::{self, Recording, Replay};

/// A source of events and snapshots.
#[derive(Clone, Debug)]
pub enum Source {
    /// A daemon.
    Live(Client),
    /// A recording.
    Recorded(Box<Recording>),
}

/// Why a source does not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The call to the daemon failed.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// The recording cannot be read, or does not have the answer.
    #[error(transparent)]
    Recording(#[from] recording::Error),
}

impl Source {
    /// The recording, if it is one.
    pub fn recording(&self) -> Option<&Recording> {
        match self {
            Self::Live(_) => None,
            Self::Recorded(recording) => Some(recording),
        }
    }

    /// The containers that match.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(&mut self, filter: proto::Filter) -> Result<proto::ListResponse, Error> {
        match self {
            Self::Live(client) => Ok(client.list(filter).await?),
            Self::Recorded(recording) => Ok(recording.list(&filter)),
        }
    }

    /// Whether limits are in force. Containers that do not match have no verdicts.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn verify(&mut self, request: proto::VerifyRequest) -> Result<proto::VerifyResponse, Error> {
        match self {
            Self::Live(client) => match client.verify(request).await {
                Err(client::Error::NotFound(_)) => Ok(proto::VerifyResponse::default()),
                answer => Ok(answer?),
            },
            Self::Recorded(recording) => Ok(recording.verify(&request)?),
        }
    }

    /// The events. Those of a recording end with it, whatever the request says.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn watch(&self, request: proto::WatchRequest) -> Result<Events, Error> {
        match self {
            Self::Live(client) => Ok(Events::Live(Box::new(client.watch(request).await?))),
            Self::Recorded(recording) => Ok(Events::Recorded(Box::new(recording.watch(request)))),
        }
    }
}

/// A stream of events; see [`Source::watch`].
#[derive(Debug)]
pub enum Events {
    /// From a daemon.
    Live(Box<Watch>),
    /// From a recording.
    Recorded(Box<Replay>),
}

impl Events {
    /// The next item; none at the end. Safe to cancel.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn next(&mut self) -> Result<Option<Item>, Error> {
        match self {
            Self::Live(watch) => Ok(watch.next().await?),
            Self::Recorded(replay) => Ok(replay.next().await?),
        }
    }

    /// What a later watch resumes after; none of a recording, which does not go on.
    pub fn position(&self) -> Option<&proto::Position> {
        match self {
            Self::Live(watch) => watch.position(),
            Self::Recorded(_) => None,
        }
    }
}
