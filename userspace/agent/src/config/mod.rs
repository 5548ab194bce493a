//! The daemon's configuration: a TOML file, then `--set KEY=VALUE` and the flags of `kwitness daemon`.
//!
//! Owns the reading and the checking; every setting, with its default and its range, stands in [`SETTINGS`].
//! All of it is checked before anything starts, and all errors are reported together. Never touches the system
//! but for reading the one file.

mod addresses;
mod calls;
mod flag;
mod labels;
mod settings;
mod units;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use kwitness_core::model::Thresholds;
use kwitness_service::http::HttpAddress;
use kwitness_service::log::LogFormat;
use kwitness_service::{ConfigurationError, configuration};
use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub use calls::{Call, MaxCalls};
pub use flag::Flag;
pub use labels::Labels;
pub use settings::{SETTINGS, Setting};

use crate::cgroupfs::Subtree;
use crate::probe;

/// Read if it exists and no other file is named.
pub const DEFAULT_FILE: &str = "/etc/kwitness/config.toml";

/// Where the daemon listens if nothing else is said.
pub use kwitness_api::DEFAULT_SOCKET;

/// Everything that can be configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// The API's Unix socket.
    pub socket: PathBuf,
    /// The loopback address that the API is served on as well; none: nowhere.
    pub api_listen: Option<SocketAddr>,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// Each setting that has a value, defaults included, as the file writes it.
    pub settings: BTreeMap<&'static str, String>,
    /// How many calls of each kind may be active at a time.
    pub max_calls: MaxCalls,
    /// The part of the cgroup hierarchy that is watched.
    pub subtree: Subtree,
    /// Whether the daemon starts outside of the node's pid namespace, too.
    pub any_pid_namespace: bool,
    /// Whether the kernel side outlives the daemon, where it can.
    pub pin: bool,
    /// Where it is pinned.
    pub pin_directory: PathBuf,
    /// The probes: rings, tracked set, roots, hooks.
    pub probe: probe::Settings,
    /// How many events can be replayed.
    pub replay_window: usize,
    /// How many bytes of them.
    pub replay_bytes: usize,
    /// Whether memory pressure is reported, where usage can be read.
    pub pressure: bool,
    /// The thresholds that are reported.
    pub thresholds: Thresholds,
    /// The container runtime to ask.
    pub runtime: RuntimeChoice,
    /// Where the kubelet's checkpoints are.
    pub kubelet_directory: PathBuf,
    /// Whether the Kubernetes API is a source.
    pub kubernetes: bool,
    /// How it is reached; none: by the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The node's name in `Status` and in the Kubernetes API; none: the host's name.
    pub node_name: Option<String>,
    /// Where metrics and probes are served over HTTP; none: nowhere.
    pub http: Option<HttpAddress>,
    /// How many HTTP connections may be open.
    pub http_connections: usize,
    /// The labels of containers' series.
    pub metrics_labels: Labels,
    /// What is logged.
    pub log_filter: String,
    /// How it is written.
    pub log_format: LogFormat,
}

/// The container runtime that resolves names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeChoice {
    /// The first socket found among the known places.
    Auto,
    /// The socket at this path.
    Socket(PathBuf),
    /// None: containers keep their ids.
    Never,
}

/// Where a value came from: named in error messages.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    File {
        path: PathBuf,
        line: usize,
    },
    /// As it was typed.
    Flag(String),
}

/// One error.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Problem {
    origin: Origin,
    message: String,
}

/// All errors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "the configuration has {count} error{}", if count == 1 { "" } else { "s" })?;
        for Problem { origin, message } in &self.0 {
            match origin {
                Origin::File { path, line } => write!(f, "\n  {}:{line}: {message}", path.display())?,
                Origin::Flag(typed) => write!(f, "\n  {typed}: {message}")?,
            }
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Self {
        let mut config = Self {
            socket: PathBuf::new(),
            api_listen: None,
            file: None,
            settings: BTreeMap::new(),
            max_calls: MaxCalls::default(),
            subtree: Subtree::default(),
            any_pid_namespace: false,
            pin: false,
            pin_directory: PathBuf::new(),
            probe: probe::Settings::default(),
            replay_window: 0,
            replay_bytes: 0,
            pressure: false,
            thresholds: Thresholds::default(),
            runtime: RuntimeChoice::Auto,
            kubelet_directory: PathBuf::new(),
            kubernetes: false,
            kubeconfig: None,
            node_name: None,
            http: None,
            http_connections: 0,
            metrics_labels: Labels { namespace: false, pod: false, container: false },
            log_filter: String::new(),
            log_format: LogFormat::Text,
        };
        for setting in SETTINGS {
            let Some(default) = setting.default else { continue };
            let applied = parse_value(default).and_then(|value| (setting.apply)(&mut config, &value));
            debug_assert_eq!(applied, Ok(()), "default of {}", setting.key);
            config.settings.insert(setting.key, default.to_owned());
        }
        config
    }
}

impl Config {
    /// Reads `file`, or [`DEFAULT_FILE`] if that exists, then applies `flags`, which win.
    ///
    /// # Errors
    /// All errors of all of them; a `file` that was named and cannot be read.
    pub fn load(file: Option<&Path>, flags: &[Flag]) -> anyhow::Result<Self> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match configuration::read("the configuration", path, "--config") {
            Ok(text) => Some(text),
            Err(ConfigurationError::Unreadable { error, .. })
                if file.is_none() && error.kind() == std::io::ErrorKind::NotFound =>
            {
                None
            }
            Err(error) => return Err(error.into()),
        };
        let config = Self::parse(text.as_deref().map(|text| (path, text)), flags)?;
        Ok(Self { file: text.is_some().then(|| path.to_owned()), ..config })
    }

    /// That of a daemon, by the settings that its status reports: what this release does not know of them is left out.
    pub fn of_daemon(settings: &BTreeMap<String, String>) -> Self {
        let mut config = Self::default();
        for setting in SETTINGS {
            let Some(text) = settings.get(setting.key) else { continue };
            if parse_value(text).and_then(|value| (setting.apply)(&mut config, &value)).is_ok() {
                config.settings.insert(setting.key, text.clone());
            }
        }
        config
    }

    fn parse(file: Option<(&Path, &str)>, flags: &[Flag]) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let mut given = BTreeMap::new();
        if let Some((path, text)) = file {
            read_file(path, text, &mut given, &mut problems);
        }
        for flag in flags {
            let origin = Origin::Flag(flag.to_string());
            match flag.read() {
                Ok((setting, value)) => {
                    given.insert(setting.key, (origin, value));
                }
                Err(message) => problems.push(Problem { origin, message }),
            }
        }
        let mut config = Self::default();
        for setting in SETTINGS {
            let Some((origin, value)) = given.remove(setting.key) else { continue };
            if let Err(wrong) = (setting.apply)(&mut config, &value) {
                let wrong = format!("{wrong}; expected {}", setting.expects);
                let message = match &origin {
                    Origin::File { .. } => format!("{} = {value}: {wrong}", setting.key),
                    Origin::Flag(_) => wrong,
                };
                problems.push(Problem { origin, message });
            }
            config.settings.insert(setting.key, value.to_string());
        }
        problems.sort_by(|a, b| a.origin.cmp(&b.origin));
        if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
    }
}

type Given = BTreeMap<&'static str, (Origin, toml::Value)>;

fn read_file(path: &Path, text: &str, given: &mut Given, problems: &mut Vec<Problem>) {
    let at = |span: Range<usize>| {
        let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
        Origin::File { path: path.to_owned(), line }
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // What was read around them is guesswork.
        problems.extend(errors.iter().map(|error| Problem {
            origin: at(error.span().unwrap_or(0..0)),
            message: error.message().to_owned(),
        }));
        return;
    }
    for (key, value) in flatten("", table.get_ref()) {
        let origin = at(value.span());
        let read = find(&key).and_then(|setting| {
            let value = toml::Value::deserialize(value.clone().into_deserializer());
            Ok((setting, value.map_err(|error| error.message().to_owned())?))
        });
        match read {
            Ok((setting, value)) => {
                given.insert(setting.key, (origin, value));
            }
            Err(wrong) => problems.push(Problem { origin, message: format!("{key}: {wrong}") }),
        }
    }
}

/// The leaves of the table, each with its dotted key.
fn flatten<'a, 'i>(prefix: &str, table: &'a DeTable<'i>) -> Vec<(String, &'a Spanned<DeValue<'i>>)> {
    let mut leaves = Vec::new();
    for (key, value) in table {
        let key = format!("{prefix}{}", key.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) if !inner.is_empty() => {
                leaves.extend(flatten(&format!("{key}."), inner));
            }
            DeValue::Table(_) if SETTINGS.iter().any(|setting| setting.section() == key) => {}
            _ => leaves.push((key, value)),
        }
    }
    leaves
}

/// A value as the file writes it.
fn parse_value(text: &str) -> Result<toml::Value, String> {
    toml::de::ValueDeserializer::parse(text)
        .and_then(toml::Value::deserialize)
        .map_err(|error| error.message().to_owned())
}

fn find(key: &str) -> Result<&'static Setting, String> {
    if let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) {
        return Ok(setting);
    }
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    // By the last word: a section that is misspelt says nothing about which of its settings was meant.
    let near = |setting: &&Setting| strsim::jaro_winkler(&last(setting.key), &last(key));
    let both = |setting: &&Setting| (near(setting), strsim::jaro_winkler(setting.key, key));
    let closer = |a: &&Setting, b: &&Setting| both(a).partial_cmp(&both(b)).unwrap_or(Ordering::Equal);
    let best = SETTINGS.iter().max_by(closer).filter(|best| near(best) > 0.75);
    Err(match best {
        Some(setting) => format!("no such setting; did you mean {}?", setting.key),
        None => "no such setting; `kwitness man` lists them".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use kwitness_service::log::LEVELS;

    use super::*;

    fn parse(text: &str, flags: &[&str]) -> Result<Config, String> {
        let flags: Vec<_> = flags.iter().map(|flag| Flag::Set((*flag).to_owned())).collect();
        Config::parse(Some((Path::new("c.toml"), text)), &flags).map_err(|problems| problems.to_string())
    }

    /// `KWITNESS_BLESS=1 cargo test -p kwitness documentation` writes the table anew.
    #[test]
    fn the_documentation_has_every_setting() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
        let text = std::fs::read_to_string(&page).unwrap();
        let (begin, end) = ("<!-- settings -->\n", "<!-- end of settings -->");
        let (before, rest) = text.split_once(begin).expect("a mark where the table begins");
        let (table, after) = rest.split_once(end).expect("a mark where the table ends");
        let mut expected = "| Setting | Default | Takes | Meaning |\n|---|---|---|---|\n".to_owned();
        for Setting { key, expects, default, doc, .. } in SETTINGS {
            let default = default.map_or("not set".to_owned(), |default| format!("`{default}`"));
            expected += &format!("| `{key}` | {default} | {expects} | {doc} |\n");
        }
        if std::env::var_os("KWITNESS_BLESS").is_some() {
            std::fs::write(&page, format!("{before}{begin}{expected}{end}{after}")).unwrap();
        } else {
            assert_eq!(table, expected, "{} is not up to date", page.display());
        }
    }

    #[test]
    fn every_default_is_accepted_and_documented() {
        for setting in SETTINGS {
            if let Some(default) = setting.default {
                let value = parse_value(default).unwrap();
                (setting.apply)(&mut Config::default(), &value).unwrap();
            }
            assert!(!setting.doc.is_empty() && !setting.expects.is_empty(), "{}", setting.key);
        }
        assert_eq!(Config::default().socket, Path::new(DEFAULT_SOCKET));
    }

    #[test]
    fn values_are_read_and_flags_win() {
        let text = "api.max_watchers = 7\n[kernel]\nroots = [\"docker-\"]\nlifecycle_ring = \"1MiB\"\n";
        let config =
            parse(text, &["api.max_watchers=9", "log.level=debug", "runtime.endpoint=none"]).unwrap();
        assert_eq!(config.max_calls.get(Call::Watch), 9);
        assert_eq!(config.probe.roots, ["docker-".parse().unwrap()]);
        assert_eq!(config.probe.lifecycle_ring.get(), 1 << 20);
        assert_eq!(config.log_filter, "debug");
        assert_eq!(config.runtime, RuntimeChoice::Never);
    }

    #[test]
    fn all_errors_are_reported_together() {
        let text = r#"
[api]
sokcet = "/run/x.sock"
max_watchers = "many"

[kernel]
lifecycle_ring = "3MiB"
tasks_ring = 1
roots = ["docker-", "/", 3]
excluded_hooks = ["tp_bft"]

[kernle]
roots = []

[zzz]
qqq = 1
"#;
        insta::assert_snapshot!(
            parse(text, &["api.socket=run.sock", "log.format", "log.level=loud=very=x"]).unwrap_err()
        );
    }

    #[test]
    fn an_error_names_the_flag_as_it_was_typed() {
        let named = |name, key, value: &str| Flag::Named { name, key, value: value.to_owned() };
        let flags = [
            Flag::Set("kernel.pin=maybe".to_owned()),
            named("--log-level", "log.level", "loud"),
            named("--socket", "api.socket", "run.sock"),
        ];
        let text = Config::parse(None, &flags).unwrap_err().to_string();
        let lines: Vec<_> = text.lines().skip(1).map(str::trim).collect();
        assert_eq!(lines[0], "--log-level loud: unknown level \"loud\"; expected ".to_owned() + LEVELS);
        let expected = "--set kernel.pin=maybe: unknown value; expected \"auto\" or \"off\"";
        assert_eq!(lines[1], expected);
        assert!(lines[2].starts_with("--socket run.sock: it is not an absolute path; "), "{text}");
        let text = parse("[kernel]\npin = \"maybe\"\n", &[]).unwrap_err();
        let expected = "c.toml:2: kernel.pin = \"maybe\": unknown value; expected \"auto\" or \"off\"";
        assert!(text.ends_with(expected), "{text}");
        let text = parse("", &["kernel.pinn=off"]).unwrap_err();
        assert!(text.ends_with("--set kernel.pinn=off: no such setting; did you mean kernel.pin?"), "{text}");
    }

    #[test]
    fn the_settings_in_use_are_a_configuration() {
        let config =
            parse("[kernel]\npin = \"off\"\nroots = [\"docker-\"]\n", &["kubelet.directory=/k"]).unwrap();
        let mut settings: BTreeMap<String, String> =
            config.settings.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        assert_eq!(settings["log.level"], "\"info\"", "a default");
        assert_eq!(settings.get("node.name"), None, "not set");
        settings.insert("of.another.release".to_owned(), "1".to_owned());
        settings.insert("pressure.mode".to_owned(), "\"as another release has it\"".to_owned());
        let read = Config::of_daemon(&settings);
        assert_eq!((read.pin, &*read.kubelet_directory), (false, Path::new("/k")));
        assert_eq!(read.probe.roots, config.probe.roots);
        assert!(read.pressure, "the default");
    }

    #[test]
    fn a_syntax_error_has_its_line() {
        insta::assert_snapshot!(parse("[api]\nsocket = /run\n\nmax_watchers == 3\n", &[]).unwrap_err());
    }

    #[test]
    fn a_suggestion_is_about_the_setting() {
        let error = parse("[kernl]\na = 1\n[api]\nsocket = 1\n[kernal]\nlogg = 1\n", &[]).unwrap_err();
        assert!(error.contains("kernl.a: no such setting; `kwitness man` lists them"), "{error}");
        assert!(error.contains("kernal.logg: no such setting; did you mean kernel.log?"), "{error}");
        assert!(error.contains("api.socket = 1: it is an integer; expected"), "{error}");
    }

    #[test]
    fn the_api_is_served_on_loopback_alone() {
        let listens = |address: &str| parse("", &[&format!("api.listen={address}")]);
        for address in ["127.0.0.1:9769", "[::1]:9769"] {
            assert_eq!(listens(address).unwrap().api_listen, Some(address.parse().unwrap()));
        }
        for address in ["0.0.0.0:9769", "[::]:9769", "10.0.0.1:9769", "localhost:9769", "unix:///x"] {
            assert!(listens(address).is_err(), "{address}");
        }
        assert_eq!(Config::default().api_listen, None);
    }

    #[test]
    fn a_named_file_must_exist() {
        let error = Config::load(Some(Path::new("/nonexistent/kwitness.toml")), &[]).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the configuration /nonexistent/kwitness.toml: "), "{error}");
    }

    #[test]
    fn a_file_that_does_not_answer_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("config.toml");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        for path in [&*fifo, Path::new("/dev/zero"), directory.path()] {
            let error = Config::load(Some(path), &[]).unwrap_err().to_string();
            assert!(error.contains(": not a regular file; name another"), "{error}");
        }
        let large = directory.path().join("large.toml");
        std::fs::File::create(&large).unwrap().set_len(1 << 32).unwrap();
        let error = Config::load(Some(&large), &[]).unwrap_err().to_string();
        assert!(error.contains(": larger than 1 MiB; name another"), "{error}");
    }
}
