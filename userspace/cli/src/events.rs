//! `kwitness events`: a stream of events, across restarts of the daemon.

use std::ffi::OsString;

use kwitness_api::client::Item;
use kwitness_api::proto::event::Kind;
use kwitness_api::{Source, Timestamp, proto};

use crate::args::Events;
use crate::connect::{self, Outage};
use crate::describe::{detail, kind, names_of, word};
use crate::exit::{Code, NotHere};
use crate::history::{HISTORY_BYTES, history};
use crate::output::{Format, OfNode, Output, note};
use crate::select;
use crate::table::{Cell, Fit, Table};
use crate::text::UNKNOWN;
use crate::time::Times;

pub async fn run(socket: Option<OsString>, options: Events) -> anyhow::Result<Code> {
    let filter = options.selection.filter();
    let Events { kind, since, no_follow, from, times, output, .. } = options;
    let mut source = from.open(socket).await?;
    let since =
        since.map(|since| connect::moment(&source, since)).or(no_follow.then_some(Timestamp::default()));
    let resolved = if since.is_some() || source.recording().is_some() {
        let past = proto::WatchRequest { since, ..Default::default() };
        select::resolve_past(&mut source, &filter, past).await?
    } else {
        select::resolve(&mut source, &filter).await?
    };
    let (selected, not_here) = match resolved {
        Ok(selected) => (selected, None),
        Err((not_here, literally)) => (literally, Some(not_here)),
    };
    let kinds = kind.into_iter().map(i32::from).collect();
    let mut request = proto::WatchRequest {
        filter: Some(proto::Filter { kinds, ..selected }),
        since,
        ..Default::default()
    };
    let mut printer = Printer::new(output.output, times.shown(output.output), !filter.is_one_namespace());
    if source.recording().is_some() {
        return recorded(&source, request, printer, not_here).await;
    }
    if request.since.is_some() {
        let past = history(&source, request.clone(), HISTORY_BYTES).await?;
        past.note_left_out(None);
        if let Some(not_here) = not_here.clone().filter(|_| no_follow && past.events.is_empty()) {
            return Err(not_here.into());
        }
        printer.events(&past.events)?;
        if no_follow {
            return Ok(Code::Success);
        }
        request = proto::WatchRequest { after: past.end, since: None, ..request };
    }
    if let Some(not_here) = not_here {
        note(&format!("{not_here}; waiting for its events"));
    }
    if !filter.label.is_empty() {
        note("following the pods that have the label now");
    }
    let mut watch = source.watch(request).await?;
    printer.begin(&mut source).await?;
    let mut outage = Outage::default();
    while let Some(item) = watch.next().await? {
        outage.note(&item);
        if let Item::Events(events) = item {
            printer.events(&events)?;
        }
    }
    Ok(Code::Success)
}

/// What a recording has, a batch at a time.
async fn recorded(
    source: &Source,
    request: proto::WatchRequest,
    mut printer: Printer,
    not_here: Option<NotHere>,
) -> anyhow::Result<Code> {
    let mut events = source.watch(request).await?;
    let mut is_empty = true;
    while let Some(item) = events.next().await? {
        if let Item::Events(events) = item {
            is_empty = false;
            printer.events(&events)?;
        }
    }
    match not_here.filter(|_| is_empty) {
        Some(not_here) => Err(not_here.into()),
        None => Ok(Code::Success),
    }
}

/// Prints events as they come.
pub struct Printer {
    output: Output,
    format: Format,
    times: Times,
    has_namespaces: bool,
    has_nodes: bool,
    table: Table,
    wraps: bool,
    begun: bool,
}

impl Printer {
    /// On standard output.
    pub fn new(format: Format, times: Times, has_namespaces: bool) -> Self {
        let output = Output::new();
        let limit = output.width(format);
        let times = if is_narrow(limit) { times.to_seconds() } else { times };
        let has_namespaces = has_namespaces && !is_narrow(limit);
        let table = table(format, times, limit, None);
        Self { output, format, times, has_namespaces, has_nodes: false, table, wraps: false, begun: false }
    }

    /// With details in full, on as many lines as they take.
    pub fn wrapping(self) -> Self {
        Self { wraps: true, ..self }
    }

    /// With a column of nodes, with room for these.
    #[cfg(feature = "kubectl")]
    pub fn of_nodes<'a>(self, nodes: impl Iterator<Item = &'a str>) -> Self {
        let width = nodes.map(|node| shown_node(self.format, node).len()).max().unwrap_or_default();
        let limit = self.output.width(self.format);
        Self { table: table(self.format, self.times, limit, Some(width)), has_nodes: true, ..self }
    }

    /// Prints the headings, with room for the pods that are here; nothing if they stand already.
    async fn begin(&mut self, source: &mut Source) -> anyhow::Result<()> {
        if self.begun || !matches!(self.format, Format::Table | Format::Wide) {
            return Ok(());
        }
        let here = source.list(proto::Filter::default()).await?.containers;
        let event = |container| proto::Event { container, ..Default::default() };
        let rows = here.into_iter().map(|state| event(state.container));
        let mut rows: Vec<_> = rows.map(|event| self.row(None, &event)).collect();
        // They have no detail: it takes what is left of the line.
        rows.iter_mut().for_each(|row| drop(row.pop()));
        self.table.fit(&rows);
        self.header()
    }

    /// Prints the headings, unless they stand already.
    pub fn header(&mut self) -> anyhow::Result<()> {
        if matches!(self.format, Format::Table | Format::Wide) && !std::mem::replace(&mut self.begun, true) {
            let header = self.table.header();
            self.output.text(&header)?;
            self.output.flush()?;
        }
        Ok(())
    }

    fn row(&self, node: Option<&str>, event: &proto::Event) -> Vec<Cell> {
        let mut row = match self.format {
            Format::Wide => wide_row(event, self.times),
            _ => row(event, self.times, self.has_namespaces),
        };
        if self.has_nodes {
            row.insert(1, node.map_or(UNKNOWN, |node| shown_node(self.format, node)).into());
        }
        row
    }

    /// Makes room for events that are printed later.
    pub fn room(&mut self, events: &[proto::Event]) {
        let rows: Vec<_> = events.iter().map(|event| self.row(None, event)).collect();
        self.table.fit(&rows);
    }

    /// Prints events, with the headings first.
    pub fn events<'a>(&mut self, events: impl IntoIterator<Item = &'a proto::Event>) -> anyhow::Result<()> {
        self.print(&OfNode::all(events))
    }

    /// Prints events of several nodes, with the headings first.
    pub fn print(&mut self, events: &[OfNode<'_, proto::Event>]) -> anyhow::Result<()> {
        if !matches!(self.format, Format::Table | Format::Wide) {
            for event in events {
                self.output.value(self.format, event)?;
            }
            return Ok(self.output.flush()?);
        }
        let rows: Vec<_> = events.iter().map(|of| self.row(of.node, of.value)).collect();
        self.table.fit(&rows);
        self.header()?;
        for (row, of) in rows.iter().zip(events) {
            self.output.text(&line(&self.table, row, of.value, self.wraps))?;
        }
        Ok(self.output.flush()?)
    }
}

/// Rare events whose end says what matters: whose limit and which process, what was lost, which level allows less.
fn is_read_in_full(event: &proto::Event) -> bool {
    use proto::VerdictKind::{InForce, Pending, Unknown};
    match &event.kind {
        Some(Kind::OomKill(_) | Kind::Gap(_)) => true,
        Some(Kind::Verdict(verdict)) => !matches!(verdict.verdict(), InForce | Pending | Unknown),
        _ => false,
    }
}

/// Narrower terminals show no namespaces and no milliseconds; `-o wide` has both, and so has a wider terminal.
const WIDTH: usize = 100;

fn is_narrow(limit: Option<usize>) -> bool {
    limit.is_some_and(|limit| limit < WIDTH)
}

/// A node's name without its domain, as `hostname -s` has it; in full with `-o wide`.
fn shown_node(format: Format, node: &str) -> &str {
    if format == Format::Wide { node } else { node.split('.').next().unwrap_or(node) }
}

/// With `node`, the width of a column of nodes.
fn table(format: Format, times: Times, limit: Option<usize>, node: Option<usize>) -> Table {
    let time = match format {
        Format::Wide => 27,
        _ if is_narrow(limit) => 8,
        _ => 12,
    };
    let mut table = Table::new(limit).column(times.heading(), time, Fit::Whole);
    if let Some(width) = node {
        table = table.column("NODE", width, Fit::Middle(12));
    }
    if format == Format::Wide {
        return table
            .column("SEQ", 6, Fit::Whole)
            .column("EVENT", 12, Fit::Whole)
            .column("NAMESPACE", 12, Fit::Whole)
            .column("POD", 36, Fit::Whole)
            .column("CONTAINER", 12, Fit::Whole)
            .column("ID", 64, Fit::Whole)
            .column("BASIS", 16, Fit::Whole)
            .column("DETAIL", 0, Fit::Whole);
    }
    // No column moves later: where there is room, the longest kind has it before it comes.
    let event = if limit.is_some() { "agentRestarted".len() } else { 12 };
    table
        .column("EVENT", event, Fit::End(12))
        .column("POD", 24, Fit::Middle(12))
        .column("CONTAINER", 12, Fit::Middle(9))
        .column("DETAIL", 60, Fit::End(31))
}

fn line(table: &Table, row: &[Cell], event: &proto::Event, wraps: bool) -> String {
    if wraps || is_read_in_full(event) { table.wrapped(row) } else { table.line(row) }
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
    use crate::describe::limits;
    use crate::describe::testing::events;
    use crate::time::TimeFormat;

    fn shown(format: Format, limit: Option<usize>) -> String {
        let times = Times::at(TimeFormat::Clock, "1970-01-01T12:00:00Z");
        let times = if is_narrow(limit) { times.to_seconds() } else { times };
        let rows: Vec<_> = events()
            .iter()
            .map(|event| {
                if format == Format::Wide {
                    wide_row(event, times)
                } else {
                    row(event, times, !is_narrow(limit))
                }
            })
            .collect();
        let mut table = table(format, times, limit, None);
        table.fit(&rows);
        let header = table.header();
        let lines = rows.iter().zip(events()).map(|(row, event)| line(&table, row, &event, false));
        anstream::adapter::strip_str(&std::iter::once(header).chain(lines).collect::<String>()).to_string()
    }

    #[test]
    fn an_oom_kill_is_read_in_full_on_80_columns() {
        let text = shown(Format::Table, Some(80));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let kill = events().into_iter().find(|event| matches!(event.kind, Some(Kind::OomKill(_)))).unwrap();
        let detail = detail(&kill, Times::at(TimeFormat::Clock, "1970-01-01T12:00:00Z"));
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(detail.len() > 31 && words(&text).contains(&words(&detail)), "{detail} in\n{text}");
    }

    #[test]
    fn the_readme_shows_what_is_printed() {
        let at = |nanos| Some(Timestamp { seconds: 14_998, nanos });
        let app = proto::Container {
            name: Some("app".into()),
            pod: Some(proto::Pod { name: Some("web-0".into()), ..Default::default() }),
            ..Default::default()
        };
        let java = proto::Process { pid: 812, comm: "java".into(), ..Default::default() };
        let oom_kill = proto::OomKill {
            usage_bytes: Some(2 << 30),
            limit_bytes: Some(2 << 30),
            trigger: None,
            ..limits::testing::oom_kill(Some(java))
        };
        let stopped = proto::Stopped {
            main_status: Some(proto::ExitStatus {
                status: Some(proto::exit_status::Status::Signal(9)),
                signal_name: "SIGKILL".into(),
                core_dumped: false,
            }),
            main_oom_killed: true,
            never_started: false,
        };
        let event = |time, kind| proto::Event {
            time,
            container: Some(app.clone()),
            kind: Some(kind),
            ..Default::default()
        };
        let events = [
            event(at(899_000_000), Kind::OomKill(Box::new(oom_kill))),
            event(at(951_000_000), Kind::Stopped(stopped)),
        ];
        let times = Times::at(TimeFormat::Clock, "1970-01-01T12:00:00Z");
        let rows: Vec<_> = events.iter().map(|event| row(event, times, false)).collect();
        let shown =
            anstream::adapter::strip_str(&table(Format::Table, times, None, None).render(&rows)).to_string();
        assert!(include_str!("../../../README.md").contains(&shown), "README.md does not show:\n{shown}");
    }

    #[test]
    fn a_column_of_nodes_fits_80_columns() {
        let node = "worker-3.cluster.example";
        assert_eq!(shown_node(Format::Wide, node), node);
        let node = shown_node(Format::Table, node);
        let times = Times::at(TimeFormat::Clock, "1970-01-01T12:00:00Z").to_seconds();
        let events = events();
        let rows = events.iter().map(|event| row(event, times, false)).map(|mut row| {
            row.insert(1, node.into());
            row
        });
        let rows: Vec<_> = rows.collect();
        let table = table(Format::Table, times, Some(80), Some(node.len()));
        let shown = anstream::adapter::strip_str(&table.render(&rows)).to_string();
        assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
        assert!(shown.lines().skip(1).all(|line| line.contains("  worker-3  ")), "{shown}");
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
