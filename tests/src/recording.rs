//! What `kwitness daemon --record` wrote, given to the pure core: it must make the events that the daemon served, each and exactly.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kwitness_agent::clock::Clock;
use kwitness_agent::wire::convert;
use kwitness_api::Timestamp;
use kwitness_api::proto::Event;
use kwitness_api::proto::event::Kind;
use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::Output;
use kwitness_core::node::Node;
use serde::Deserialize as _;
use serde_json::Value;

use crate::agent::Agent;
use crate::process::wait_for;

/// How long the file and the journal may take to have the same end.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Recording {
    directory: tempfile::TempDir,
}

/// What two events that are the same have in common: when, about which container, what, as JSON without wall-clock times. Those
/// depend on this process's reading of both clocks, some nanoseconds from the daemon's.
type Essence = (u64, Option<String>, Value);

impl Recording {
    /// A file for a daemon to write.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir_in("/run").context("make the recording's directory")?;
        Ok(Self { directory })
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("recording.jsonl")
    }

    /// That the core makes of the recording what the daemon has in its journal. Nothing may happen any more that makes events.
    pub async fn check(&self, agent: &Agent) -> Result<()> {
        let mut counts = (0, 0);
        let both = wait_for("the recording and the journal to have the same end", LIMIT, async || {
            let (served, replayed) = (served(agent).await?, self.replayed()?);
            counts = (served.len(), replayed.len());
            Ok((counts.0 == counts.1).then_some((served, replayed)))
        });
        let both = both.await;
        let (served, replayed) =
            both.with_context(|| format!("{} events served, {} replayed", counts.0, counts.1))?;
        ensure!(!served.is_empty(), "there was nothing to record");
        for (index, (served, replayed)) in served.iter().zip(&replayed).enumerate() {
            ensure!(served == replayed, "event {index}\nserved: {served:#?}\nreplayed: {replayed:#?}");
        }
        Ok(())
    }

    fn replayed(&self) -> Result<Vec<Essence>> {
        let text = fs::read_to_string(self.path()).context("read the recording")?;
        let mut node = Node::new(Bounds::default());
        let mut output = Output::default();
        // The last line may be half written.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let observation = serde_json::from_str(line).with_context(|| line.to_owned())?;
            node.observe(observation, &mut output);
        }
        let clock = Clock::read();
        let essence = output.events.iter().map(|event| {
            let container = event.subject.as_ref().map(|subject| subject.container_id.to_string());
            let (_, event) = convert::event(event, clock);
            essence(event.kernel_time, container, event.kind)
        });
        essence.collect()
    }
}

fn essence(kernel_time: u64, container: Option<String>, kind: Option<Kind>) -> Result<Essence> {
    let event = Event { kind, ..Event::default() };
    let mut value = serde_json::to_value(&event).context("write an event as JSON")?;
    blank_times(&mut value);
    Ok((kernel_time, container, value))
}

/// Takes every RFC 3339 timestamp out of a value.
fn blank_times(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(blank_times),
        Value::Object(fields) => fields.values_mut().for_each(blank_times),
        _ if value.is_string() && Timestamp::deserialize(&*value).is_ok() => *value = Value::Null,
        _ => {}
    }
}

/// The daemon's journal from its beginning.
async fn served(agent: &Agent) -> Result<Vec<Essence>> {
    let seen = agent.replay().await?;
    let essence = seen.events().map(|event| {
        let container = event.container.as_ref().map(|container| container.id.clone());
        essence(event.kernel_time, container, event.kind.clone())
    });
    essence.collect()
}
