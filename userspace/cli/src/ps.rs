//! `kwitness ps`: the containers, once or as they change.

use std::collections::HashMap;
use std::ffi::OsString;

use chrono::{DateTime, Utc};
use kwitness_api::client::Item;
use kwitness_api::{EventKind, Source, SourceError, proto};

use crate::args::Ps;
use crate::connect::{self, Outage, unless_gone};
use crate::describe::{names, qos_class, state, word};
use crate::exit::Code;
use crate::output::{Format, OfNode, Output, note};
use crate::select;
use crate::table::{Cell, Fit, Table};
use crate::text::{UNKNOWN, age, short_id};

/// What changes a row; a process more or less does not.
const CHANGES: [EventKind; 6] = [
    EventKind::Created,
    EventKind::Started,
    EventKind::Stopped,
    EventKind::Deleted,
    EventKind::Updated,
    EventKind::Resynced,
];

pub async fn run(socket: Option<OsString>, options: Ps) -> anyhow::Result<Code> {
    let filter = options.selection.filter();
    let Ps { all, watch, no_headers, from, output, .. } = options;
    let mut source = from.open(socket).await?;
    let selected = match select::resolve(&mut source, &filter).await? {
        Ok(selected) => selected,
        Err((not_here, literally)) if watch => {
            note(&format!("{not_here}; waiting for it"));
            literally
        }
        Err((not_here, _)) => return Err(not_here.into()),
    };
    let mut printer = Printer::new(output.output, !filter.is_one_namespace(), no_headers);
    printer.is_watch = watch;
    // Before the first list, so that nothing is missed in between.
    let mut changes = if watch {
        let kinds = CHANGES.into_iter().map(i32::from).collect();
        let filter = Some(proto::Filter { kinds, ..selected.clone() });
        Some(source.watch(proto::WatchRequest { filter, ..Default::default() }).await?)
    } else {
        None
    };
    let containers = list(&mut source, &selected, all).await;
    let mut containers = if watch { unless_gone(containers)?.unwrap_or_default() } else { containers? };
    output.sort(&mut containers)?;
    let count = printer.print(containers, connect::now(&source))?;
    let Some(changes) = &mut changes else {
        if count == 0 && matches!(output.output, Format::Table | Format::Wide) {
            note(&format!("no containers found{}", select::place_now(&source)));
        }
        return Ok(Code::Success);
    };
    let mut outage = Outage::default();
    while let Some(item) = changes.next().await? {
        outage.note(&item);
        if let Item::Events(events) = item {
            let is_deleted =
                |event: &&proto::Event| matches!(event.kind, Some(proto::event::Kind::Deleted(_)));
            let deleted = events.iter().filter(is_deleted).filter_map(|event| event.container.as_ref());
            deleted.for_each(|container| drop(printer.shown.remove(&container.cgroup_id)));
            // If it is gone again: when it is back, a gap has them listed.
            let containers = unless_gone(list(&mut source, &selected, all).await)?.unwrap_or_default();
            printer.print(containers, Utc::now())?;
        }
    }
    Ok(Code::Success)
}

/// The containers that match, sorted by their names; without sandboxes, unless `all`.
pub async fn list(
    source: &mut Source,
    filter: &proto::Filter,
    all: bool,
) -> Result<Vec<proto::ContainerState>, SourceError> {
    let mut containers = source.list(filter.clone()).await?.containers;
    containers.retain(|state| all || !is_sandbox(state));
    containers.sort_by_cached_key(|state| {
        let names = names(state.container.as_ref(), true);
        (names.namespace, names.pod, names.container)
    });
    Ok(containers)
}

fn is_sandbox(state: &proto::ContainerState) -> bool {
    state.container.as_ref().is_some_and(|container| container.r#type() == proto::ContainerType::Sandbox)
}

/// Prints containers.
pub struct Printer {
    output: Output,
    format: Format,
    has_namespaces: bool,
    no_headers: bool,
    /// Rows are to come that are not known yet.
    is_watch: bool,
    /// Once the headings stand.
    table: Option<Table>,
    /// The state that was printed last, by cgroup.
    shown: HashMap<u64, (i32, Option<proto::Container>)>,
}

impl Printer {
    /// On standard output.
    pub fn new(format: Format, has_namespaces: bool, no_headers: bool) -> Self {
        let output = Output::new();
        let shown = HashMap::new();
        Self { output, format, has_namespaces, no_headers, is_watch: false, table: None, shown }
    }

    /// Prints what is not shown yet, or is shown otherwise.
    fn print(&mut self, containers: Vec<proto::ContainerState>, now: DateTime<Utc>) -> anyhow::Result<usize> {
        let mut changed = containers;
        changed.retain(|state| {
            let id = state.container.as_ref().map_or(0, |container| container.cgroup_id);
            let now = (state.state, state.container.clone());
            self.shown.insert(id, now.clone()) != Some(now)
        });
        self.write(&OfNode::all(&changed), now)?;
        Ok(changed.len())
    }

    /// Prints containers; with a column of nodes, if the first is of one.
    pub fn write(
        &mut self,
        containers: &[OfNode<'_, proto::ContainerState>],
        now: DateTime<Utc>,
    ) -> anyhow::Result<()> {
        if self.format == Format::Name {
            let pods = containers.iter().filter_map(|of| of.value.container.as_ref()?.pod.as_ref());
            self.output.pods(pods)?;
        } else if !matches!(self.format, Format::Table | Format::Wide) {
            for container in containers {
                self.output.value(self.format, container)?;
            }
        } else if let Some(first) = containers.first() {
            let has_nodes = first.node.is_some();
            let is_wide = self.format == Format::Wide;
            let row = if is_wide { wide_row } else { row };
            let of = |of: &OfNode<'_, _>| {
                let mut row = row(of.value, now, self.has_namespaces);
                if let Some(node) = of.node {
                    row.insert(0, node.into());
                }
                row
            };
            let rows: Vec<_> = containers.iter().map(of).collect();
            let is_first = self.table.is_none();
            let width = self.output.width(self.format);
            let (has_namespaces, is_watch) = (self.has_namespaces, self.is_watch);
            let table =
                self.table.get_or_insert_with(|| table(is_wide, has_nodes, has_namespaces, is_watch, width));
            table.fit(&rows);
            if is_first && !self.no_headers {
                self.output.text(&table.header())?;
            }
            for row in &rows {
                self.output.text(&table.line(row))?;
            }
        }
        Ok(self.output.flush()?)
    }
}

/// What a state, a pid and an age take at most, which must be known before a watch has seen them.
const WATCHED: [usize; 3] = ["Running".len(), "4194304".len(), "23h59m".len()];

fn table(
    is_wide: bool,
    has_nodes: bool,
    has_namespaces: bool,
    is_watch: bool,
    limit: Option<usize>,
) -> Table {
    let [state, pid, age] = if is_watch { WATCHED } else { [0; 3] };
    let mut table = Table::new(limit);
    if has_nodes {
        table = table.column("NODE", 0, Fit::Middle(9));
    }
    if has_namespaces {
        table = table.column("NAMESPACE", 0, Fit::Middle(9));
    }
    table = table
        .column("POD", 0, Fit::Middle(16))
        .column("CONTAINER", 0, Fit::Middle(9))
        .column("STATE", state, Fit::Whole)
        .column("PID", pid, Fit::Whole)
        .column("AGE", age, Fit::Whole);
    if is_wide {
        for heading in ["STARTED", "EXECS", "EXITS", "PROGRAM", "QOS", "RUNTIME", "IMAGE"] {
            table = table.column(heading, 0, Fit::Whole);
        }
    }
    table.column("ID", 0, Fit::Whole)
}

fn row(state_of: &proto::ContainerState, now: DateTime<Utc>, has_namespaces: bool) -> Vec<Cell> {
    let names = names(state_of.container.as_ref(), false);
    let id = state_of.container.as_ref().map_or(UNKNOWN, |container| short_id(&container.id));
    let mut row = vec![
        Cell::from(names.namespace),
        names.pod.into(),
        names.container.into(),
        state(state_of),
        pid(state_of).into(),
        age(state_of.created_at, now).into(),
        id.into(),
    ];
    if !has_namespaces {
        row.remove(0);
    }
    row
}

fn wide_row(state_of: &proto::ContainerState, now: DateTime<Utc>, has_namespaces: bool) -> Vec<Cell> {
    let names = names(state_of.container.as_ref(), true);
    let container = state_of.container.clone().unwrap_or_default();
    let pod = container.pod.clone().unwrap_or_default();
    let mut row = vec![
        Cell::from(names.namespace),
        names.pod.into(),
        names.container.into(),
        state(state_of),
        pid(state_of).into(),
        age(state_of.created_at, now).into(),
        age(state_of.started_at, now).into(),
        state_of.execs.to_string().into(),
        state_of.exits.to_string().into(),
        state_of.program.as_deref().unwrap_or(UNKNOWN).into(),
        qos_class(pod.qos_class()).into(),
        word(container.runtime().as_str_name(), "RUNTIME_").into(),
        container.image.as_deref().unwrap_or(UNKNOWN).into(),
        container.id.into(),
    ];
    if !has_namespaces {
        row.remove(0);
    }
    row
}

/// Of the main process.
fn pid(state: &proto::ContainerState) -> String {
    state.main.as_ref().map_or_else(|| UNKNOWN.to_owned(), |main| main.pid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::describe::testing::containers;

    fn shown(is_wide: bool, has_namespaces: bool, limit: Option<usize>) -> String {
        let now = DateTime::from_timestamp(1_767_357_600, 0).unwrap();
        let row = if is_wide { wide_row } else { row };
        let rows: Vec<_> = containers().iter().map(|state| row(state, now, has_namespaces)).collect();
        anstream::adapter::strip_str(&table(is_wide, false, has_namespaces, false, limit).render(&rows))
            .to_string()
    }

    #[test]
    fn a_pods_sandbox_is_known_as_one() {
        let sandboxes: Vec<_> = containers().into_iter().filter(is_sandbox).collect();
        assert_eq!(sandboxes.len(), 1, "{sandboxes:?}");
    }

    #[test]
    fn a_list_on_a_terminal_of_80_columns() {
        insta::assert_snapshot!("ps", shown(false, true, Some(80)));
    }

    #[test]
    fn a_list_of_one_namespace() {
        insta::assert_snapshot!("ps_of_one_namespace", shown(false, false, None));
    }

    #[test]
    fn a_watch_has_room_for_what_comes_later() {
        let now = DateTime::from_timestamp(1_767_357_600, 0).unwrap();
        let mut created = containers().remove(0);
        created.main = None;
        let mut running = created.clone();
        running.main = Some(proto::Process { pid: 4_194_304, ..Default::default() });
        running.set_state(proto::State::Running);
        let mut table = table(false, false, true, true, Some(80));
        table.fit(&[row(&created, now, true)]);
        let header = anstream::adapter::strip_str(&table.header()).to_string();
        let line = anstream::adapter::strip_str(&table.line(&row(&running, now, true))).to_string();
        let before = |text: &str, what: &str| text.split_once(what).map(|(before, _)| before.chars().count());
        let id = running.container.unwrap().id;
        assert_eq!(before(&header, "ID\n"), before(&line, short_id(&id)), "{header}{line}");
    }

    #[test]
    fn a_list_with_everything() {
        insta::assert_snapshot!("ps_wide", shown(true, true, None));
    }
}
