//! `kwitness events`: a stream of events, across restarts of the daemon.

use std::ffi::OsString;

use kwitness_api::client::{Client, Item};
use kwitness_api::{Timestamp, proto};

use crate::args::Events;
use crate::connect::connect;
use crate::describe::{detail, kind, names_of, word};
use crate::exit::Code;
use crate::output::{Format, Output, note};
use crate::table::{Cell, Fit, Table};
use crate::text::UNKNOWN;
use crate::time::Times;
use crate::{history, select};

pub async fn run(socket: Option<OsString>, options: Events) -> anyhow::Result<Code> {
    let Events { filter, kind, since, no_follow, times, output, .. } = options;
    let mut client = connect(socket).await?;
    let (selected, not_here) = match select::resolve(&mut client, &filter).await? {
        Ok(selected) => (selected, None),
        Err((not_here, literally)) => (literally, Some(not_here)),
    };
    let kinds = kind.into_iter().map(i32::from).collect();
    let mut request = proto::WatchRequest {
        filter: Some(proto::Filter { kinds, ..selected }),
        since: since.map(|since| since.to_timestamp()).or(no_follow.then_some(Timestamp::default())),
        ..Default::default()
    };
    let mut printer = Printer::new(output.output, times.shown(output.output), !filter.is_one_namespace());
    if request.since.is_some() {
        let (events, position) = history::read(&mut client, request.clone()).await?;
        if let Some(not_here) = not_here.clone().filter(|_| no_follow && events.is_empty()) {
            return Err(not_here.into());
        }
        printer.events(&events)?;
        if no_follow {
            return Ok(Code::Success);
        }
        request = proto::WatchRequest { after: position, since: None, ..request };
    }
    if let Some(not_here) = not_here {
        note(&format!("{not_here}; waiting for its events"));
    }
    if !filter.label.is_empty() {
        note("following the pods that have the label now");
    }
    let mut watch = client.watch(request).await?;
    printer.begin(&mut client).await?;
    while let Some(item) = watch.next().await? {
        match item {
            Item::Events(events) => printer.events(&events)?,
            Item::Snapshot(_) => {}
            Item::Disconnected(error) => {
                note(&format!("the daemon is gone ({error}); waiting for it to come back"))
            }
            Item::Reconnected => note("the daemon is back"),
        }
    }
    Ok(Code::Success)
}

/// Prints events as they come.
struct Printer {
    output: Output,
    format: Format,
    times: Times,
    has_namespaces: bool,
    table: Table,
    begun: bool,
}

impl Printer {
    fn new(format: Format, times: Times, has_namespaces: bool) -> Self {
        let output = Output::new();
        let table = table(format, times, output.width(format));
        Self { output, format, times, has_namespaces, table, begun: false }
    }

    /// Prints the headings, with room for the pods that are here; nothing if they stand already.
    async fn begin(&mut self, client: &mut Client) -> anyhow::Result<()> {
        if self.begun || !matches!(self.format, Format::Table | Format::Wide) {
            return Ok(());
        }
        let here = client.list(proto::Filter::default()).await?.containers;
        let event = |container| proto::Event { container, ..Default::default() };
        let mut rows: Vec<_> = here.into_iter().map(|state| self.row(&event(state.container))).collect();
        // They have no detail: it takes what is left of the line.
        rows.iter_mut().for_each(|row| drop(row.pop()));
        self.table.fit(&rows);
        self.header()
    }

    fn header(&mut self) -> anyhow::Result<()> {
        if !std::mem::replace(&mut self.begun, true) {
            let header = self.table.header();
            self.output.text(&header)?;
            self.output.flush()?;
        }
        Ok(())
    }

    fn row(&self, event: &proto::Event) -> Vec<Cell> {
        match self.format {
            Format::Wide => wide_row(event, self.times),
            _ => row(event, self.times, self.has_namespaces),
        }
    }

    fn events(&mut self, events: &[proto::Event]) -> anyhow::Result<()> {
        if !matches!(self.format, Format::Table | Format::Wide) {
            for event in events {
                self.output.value(self.format, event)?;
            }
            return Ok(self.output.flush()?);
        }
        let rows: Vec<_> = events.iter().map(|event| self.row(event)).collect();
        self.table.fit(&rows);
        self.header()?;
        for row in &rows {
            self.output.text(&self.table.line(row))?;
        }
        Ok(self.output.flush()?)
    }
}

fn table(format: Format, times: Times, limit: Option<usize>) -> Table {
    let table = Table::new(limit);
    if format == Format::Wide {
        return table
            .column(times.heading(), 27, Fit::Whole)
            .column("SEQ", 6, Fit::Whole)
            .column("EVENT", 12, Fit::Whole)
            .column("NAMESPACE", 12, Fit::Whole)
            .column("POD", 36, Fit::Whole)
            .column("CONTAINER", 12, Fit::Whole)
            .column("ID", 64, Fit::Whole)
            .column("BASIS", 16, Fit::Whole)
            .column("DETAIL", 0, Fit::Whole);
    }
    table
        .column(times.heading(), 12, Fit::Whole)
        .column("EVENT", 12, Fit::Whole)
        .column("POD", 24, Fit::Middle(12))
        .column("CONTAINER", 12, Fit::Middle(9))
        .column("DETAIL", 40, Fit::End(27))
}

fn row(event: &proto::Event, times: Times, has_namespaces: bool) -> Vec<Cell> {
    let names = names_of(event, false);
    let pod = if has_namespaces { names.qualified() } else { names.pod };
    vec![
        times.show(event.time).into(),
        kind(event),
        pod.into(),
        names.container.into(),
        detail(event, times).into(),
    ]
}

fn wide_row(event: &proto::Event, times: Times) -> Vec<Cell> {
    let of_subject = names_of(event, true);
    let seq = event.position.as_ref().map_or_else(|| UNKNOWN.to_owned(), |position| position.seq.to_string());
    vec![
        times.show(event.time).into(),
        seq.into(),
        kind(event),
        of_subject.namespace.into(),
        of_subject.pod.into(),
        of_subject.container.into(),
        event.container.as_ref().map_or(UNKNOWN, |container| &container.id).into(),
        word(event.basis().as_str_name(), "BASIS_").into(),
        detail(event, times).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::describe::testing::events;
    use crate::time::TimeFormat;

    fn shown(format: Format, limit: Option<usize>) -> String {
        let times = Times::at(TimeFormat::Clock, "1970-01-01T12:00:00Z");
        let rows: Vec<_> = events()
            .iter()
            .map(
                |event| if format == Format::Wide { wide_row(event, times) } else { row(event, times, true) },
            )
            .collect();
        anstream::adapter::strip_str(&table(format, times, limit).render(&rows)).to_string()
    }

    #[test]
    fn every_kind_in_a_pipe() {
        insta::assert_snapshot!(shown(Format::Table, None));
    }

    #[test]
    fn every_kind_on_a_terminal_of_80_columns() {
        insta::assert_snapshot!(shown(Format::Table, Some(80)));
    }

    #[test]
    fn every_kind_with_everything() {
        insta::assert_snapshot!(shown(Format::Wide, None));
    }
}
