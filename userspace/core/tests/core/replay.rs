//! Recorded observations replay to the same events. A recording is what `kwitness daemon --record` writes: one observation
//! a line, as JSON. Beside each lies a snapshot of all that comes out, and of the containers that are left.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::{Observation, Output};
use kwitness_core::node::Node;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn recordings() -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(fixtures())
        .expect("the fixtures' folder")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    paths.sort();
    paths
}

fn observations(path: &Path) -> Vec<Observation> {
    let text = fs::read_to_string(path).expect("a recording");
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{}:{}: {error}", path.display(), index + 1))
        })
        .collect()
}

/// Every event and every action, whole, as they came out; then the containers that are left, and the counters.
fn replay(observations: Vec<Observation>) -> String {
    let mut node = Node::new(Bounds::default());
    let mut text = String::new();
    let mut output = Output::default();
    for observation in observations {
        node.observe(observation, &mut output);
        for event in output.events.drain(..) {
            let _ = writeln!(text, "{}", serde_json::to_string(&event).expect("an event can be written"));
        }
        for action in output.actions.drain(..) {
            let _ =
                writeln!(text, "    {}", serde_json::to_string(&action).expect("an action can be written"));
        }
    }
    for container in node.snapshot() {
        let _ = writeln!(text, "\n{container:#?}");
    }
    let _ = writeln!(text, "\n{:?}", node.counters());
    text
}

#[test]
fn recordings_replay_to_the_same_events() {
    let recordings = recordings();
    assert!(!recordings.is_empty(), "no recordings in {}", fixtures().display());
    for path in recordings {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        insta::with_settings!({ snapshot_path => fixtures(), prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, replay(observations(&path)));
        });
    }
}

#[test]
fn a_recording_says_all_that_was_observed() {
    for path in recordings() {
        for (observation, line) in
            observations(&path).iter().zip(fs::read_to_string(&path).expect("a recording").lines())
        {
            let again = serde_json::to_value(observation).expect("an observation can be written");
            let recorded: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(again, recorded, "{}", path.display());
        }
    }
}
