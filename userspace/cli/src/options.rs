//! The groups of options that several commands share: which containers, which format, which times.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap_complete::engine::ArgValueCompleter;
use kwitness_api::{Source, SourceError};

use crate::complete;
use crate::connect;
use crate::output::Format;
use crate::text::Moment;
use crate::time::{TimeFormat, Times};

/// The headings of the help.
pub const FILTERS: &str = "Filters";
pub const OUTPUT: &str = "Output";
pub const CONNECTION: &str = "Connection";

/// Which containers. Conditions are ANDed; values of one are ORed, given by comma or by repeating the option.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Filter {
    /// Show only this pod: name, NAMESPACE/NAME, UID, or the beginning of names
    #[arg(long, short = 'p', value_delimiter = ',', value_name = "POD", add = ArgValueCompleter::new(complete::pods), help_heading = FILTERS)]
    pub pod: Vec<String>,
    /// Show only pods in this namespace
    #[arg(long, short = 'n', value_delimiter = ',', value_name = "NAMESPACE", add = ArgValueCompleter::new(complete::namespaces), help_heading = FILTERS)]
    pub namespace: Vec<String>,
    /// Show only this container: name, ID, or the beginning of an ID
    #[arg(long, short = 'c', value_delimiter = ',', value_name = "CONTAINER", add = ArgValueCompleter::new(complete::containers), help_heading = FILTERS)]
    pub container: Vec<String>,
    /// Show only pods with this label: "app=web", "app!=web", "app", "!app" (all of them, if several)
    #[arg(long, short = 'l', value_delimiter = ',', value_name = "LABEL", help_heading = FILTERS)]
    pub label: Vec<Label>,
    /// Show all namespaces (the default)
    #[arg(long, short = 'A', conflicts_with = "namespace", help_heading = FILTERS)]
    pub all_namespaces: bool,
}

impl Filter {
    /// Whether every container passes.
    pub fn is_empty(&self) -> bool {
        let Self { pod, namespace, container, label, all_namespaces: _ } = self;
        pod.is_empty() && namespace.is_empty() && container.is_empty() && label.is_empty()
    }

    /// Whether a column of namespaces says nothing.
    pub fn is_one_namespace(&self) -> bool {
        self.namespace.len() == 1
    }
}

/// Where events and containers come from.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct From {
    /// Read this recording instead of the daemon (see `kwitness record`)
    #[arg(long, value_name = "FILE", help_heading = CONNECTION)]
    pub file: Option<PathBuf>,
    /// Read it as of this time: RFC 3339, or an age before its end ("30s")
    #[arg(long, value_name = "TIME", requires = "file", help_heading = CONNECTION)]
    pub at: Option<Moment>,
}

impl From {
    /// Opens the recording, or else the daemon.
    pub async fn open(&self, socket: Option<OsString>) -> Result<Source, SourceError> {
        connect::open(socket, self.file.as_deref(), self.at).await
    }
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Output {
    /// Output format; json prints one API object (canonical protobuf JSON) per line
    #[arg(long, short = 'o', value_enum, default_value_t = Format::Table, value_name = "FORMAT", help_heading = OUTPUT)]
    pub output: Format,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub struct TimeOptions {
    /// Show times in UTC, not in the local zone
    #[arg(long, help_heading = OUTPUT)]
    pub utc: bool,
    /// How to show times [default: clock, with -o wide rfc3339]
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = OUTPUT)]
    pub time_format: Option<TimeFormat>,
}

impl TimeOptions {
    /// The requested color mode.
    pub fn shown(self, output: Format) -> Times {
        let default = if output == Format::Wide { TimeFormat::Rfc3339 } else { TimeFormat::Clock };
        Times::new(self.time_format.unwrap_or(default), self.utc)
    }
}

/// A condition on a label, as kubectl's `-l`: `app=web`, `app!=web`, `app`, `!app`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    key: String,
    value: Option<String>,
    is_negated: bool,
}

impl Label {
    /// Whether these labels fulfil it.
    pub fn matches(&self, labels: &BTreeMap<&str, &str>) -> bool {
        let found = labels.get(self.key.as_str());
        let holds = match &self.value {
            Some(value) => found.is_some_and(|found| found == value),
            None => found.is_some(),
        };
        holds != self.is_negated
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.value, self.is_negated) {
            (Some(value), false) => write!(f, "{}={value}", self.key),
            (Some(value), true) => write!(f, "{}!={value}", self.key),
            (None, false) => write!(f, "{}", self.key),
            (None, true) => write!(f, "!{}", self.key),
        }
    }
}

impl std::str::FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value, is_negated) = match text.split_once('=') {
            Some((key, value)) => match key.strip_suffix('!') {
                Some(key) => (key, Some(value), true),
                None => (key, Some(value.strip_prefix('=').unwrap_or(value)), false),
            },
            None => text.strip_prefix('!').map_or((text, None, false), |key| (key, None, true)),
        };
        let is_word = |text: &str| {
            text.chars().all(|character| character.is_ascii_alphanumeric() || "-_./".contains(character))
        };
        if key.is_empty() || !is_word(key) || !value.is_none_or(is_word) {
            return Err("not a label condition: \"app=web\", \"app!=web\", \"app\" or \"!app\"".to_owned());
        }
        Ok(Self { key: key.to_owned(), value: value.map(str::to_owned), is_negated })
    }
}
