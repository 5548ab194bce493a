//! What is in an archive, and what must not be: secrets are planted wherever the API has room for a name.

use std::collections::BTreeMap;

use kwitness_api::proto::event::Kind;

use super::*;

/// Planted as what `--redact` hides.
const HIDDEN: [&str; 9] = [
    "secret-node",
    "secret-container",
    "secret-pod",
    "secret-namespace",
    "registry.secret.example/image:1",
    "secret.example/label",
    "secret label value",
    "20394857",
    "api.secret.example",
];

fn container() -> proto::Container {
    let [_, name, pod, namespace, image, label, value, number, _] = HIDDEN.map(str::to_owned);
    let labels = [(label, value), ("io.kubernetes.pod.namespace".to_owned(), namespace.clone())];
    proto::Container {
        id: "0123456789ab".into(),
        cgroup_id: 7,
        name: Some(name),
        image: Some(image),
        labels: labels.into_iter().chain([("account".to_owned(), number)]).collect(),
        pod: Some(proto::Pod {
            uid: "1d4e".into(),
            namespace: Some(namespace),
            name: Some(pod),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// An archive of a daemon that knows all of them, by its fields and in texts.
fn parts() -> Parts {
    let [node, name, pod, namespace, .., server] = HIDDEN;
    let mut parts = Parts::default();
    let reason =
        format!("{namespace}/{pod} {name} on {node}: no answer of {server}, see secret.example/label.");
    parts.value(
        "status.json",
        &proto::StatusResponse {
            node_name: node.into(),
            kubernetes: Some(proto::KubernetesStatus {
                server: format!("https://{server}:6443"),
                node_name: node.into(),
                error: reason.clone(),
                ..Default::default()
            }),
            ..Default::default()
        },
    );
    let state = proto::ContainerState { container: Some(container()), ..Default::default() };
    parts.value("containers.json", &state);
    let verdict = proto::Verdict { file: "memory.max".into(), reason: reason.clone(), ..Default::default() };
    let of = proto::VerdictOf {
        container: Some(container()),
        verdict: Some(verdict.clone()),
        ..Default::default()
    };
    parts.value("verdicts.json", &of);
    parts.line(&Line::Header(Header { format: FORMAT, node: node.into(), ..Default::default() }));
    parts.line(&Line::Event(Box::new(proto::Event {
        container: Some(container()),
        r#type: "verdict".into(),
        kind: Some(Kind::Verdict(Box::new(verdict))),
        ..Default::default()
    })));
    for name in ["config.toml", "kernel.txt", "log.txt"] {
        parts.texts.push((name, format!("# {reason}\n")));
    }
    parts.missing("doctor.json", &reason);
    parts
}

/// The files of an archive, by name.
fn unpack(parts: &Parts) -> BTreeMap<String, String> {
    let archive = parts.archive(7).unwrap();
    let mut plain = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(&*archive).unwrap().read_to_end(&mut plain).unwrap();
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(&*plain).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(entry.path().unwrap().file_name().unwrap().to_string_lossy().into_owned(), text);
    }
    files
}

#[test]
fn what_is_no_small_file_is_neither_waited_for_nor_read_without_a_bound() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    let refused = |path: &Path| small(path).unwrap_err().to_string();
    fs::write(&path, "a = 1\n").unwrap();
    assert_eq!(small(&path).unwrap(), "a = 1\n");
    File::options().write(true).open(&path).unwrap().set_len(SMALL_MAX + 1).unwrap();
    assert_eq!(refused(&path), "larger than 1024 KiB");
    assert_eq!(refused(directory.path()), "not a regular file");
    #[cfg(target_os = "linux")]
    {
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!([&*fifo, Path::new("/dev/zero")].map(refused), ["not a regular file"; 2]);
    }
}

#[test]
fn every_file_is_listed_in_the_readme() {
    let files = unpack(&parts());
    let listed = |name: &String| README.lines().any(|line| line.starts_with(name.as_str()));
    assert!(files.keys().filter(|name| *name != "README.txt").all(listed), "{:?}", files.keys());
    assert!(files["errors.txt"].starts_with("doctor.json: "), "{}", files["errors.txt"]);
}

#[test]
fn what_is_hidden_is_in_no_file_of_a_redacted_archive() {
    let plain = unpack(&parts());
    for secret in HIDDEN {
        assert!(plain.values().any(|text| text.contains(secret)), "{secret} is planted nowhere");
    }
    let mut redacted = parts();
    redacted.redact().unwrap();
    let redacted = unpack(&redacted);
    assert!(plain.keys().eq(redacted.keys()));
    for (file, text) in &redacted {
        for secret in HIDDEN.iter().chain(&["secret"]) {
            assert!(!text.contains(secret) || file == "README.txt", "{secret} is in {file}: {text}");
        }
    }
    // It is still a recording, and the same container is the same everywhere.
    assert!(redacted["events.kwr"].contains("\"type\":\"verdict\""), "{}", redacted["events.kwr"]);
    assert!(redacted["verdicts.json"].contains("\"memory.max\""), "{}", redacted["verdicts.json"]);
    let state: serde_json::Value = serde_json::from_str(&redacted["containers.json"]).unwrap();
    let pod = state["container"]["pod"]["name"].as_str().unwrap();
    assert!(redacted["log.txt"].contains(pod), "{}", redacted["log.txt"]);
}
