//! `kwitness events`: a stream of events, across restarts of the daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::args::{Events, Format};
use crate::client::{connect, failed, socket};
use crate::describe::{detail, kind, names_of};
use crate::exit::{Code, Unreachable};
use crate::output::Output;
use crate::table::{Cell, Table};
use crate::text::{UNKNOWN, full_time, time_of_day};
use kwitness_api::{Timestamp, proto};

/// Between two attempts to come back.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

pub async fn run(named: Option<PathBuf>, options: Events) -> anyhow::Result<Code> {
    let Events { filter, kind, since, no_follow, output } = options;
    let socket = socket(named);
    let mut printer = Printer::new(output.output);
    let mut request = proto::WatchRequest {
        filter: Some(filter.into_api(kind)),
        since: since.map(|since| since.to_timestamp()).or(no_follow.then_some(Timestamp::default())),
        no_follow,
        ..Default::default()
    };
    let mut client = connect(&socket).await?;
    loop {
        let ended = watch(&mut client, &socket, &mut request, &mut printer).await;
        match ended {
            Ok(()) => return Ok(Code::Success),
            Err(error) if no_follow || !error.is::<Unreachable>() => return Err(error),
            Err(_) => {
                eprintln!("kwitness: the daemon is gone; waiting for it to come back");
                client = reconnect(&socket).await;
                eprintln!("kwitness: the daemon is back");
            }
        }
    }
}

/// Shows events until the stream ends; `request` then asks for what comes after the last one.
async fn watch(
    client: &mut proto::kwitness_client::KwitnessClient<tonic::transport::Channel>,
    socket: &Path,
    request: &mut proto::WatchRequest,
    printer: &mut Printer,
) -> anyhow::Result<()> {
    let broken = |status: tonic::Status| failed(socket, &status);
    let mut stream = client.watch(request.clone()).await.map_err(broken)?.into_inner();
    printer.begin()?;
    while let Some(message) = stream.message().await.map_err(lost(socket))? {
        let places = message.events.iter().filter_map(|event| event.position.as_ref());
        // Late events have lower numbers.
        let last = message.begins_after.as_ref().into_iter().chain(places).max_by_key(|place| place.seq);
        if let Some(last) = last
            && request.after.as_ref().is_none_or(|after| after.epoch != last.epoch || after.seq < last.seq)
        {
            request.after = Some(last.clone());
            request.since = None;
        }
        printer.events(&message.events)?;
    }
    Ok(())
}

/// A stream that breaks off is a daemon that is gone, by whichever of its names tonic calls that.
fn lost(socket: &Path) -> impl Fn(tonic::Status) -> anyhow::Error {
    use tonic::Code::{Cancelled, Internal, Unavailable, Unknown};
    move |status| match status.code() {
        Cancelled | Internal | Unavailable | Unknown => {
            Unreachable { socket: socket.to_owned(), reason: status.message().to_owned() }.into()
        }
        _ => failed(socket, &status),
    }
}

async fn reconnect(socket: &Path) -> proto::kwitness_client::KwitnessClient<tonic::transport::Channel> {
    let mut pause = RETRY_MIN;
    loop {
        tokio::time::sleep(pause).await;
        match connect(socket).await {
            Ok(client) => return client,
            Err(_) => pause = RETRY_MAX.min(pause * 2),
        }
    }
}

/// Prints events as they come.
struct Printer {
    output: Output,
    shape: Shape,
    begun: bool,
}

enum Shape {
    Table(Table<6>),
    Wide(Table<9>),
    Values(Format),
}

impl Printer {
    fn new(format: Format) -> Self {
        let shape = match format {
            Format::Table => Shape::Table(Table::new([
                ("TIME", 12),
                ("EVENT", 8),
                ("NAMESPACE", 12),
                ("POD", 24),
                ("CONTAINER", 16),
                ("DETAIL", 0),
            ])),
            Format::Wide => Shape::Wide(Table::new([
                ("TIME", 32),
                ("SEQ", 6),
                ("EVENT", 8),
                ("NAMESPACE", 12),
                ("POD", 36),
                ("CONTAINER", 16),
                ("ID", 64),
                ("BASIS", 16),
                ("DETAIL", 0),
            ])),
            format => Shape::Values(format),
        };
        Self { output: Output::new(), shape, begun: false }
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        if !std::mem::replace(&mut self.begun, true) {
            match &self.shape {
                Shape::Table(table) => self.output.text(&table.header())?,
                Shape::Wide(table) => self.output.text(&table.header())?,
                Shape::Values(_) => {}
            }
            self.output.flush()?;
        }
        Ok(())
    }

    fn events(&mut self, events: &[proto::Event]) -> anyhow::Result<()> {
        match &mut self.shape {
            Shape::Table(table) => rows(&mut self.output, table, events, row)?,
            Shape::Wide(table) => rows(&mut self.output, table, events, wide_row)?,
            Shape::Values(format) => {
                for event in events {
                    self.output.value(*format, event)?;
                }
            }
        }
        Ok(self.output.flush()?)
    }
}

fn rows<const N: usize>(
    output: &mut Output,
    table: &mut Table<N>,
    events: &[proto::Event],
    row: fn(&proto::Event) -> [Cell; N],
) -> anyhow::Result<()> {
    let rows: Vec<_> = events.iter().map(row).collect();
    table.fit(&rows);
    for row in &rows {
        output.text(&table.line(row))?;
    }
    Ok(())
}

fn row(event: &proto::Event) -> [Cell; 6] {
    let names = names_of(event, false);
    [
        time_of_day(event.time).into(),
        kind(event),
        names.namespace.into(),
        names.pod.into(),
        names.container.into(),
        detail(event).into(),
    ]
}

fn wide_row(event: &proto::Event) -> [Cell; 9] {
    let names = names_of(event, true);
    let seq = event.position.as_ref().map_or_else(|| UNKNOWN.to_owned(), |position| position.seq.to_string());
    [
        full_time(event.time).into(),
        seq.into(),
        kind(event),
        names.namespace.into(),
        names.pod.into(),
        names.container.into(),
        event.container.as_ref().map_or(UNKNOWN, |container| &container.id).into(),
        crate::describe::word(event.basis().as_str_name(), "BASIS_").into(),
        detail(event).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::describe::testing::events;

    fn plain<const N: usize>(table: Table<N>, row: fn(&proto::Event) -> [Cell; N]) -> String {
        let rows: Vec<_> = events().iter().map(row).collect();
        anstream::adapter::strip_str(&table.render(&rows)).to_string()
    }

    #[test]
    fn a_table_of_every_kind() {
        let Shape::Table(table) = Printer::new(Format::Table).shape else { panic!() };
        insta::assert_snapshot!(plain(table, |event| {
            // The time of day is the machine's; the rest is not.
            let mut row = row(event);
            row[0] = "12:34:56.789".into();
            row
        }));
    }

    #[test]
    fn a_wide_table_of_every_kind() {
        let Shape::Wide(table) = Printer::new(Format::Wide).shape else { panic!() };
        insta::assert_snapshot!(plain(table, |event| {
            let mut row = wide_row(event);
            row[0] = "2026-01-02T12:34:56.789000+00:00".into();
            row
        }));
    }
}
