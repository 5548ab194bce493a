//! The groups of options that several commands share: which containers, which format, which times.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap_complete::engine::ArgValueCompleter;
use kwitness_api::{Source, SourceError};

use crate::complete;
use crate::connect;
use crate::output::Format;
use crate::sort::SortBy;
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

/// Which containers, with pods as arguments besides.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Selection {
    /// Show only this pod, as with --pod
    #[arg(value_name = "POD", add = ArgValueCompleter::new(complete::pods))]
    pub name: Vec<String>,
    #[command(flatten)]
    pub filter: Filter,
}

impl Selection {
    /// The options and the pod's name as one filter.
    pub fn filter(&self) -> Filter {
        let pod = [self.filter.pod.as_slice(), &self.name].concat();
        Filter { pod, ..self.filter.clone() }
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

/// How objects are printed that have pods.
#[derive(Clone, Debug, clap::Args)]
pub struct ListOutput {
    /// Output format; json prints one API object (canonical protobuf JSON) per line, name only pod/NAME
    #[arg(long, short = 'o', value_parser = ListFormats, default_value = "table", value_name = "FORMAT", help_heading = OUTPUT)]
    pub output: Format,
    /// Sort by a field of -o json: ".container.pod.name", ".createdAt"
    #[arg(long, value_name = "FIELD", conflicts_with = "watch", help_heading = OUTPUT)]
    pub sort_by: Option<SortBy>,
}

impl ListOutput {
    /// Puts objects in the requested order.
    ///
    /// # Errors
    /// None of them has the field.
    pub fn sort<T: serde::Serialize>(&self, objects: &mut Vec<T>) -> anyhow::Result<()> {
        self.sort_by.as_ref().map_or(Ok(()), |by| by.sort(objects))
    }
}

/// The formats of objects that have pods.
#[derive(Clone, Debug)]
struct ListFormats;

impl ListFormats {
    const NAME: &str = "name";
    /// kubectl's, which are small languages.
    const TEMPLATES: [&str; 4] = ["jsonpath", "go-template", "custom-columns", "jsonpath-as-json"];
}

impl TypedValueParser for ListFormats {
    type Value = Format;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Format, clap::Error> {
        let kind = value.to_string_lossy();
        let kind = kind.split('=').next().unwrap_or_default();
        if Self::TEMPLATES.contains(&kind) {
            let text = format!(
                "-o {kind} is not supported: use -o json and jq, such as: -o json | jq .container.id\n"
            );
            return Err(clap::Error::raw(clap::error::ErrorKind::InvalidValue, text).with_cmd(command));
        }
        let formats = PossibleValuesParser::new(self.possible_values().into_iter().flatten());
        let name = formats.parse_ref(command, argument, value)?;
        Ok(Format::from_str(&name, false).unwrap_or(Format::Name))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let name = PossibleValue::new(Self::NAME).help("Only the pods, as pod/NAME");
        let formats = Format::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        Some(Box::new(formats.chain([name])))
    }
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
    /// How times are shown in a format.
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
