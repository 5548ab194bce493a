use std::path::Path;

use super::*;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Settings that follow from a value of the chart.
const OWN: &[&str] = &[
    "api.listen",
    "api.socket",
    "http.listen",
    "kernel.pin",
    "kernel.pin_directory",
    "kubelet.directory",
    "kubernetes.enabled",
    "kubernetes.kubeconfig",
    "node.name",
    "runtime.endpoint",
];

#[test]
fn the_schema_has_every_setting_of_the_daemon() {
    let page = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let (_, table) = page.split_once("<!-- settings -->").unwrap();
    let (table, _) = table.split_once("<!-- end of settings -->").unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let mut documented: Vec<_> =
        rows.map(|(key, _)| key.to_owned()).filter(|key| !OWN.contains(&key.as_str())).collect();
    documented.sort();
    let schema = fs::read_to_string(root().join(CHART).join("values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let sections = schema["properties"]["config"]["properties"].as_object().unwrap();
    let mut known: Vec<_> = sections
        .iter()
        .flat_map(|(section, object)| {
            let settings = object["properties"].as_object().unwrap().keys();
            settings.map(move |setting| format!("{section}.{setting}"))
        })
        .collect();
    known.sort();
    assert_eq!(known, documented);
}

#[test]
fn pins_have_a_bpf_file_system_and_a_standby() {
    let manifest = fs::read_to_string(root().join(MANIFEST)).unwrap();
    check_pins(&manifest).unwrap();
    for (part, replacement, error) in [
        ("pin = \"auto\"", "pin = \"off\"", "is mounted: true"),
        (
            "mountPath: /sys/fs/bpf",
            "mountPath: /sys/fs/bpf\n              readOnly: true",
            "is mounted: false",
        ),
        ("maxSurge: 10%", "maxSurge: 0", "the strategy is"),
        ("- --standby", "- --record", "--standby in"),
    ] {
        assert!(manifest.contains(part), "{part}");
        let found = check_pins(&manifest.replace(part, replacement)).unwrap_err().to_string();
        assert!(found.contains(error), "{part}: {found}");
    }
}

#[test]
fn an_exporter_with_more_rights_is_refused() {
    let manifest = |args: &str, verbs: &str, token: bool| {
        format!(
            "kind: DaemonSet\nspec: {{template: {{spec: {{automountServiceAccountToken: {token}, containers: [{{name: exporter, \
             args: [{args}], securityContext: {{privileged: false, allowPrivilegeEscalation: false, \
             readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}}}]}}}}}}\n---\nkind: ClusterRole\nrules: \
             [{{apiGroups: [events.k8s.io], resources: [events], verbs: [{verbs}]}}]\n"
        )
    };
    check_exporter(&manifest("--kubernetes-events", "create", true)).unwrap();
    check_exporter("kind: DaemonSet\n").unwrap();
    for (wrong, error) in [
        (manifest("--kubernetes-events", "create, get", true), "roles are"),
        (manifest("", "create", false), "roles are"),
        (manifest("", "create", true), "token"),
        (manifest("", "create", false).replace("drop: [ALL]", "drop: []"), "securityContext is"),
    ] {
        let found = check_exporter(&wrong).unwrap_err().to_string();
        assert!(found.contains(error), "{found}");
    }
}

#[test]
fn a_daemon_with_more_rights_than_to_read_pods_is_refused() {
    let manifest = |enabled: bool, token: bool, verbs: &str| {
        format!(
            "kind: ConfigMap\ndata: {{config.toml: \"[kubernetes]\\nenabled = {enabled}\"}}\n---\nkind: DaemonSet\nspec: \
             {{template: {{spec: {{automountServiceAccountToken: {token}, containers: [{{name: kwitness}}]}}}}}}\n---\n\
             kind: ClusterRole\nrules: [{{apiGroups: [\"\"], resources: [pods], verbs: [{verbs}]}}]\n"
        )
    };
    let read = "get, list, watch";
    check_kubernetes(&manifest(true, true, read)).unwrap();
    check_kubernetes(&fs::read_to_string(root().join(MANIFEST)).unwrap()).unwrap();
    let foreign = "---\nkind: ClusterRole\nmetadata: {labels: {app.kubernetes.io/name: other}}\n";
    for (wrong, error) in [
        (manifest(true, true, "get, list, watch, patch"), "roles are"),
        (manifest(true, false, read), "token"),
        (manifest(false, true, read), "token"),
        (manifest(false, false, read), "roles are"),
        (manifest(true, true, read) + foreign, "of no DaemonSet"),
    ] {
        let found = check_kubernetes(&wrong).unwrap_err().to_string();
        assert!(found.contains(error), "{found}");
    }
}

#[test]
fn a_monitor_whose_labels_hide_those_of_the_metrics_is_refused() {
    let monitor = |relabelings: &str| {
        format!("kind: PodMonitor\nspec: {{podMetricsEndpoints: [{{relabelings: [{relabelings}]}}]}}\n")
    };
    let (job, drop) =
        ("{targetLabel: job, replacement: kwitness}", "{action: labeldrop, regex: namespace|pod|container}");
    check_monitors(&monitor(&format!("{job}, {drop}"))).unwrap();
    for incomplete in [job, drop, ""] {
        let found = check_monitors(&monitor(incomplete)).unwrap_err().to_string();
        assert!(found.starts_with("PodMonitor: no "), "{found}");
    }
}

#[test]
fn the_manifest_is_of_least_privilege() {
    let manifest = fs::read_to_string(root().join(MANIFEST)).unwrap();
    check_privileges(&manifest).unwrap();
    for (part, replacement, error) in [
        ("- SYS_PTRACE", "- SYS_ADMIN", "securityContext is"),
        ("privileged: false", "privileged: true", "securityContext is"),
        ("hostPID: true", "hostPID: true\n      hostNetwork: true", "hostNetwork is set"),
        (
            "mountPath: /sys/fs/cgroup\n              readOnly: true",
            "mountPath: /sys/fs/cgroup",
            "only /run/kwitness",
        ),
        ("recursiveReadOnly: IfPossible", "", "mounted below is writable"),
        ("automountServiceAccountToken: false", "automountServiceAccountToken: true", "a token"),
        ("kind: ConfigMap", "kind: ClusterRole", "has a ClusterRole"),
    ] {
        assert!(manifest.contains(part), "{part}");
        let found = check_privileges(&manifest.replace(part, replacement)).unwrap_err().to_string();
        assert!(found.contains(error), "{part}: {found}");
    }
}
