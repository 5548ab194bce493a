//! `kwitness top`: which container reaches its memory limit next. A live screen, a table, or samples for programs.
//!
//! ```text
//!  the daemon ──samples──▶ Model (rows, order, filter) ──▶ columns ──┬── screen ──▶ terminal, which gives keys back
//!                                                                    └── a table
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

use chrono::Utc;
use kwitness_api::client::UsageItem;
use kwitness_api::{Client, Source, proto};

use crate::exit::Code;
use crate::options::{Filter, From, OUTPUT};
use crate::output::{Format, OfNode, Output, note};
use crate::select;
use model::{Model, Sort};

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    filter: Filter,
    /// Order of the rows
    #[arg(long, value_enum, default_value_t = Sort::Time, value_name = "COLUMN", help_heading = OUTPUT)]
    sort: Sort,
    /// Reverse the order
    #[arg(long, short = 'r', help_heading = OUTPUT)]
    reverse: bool,
    /// Time between two samples ("500ms"), at most 1m; rates are over the last 5 seconds
    #[arg(long, value_name = "DURATION", value_parser = crate::quantities::interval, default_value = "1s", help_heading = OUTPUT)]
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
    let Options { filter, sort, reverse, interval, once, watch, from, output } = options;
    let mut source = from.open(socket).await?;
    let Source::Live(client) = &source else {
        anyhow::bail!(
            "a recording holds events and verdicts, no usage: `kwitness top` needs a daemon; `kwitness timeline --file FILE` \
             shows OOM kills and limits"
        );
    };
    let (client, format) = (client.clone(), output.output);
    let is_screen = !once && matches!(format, Format::Table | Format::Wide) && is_interactive();
    let selected = match select::resolve(&mut source, &filter).await? {
        Ok(selected) => selected,
        Err((not_here, literally)) if watch || is_screen => {
            note(&format!("{not_here}; waiting for it"));
            literally
        }
        Err((not_here, _)) => return Err(not_here.into()),
    };
    let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
    let request = proto::WatchUsageRequest { filter: Some(selected), interval_ms };
    let model = Model::new(sort, reverse, !filter.is_one_namespace());
    if is_screen {
        let samples = client.watch_usage(request).await?;
        return terminal::run(samples, model, format == Format::Wide).await;
    }
    print(client, request, model, format, watch).await
}

/// Whether keys can be pressed, at a terminal that can place text.
fn is_interactive() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    !is_dumb && io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Prints the first sample that has rates, and with `watch` every one after it.
async fn print(
    client: Client,
    request: proto::WatchUsageRequest,
    mut model: Model,
    format: Format,
    watch: bool,
) -> anyhow::Result<Code> {
    let mut samples = client.watch_usage(request).await?;
    let mut output = Output::new();
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
        model.take(&mut sample);
        match format {
            Format::Json | Format::Yaml | Format::Name => output.value(format, &OfNode::here(&sample))?,
            Format::Table | Format::Wide if sample.containers.is_empty() => note("no containers found"),
            Format::Table | Format::Wide => {
                let rows: Vec<_> = model.rows().collect();
                let width = output.width(format);
                let (table, cells) =
                    columns::table(&rows, width, format == Format::Wide, model.has_namespaces(), Utc::now());
                output.text(&table.render(&cells))?;
                if watch {
                    output.line("")?;
                }
            }
        }
        output.flush()?;
        if !watch {
            return Ok(Code::Success);
        }
    }
}
