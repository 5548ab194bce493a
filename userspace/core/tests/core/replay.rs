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

fn replay(observations: Vec<Observation>) -> String {
    replay_in_turns(observations, usize::MAX)
}

/// Every event and every action, whole, as they came out; then the containers that are left, and the counters. After so many
/// observations at a time, another node goes on from what the one before was written as.
fn replay_in_turns(observations: Vec<Observation>, turn: usize) -> String {
    let mut node = Node::new(Bounds::default());
    let mut text = String::new();
    let mut output = Output::default();
    for (index, observation) in observations.into_iter().enumerate() {
        if index % turn == turn - 1 {
            let written = serde_json::to_string(&node).expect("a node can be written");
            node = serde_json::from_str(&written).expect("a node can be read");
        }
        node.observe(observation, &mut output);
        for event in output.events.drain(..) {
            let _ = writeln!(text, "{}", serde_json::to_string(&event).expect("an event can be written"));
        }
        for action in output.actions.drain(..) {
            let _ =
                writeln!(text, "    {}", serde_json::to_string(&action).expect("an action can be written"));
        }
    }
    let mut containers: Vec<_> = node.containers(|_| true).collect();
    containers.sort_by(|a, b| a.subject.cgroup_path.cmp(&b.subject.cgroup_path));
    for container in containers {
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
fn a_node_goes_on_from_what_another_was_written_as() {
    for path in recordings() {
        assert_eq!(
            replay_in_turns(observations(&path), 7),
            replay(observations(&path)),
            "{}",
            path.display()
        );
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
