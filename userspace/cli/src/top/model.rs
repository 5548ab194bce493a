//! What the screen shows, without a screen: rows, their order, the filter, the selection, and what each key does.

use std::cmp::Ordering;

use clap::ValueEnum;
use kwitness_api::{Timestamp, proto};
use ratatui::crossterm::event::KeyCode;

use super::row::Row;

/// Rows that a key moves by that moves by a page.
const PAGE: isize = 10;
/// The longest filter; names have at most 253 characters.
const FILTER_MAX: usize = 253;

/// The order of rows. What is not known comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Sort {
    /// Time to the limit at the present rate, then share of the limit
    Time,
    /// Share of the limit
    Share,
    /// Memory usage
    Usage,
    /// Fill rate
    Rate,
    /// CPU throttling
    Throttled,
    /// Last OOM kill
    Oom,
    /// Namespace, pod, container
    Name,
}

impl Sort {
    const ALL: [Self; 7] =
        [Self::Time, Self::Share, Self::Usage, Self::Rate, Self::Throttled, Self::Oom, Self::Name];

    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or_default();
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    /// For the title.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Time => "time to limit",
            Self::Share => "share of limit",
            Self::Usage => "usage",
            Self::Rate => "fill rate",
            Self::Throttled => "CPU throttling",
            Self::Oom => "last OOM kill",
            Self::Name => "name",
        }
    }

    /// The higher it is, the earlier comes the row; none: last.
    fn rank(self, row: &Row) -> Option<f64> {
        match self {
            Self::Time => row.time_to_limit.map(|time| -time.as_secs_f64()),
            Self::Share => row.share(),
            Self::Usage => row.usage.number().map(|bytes| bytes as f64),
            Self::Rate => row.fill_rate.map(|rate| rate as f64),
            Self::Throttled => row.throttled,
            Self::Oom => row.last_oom_kill.map(|at| at.to_unix_nanos() as f64),
            Self::Name => None,
        }
    }
}

/// What keys mean at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Rows,
    /// The filter is being typed.
    Filter,
    Help,
}

/// What `kwitness top` shows.
#[derive(Debug)]
pub(super) struct Model {
    all: Vec<Row>,
    sort: Sort,
    is_reversed: bool,
    filter: String,
    mode: Mode,
    has_namespaces: bool,
    /// The cgroup of the selected row.
    selected: Option<u64>,
    time: Option<Timestamp>,
    /// Why no samples come.
    outage: Option<String>,
}

impl Model {
    pub(super) fn new(sort: Sort, is_reversed: bool, has_namespaces: bool) -> Self {
        Self {
            all: Vec::new(),
            sort,
            is_reversed,
            filter: String::new(),
            mode: Mode::Rows,
            has_namespaces,
            selected: None,
            time: None,
            outage: None,
        }
    }

    /// Takes the next sample, and puts it in order: sandboxes are not in it any more.
    pub(super) fn take(&mut self, sample: &mut proto::UsageSample) {
        let is_sandbox = |usage: &proto::ContainerUsage| {
            let container = usage.container.as_ref();
            container.is_some_and(|container| container.r#type() == proto::ContainerType::Sandbox)
        };
        sample.containers.retain(|usage| !is_sandbox(usage));
        let mut rows: Vec<_> = sample.containers.drain(..).map(|usage| (Row::new(&usage), usage)).collect();
        rows.sort_by(|(left, _), (right, _)| self.compare(left, right));
        (self.all, sample.containers) = rows.into_iter().unzip();
        self.time = sample.time;
        self.outage = None;
    }

    /// No sample comes, for that reason; those that are here are old.
    pub(super) fn disconnected(&mut self, reason: String) {
        self.outage = Some(reason);
    }

    fn compare(&self, left: &Row, right: &Row) -> Ordering {
        let directed = |order: Ordering| if self.is_reversed { order.reverse() } else { order };
        let by_rank = |sort: Sort| match (sort.rank(left), sort.rank(right)) {
            (Some(left), Some(right)) => directed(right.total_cmp(&left)),
            (left, right) => right.is_some().cmp(&left.is_some()),
        };
        let by_name = || {
            let (left, right) = (&left.names, &right.names);
            let by_pod = left.namespace.cmp(&right.namespace).then_with(|| left.pod.cmp(&right.pod));
            by_pod.then_with(|| left.container.cmp(&right.container))
        };
        match self.sort {
            Sort::Name => directed(by_name()),
            sort => by_rank(sort).then_with(|| by_rank(Sort::Share)).then_with(by_name),
        }
    }

    /// Does what a key stands for; true: it is to end.
    pub(super) fn press(&mut self, key: KeyCode) -> bool {
        match (self.mode, key) {
            (Mode::Filter, KeyCode::Enter) => self.mode = Mode::Rows,
            (Mode::Filter, KeyCode::Esc) => {
                self.filter.clear();
                self.mode = Mode::Rows;
            }
            (Mode::Filter, KeyCode::Backspace) => drop(self.filter.pop()),
            (Mode::Filter, KeyCode::Char(character)) => self.type_in(character),
            (Mode::Help, KeyCode::Char('q')) | (Mode::Rows, KeyCode::Char('q')) => return true,
            (Mode::Help, _) => self.mode = Mode::Rows,
            (_, KeyCode::Char('?')) => self.mode = Mode::Help,
            (_, KeyCode::Char('/')) => self.mode = Mode::Filter,
            (_, KeyCode::Char('s')) => self.reorder(self.sort.next(), self.is_reversed),
            (_, KeyCode::Char('r')) => self.reorder(self.sort, !self.is_reversed),
            (_, KeyCode::Down | KeyCode::Char('j')) => self.move_by(1),
            (_, KeyCode::Up | KeyCode::Char('k')) => self.move_by(-1),
            (_, KeyCode::PageDown) => self.move_by(PAGE),
            (_, KeyCode::PageUp) => self.move_by(-PAGE),
            (_, KeyCode::Home | KeyCode::Char('g')) => self.move_by(isize::MIN),
            (_, KeyCode::End | KeyCode::Char('G')) => self.move_by(isize::MAX),
            (_, KeyCode::Esc) => {
                self.filter.clear();
                self.selected = None;
            }
            _ => {}
        }
        false
    }

    fn type_in(&mut self, character: char) {
        if self.filter.len() < FILTER_MAX {
            self.filter.push(character);
        }
    }

    fn reorder(&mut self, sort: Sort, is_reversed: bool) {
        (self.sort, self.is_reversed) = (sort, is_reversed);
        let mut all = std::mem::take(&mut self.all);
        all.sort_by(|left, right| self.compare(left, right));
        self.all = all;
    }

    /// The first move selects the first row, or the last.
    fn move_by(&mut self, rows: isize) {
        let ids: Vec<_> = self.rows().map(|row| row.cgroup_id).collect();
        let Some(last) = ids.len().checked_sub(1) else { return };
        let to = match self.selected_row() {
            Some(at) => at.saturating_add_signed(rows).min(last),
            None if rows == isize::MAX => last,
            None => 0,
        };
        self.selected = Some(ids[to]);
    }

    /// The rows that the filter lets through, in order.
    pub(super) fn rows(&self) -> impl Iterator<Item = &Row> {
        let wanted = self.filter.to_lowercase();
        self.all.iter().filter(move |row| row.full_name().to_lowercase().contains(&wanted))
    }

    /// Which of these is selected.
    pub(super) fn selected_row(&self) -> Option<usize> {
        let selected = self.selected?;
        self.rows().position(|row| row.cgroup_id == selected)
    }

    /// The one whose details are shown: the selected one, or the first.
    pub(super) fn detailed(&self) -> Option<&Row> {
        self.rows().nth(self.selected_row().unwrap_or_default())
    }

    /// How many containers there are, whatever the filter.
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn filter(&self) -> &str {
        &self.filter
    }

    pub(super) fn order(&self) -> (Sort, bool) {
        (self.sort, self.is_reversed)
    }

    pub(super) fn has_namespaces(&self) -> bool {
        self.has_namespaces
    }

    /// When the rows were so; none: there has been no sample.
    pub(super) fn time(&self) -> Option<Timestamp> {
        self.time
    }

    pub(super) fn outage(&self) -> Option<&str> {
        self.outage.as_deref()
    }
}

#[cfg(test)]
mod tests;
