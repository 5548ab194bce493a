//! Makes the recording that `kwitness demo` plays: the observations of a real node in `core/tests/fixtures/recorded-oom.jsonl`,
//! given to the core, and its events written as a daemon would serve them.
//!
//! ```console
//! $ cargo run -p kwitness-agent --example incident
//! ```

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use kwitness_agent::clock::Clock;
use kwitness_agent::wire::convert;
use kwitness_api::recording::{At, FORMAT, Header, Line, Options, Writer};
use kwitness_api::{Timestamp, proto};
use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::Output;
use kwitness_core::node::Node;

const EPOCH: &str = "demo";
/// When the recorded node was booted: kernel times become wall-clock times of that day, whichever machine converts them.
const BOOTED: i64 = 1_795_852_800;

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join("../core/tests/fixtures/recorded-oom.jsonl");
    let text = fs::read_to_string(&source).with_context(|| format!("read {}", source.display()))?;
    let mut node = Node::new(Bounds::default());
    let mut output = Output::default();
    for line in text.lines() {
        node.observe(serde_json::from_str(line).context("an observation")?, &mut output);
    }
    let path = root.join("../cli/src/demo/incident.kwr");
    if path.exists() {
        fs::remove_file(&path)?;
    }
    let header = Header {
        format: FORMAT,
        node: "node-1".to_owned(),
        epoch: EPOCH.to_owned(),
        daemon: env!("CARGO_PKG_VERSION").to_owned(),
        recorder: env!("CARGO_PKG_VERSION").to_owned(),
        time: Some(at(0)),
        ..Header::default()
    };
    let options = Options { max_size: u64::MAX, keep: 1, zstd: true };
    let (mut writer, _) = Writer::open(&path, options, &header)?;
    let first = output.events.first().map_or(0, |event| event.at.0);
    writer.append(&Line::Snapshot(At {
        time: at(first),
        after: None,
        answer: proto::Snapshot::default(),
    }))?;
    let clock = Clock::read();
    for (seq, event) in (1..).zip(&output.events) {
        let (_, converted) = convert::event(event, clock);
        let converted = proto::Event {
            position: Some(proto::Position { epoch: EPOCH.to_owned(), seq }),
            time: Some(at(event.at.0)),
            container: event.subject.as_deref().map(convert::container),
            ..converted
        };
        writer.append(&Line::Event(Box::new(converted)))?;
    }
    writer.finish()?;
    println!("{}: {} events, {} bytes", path.display(), output.events.len(), fs::metadata(&path)?.len());
    Ok(())
}

fn at(kernel_time: u64) -> Timestamp {
    let nanos = i64::try_from(kernel_time).unwrap_or(i64::MAX);
    Timestamp::from_unix_nanos((BOOTED * 1_000_000_000).saturating_add(nanos))
}
