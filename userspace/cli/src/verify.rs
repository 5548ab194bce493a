//! `kwitness verify`: whether the desired limits are in force.

mod rows;

use std::collections::HashMap;
use std::ffi::OsString;

use chrono::Utc;
use kwitness_api::client::Item;
use kwitness_api::proto::{Verdict, VerdictKind};
use kwitness_api::{EventKind, Events, Source, SourceError, Timestamp, proto};

use crate::args::Verify;
use crate::connect::{Outage, unless_gone};
use crate::describe::{kubernetes, severity};
use crate::exit::Code;
use crate::output::{Format, OfNode, Output, note};
use crate::table::Table;
use crate::time::{TimeFormat, Times};
use crate::{ps, select};
use rows::{explanation, has_written, names_of, row, table};

pub async fn run(socket: Option<OsString>, options: Verify) -> anyhow::Result<Code> {
    let filter = options.filter();
    let mut source = options.from.open(socket).await?;
    let selected = select::resolve(&mut source, &filter).await?.map_err(|(not_here, _)| not_here)?;
    let request = proto::VerifyRequest {
        filter: Some(selected.clone()),
        wanted: Some(proto::Wanted { memory: options.memory, cpu: options.cpu }),
        wait_ms: u32::try_from(options.wait.as_millis()).unwrap_or(u32::MAX),
        prove_ms: options.prove.map_or(0, |prove| u32::try_from(prove.as_millis()).unwrap_or(u32::MAX)),
    };
    // Before the first verdicts, so that none is missed in between.
    let changes = if options.watch {
        let kinds = [EventKind::Verdict, EventKind::Updated].map(i32::from).into();
        let filter = proto::Filter { kinds, ..selected.clone() };
        Some(source.watch(proto::WatchRequest { filter: Some(filter), ..Default::default() }).await?)
    } else {
        None
    };
    let format = options.output.output;
    let times = options.watch.then(|| options.times.shown(format));
    let mut printer = Printer::new(format, times, filter.is_one_namespace(), false)
        .with_times_of_the_api(options.times.shown(format));
    let answer = ask(&mut source, &request).await;
    let answer = if options.watch { unless_gone(answer)? } else { Some(answer?) };
    if answer.as_ref().is_some_and(Vec::is_empty) {
        let is_empty = ps::list(&mut source, &selected, false).await.is_ok_and(|here| here.is_empty());
        note(if is_empty {
            "no containers found: there is nothing to verify"
        } else {
            "no CPU or memory limit is set for these containers"
        });
    }
    let mut verdicts = answer.unwrap_or_default();
    options.output.sort(&mut verdicts)?;
    printer.print(&verdicts, None)?;
    if let Some(changes) = changes {
        return follow(source, request, changes, printer).await;
    }
    Ok(code(&verdicts))
}

/// What verdicts mean for who runs the command: the worst of them.
pub fn code(verdicts: &[proto::VerdictOf]) -> Code {
    let exceeded =
        |of: &proto::VerdictOf| of.proof.is_some_and(|of| of.proof() == proto::ProofKind::Exceeded);
    match worst(verdicts) {
        VerdictKind::InForce if verdicts.iter().any(exceeded) => Code::Exceeded,
        worst => Code::Verdict(worst),
    }
}

/// The verdicts; what could not be queried is noted.
pub async fn ask(
    source: &mut Source,
    request: &proto::VerifyRequest,
) -> Result<Vec<proto::VerdictOf>, SourceError> {
    let answer = source.verify(request.clone()).await?;
    for source in &answer.unavailable {
        note(&format!("warning: cannot query {source}"));
    }
    Ok(answer.verdicts)
}

/// Prints verdicts as they change. After a loss, and after a restart of the daemon, all are requested again, if need be once the
/// names of the containers are known.
async fn follow(
    mut source: Source,
    request: proto::VerifyRequest,
    mut changes: Events,
    mut printer: Printer,
) -> anyhow::Result<Code> {
    use proto::event::Kind;

    let mut outage = Outage::default();
    let mut is_due = false;
    while let Some(item) = changes.next().await? {
        outage.note(&item);
        match item {
            Item::Disconnected(_) | Item::Snapshot(_) => continue,
            Item::Reconnected => is_due = true,
            Item::Events(events) => {
                let is_gap = |event: &proto::Event| matches!(event.kind, Some(Kind::Gap(_)));
                if events.iter().any(is_gap) {
                    note("events were lost; requesting all verdicts again");
                    is_due = true;
                }
                for event in events {
                    if let Some(Kind::Verdict(verdict)) = event.kind {
                        let of = proto::VerdictOf {
                            container: event.container,
                            verdict: Some(*verdict),
                            ..Default::default()
                        };
                        printer.print(&[of], event.time)?;
                    }
                }
            }
        }
        if is_due {
            let verdicts = unless_gone(ask(&mut source, &request).await)?.unwrap_or_default();
            // A new daemon does not know the names of the containers yet.
            is_due = verdicts.is_empty();
            printer.print(&verdicts, None)?;
        }
    }
    Ok(Code::Success)
}

/// Prints verdicts.
pub struct Printer {
    format: Format,
    output: Output,
    /// Of a watch, which has a column of times.
    times: Option<Times>,
    /// Of what the Kubernetes API says.
    api_times: Times,
    is_one_namespace: bool,
    has_written: bool,
    table: Table,
    begun: bool,
    /// What was printed last of each limit: a call for verdicts also makes events of them.
    shown: HashMap<(u64, String), Shown>,
}

/// What makes two verdicts the same for a reader.
#[derive(PartialEq)]
struct Shown {
    verdict: i32,
    reason: String,
    in_force: Option<proto::Reading>,
}

impl Printer {
    /// On standard output; with times for a watch, and with a column of nodes.
    pub fn new(format: Format, times: Option<Times>, is_one_namespace: bool, has_nodes: bool) -> Self {
        let output = Output::new();
        let limit = output.width(format);
        let (table, has_written) = (table(format, times, limit, has_nodes), has_written(limit));
        let (shown, api_times) = (HashMap::new(), Times::new(TimeFormat::Clock, false));
        Self { format, output, times, api_times, is_one_namespace, has_written, table, begun: false, shown }
    }

    /// Times of what the Kubernetes API says are printed like this.
    pub fn with_times_of_the_api(self, api_times: Times) -> Self {
        Self { api_times, ..self }
    }

    /// The verdicts that are not shown yet; without a watch, all.
    fn changed<'a>(&mut self, verdicts: &'a [proto::VerdictOf]) -> Vec<OfNode<'a, proto::VerdictOf>> {
        let mut changed = Vec::new();
        for of in verdicts {
            let verdict = of.verdict.clone().unwrap_or_default();
            let cgroup = verdict.cgroup.as_ref().map_or(0, |cgroup| cgroup.id);
            let Verdict { file, verdict, reason, in_force, .. } = verdict;
            let now = Shown { verdict, reason, in_force };
            let before = self.shown.get(&(cgroup, file.clone()));
            if self.times.is_none() || before != Some(&now) {
                changed.push(OfNode::here(of));
            }
            self.shown.insert((cgroup, file), now);
        }
        changed
    }

    fn print(&mut self, verdicts: &[proto::VerdictOf], time: Option<Timestamp>) -> anyhow::Result<()> {
        let changed = self.changed(verdicts);
        self.write(&changed, time)
    }

    /// Prints verdicts, and why limits are not in force.
    pub fn write(
        &mut self,
        verdicts: &[OfNode<'_, proto::VerdictOf>],
        time: Option<Timestamp>,
    ) -> anyhow::Result<()> {
        if self.format == Format::Name {
            self.output.pods(verdicts.iter().filter_map(|of| pod_of(of.value)))?;
            return Ok(self.output.flush()?);
        }
        if !matches!(self.format, Format::Table | Format::Wide) {
            for of in verdicts {
                self.output.value(self.format, of)?;
            }
            return Ok(self.output.flush()?);
        }
        let time = time.or_else(|| Some(Timestamp::from_unix_nanos(Utc::now().timestamp_nanos_opt()?)));
        let rows: Vec<_> = verdicts
            .iter()
            .map(|OfNode { node, value: of }| {
                let mut row = row(of, self.format == Format::Wide, self.is_one_namespace, self.has_written);
                if let Some(node) = node {
                    row.insert(0, (*node).into());
                }
                if let Some(times) = self.times {
                    row.insert(0, times.show(time).into());
                }
                row
            })
            .collect();
        self.table.fit(&rows);
        if !rows.is_empty() && !std::mem::replace(&mut self.begun, true) {
            let header = self.table.header();
            self.output.text(&header)?;
        }
        for row in &rows {
            self.output.text(&self.table.line(row))?;
        }
        if self.format == Format::Table {
            let reasons: Vec<_> = verdicts.iter().filter_map(|of| explanation(of.value)).collect();
            if !reasons.is_empty() && self.times.is_none() {
                self.output.line("")?;
            }
            for reason in reasons {
                self.output.line(&reason)?;
            }
        }
        self.write_kubernetes(verdicts)?;
        Ok(self.output.flush()?)
    }

    /// Prints what the Kubernetes API says, where the daemon watches it.
    fn write_kubernetes(&mut self, verdicts: &[OfNode<'_, proto::VerdictOf>]) -> anyhow::Result<()> {
        let is_wide = self.format == Format::Wide;
        let limits = || {
            let of_api = verdicts.iter().map(|of| of.value);
            of_api.filter_map(|of| Some((of.verdict.as_ref()?, names_of(of, is_wide))))
        };
        // A watch has no room for a second table.
        let is_one_namespace = self.is_one_namespace && !is_wide;
        let table = kubernetes::table(limits(), self.output.width(self.format), is_one_namespace);
        let table = table.filter(|_| self.times.is_none());
        let lines: Vec<_> = limits()
            .flat_map(|(verdict, names)| {
                let of = format!("{} {} {}", names.qualified(), names.container, verdict.file);
                kubernetes::lines(verdict, self.api_times)
                    .into_iter()
                    .map(move |line| format!("{of}: {line}"))
            })
            .collect();
        if let Some(table) = table {
            self.output.line("")?;
            self.output.text(&table)?;
            if !lines.is_empty() {
                self.output.line("")?;
            }
        }
        for line in lines {
            self.output.line(&line)?;
        }
        Ok(())
    }
}

fn pod_of(of: &proto::VerdictOf) -> Option<&proto::Pod> {
    let of_container = of.container.as_ref().and_then(|container| container.pod.as_ref());
    of_container.or_else(|| of.verdict.as_ref()?.cgroup.as_ref()?.pod.as_ref())
}

/// Nothing to verify is nothing in force.
fn worst(verdicts: &[proto::VerdictOf]) -> VerdictKind {
    let kinds =
        verdicts.iter().map(|of| of.verdict.as_ref().map_or(VerdictKind::Unknown, proto::Verdict::verdict));
    kinds.max_by_key(|kind| severity(*kind)).unwrap_or(VerdictKind::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::describe::limits;
    use crate::describe::testing::container;

    fn of(verdict: proto::Verdict) -> proto::VerdictOf {
        proto::VerdictOf { container: Some(container(true)), verdict: Some(verdict), ..Default::default() }
    }

    fn verdict(kind: VerdictKind) -> proto::VerdictOf {
        of(proto::Verdict { verdict: kind.into(), ..Default::default() })
    }

    fn shown(format: Format, limit: Option<usize>) -> String {
        let in_force = proto::Verdict {
            file: "cpu.max".into(),
            verdict: VerdictKind::InForce.into(),
            reason: "cpu.max is 500m".into(),
            in_force: Some(proto::Reading {
                reading: Some(proto::reading::Reading::Value("50000 100000".into())),
            }),
            ..Default::default()
        };
        let verdicts = [of(limits::testing::shadowed()), of(in_force)];
        let rows: Vec<_> =
            verdicts.iter().map(|of| row(of, format == Format::Wide, false, has_written(limit))).collect();
        let table = table(format, None, limit, false).render(&rows);
        let reasons: Vec<_> = verdicts.iter().filter_map(explanation).collect();
        format!("{}\n{}\n", anstream::adapter::strip_str(&table), reasons.join("\n"))
    }

    #[test]
    fn the_readme_shows_what_is_printed() {
        let verdict = proto::Verdict {
            reason: "memory.max is 96Mi, but the pod's cgroup /kubepods/burstable/pod7c1… allows only 64Mi"
                .into(),
            ..limits::testing::shadowed()
        };
        let app = proto::Container {
            name: Some("app".into()),
            pod: Some(proto::Pod {
                name: Some("web-0".into()),
                namespace: Some("prod".into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let of = proto::VerdictOf { container: Some(app), verdict: Some(verdict), ..Default::default() };
        let rows = [row(&of, false, true, false)];
        let table = table(Format::Table, None, Some(80), false).render(&rows);
        let shown = format!("{}\n{}\n", anstream::adapter::strip_str(&table), explanation(&of).unwrap());
        assert!(include_str!("../../../README.md").contains(&shown), "README.md does not show:\n{shown}");
    }

    #[test]
    fn verdicts_on_a_terminal_of_80_columns() {
        insta::assert_snapshot!("verify", shown(Format::Table, Some(80)));
    }

    #[test]
    fn verdicts_with_everything() {
        insta::assert_snapshot!("verify_wide", shown(Format::Wide, None));
    }

    #[test]
    fn a_watch_shows_a_verdict_once() {
        let times = Some(Times::new(crate::time::TimeFormat::Clock, true));
        let mut printer = Printer::new(Format::Table, times, false, false);
        let mut changed = |kind| printer.changed(&[verdict(kind)]).len();
        assert_eq!(changed(VerdictKind::Pending), 1);
        assert_eq!(changed(VerdictKind::Pending), 0, "the event that the call itself made");
        assert_eq!(changed(VerdictKind::InForce), 1);
    }

    #[test]
    fn only_all_in_force_is_in_force() {
        use VerdictKind::{Diverged, InForce, Pending, Unknown};
        assert_eq!(worst(&[]), Unknown, "nothing to verify");
        assert_eq!(worst(&[verdict(InForce), verdict(InForce)]), InForce);
        assert_eq!(worst(&[verdict(InForce), verdict(Pending)]), Pending);
        assert_eq!(worst(&[verdict(Diverged), verdict(Pending), verdict(Unknown)]), Diverged);
    }
}
