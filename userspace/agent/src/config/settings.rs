//! Every setting: its key, what it takes, its default, its meaning. The file's check, the `--set` flag, the
//! defaults and the manual page are all made from this one list. Never reads a file.

use std::num::NonZeroU32;

use toml::Value;

use super::addresses::{loopback, socket};
use super::units::{absolute, boolean, choice, count, counts, non_zero, parsed, size, text};
use super::{Call, Config, Labels, RuntimeChoice};
use crate::cgroupfs::SubtreeError;
use crate::probe::capability::Exclusion;
use crate::probe::{MAX_ROOTS, ProbeLog, RootPattern};
use kwitness_core::model::Thresholds;
use kwitness_service::log::LogFormat;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its key in the file, "kernel.roots".
    pub key: &'static str,
    /// What it takes, with unit and range.
    pub expects: &'static str,
    /// Its default as written in the file; none: it is not set.
    pub default: Option<&'static str>,
    /// What it does.
    pub doc: &'static str,
    pub(super) apply: fn(&mut Config, &Value) -> Result<(), String>,
}

impl Setting {
    /// The part of the key before the last dot: the file's section.
    pub fn section(&self) -> &'static str {
        self.key.rsplit_once('.').map_or("", |(section, _)| section)
    }
}

/// Every setting there is.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: "api.socket",
        expects: "an absolute path of at most 107 bytes",
        default: Some(r#""/run/kwitness/kwitness.sock""#),
        doc: "The Unix socket that the API is served on. Its directory is made with mode 0750 if missing; the \
              socket has mode 0660.",
        apply: |config, value| {
            config.socket = socket(text(value)?)?;
            Ok(())
        },
    },
    Setting {
        key: "api.listen",
        expects: "a loopback address with a port (\"127.0.0.1:9769\")",
        default: None,
        doc: "Where the API is served on TCP as well, for `kubectl kwitness`; nowhere if not set. There is no authentication: in a \
              pod, only the pod and `kubectl port-forward` reach the port; on the host's network every process of the node does.",
        apply: |config, value| {
            config.api_listen = Some(loopback(text(value)?)?);
            Ok(())
        },
    },
    Setting {
        key: "api.max_watchers",
        expects: CALLS,
        default: Some("64"),
        doc: "How many `Watch` calls may be active at a time. \
              For one more, the client with most gives one up, or it is refused: RESOURCE_EXHAUSTED.",
        apply: |config, value| set_calls(config, Call::Watch, value),
    },
    Setting {
        key: "api.max_verify_calls",
        expects: CALLS,
        default: Some("1024"),
        doc: "How many `Verify` calls may be active at a time. Waiting ones count. \
              For one more, the client with most gives one up, or it is refused: RESOURCE_EXHAUSTED.",
        apply: |config, value| set_calls(config, Call::Verify, value),
    },
    Setting {
        key: "api.max_list_calls",
        expects: CALLS,
        default: Some("64"),
        doc: "How many `List` calls may be active at a time. A call counts until its client has read the answer. \
              For one more, the client with most gives one up, or it is refused: RESOURCE_EXHAUSTED.",
        apply: |config, value| set_calls(config, Call::List, value),
    },
    Setting {
        key: "api.max_status_calls",
        expects: CALLS,
        default: Some("64"),
        doc: "How many `Status` calls may be active at a time. \
              For one more, the client with most gives one up, or it is refused: RESOURCE_EXHAUSTED.",
        apply: |config, value| set_calls(config, Call::Status, value),
    },
    Setting {
        key: "api.max_usage_watchers",
        expects: CALLS,
        default: Some("64"),
        doc: "How many `WatchUsage` calls (`kwitness top`) may be active at a time. \
              For one more, the client with most gives one up, or it is refused: RESOURCE_EXHAUSTED.",
        apply: |config, value| set_calls(config, Call::WatchUsage, value),
    },
    Setting {
        key: "api.max_report_calls",
        expects: CALLS,
        default: Some("64"),
        doc: "How many `ReportCriRequests` and `ReportGuardEvents` calls may be active at a time. \
              For one more, the client with most gives one up, or it is refused: RESOURCE_EXHAUSTED.",
        apply: |config, value| set_calls(config, Call::Report, value),
    },
    Setting {
        key: "api.max_health_checks",
        expects: CALLS,
        default: Some("64"),
        doc: "How many `grpc.health.v1.Health/Check` calls may be active at a time. \
              For one more, the client with most gives one up, or it is refused: RESOURCE_EXHAUSTED.",
        apply: |config, value| set_calls(config, Call::HealthCheck, value),
    },
    Setting {
        key: "api.max_health_watchers",
        expects: CALLS,
        default: Some("64"),
        doc: "How many `grpc.health.v1.Health/Watch` calls may be active at a time. \
              For one more, the client with most gives one up, or it is refused: RESOURCE_EXHAUSTED.",
        apply: |config, value| set_calls(config, Call::HealthWatch, value),
    },
    Setting {
        key: "api.max_cri_subscribers",
        expects: CALLS,
        default: Some("64"),
        doc: "How many clients may subscribe to CRI container events at a time. \
              For one more, the client with most gives one up, or it is refused: RESOURCE_EXHAUSTED.",
        apply: |config, value| set_calls(config, Call::ContainerEvents, value),
    },
    Setting {
        key: "api.max_other_calls",
        expects: CALLS,
        default: Some("256"),
        doc: "How many calls of any other method, reflection among them, may be active at a time. \
              For one more, the client with most gives one up, or it is refused: RESOURCE_EXHAUSTED.",
        apply: |config, value| set_calls(config, Call::Other, value),
    },
    Setting {
        key: "http.listen",
        expects: kwitness_service::http::EXPECTS,
        default: None,
        doc: "Where metrics (`/metrics`) and probes (`/livez`, `/readyz`, `/startupz`) are served; nowhere if not set. There is \
              no authentication: use a loopback address, or a NetworkPolicy. `[::]` is all addresses of both families.",
        apply: |config, value| {
            config.http = Some(text(value)?.parse()?);
            Ok(())
        },
    },
    Setting {
        key: "http.max_connections",
        expects: "a number from 4 to 1024",
        default: Some("16"),
        doc: "How many HTTP connections may be open at a time. One more closes the oldest of the address that has most.",
        apply: |config, value| {
            config.http_connections =
                usize::try_from(count(value, 4..=1024)?).map_err(|_| "it is too large")?;
            Ok(())
        },
    },
    Setting {
        key: "metrics.labels",
        expects: "a list of \"namespace\", \"pod\" and \"container\"",
        default: Some(r#"["namespace", "pod", "container"]"#),
        doc: "The labels of metrics about containers. Series that differ only in a label that is left out are summed; `[]` \
              leaves one sum for the node.",
        apply: |config, value| {
            let mut labels = Labels { namespace: false, pod: false, container: false };
            for name in parsed::<String>(value)? {
                match name.as_str() {
                    "namespace" => labels.namespace = true,
                    "pod" => labels.pod = true,
                    "container" => labels.container = true,
                    other => return Err(format!("unknown value \"{other}\"")),
                }
            }
            config.metrics_labels = labels;
            Ok(())
        },
    },
    Setting {
        key: "journal.replay_window",
        expects: "a number of events from 1024 to 16777216",
        default: Some("65536"),
        doc: "How many events are kept, for clients that resume or are slow. A client \
              that falls further behind gets a gap.",
        apply: |config, value| {
            config.replay_window = count(value, 1024..=1 << 24)? as usize;
            Ok(())
        },
    },
    Setting {
        key: "journal.replay_bytes",
        expects: "a size from 1MiB to 4GiB",
        default: Some(r#""64MiB""#),
        doc: "How much memory these events may take. Labels are stored once per container. When either bound is reached, \
              the container that has most gives up its oldest event, if it has more than 1/256 of both; otherwise the oldest of all goes.",
        apply: |config, value| {
            config.replay_bytes =
                usize::try_from(size(value, 1 << 20..=4 << 30)?).map_err(|_| "it is too large")?;
            Ok(())
        },
    },
    Setting {
        key: "kernel.lifecycle_ring",
        expects: RING,
        default: Some(r#""8MiB""#),
        doc: "The ring buffer for container lifecycles: cgroups created and removed, main processes and their \
              exits. Holds the records of about 6,000 container lifetimes.",
        apply: |config, value| set_ring(&mut config.probe.lifecycle_ring, value),
    },
    Setting {
        key: "kernel.tasks_ring",
        expects: RING,
        default: Some(r#""8MiB""#),
        doc: "The ring buffer for every other exec and exit in containers. What does not fit is counted and reported \
              with a gap.",
        apply: |config, value| set_ring(&mut config.probe.tasks_ring, value),
    },
    Setting {
        key: "kernel.forks_ring",
        expects: RING,
        default: Some(r#""2MiB""#),
        doc: "The ring buffer for forks in containers.",
        apply: |config, value| set_ring(&mut config.probe.forks_ring, value),
    },
    Setting {
        key: "kernel.tracked_capacity",
        expects: "a number of cgroups from 64 to 1048576",
        default: Some("65536"),
        doc: "How many cgroups can be tracked at a time. A cgroup that finds the set full is not observed, and reported \
              with a gap.",
        apply: |config, value| {
            config.probe.tracked_capacity = non_zero(count(value, 64..=1 << 20)?)?;
            Ok(())
        },
    },
    Setting {
        key: "kernel.subtree",
        expects: "the path of a cgroup from the root of the cgroup v2 hierarchy (\"/system.slice/docker-ID.scope\")",
        default: Some(r#""/""#),
        doc: "Watch only containers whose cgroups are below this one, which must exist. For tests beside another node, and for a \
              node that is a container with the host's cgroup namespace. Limits of the cgroups above it are still watched, as \
              they hold below.",
        apply: |config, value| {
            config.subtree = text(value)?.parse().map_err(|error: SubtreeError| error.to_string())?;
            Ok(())
        },
    },
    Setting {
        key: "kernel.roots",
        expects: "a list of beginnings of cgroup names (\"docker-\") or of paths (\"/machine.slice/libpod-\"), at \
                  most 64",
        default: Some("[]"),
        doc: "Cgroups to track besides those of the kubelet, for containers outside Kubernetes. A cgroup that \
              matches by its name must belong to root, because any user can create one with that name; one that \
              matches by its path may belong to any user, such as a rootless runtime.",
        apply: |config, value| {
            config.probe.roots = parsed::<RootPattern>(value)?;
            if config.probe.roots.len() > MAX_ROOTS as usize {
                return Err(format!("these are {}", config.probe.roots.len()));
            }
            Ok(())
        },
    },
    Setting {
        key: "kernel.excluded_hooks",
        expects: "a list of programs (\"task_exec_event\") or kinds of hook (\"raw_tp\")",
        default: Some("[]"),
        doc: "Hooks that must not be used: the next one in order takes their place.",
        apply: |config, value| {
            config.probe.exclude = parsed::<Exclusion>(value)?;
            Ok(())
        },
    },
    Setting {
        key: "kernel.syscall_hooks",
        expects: "true or false",
        default: Some("false"),
        doc: "With kernel lockdown, observe limit writes at every write(2) of the node: values and refused writes \
              are then recorded, and each write(2) is about 12 % slower.",
        apply: |config, value| {
            config.probe.syscalls = boolean(value)?;
            Ok(())
        },
    },
    Setting {
        key: "kernel.pid_namespace",
        expects: "\"host\" or \"any\"",
        default: Some(r#""host""#),
        doc: "`any` also lets the daemon start outside the node's PID namespace (a pod without `hostPID: true`). \
              Processes that existed before the daemon are then not identified, and PIDs are the host's.",
        apply: |config, value| {
            config.any_pid_namespace = choice(value, &[("host", false), ("any", true)])?;
            Ok(())
        },
    },
    Setting {
        key: "kernel.pin",
        expects: "\"auto\" or \"off\"",
        default: Some(r#""auto""#),
        doc: "Whether maps, programs and links outlive the daemon: then what happens while none runs is recorded, as far as the \
              rings hold it, and the next daemon reports it. auto needs a BPF file system, and does without where there is \
              none. `kwitness uninstall-pins` removes what is left.",
        apply: |config, value| {
            config.pin = choice(value, &[("auto", true), ("off", false)])?;
            Ok(())
        },
    },
    Setting {
        key: "kernel.pin_directory",
        expects: "an absolute path in a BPF file system",
        default: Some(r#""/sys/fs/bpf/kwitness""#),
        doc: "Where they are pinned: a directory that has nothing else in it, one for each daemon. It is made if missing.",
        apply: |config, value| {
            config.pin_directory = absolute(value)?;
            Ok(())
        },
    },
    Setting {
        key: "kernel.log",
        expects: "\"off\", \"warn\" or \"debug\"",
        default: Some(r#""off""#),
        doc: "What the probes log of their own decisions, for diagnostics. They are the log's target `kwitness_probes`: \
              debug also needs a log.level such as `info,kwitness_probes=debug`.",
        apply: |config, value| {
            let logs = [("off", ProbeLog::Off), ("warn", ProbeLog::Warn), ("debug", ProbeLog::Debug)];
            config.probe.log = choice(value, &logs)?;
            Ok(())
        },
    },
    Setting {
        key: "pressure.mode",
        expects: "\"auto\" or \"off\"",
        default: Some(r#""auto""#),
        doc: "Whether `pressure` is reported: memory usage crossed a threshold of its limit. auto sees each charge of memory \
              where the kernel allows it, and samples usage, more often the nearer the limit.",
        apply: |config, value| {
            config.pressure = choice(value, &[("auto", true), ("off", false)])?;
            Ok(())
        },
    },
    Setting {
        key: "pressure.thresholds",
        expects: "1 to 8 percentages from 20 to 100, ascending",
        default: Some("[80, 90, 95]"),
        doc: "The shares of a memory limit whose crossing is reported.",
        apply: |config, value| {
            config.thresholds = thresholds(counts(value, 0..=100)?, config.thresholds.hysteresis())?;
            Ok(())
        },
    },
    Setting {
        key: "pressure.hysteresis",
        expects: "a percentage from 1 to 15",
        default: Some("5"),
        doc: "A threshold counts as crossed downwards once usage is so many percent of the limit below it.",
        apply: |config, value| {
            let hysteresis = u8::try_from(count(value, 1..=15)?).map_err(|_| "it is too large")?;
            config.thresholds = thresholds(config.thresholds.percent().to_vec(), hysteresis)?;
            Ok(())
        },
    },
    Setting {
        key: "runtime.endpoint",
        expects: "\"auto\", \"none\", or a socket as an absolute path, with or without unix://",
        default: Some(r#""auto""#),
        doc: "The container runtime that provides names, labels and images. auto takes the first that \
              exists of containerd's, k3s's, CRI-O's and cri-dockerd's sockets.",
        apply: |config, value| {
            config.runtime = match text(value)? {
                "auto" => RuntimeChoice::Auto,
                "none" => RuntimeChoice::Never,
                path => RuntimeChoice::Socket(socket(path)?),
            };
            Ok(())
        },
    },
    Setting {
        key: "kubelet.directory",
        expects: "an absolute path",
        default: Some(r#""/var/lib/kubelet""#),
        doc: "The kubelet's root directory (its --root-dir). Its checkpoints there say what limits containers should have.",
        apply: |config, value| {
            config.kubelet_directory = absolute(value)?;
            Ok(())
        },
    },
    Setting {
        key: "kubernetes.enabled",
        expects: "true or false",
        default: Some("false"),
        doc: "Watch this node's pods (`node.name`) in the Kubernetes API, to show what it says beside what the kernel has. \
              Needs `get`, `list` and `watch` of `pods`; changes no verdict.",
        apply: |config, value| {
            let enabled = boolean(value)?;
            if enabled && !cfg!(feature = "kubernetes") {
                return Err("this build has no client of the Kubernetes API".to_owned());
            }
            config.kubernetes = enabled;
            Ok(())
        },
    },
    Setting {
        key: "kubernetes.kubeconfig",
        expects: "an absolute path",
        default: None,
        doc: "How the API is reached; by the pod's service account if not set. Read again after each failure. One that runs a \
              program for its credentials is refused.",
        apply: |config, value| {
            config.kubeconfig = Some(absolute(value)?);
            Ok(())
        },
    },
    Setting {
        key: "node.name",
        expects: "a name",
        default: None,
        doc: "The node's name in the status and in the Kubernetes API; the host's name if not set.",
        apply: |config, value| {
            config.node_name = Some(text(value)?.to_owned());
            Ok(())
        },
    },
    Setting {
        key: "log.level",
        expects: kwitness_service::log::LEVELS,
        default: Some(r#""info""#),
        doc: "What is logged to standard error. A bare level is kwitness' own; the libraries below it log no more than \
              warnings, unless a filter names them. SIGHUP applies a change to the running daemon.",
        apply: |config, value| {
            let filter = text(value)?;
            kwitness_service::log::filter(filter)?;
            config.log_filter = filter.to_owned();
            Ok(())
        },
    },
    Setting {
        key: "log.format",
        expects: "\"text\" or \"json\"",
        default: Some(r#""text""#),
        doc: "How log lines are written. Text has no time of its own where journald adds one.",
        apply: |config, value| {
            config.log_format = choice(value, &[("text", LogFormat::Text), ("json", LogFormat::Json)])?;
            Ok(())
        },
    },
];

const RING: &str = "a size from 4KiB to 1GiB, a power of two";

const CALLS: &str = "a number from 1 to 4096";

fn set_calls(config: &mut Config, call: Call, value: &Value) -> Result<(), String> {
    let max = u32::try_from(count(value, 1..=4096)?).map_err(|_| "it is too large")?;
    config.max_calls.set(call, max);
    Ok(())
}

fn thresholds(percent: Vec<u8>, hysteresis: u8) -> Result<Thresholds, String> {
    Thresholds::new(percent, hysteresis).map_err(|error| error.to_string())
}

fn set_ring(ring: &mut NonZeroU32, value: &Value) -> Result<(), String> {
    let size = size(value, 4096..=1 << 30)?;
    if !size.is_power_of_two() {
        return Err("it is not a power of two".to_owned());
    }
    *ring = non_zero(size)?;
    Ok(())
}
