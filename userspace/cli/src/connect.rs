//! The connection to the daemon or to a recording, and the little runtime that a client needs.

use std::ffi::OsString;
use std::future::Future;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use kwitness_api::client::{Address, Error, Item};
use kwitness_api::recording::Recording;
use kwitness_api::{Client, Source, SourceError, Timestamp};

use crate::exit::Code;
use crate::output::note;
use crate::text::Moment;
use crate::time::{TimeFormat, Times};

/// Runs a client until it ends, or Ctrl-C.
pub fn run(client: impl Future<Output = anyhow::Result<Code>>) -> anyhow::Result<Code> {
    run_to_its_end(async {
        tokio::select! {
            done = client => done,
            _ = tokio::signal::ctrl_c() => Ok(Code::Interrupted),
        }
    })
}

/// Runs a client that handles signals itself.
pub fn run_to_its_end(client: impl Future<Output = anyhow::Result<Code>>) -> anyhow::Result<Code> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(client)
}

/// The address that was named, or the default one.
pub fn address(named: Option<OsString>) -> Address {
    named.map(Address::from).unwrap_or_default()
}

/// The path of the socket that was named, for the commands that listen there or pass it on.
#[cfg_attr(not(node), expect(dead_code, reason = "only the commands of a node need a path"))]
pub fn path(named: OsString) -> anyhow::Result<PathBuf> {
    match Address::from(named) {
        Address::Unix(path) => Ok(path),
        other => anyhow::bail!("--socket {other}: only a Unix socket will do here"),
    }
}

/// Says once that the daemon is gone, however the reason changes meanwhile, and that it is back.
#[derive(Debug, Default)]
pub struct Outage {
    is_known: bool,
}

impl Outage {
    /// Notes what a watch yielded.
    pub fn note(&mut self, item: &Item) {
        if let Some(text) = self.text(item) {
            note(&text);
        }
    }

    /// The note, if there is one to make.
    pub fn text(&mut self, item: &Item) -> Option<String> {
        match item {
            Item::Disconnected(error) => (!std::mem::replace(&mut self.is_known, true))
                .then(|| format!("the daemon is gone ({error}); waiting for it to come back")),
            Item::Reconnected => std::mem::take(&mut self.is_known).then(|| "the daemon is back".to_owned()),
            Item::Events(_) | Item::Snapshot(_) => None,
        }
    }
}

/// The answer to a request during a watch, which a daemon that is gone does not end: then none, and the watch says when it is back.
///
/// # Errors
/// Any other.
pub fn unless_gone<T>(answer: Result<T, SourceError>) -> Result<Option<T>, SourceError> {
    match answer {
        Err(SourceError::Client(error)) if error.is_transient() => Ok(None),
        answer => answer.map(Some),
    }
}

/// Opens a recording, as of a time, or else the daemon. What a recording does not have is noted.
pub async fn open(
    named: Option<OsString>,
    file: Option<&Path>,
    at: Option<Moment>,
) -> Result<Source, SourceError> {
    let Some(file) = file else { return Ok(Source::Live(connect(named).await?)) };
    let mut recording = Recording::open(file, None).await?;
    let mut until = at.map(|at| at.before(as_of(&recording)));
    if let (Some(at), Some(end)) = (until, recording.as_of())
        && at > end
    {
        until = Some(end);
        let last = Times::new(TimeFormat::Rfc3339, true).show(until);
        note(&format!("the recording ends at {last}, before that time: it is shown as of its end"));
    }
    if until.is_some() {
        recording = Recording::open(file, until).await?;
    }
    if let Some(torn) = recording.torn() {
        note(&format!("{} was cut short; everything before that is shown", torn.display()));
    }
    if recording.known_since().is_none() {
        note("the recording has no snapshot before that time: only containers with events are known");
    }
    Ok(Source::Recorded(Box::new(recording)))
}

/// The moment that a recording is read as of; now, if there is nothing in it.
fn as_of(recording: &Recording) -> DateTime<Utc> {
    recording.as_of().and_then(Timestamp::to_utc).unwrap_or_else(Utc::now)
}

/// What ages are relative to: now, or the moment that a recording is read as of.
pub fn now(source: &Source) -> DateTime<Utc> {
    source.recording().map_or_else(Utc::now, as_of)
}

/// A time relative to [`now`].
pub fn moment(source: &Source, moment: Moment) -> Timestamp {
    moment.before(now(source))
}

/// Connects.
pub async fn connect(named: Option<OsString>) -> Result<Client, Error> {
    Client::connect(address(named)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ages_in_a_recording_are_relative_to_the_moment_that_it_is_read_as_of() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("demo.kwr");
        crate::demo::save(&file).unwrap();
        let read = async |at: Option<&str>| {
            let at = at.map(|at| at.parse().unwrap());
            now(&open(None, Some(&file), at).await.unwrap())
        };
        let end = read(None).await;
        // Nothing happened right then: the last event before is 4 seconds older.
        assert_eq!(end - read(Some("15s")).await, chrono::TimeDelta::seconds(15));
        assert_eq!(read(Some("2099-01-01T00:00:00Z")).await, end, "no later than its end");
    }

    #[test]
    fn an_outage_is_noted_once() {
        let gone = |reason: &str| {
            Item::Disconnected(Error::Unreachable { address: Address::default(), reason: reason.to_owned() })
        };
        let items = [gone("stopping"), gone("no such file"), Item::Reconnected, gone("stopping")];
        let mut outage = Outage::default();
        let noted = items.map(|item| outage.text(&item));
        assert!(noted[0].as_ref().is_some_and(|text| text.contains("stopping")), "{noted:?}");
        assert_eq!(noted[1..3], [None, Some("the daemon is back".to_owned())]);
        assert!(noted[3].is_some());
    }
}
