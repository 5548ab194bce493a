//! The `chart` task: the Helm chart in `deploy/helm/kwitness`, and what is made of it.
//!
//! Owns `deploy/kwitness.yaml`, which is the chart rendered with its defaults, and the chart's copies of files outside of it, which Helm
//! could not read. The real helm lints and renders the chart with each value set in its `ci/`; kubeconform validates what comes out, as
//! strictly as the API server; promtool checks and tests the alert rules that it embeds. Never decides what the chart deploys,
//! except that its defaults are of least privilege.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::release::Source;
use crate::setup::{helm, prometheus};
use crate::workspace::{CHART, Cache, Workspace};
use crate::{dist, run};

const RULES: &str = "deploy/prometheus";
const MANIFEST: &str = "deploy/kwitness.yaml";
const MANIFEST_HEAD: &str = "# Written by `cargo xtask chart`: the chart deploy/helm/kwitness with its default values.\n\
                             # Set the image (the DaemonSet's `image:`) to where your registry has it, then `kubectl apply -f` this file.\n";
/// Files that the chart renders, and its copies of them.
const COPIES: &[(&str, &str)] = &[
    ("deploy/prometheus/alerts.yaml", "deploy/helm/kwitness/files/alerts.yaml"),
    ("deploy/grafana/kwitness.json", "deploy/helm/kwitness/files/kwitness.json"),
];
/// Kinds of the Prometheus operator, which no schema here has.
const WITHOUT_SCHEMA: &str = "PodMonitor,PrometheusRule,ServiceMonitor";
/// The only directories of the host that the daemon writes to.
const WRITTEN: [&str; 2] = ["/run/kwitness", "/sys/fs/bpf"];
/// Read-only without what is mounted below, which docs/operations.md says of each: a volume of the API server's, and those with the
/// host's unmounts.
const NOT_RECURSIVE: [&str; 3] = ["/etc/kwitness", "/run/containerd", "/var/lib/kubelet"];

/// Text that YAML takes for something else, unless it is quoted.
const TEXTS: &[&str] = &["prod #1", "eu: prod", "{{ x }}", "a \"b\" 'c'", "123", "*"];
/// Values that contradict each other, as helm's `--set` has them, and what the refusal says.
const CONTRADICTIONS: &[(&str, &str)] = &[
    // A monitor of pods that serve nothing would never say so.
    ("podMonitor.enabled=true,http.enabled=false", "needs http.enabled"),
    ("serviceMonitor.enabled=true,http.enabled=false", "needs http.enabled"),
    ("podMonitor.enabled=true,serviceMonitor.enabled=true", "exclude each other"),
    // Its readiness would say nothing of whether it waits.
    ("updateStrategy.rollingUpdate.maxSurge=1,http.enabled=false", "maxSurge needs http.enabled"),
    ("updateStrategy.rollingUpdate.maxSurge=1,startupProbe=null,readinessProbe=null", "and a probe"),
    ("kubernetes.enabled=true,serviceAccount.create=false", "needs serviceAccount.name"),
    (
        "exporter.enabled=true,exporter.kubernetesEvents=true,exporter.serviceAccount.create=false",
        "needs exporter.serviceAccount.name",
    ),
    ("exporter.enabled=true,exporter.otlp.endpoint=https://collector:4317", "needs exporter.otlp.caSecret"),
];

/// Checks the chart; the files that are made of it and for it are written anew or, with `check`, compared.
pub fn task(workspace: &Workspace, cache: &Cache, check: bool) -> Result<()> {
    let chart = Chart::new(workspace, cache);
    let generated = |name: &str, content: &str| -> Result<()> {
        let path = workspace.root.join(name);
        if fs::read_to_string(&path).is_ok_and(|found| found == content) {
            return Ok(());
        }
        ensure!(!check, "{name} is out of date: run `cargo xtask chart` and commit it");
        fs::write(&path, content).with_context(|| format!("write {name}"))
    };
    for (from, to) in COPIES {
        let text = fs::read_to_string(workspace.root.join(from)).with_context(|| format!("read {from}"))?;
        generated(to, &text)?;
    }
    check_rules(workspace, cache)?;
    chart.check_versions()?;
    run::output(chart.helm("lint").arg("--strict").arg(&chart.directory))?;
    let manifest = format!("{MANIFEST_HEAD}{}", chart.render(&["--set=namespace.create=true"])?);
    generated(MANIFEST, &manifest)?;
    check_privileges(&manifest)?;
    chart.check_package(workspace, &manifest)?;

    let rendered = workspace.scratch("chart")?;
    let mut files = vec![workspace.root.join(MANIFEST)];
    for set in chart.value_sets()? {
        let name = set.file_name().context("a value set has a name")?;
        let path = rendered.join(name);
        let text = chart.render_as("123", &["--values", &set.to_string_lossy()])?;
        check_monitors(&text)
            .and_then(|()| check_pins(&text))
            .and_then(|()| check_exporter(&text))
            .and_then(|()| check_kubernetes(&text))
            .with_context(|| format!("the value set {}", set.display()))?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        files.push(path);
    }
    for (path, text) in chart.without_each_value()? {
        let file = rendered.join(format!("without-{path}.yaml"));
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        files.push(file);
    }
    let schemas = helm::schemas(cache)?.join("{{ .ResourceKind }}{{ .KindSuffix }}.json");
    let mut kubeconform = Command::new(cache.tool("kubeconform"));
    kubeconform.args(["-strict", "-summary", "-skip", WITHOUT_SCHEMA, "-schema-location"]).arg(schemas);
    let summary =
        run::output(kubeconform.args(&files)).context("the chart renders what Kubernetes refuses")?;
    chart.check_contradictions()?;
    chart.check_texts()?;
    chart.check_names()?;
    check_rendered_rules(workspace, cache, &chart)?;
    let refused = chart.check_unknown_keys()?;
    println!("{}", summary.trim());
    println!("{} manifests rendered; an unknown key is refused in each of {refused} objects", files.len());
    Ok(())
}

/// The objects of the chart with an exporter that creates Kubernetes Events and does nothing else.
pub fn with_events(workspace: &Workspace, cache: &Cache) -> Result<Vec<Value>> {
    let values = ["namespace.create", "exporter.enabled", "exporter.kubernetesEvents"];
    let values = values.map(|value| format!("--set={value}=true"));
    let manifest = Chart::new(workspace, cache).render(&values.each_ref().map(String::as_str))?;
    check_exporter(&manifest)?;
    objects(&manifest)
}

/// The alert rules are Prometheus', and fire when their tests say.
fn check_rules(workspace: &Workspace, cache: &Cache) -> Result<()> {
    let at = workspace.root.join(RULES);
    promtool(cache, "check", &at.join("alerts.yaml"))?;
    promtool(cache, "test", &at.join("alerts.test.yaml"))
}

/// So are those that the chart renders, with its own.
fn check_rendered_rules(workspace: &Workspace, cache: &Cache, chart: &Chart) -> Result<()> {
    let manifest = chart.render(&["--values", &chart.everything()])?;
    let objects = objects(&manifest)?;
    let rule =
        objects.iter().find(|object| object["kind"] == "PrometheusRule").context("no PrometheusRule")?;
    let directory = workspace.scratch("chart-rules")?;
    let (rules, test) = (directory.join("rules.yaml"), directory.join("chart.test.yaml"));
    fs::write(&rules, serde_yaml_ng::to_string(&rule["spec"])?).context("write the rendered rules")?;
    fs::copy(workspace.root.join(RULES).join("chart.test.yaml"), &test).context("copy their test")?;
    promtool(cache, "check", &rules)?;
    promtool(cache, "test", &test)
}

fn promtool(cache: &Cache, how: &str, file: &Path) -> Result<()> {
    let mut promtool = Command::new(cache.tool(prometheus::PROMTOOL));
    promtool.args([how, "rules"]).arg(file);
    run::output(&mut promtool).map(drop).with_context(|| format!("promtool {how} rules {}", file.display()))
}

struct Chart {
    directory: PathBuf,
    helm: PathBuf,
}

impl Chart {
    fn new(workspace: &Workspace, cache: &Cache) -> Self {
        Self { directory: workspace.root.join(CHART), helm: cache.tool("helm") }
    }

    fn helm(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.helm);
        command.arg(subcommand);
        command
    }

    fn render(&self, arguments: &[&str]) -> Result<String> {
        self.render_as("kwitness", arguments)
    }

    /// With one name for release and namespace.
    fn render_as(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.helm("template");
        run::output(command.arg(name).arg(&self.directory).args(["--namespace", name]).args(arguments))
    }

    /// The chart's versions are those of the workspace.
    fn check_versions(&self) -> Result<()> {
        let chart: Value = self.read("Chart.yaml")?;
        for field in ["version", "appVersion"] {
            let ours = env!("CARGO_PKG_VERSION");
            ensure!(chart[field] == ours, "Chart.yaml: {field} is {}, not {ours}", chart[field]);
        }
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Value> {
        let path = self.directory.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_yaml_ng::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// What a release has of the chart renders the same.
    fn check_package(&self, workspace: &Workspace, manifest: &str) -> Result<()> {
        let package = workspace.scratch("chart-package")?.join("kwitness.tgz");
        fs::write(&package, dist::chart(workspace, &Source::of_no_commit())?).context("write the package")?;
        let packed = Self { directory: package, helm: self.helm.clone() };
        let rendered = packed.render(&["--set=namespace.create=true"])?;
        ensure!(manifest.ends_with(&rendered), "the packed chart renders something else");
        Ok(())
    }

    /// The value set with everything on.
    fn everything(&self) -> String {
        self.directory.join("ci/everything-values.yaml").to_string_lossy().into_owned()
    }

    fn value_sets(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        crate::ebpf::list_files(&self.directory.join("ci"), &mut files)?;
        files.sort();
        ensure!(!files.is_empty(), "{CHART}/ci has no value sets");
        Ok(files)
    }

    /// Values that contradict each other are refused, with what to set.
    fn check_contradictions(&self) -> Result<()> {
        for (values, expected) in CONTRADICTIONS {
            let rendered = self.render(&["--set", values]);
            let Err(error) = rendered else { bail!("helm accepts {values}") };
            let error = format!("{error:#}");
            ensure!(error.contains(expected), "{values} is refused otherwise: {error}");
        }
        Ok(())
    }

    /// With everything on, what is rendered without each of the values in turn: null removes a default. It is rendered or refused by
    /// name, never an error of a template or of YAML.
    fn without_each_value(&self) -> Result<Vec<(String, String)>> {
        let mut paths = Vec::new();
        value_paths(&self.read("values.yaml")?, "", &mut paths);
        let everything = self.everything();
        let mut manifests = Vec::new();
        for path in paths {
            let values = ["--values", &everything, "--set", &format!("{path}=null")];
            match self.render(&values) {
                Ok(manifest) => manifests.push((path, manifest)),
                Err(error) => {
                    let error = format!("{error:#}");
                    let is_refusal =
                        error.contains("the specifications of the schema") || error.contains(" needs ");
                    ensure!(is_refusal, "{path}=null is no error of the values: {error}");
                }
            }
        }
        Ok(manifests)
    }

    /// Text arrives as it is, whatever YAML would take it for.
    fn check_texts(&self) -> Result<()> {
        for text in TEXTS {
            let endpoint = format!("http://{text}");
            let values = json!({ "enabled": true, "clusterName": text, "otlp": { "endpoint": endpoint } });
            let manifest = self.render(&["--set-json", &format!("exporter={values}")])?;
            let objects = objects(&manifest)?;
            let mut sets = objects.iter().filter(|object| object["kind"] == "DaemonSet").map(container_of);
            let exporter = sets.find(|container| container["name"] == "exporter").context("no exporter")?;
            let args = exporter["args"].as_array().context("no arguments")?;
            for arg in [format!("--cluster-name={text}"), format!("--otlp-endpoint=http://{text}")] {
                ensure!(args.contains(&json!(arg)), "no {arg:?} in {args:?}");
            }
        }
        Ok(())
    }

    /// A release of the same name in another namespace has other names where there is no namespace.
    fn check_names(&self) -> Result<()> {
        let everything = self.everything();
        let names = |namespace: &str| -> Result<BTreeSet<String>> {
            let values = ["--values", &everything, "--set=namespace.create=false", "--namespace", namespace];
            let objects = objects(&self.render(&values)?)?.into_iter();
            let global = objects.filter(|object| object["metadata"]["namespace"].is_null());
            Ok(global.map(|object| object["metadata"]["name"].to_string()).collect())
        };
        let (one, other) = (names("one")?, names("other")?);
        ensure!(!one.is_empty() && one.is_disjoint(&other), "{one:?} and {other:?}");
        Ok(())
    }

    /// Whether helm refuses an unknown key in every object whose keys the schema names; how many these are.
    fn check_unknown_keys(&self) -> Result<usize> {
        let mut objects = Vec::new();
        closed_objects(&self.read("values.schema.json")?, "", &mut objects);
        for path in &objects {
            let refused = self.render(&[&format!("--set={path}noSuchKey=1")]);
            let Err(error) = refused else { bail!("helm accepts the unknown key {path}noSuchKey") };
            let error = format!("{error:#}");
            ensure!(
                error.contains("'noSuchKey' not allowed"),
                "{path}noSuchKey is refused for another reason: {error}"
            );
        }
        Ok(objects.len())
    }
}

/// The objects that have no other keys than the schema's, each with a dot at its end.
fn closed_objects(schema: &Value, path: &str, found: &mut Vec<String>) {
    if schema["additionalProperties"] == false {
        found.push(path.to_owned());
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        closed_objects(property, &format!("{path}{name}."), found);
    }
}

/// Where the values are, as helm's `--set` has it.
fn value_paths(values: &Value, path: &str, found: &mut Vec<String>) {
    // Those with a dot are keys of Kubernetes': labels.
    for (key, value) in values.as_object().into_iter().flatten().filter(|(key, _)| !key.contains('.')) {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        value_paths(value, &path, found);
        found.push(path);
    }
}

fn objects(manifest: &str) -> Result<Vec<Value>> {
    serde_yaml_ng::Deserializer::from_str(manifest)
        .map(Value::deserialize)
        .collect::<Result<_, _>>()
        .context("parse the rendered manifest")
}

/// What the daemon keeps for the next one has a BPF file system to be in, and a pod without one keeps nothing. A pod that removes
/// it when no other stands by is one that a rollout lets another stand by for.
fn check_pins(manifest: &str) -> Result<()> {
    let objects = objects(manifest)?;
    let of = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let pinned = of("ConfigMap")
        .any(|map| map["data"]["config.toml"].as_str().is_some_and(|toml| toml.contains("pin = \"auto\"")));
    let set = &of("DaemonSet").next().context("the manifest has no DaemonSet")?["spec"];
    let pod = &set["template"]["spec"];
    let mut mounts = pod["containers"][0]["volumeMounts"].as_array().into_iter().flatten();
    let mounted =
        mounts.any(|mount| mount["mountPath"] == "/sys/fs/bpf" && mount["readOnly"].as_bool() != Some(true));
    ensure!(pinned == mounted, "kernel.pin is \"auto\": {pinned}; a BPF file system is mounted: {mounted}");
    let strategy = &set["updateStrategy"];
    let surge = &strategy["rollingUpdate"]["maxSurge"];
    let surges = strategy["type"] == "RollingUpdate" && !surge.is_null() && *surge != 0;
    let args = pod["containers"][0]["args"].as_array().context("no arguments")?;
    for flag in ["--standby", "--unpin=unless-standby"] {
        ensure!(args.contains(&json!(flag)) == surges, "{flag} in {args:?}; the strategy is {strategy}");
    }
    Ok(())
}

/// The exporter has no right but to create events, and that only where it does.
fn check_exporter(manifest: &str) -> Result<()> {
    let objects = objects(manifest)?;
    let of = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let Some(set) = of("DaemonSet").find(|set| container_of(set)["name"] == "exporter") else {
        return Ok(());
    };
    let pod = &set["spec"]["template"]["spec"];
    let expected = json!({
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] },
    });
    let security = &pod["containers"][0]["securityContext"];
    ensure!(*security == expected, "the exporter's securityContext is {security}, not {expected}");
    for field in ["hostPID", "hostNetwork", "hostIPC"] {
        ensure!(pod[field].is_null(), "the exporter: {field} is set");
    }
    let args = pod["containers"][0]["args"].as_array().into_iter().flatten();
    let has_events = args.into_iter().any(|arg| arg == "--kubernetes-events");
    ensure!(pod["automountServiceAccountToken"] == has_events, "the exporter's token: {pod}");
    let rules = json!([{ "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"] }]);
    let roles = roles_of(&objects, set);
    let wanted = if has_events { vec![&rules] } else { Vec::new() };
    ensure!(roles == wanted, "the exporter's roles are {roles:?}, not {wanted:?}");
    Ok(())
}

/// The daemon has a token where the Kubernetes API is its source, and with it no right but to read pods; and no other set has a role.
fn check_kubernetes(manifest: &str) -> Result<()> {
    let objects = objects(manifest)?;
    let of = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let is_enabled = of("ConfigMap").any(|map| {
        let toml = map["data"]["config.toml"].as_str().unwrap_or_default();
        toml.split_once("[kubernetes]")
            .is_some_and(|(_, rest)| rest.trim_start().starts_with("enabled = true"))
    });
    let set = of("DaemonSet").find(|set| container_of(set)["name"] == "kwitness");
    let set = set.context("the manifest has no daemon")?;
    let pod = &set["spec"]["template"]["spec"];
    ensure!(pod["automountServiceAccountToken"] == is_enabled, "the daemon's token: {pod}");
    let rules = json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"] }]);
    let roles = roles_of(&objects, set);
    let wanted = if is_enabled { vec![&rules] } else { Vec::new() };
    ensure!(roles == wanted, "the daemon's roles are {roles:?}, not {wanted:?}");
    let all: usize = of("DaemonSet").map(|set| roles_of(&objects, set).len()).sum();
    ensure!(of("ClusterRole").count() == all, "a ClusterRole of no DaemonSet");
    Ok(())
}

fn container_of(set: &Value) -> &Value {
    &set["spec"]["template"]["spec"]["containers"][0]
}

/// The rules of the roles that are a DaemonSet's, by their labels.
fn roles_of<'a>(objects: &'a [Value], set: &Value) -> Vec<&'a Value> {
    let name = |object: &Value| object["metadata"]["labels"]["app.kubernetes.io/name"].clone();
    let roles = objects.iter().filter(|object| object["kind"] == "ClusterRole" && name(object) == name(set));
    roles.map(|role| &role["rules"]).collect()
}

/// A monitor gives its targets the job that the alerts expect, and no label that the metrics have themselves: Prometheus would
/// rename theirs.
fn check_monitors(manifest: &str) -> Result<()> {
    for object in objects(manifest)? {
        let kind = object["kind"].as_str().unwrap_or_default();
        let endpoints = match kind {
            "PodMonitor" => "podMetricsEndpoints",
            "ServiceMonitor" => "endpoints",
            _ => continue,
        };
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let job = if name.ends_with("-export") { "kwitness-export" } else { "kwitness" };
        for endpoint in object["spec"][endpoints].as_array().context("a monitor without endpoints")? {
            let relabelings = endpoint["relabelings"].as_array().map(Vec::as_slice).unwrap_or_default();
            for wanted in [
                json!({ "targetLabel": "job", "replacement": job }),
                json!({ "action": "labeldrop", "regex": "namespace|pod|container" }),
            ] {
                ensure!(relabelings.contains(&wanted), "{kind}: no {wanted} in its relabelings");
            }
        }
    }
    Ok(())
}

/// The defaults give the daemon no more than it needs: what a reader of the chart may rely on.
fn check_privileges(manifest: &str) -> Result<()> {
    let objects = objects(manifest)?;
    let of = |kind: &str| objects.iter().find(|object| object["kind"] == kind);
    let pod = &of("DaemonSet").context("the manifest has no DaemonSet")?["spec"]["template"]["spec"];
    let security = &pod["containers"][0]["securityContext"];
    let expected = json!({
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"], "add": ["BPF", "PERFMON", "SYS_PTRACE"] },
    });
    ensure!(*security == expected, "the container's securityContext is {security}, not {expected}");
    for field in ["hostNetwork", "hostIPC"] {
        ensure!(pod[field].is_null(), "{field} is set");
    }
    let account = of("ServiceAccount").context("the manifest has no ServiceAccount")?;
    for automount in [&pod["automountServiceAccountToken"], &account["automountServiceAccountToken"]] {
        ensure!(*automount == false, "a token of the service account is mounted");
    }
    for role in ["Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"] {
        ensure!(of(role).is_none(), "the manifest has a {role}");
    }
    for mount in pod["containers"][0]["volumeMounts"].as_array().into_iter().flatten() {
        let writable = mount["readOnly"] != true;
        let is_written = WRITTEN.iter().any(|path| mount["mountPath"] == *path);
        ensure!(writable == is_written, "{mount}: only {} are writable", WRITTEN.join(" and "));
        let recursive = mount["recursiveReadOnly"] == "IfPossible";
        let excepted = NOT_RECURSIVE.iter().any(|path| mount["mountPath"] == *path);
        ensure!(writable || recursive != excepted, "{mount}: what is mounted below is writable");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
