//! What SECURITY.md promises, against the sources: each threat is met by promises, each promise has its tests, and what the daemon
//! must never do is not in its sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What the daemon may call of the container runtime: nothing that changes anything.
const CALLS: [&str; 6] = [
    "ContainerStatus",
    "GetContainerEvents",
    "ListContainers",
    "ListPodSandbox",
    "PodSandboxStatus",
    "Version",
];

/// The files of the daemon that open others to write to them: its ledger, and the recording of `--record`.
const WRITERS: [&str; 2] = ["engine/recorder.rs", "probe/mapped.rs"];

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root").to_owned()
}

/// The Rust sources below a directory: path and text.
fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    crate::ebpf::list_files(&root().join(directory), &mut files).expect("a directory");
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    files.into_iter().map(|file| (file.clone(), fs::read_to_string(file).expect("a source"))).collect()
}

/// The rows of the table with that heading, each in its cells.
fn table<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let (_, rows) = page.split_once(heading).unwrap_or_else(|| panic!("no table with the heading {heading}"));
    let rows = rows.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells = |row: &'a str| row.trim_matches('|').split(" | ").map(str::trim).collect::<Vec<_>>();
    let rows: Vec<_> = rows.map(cells).collect();
    let width = heading.matches(" | ").count() + 1;
    rows.iter().for_each(|row| assert_eq!(row.len(), width, "{row:?}"));
    rows
}

/// The names of all tests: functions with the attribute of one, and rows of the tables that `tests/tests` are made of.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, text) in ["userspace", "tests/src", "xtask"].into_iter().flat_map(sources) {
        let mut is_test = false;
        for line in text.lines().map(str::trim_start) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some((_, rest)) = line.split_once("fn ")
                && let Some((name, _)) = rest.split_once(['(', '<'])
                && std::mem::take(&mut is_test)
            {
                names.insert(name.to_owned());
            }
        }
    }
    for (_, text) in sources("tests/tests") {
        let is_name = |character: char| character.is_ascii_lowercase() || "_0123456789".contains(character);
        // Where it is defined is no row of a table.
        let rows = text.lines().filter(|line| !line.contains("fn "));
        let words = rows.flat_map(|line| line.split(|character| !is_name(character)));
        names.extend(words.filter(|word| word.contains('_')).map(str::to_owned));
    }
    names
}

#[test]
fn every_threat_is_met_by_promises_and_every_promise_has_its_tests() {
    let page = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let threats = table(&page, "| Who | What they control | What they must not achieve | Promises |");
    let promises = table(&page, "| No. | Promise | Test |");
    let mut met = BTreeSet::new();
    for threat in &threats {
        let numbers: Vec<usize> = threat[3].split(", ").map(|number| number.parse().unwrap()).collect();
        assert!(!numbers.is_empty() && numbers.is_sorted(), "{threat:?}");
        met.extend(numbers);
    }
    let numbers: BTreeSet<usize> = promises.iter().map(|promise| promise[0].parse().unwrap()).collect();
    assert_eq!(numbers, (1..=promises.len()).collect(), "each promise has its number");
    assert_eq!(met, numbers, "the promises that some threat names, and those that there are");
    let tests = tests();
    for promise in &promises {
        let named: Vec<_> = promise[2].split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test: {promise:?}");
        let missing: Vec<_> = named.into_iter().filter(|name| !tests.contains(*name)).collect();
        assert!(missing.is_empty(), "no such tests: {missing:?}");
    }
}

fn daemon() -> impl Iterator<Item = (PathBuf, String)> {
    let is_test = |path: &Path| {
        let name = path.file_name().unwrap_or_default();
        name == "tests.rs"
            || name == "testing.rs"
            || path.components().any(|part| part.as_os_str() == "tests")
    };
    let without_tests = |text: String| match text.find("#[cfg(test)]\nmod tests {") {
        Some(end) => text[..end].to_owned(),
        None => text,
    };
    let sources = sources("userspace/agent/src").into_iter();
    sources.filter(move |(path, _)| !is_test(path)).map(move |(path, text)| (path, without_tests(text)))
}

#[test]
fn the_daemon_calls_nothing_of_the_runtime_that_changes_anything() {
    let mut called = BTreeSet::new();
    for (_, text) in daemon() {
        let calls = text.split("\"/runtime.v1.RuntimeService/").skip(1);
        called.extend(calls.filter_map(|call| call.split_once('"')).map(|(method, _)| method.to_owned()));
    }
    let generated = fs::read_to_string(root().join("proto/cri/runtime/v1/api.proto")).unwrap();
    let methods = generated.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split_once('('));
    called.extend(methods.map(|(method, _)| method.to_owned()));
    assert_eq!(called, CALLS.map(str::to_owned).into());
}

#[test]
fn the_daemon_opens_no_file_to_write_but_its_own() {
    let writes = ["write(true)", "append(true)", "fs::write(", " File::create(", "O_WRONLY", "O_RDWR"];
    let mut writers = BTreeSet::new();
    for (path, text) in daemon() {
        let text = text.split("pub(crate) mod testing").next().unwrap_or_default();
        if writes.iter().any(|write| text.contains(write)) {
            writers.insert(path.strip_prefix(root().join("userspace/agent/src")).unwrap().to_owned());
        }
    }
    assert_eq!(writers, WRITERS.map(PathBuf::from).into());
}

#[test]
fn the_daemons_programs_send_no_signal_and_override_nothing() {
    for (path, text) in sources("ebpf/probes/src") {
        for helper in ["bpf_send_signal", "bpf_override_return", "bpf_probe_write_user"] {
            assert!(!text.contains(helper), "{}: {helper}", path.display());
        }
    }
}
