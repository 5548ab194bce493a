//! Metrics in Prometheus' sense: the definitions, their samples at one moment, and the text that a scrape gets.
//!
//! ```text
//!  metrics! { EVENTS: Counter, "kwitness_events_total", ["type"], "…"; … } ──▶ CATALOG ──▶ in_page ──▶ docs/metrics.md
//!      │
//!  exposition.family(&EVENTS).add(["started"], 7) ──▶ Exposition ──▶ OpenMetrics 1.0 or Prometheus text 0.0.4
//! ```
//!
//! Owns the rules that hold for every metric: the unit is the name's last word, a sample has exactly the labels of its metric, an
//! empty label value is left out (for Prometheus the two are the same), and foreign text in a label value is bounded. Never counts
//! anything: where a value comes from is the programs' matter.

mod histogram;
mod negotiation;

use std::borrow::Cow;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

pub use histogram::Histogram;
pub use negotiation::Format;

/// The longest label value in bytes: that of a Kubernetes name (RFC 1123 subdomain). A longer text is cut.
pub const LABEL_BYTES_MAX: usize = 253;

/// How a metric's value behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, from 0 at the start of the program.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often values fell into each bucket.
    Histogram,
}

impl Kind {
    /// As the exposition formats call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }

    const fn metric_type(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
            Self::Histogram => MetricType::Histogram,
        }
    }
}

/// A metric with `N` labels. Declared with [`metrics!`](crate::metrics!).
#[derive(Debug)]
pub struct Metric<const N: usize> {
    name: &'static str,
    kind: Kind,
    labels: [&'static str; N],
    help: &'static str,
}

impl<const N: usize> Metric<N> {
    /// A metric; its name as a scrape shows it, with unit and `_total`.
    pub const fn new(name: &'static str, kind: Kind, labels: [&'static str; N], help: &'static str) -> Self {
        Self { name, kind, labels, help }
    }

    /// The metric without the number of its labels in its type.
    pub const fn definition(&'static self) -> Definition {
        Definition { name: self.name, kind: self.kind, labels: &self.labels, help: self.help }
    }
}

/// A metric, for lists of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Definition {
    /// As a scrape shows it; a histogram without `_bucket`, `_sum` and `_count`.
    pub name: &'static str,
    /// How its value behaves.
    pub kind: Kind,
    /// The names of its labels, in order.
    pub labels: &'static [&'static str],
    /// What it says, in one line.
    pub help: &'static str,
}

impl Definition {
    /// The unit, which the name's last word says.
    pub fn unit(&self) -> Option<&'static str> {
        let name = self.base();
        ["seconds", "bytes"]
            .into_iter()
            .find(|unit| name.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_')))
    }

    /// The name without `_total`.
    fn base(&self) -> &'static str {
        self.name.strip_suffix("_total").unwrap_or(self.name)
    }
}

/// A reference page with the table of these metrics between its marks of that name; none: it has no such marks.
pub fn in_page(page: &str, name: &str, metrics: &[Definition]) -> Option<String> {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}{}{end}{after}", table(metrics)))
}

/// Which of the metrics break a convention: Prometheus' for names, and that no label identifies a single thing.
pub fn breaches(metrics: &[Definition]) -> Vec<String> {
    let mut breaches = Vec::new();
    for (at, Definition { name, kind, labels, help }) in metrics.iter().enumerate() {
        let mut unless = |holds: bool, rule: &str| {
            if !holds {
                breaches.push(format!("{name} {rule}"));
            }
        };
        unless(
            name.ends_with("_total") == (*kind == Kind::Counter),
            "ends in _total as counters do, and only they",
        );
        unless(["kwitness_", "process_"].iter().any(|prefix| name.starts_with(prefix)), "has another prefix");
        unless(
            help.ends_with(['.', '*']) && !help.contains('\n'),
            "has a help that is no sentence of one line",
        );
        unless(
            !labels.iter().any(|label| ["id", "uid", "pid", "image"].contains(label)),
            "has an unbounded label",
        );
        unless(!metrics[..at].iter().any(|other| other.name == *name), "is defined twice");
    }
    breaches
}

fn table(metrics: &[Definition]) -> String {
    let mut table = "| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n".to_owned();
    for Definition { name, kind, labels, help } in metrics {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        table += &format!("| `{name}` | {} | {labels} | {help} |\n", kind.name());
    }
    table
}

/// Declares metrics as statics, and the list of them all in the order of the reference page.
#[macro_export]
macro_rules! metrics {
    ($(#[$list_doc:meta])* $list:ident {
        $($name:ident: $kind:ident, $exposed:literal, [$($label:literal),*], $help:literal;)*
    }) => {
        $(
            #[doc = $help]
            pub static $name: $crate::metrics::Metric<{ <[&str]>::len(&[$($label),*]) }> =
                $crate::metrics::Metric::new($exposed, $crate::metrics::Kind::$kind, [$($label),*], $help);
        )*
        $(#[$list_doc])*
        pub static $list: &[$crate::metrics::Definition] = &[$($name.definition()),*];
    };
}

/// A sample's value.
#[derive(Clone, Debug)]
pub enum Value {
    /// A whole number.
    Whole(u64),
    /// Any number.
    Number(f64),
    /// Of a histogram.
    Distribution(Histogram),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Whole(value.into())
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Number(value)
    }
}

impl From<&Histogram> for Value {
    fn from(value: &Histogram) -> Self {
        Self::Distribution(value.clone())
    }
}

#[derive(Debug)]
struct Sample {
    labels: Vec<(&'static str, String)>,
    value: Value,
}

#[derive(Debug)]
struct Family {
    definition: Definition,
    samples: Vec<Sample>,
}

/// The samples of one moment, by metric.
#[derive(Debug, Default)]
pub struct Exposition {
    families: Vec<Family>,
}

/// Where one metric's samples go.
#[derive(Debug)]
pub struct Samples<'a, const N: usize> {
    labels: &'static [&'static str; N],
    samples: &'a mut Vec<Sample>,
}

impl Exposition {
    /// The samples of one metric. Each metric is exposed once: calling this again adds to the same samples.
    pub fn family<const N: usize>(&mut self, metric: &'static Metric<N>) -> Samples<'_, N> {
        let definition = metric.definition();
        let at = self.families.iter().position(|family| family.definition.name == definition.name);
        let at = at.unwrap_or_else(|| {
            self.families.push(Family { definition, samples: Vec::new() });
            self.families.len() - 1
        });
        Samples { labels: &metric.labels, samples: &mut self.families[at].samples }
    }

    /// A metric without labels.
    pub fn set(&mut self, metric: &'static Metric<0>, value: impl Into<Value>) {
        self.family(metric).add([], value);
    }

    /// The text of a scrape.
    pub fn text(self, format: Format) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        let encoded = match format {
            Format::OpenMetrics => text::encode(&mut text, &registry),
            Format::Prometheus => prometheus_text::encode(&mut text, &registry),
        };
        encoded.expect("a String grows");
        text
    }
}

impl<const N: usize> Samples<'_, N> {
    /// Adds a sample with those label values.
    pub fn add(&mut self, labels: [&str; N], value: impl Into<Value>) {
        let labels = self.labels.iter().zip(labels).filter(|(_, value)| !value.is_empty());
        let labels = labels.map(|(name, value)| (*name, label_value(value).into_owned())).collect();
        self.samples.push(Sample { labels, value: value.into() });
    }
}

/// Foreign text as a label value: at most [`LABEL_BYTES_MAX`] bytes, without control characters. Quotes, backslashes and line
/// feeds are escaped when it is written.
pub fn label_value(text: &str) -> Cow<'_, str> {
    if text.len() <= LABEL_BYTES_MAX && !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    const CUT: char = '…';
    let end = if text.len() <= LABEL_BYTES_MAX {
        text.len()
    } else {
        (0..=LABEL_BYTES_MAX - CUT.len_utf8()).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
    };
    // A replaced control character is longer than itself: what no longer fits then is cut as well.
    let mut value = String::with_capacity(LABEL_BYTES_MAX);
    let mut cut = end < text.len();
    for character in text[..end].chars() {
        let character = if character.is_control() { char::REPLACEMENT_CHARACTER } else { character };
        if value.len() + character.len_utf8() > LABEL_BYTES_MAX - CUT.len_utf8() {
            cut = true;
            break;
        }
        value.push(character);
    }
    if cut {
        value.push(CUT);
    }
    Cow::Owned(value)
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Family { definition, samples } in self.families.iter().filter(|family| !family.samples.is_empty())
        {
            let unit = definition.unit();
            let name = definition.base();
            // The encoder appends the unit by itself, and `_total` to a counter.
            let name = unit.map_or(name, |unit| &name[..name.len() - unit.len() - 1]);
            let unit = unit.map(|unit| Unit::Other(unit.to_owned()));
            let kind = definition.kind.metric_type();
            let mut metric = encoder.encode_descriptor(name, definition.help, unit.as_ref(), kind)?;
            for Sample { labels, value } in samples {
                if labels.is_empty() {
                    encode(value, definition.kind, &mut metric)?;
                } else {
                    let labels: Vec<(&str, &str)> =
                        labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
                    encode(value, definition.kind, &mut metric.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

/// The labels of an exemplar, of which there are none.
type NoExemplar = Vec<(&'static str, &'static str)>;

fn encode(value: &Value, kind: Kind, metric: &mut MetricEncoder<'_>) -> fmt::Result {
    match (kind, value) {
        (Kind::Counter, Value::Whole(count)) => metric.encode_counter::<NoExemplar, _, f64>(count, None),
        (Kind::Counter, Value::Number(sum)) => metric.encode_counter::<NoExemplar, _, f64>(sum, None),
        (Kind::Gauge, Value::Whole(number)) => metric.encode_gauge(number),
        (Kind::Gauge, Value::Number(number)) => metric.encode_gauge(number),
        (Kind::Histogram, Value::Distribution(histogram)) => metric.encode_histogram::<NoExemplar>(
            histogram.sum(),
            histogram.count(),
            &histogram.buckets(),
            None,
        ),
        (kind, value) => unreachable!("{value:?} is no value of a {}", kind.name()),
    }
}

#[cfg(test)]
mod tests;
