//! `kwitness top`: which container reaches its memory limit next. A live screen, a table, or samples for programs.
//!
//! ```text
//!  the daemon ──samples──▶ Model (rows, order, filter) ──▶ columns ──┬── screen ──▶ terminal, which gives keys back
//!  a recording ──one─────▶                                           └── a table
//! ```
//!
//! Owns the choice between them. What is measured, and how a rate is made of it, is the daemon's.

mod columns;
mod model;
mod row;
mod screen;
mod terminal;
#[cfg(test)]
mod testing;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use chrono::{DateTime, Utc};
use kwitness_api::client::UsageItem;
use kwitness_api::recording::Recording;
use kwitness_api::{Client, Source, proto};

use crate::exit::Code;
use crate::options::{From, OUTPUT, Selection};
use crate::output::{Format, OfNode, Output, note};
use crate::time::{TimeFormat, Times};
use crate::{connect, select};
use model::{Model, Sort};

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub selection: Selection,
    /// Order of the rows
    #[arg(long, value_enum, default_value_t = Sort::Time, value_name = "COLUMN", help_heading = OUTPUT)]
    sort: Sort,
    /// Reverse the order
    #[arg(long, short = 'r', help_heading = OUTPUT)]
    reverse: bool,
    /// Time between two samples ("500ms"), at most 1m; rates are over the last 5 seconds
    #[arg(long, value_name = "DURATION", value_parser = crate::quantities::interval, default_value = "1s", conflicts_with = "file", help_heading = OUTPUT)]
    interval: Duration,
    /// Print one table and exit (the default where output or input is no terminal)
    #[arg(long, conflicts_with = "watch", help_heading = OUTPUT)]
    once: bool,
    /// Keep running and print every sample; a terminal does so anyway
    #[arg(long, short = 'w', conflicts_with = "file", help_heading = OUTPUT)]
    watch: bool,
    #[command(flatten)]
    from: From,
    #[command(flatten)]
    output: crate::options::Output,
}

pub async fn run(socket: Option<OsString>, options: Options) -> anyhow::Result<Code> {
    let Options { selection, sort, reverse, interval, once, watch, from, output } = options;
    let filter = selection.filter();
    let mut source = from.open(socket).await?;
    let format = output.output;
    let is_screen = !once
        && matches!(format, Format::Table | Format::Wide)
        && source.recording().is_none()
        && is_interactive();
    let selected = match select::resolve(&mut source, &filter).await? {
        Ok(selected) => selected,
        Err((not_here, literally)) if watch || is_screen => {
            note(&format!("{not_here}; waiting for it"));
            literally
        }
        Err((not_here, _)) => return Err(not_here.into()),
    };
    let model = Model::new(sort, reverse, !filter.is_one_namespace());
    let now = connect::now(&source);
    let client = match source {
        Source::Live(client) => client,
        Source::Recorded(recording) => {
            return recorded(&recording, &selected, Printer::new(model, format, false), now);
        }
    };
    let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
    let request = proto::WatchUsageRequest { filter: Some(selected), interval_ms };
    if is_screen {
        let samples = client.watch_usage(request).await?;
        return terminal::run(samples, model, format == Format::Wide).await;
    }
    print(client, request, Printer::new(model, format, watch)).await
}

/// Whether keys can be pressed, at a terminal that can place text.
fn is_interactive() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    !is_dumb && io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Prints what a recording knows of usage, which is of some time before the moment that it is read of.
fn recorded(
    recording: &Recording,
    filter: &proto::Filter,
    mut printer: Printer,
    now: DateTime<Utc>,
) -> anyhow::Result<Code> {
    let mut sample = recording.usage(filter);
    match sample.time {
        None => note(
            "the recording has no samples of usage up to that time: limits, verdicts and OOM kills only (it is of \
             --no-follow, --usage off or an earlier release)",
        ),
        at => note(&format!("usage as sampled at {}", Times::new(TimeFormat::Rfc3339, true).show(at))),
    }
    printer.print(&mut sample, now)?;
    Ok(Code::Success)
}

/// Prints the first sample that has rates, and with `watch` every one after it.
async fn print(
    client: Client,
    request: proto::WatchUsageRequest,
    mut printer: Printer,
) -> anyhow::Result<Code> {
    let watch = printer.is_watch;
    let mut samples = client.watch_usage(request).await?;
    let mut is_first = true;
    loop {
        let mut sample = match samples.next().await? {
            UsageItem::Sample(sample) => sample,
            UsageItem::Disconnected(error) if !watch => return Err(error.into()),
            UsageItem::Disconnected(error) => {
                note(&format!("the daemon is gone ({error}); waiting for it to come back"));
                continue;
            }
            UsageItem::Reconnected => {
                note("the daemon is back");
                continue;
            }
        };
        // A rate needs two.
        if std::mem::take(&mut is_first) {
            continue;
        }
        printer.print(&mut sample, Utc::now())?;
        if !watch {
            return Ok(Code::Success);
        }
    }
}

/// Prints samples.
struct Printer {
    output: Output,
    model: Model,
    format: Format,
    /// One sample follows the other.
    is_watch: bool,
}

impl Printer {
    /// On standard output.
    fn new(model: Model, format: Format, is_watch: bool) -> Self {
        Self { output: Output::new(), model, format, is_watch }
    }

    /// Prints a sample; ages are relative to `now`.
    fn print(&mut self, sample: &mut proto::UsageSample, now: DateTime<Utc>) -> anyhow::Result<()> {
        let Self { output, model, format, is_watch } = self;
        model.take(sample);
        match *format {
            Format::Json | Format::Yaml | Format::Name => output.value(*format, &OfNode::here(&*sample))?,
            Format::Table | Format::Wide if sample.containers.is_empty() => note("no containers found"),
            Format::Table | Format::Wide => {
                let rows: Vec<_> = model.rows().collect();
                let width = output.width(*format);
                let (table, cells) =
                    columns::table(&rows, width, *format == Format::Wide, model.has_namespaces(), now);
                output.text(&table.render(&cells))?;
                if *is_watch {
                    output.line("")?;
                }
            }
        }
        Ok(output.flush()?)
    }
}
