//! `kwitness status`: version, health, hooks and counters of the daemon.

use std::ffi::OsString;

use chrono::{DateTime, Utc};
use kwitness_api::proto;
use kwitness_core::units;

use crate::args::Status;
use crate::capabilities::{capabilities_table, privileges_table};
use crate::connect::connect;
use crate::describe::kubernetes;
use crate::exit::Code;
use crate::output::{Format, Output};
use crate::table::{Cell, Fit, Table};
use crate::text::{UNKNOWN, age};
use crate::time::Times;

pub async fn run(socket: Option<OsString>, options: Status) -> anyhow::Result<Code> {
    let Status { times, output } = options;
    let mut client = connect(socket).await?;
    let status = client.status().await?;
    let mut out = Output::new();
    match output.output {
        format @ (Format::Table | Format::Wide) => {
            let address = client.address().to_string();
            for line in lines(&status, &address, Utc::now(), times.shown(format)) {
                out.line(&line)?;
            }
            out.line("")?;
            let width = out.width(format);
            out.text(&capabilities_table(&status.capabilities, width))?;
            if format == Format::Wide {
                out.line("")?;
                if !status.privileges.is_empty() {
                    out.text(&privileges_table(&status.privileges, width))?;
                    out.line("")?;
                }
                out.text(&programs_table(&status.programs))?;
                if !has_statistics(&status.programs) {
                    out.line("RUNS and PER RUN are counted while the sysctl kernel.bpf_stats_enabled is 1")?;
                }
                out.line("")?;
                out.text(&counters_table(&status))?;
            }
        }
        format => out.value(format, &status)?,
    }
    out.flush()?;
    Ok(Code::Success)
}

/// `kwitness version`: both sides.
pub async fn versions(socket: Option<OsString>) -> anyhow::Result<Code> {
    let mut out = Output::new();
    out.line(&format!("Client: {}", env!("CARGO_PKG_VERSION")))?;
    out.flush()?;
    let status = connect(socket).await?.status().await?;
    out.line(&format!("Daemon: {}", status.version))?;
    out.flush()?;
    Ok(Code::Success)
}

fn lines(status: &proto::StatusResponse, address: &str, now: DateTime<Utc>, times: Times) -> Vec<String> {
    let journal = status.journal.unwrap_or_default();
    let runtime = status.runtime.clone().unwrap_or_default();
    let lost: Vec<String> = status.lost.iter().map(|(what, count)| format!("{count} {what}")).collect();
    let held: Vec<_> = status.privileges.iter().map(|privilege| privilege.name.as_str()).collect();
    let ago = age(status.started_at, now);
    let started = match times.show_alone(status.started_at) {
        at if at == ago => format!("{ago} ago"),
        at => format!("{ago} ago ({at})"),
    };
    let memory = status
        .resident_bytes
        .map_or_else(|| UNKNOWN.to_owned(), |bytes| format!("{} resident", units::amount(bytes)));
    let lines = [
        ("Version", status.version.clone()),
        ("Socket", address.to_owned()),
        ("Config", status.config_file.clone().unwrap_or_else(|| "defaults, no file".to_owned())),
        ("Node", status.node_name.clone()),
        ("Kernel", status.kernel_release.clone()),
        ("Started", started),
        ("Memory", memory),
        ("Epoch", format!("{} (event numbers count within it)", status.epoch)),
        ("Cgroups", format!("below {}", status.cgroup_subtree)),
        ("Containers", status.containers.to_string()),
        ("Watchers", status.watchers.to_string()),
        ("Journal", describe_journal(&journal)),
        ("Runtime", describe_runtime(&runtime)),
        ("Kubernetes", kubernetes::status(status.kubernetes.as_ref(), times)),
        ("Privileges", if held.is_empty() { UNKNOWN.to_owned() } else { held.join(", ") }),
        ("Lost", if lost.is_empty() { "nothing".to_owned() } else { lost.join(", ") }),
    ];
    let problems =
        status.problems.iter().map(|problem| ("Problem", format!("{}: {}", problem.name, problem.found)));
    let lines = lines.into_iter().chain(problems);
    lines.map(|(name, value)| format!("{:<14}{value}", format!("{name}:"))).collect()
}

fn describe_journal(journal: &proto::Journal) -> String {
    let proto::Journal { first_seq, last_seq, capacity, events, .. } = journal;
    if last_seq < first_seq {
        return format!("no events, at most {capacity} are kept");
    }
    // An older daemon does not say how many.
    let has_all = *events == 0 || last_seq.saturating_sub(*first_seq) < *events;
    let fewer = if has_all { String::new() } else { format!(", {events} of them") };
    format!("events {first_seq} to {last_seq}{fewer}, at most {capacity} are kept")
}

/// While the kernel does not count runs, all are 0: that is no number of runs.
fn has_statistics(programs: &[proto::ProgramStats]) -> bool {
    programs.iter().any(|program| program.run_count.is_some_and(|count| count > 0))
}

fn programs_table(programs: &[proto::ProgramStats]) -> String {
    let unknown = || UNKNOWN.to_owned();
    let is_counted = has_statistics(programs);
    let rows: Vec<_> = programs
        .iter()
        .map(|program| {
            let runs = program.run_count.filter(|_| is_counted);
            let per_run = runs.zip(program.run_time_ns).filter(|(runs, _)| *runs > 0);
            vec![
                Cell::from(&program.name),
                runs.map_or_else(unknown, |count| count.to_string()).into(),
                per_run.map_or_else(unknown, |(runs, time)| format!("{} ns", time / runs)).into(),
                program.recursion_misses.map_or_else(unknown, |count| count.to_string()).into(),
            ]
        })
        .collect();
    let columns = ["PROGRAM", "RUNS", "PER RUN", "MISSES"];
    let table =
        columns.into_iter().fold(Table::new(None), |table, heading| table.column(heading, 0, Fit::Whole));
    table.render(&rows)
}

fn counters_table(status: &proto::StatusResponse) -> String {
    let rows: Vec<_> = status
        .counters
        .iter()
        .map(|(name, count)| vec![Cell::from(name), count.to_string().into()])
        .collect();
    Table::new(None).column("COUNTER", 0, Fit::Whole).column("VALUE", 0, Fit::Whole).render(&rows)
}

fn describe_runtime(runtime: &proto::RuntimeStatus) -> String {
    let proto::RuntimeStatus { endpoint, name, version, error, .. } = runtime;
    match (&**endpoint, &**error) {
        ("", "") => "not used".to_owned(),
        ("", error) => error.to_owned(),
        (endpoint, "") => format!("{name} {version} at {endpoint}"),
        (endpoint, error) => format!("{name} {version} at {endpoint} does not answer: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kwitness_api::Timestamp;

    #[test]
    fn a_status_is_complete() {
        let status = proto::StatusResponse {
            version: "0.1.0".into(),
            epoch: "e".into(),
            started_at: Some(Timestamp { seconds: 1_767_357_000, nanos: 0 }),
            kernel_release: "6.18.1".into(),
            node_name: "node-1".into(),
            journal: Some(proto::Journal {
                first_seq: 1,
                last_seq: 7,
                capacity: 65_536,
                ..Default::default()
            }),
            capabilities: vec![proto::Capability {
                name: "task_exec".into(),
                vital: true,
                hook: "raw_tp:sched_process_exec".into(),
                ..Default::default()
            }],
            programs: vec![proto::ProgramStats {
                name: "task_exec".into(),
                run_count: Some(4),
                run_time_ns: Some(1000),
                recursion_misses: None,
            }],
            lost: [("ring_full/task_exec".to_owned(), 3)].into(),
            counters: [("records".to_owned(), 12)].into(),
            runtime: Some(proto::RuntimeStatus {
                endpoint: "unix:///run/x.sock".into(),
                name: "containerd".into(),
                version: "v2".into(),
                error: "gone".into(),
            }),
            containers: 2,
            watchers: 1,
            cgroup_subtree: "/".into(),
            privileges: vec![proto::Privilege {
                name: "CAP_BPF".into(),
                purpose: "bpf(2): read the maps".into(),
            }],
            config_file: Some("/etc/kwitness/config.toml".into()),
            resident_bytes: Some(17 << 20),
            problems: vec![proto::Problem {
                name: "unreadable_cgroups".into(),
                found: "containers below are not seen: /kubepods/a (Permission denied)".into(),
                remedy: "correct the permissions".into(),
            }],
            ..Default::default()
        };
        let now = DateTime::from_timestamp(1_767_357_600, 0).unwrap();
        let times = Times::at(crate::time::TimeFormat::Clock, "2026-01-02T13:00:00Z");
        let text = format!(
            "{}\n\n{}\n{}\n{}\n{}",
            lines(&status, "/run/k.sock", now, times).join("\n"),
            capabilities_table(&status.capabilities, None),
            privileges_table(&status.privileges, None),
            programs_table(&status.programs),
            counters_table(&status)
        );
        insta::assert_snapshot!("status", anstream::adapter::strip_str(&text).to_string());
    }

    #[test]
    fn a_journal_that_is_not_without_holes_says_how_many_events_it_has() {
        let mut journal = proto::Journal { first_seq: 3, last_seq: 12, capacity: 16, ..Default::default() };
        for events in [0, 10] {
            journal.events = events;
            assert_eq!(describe_journal(&journal), "events 3 to 12, at most 16 are kept");
        }
        journal.events = 4;
        assert_eq!(describe_journal(&journal), "events 3 to 12, 4 of them, at most 16 are kept");
    }

    #[test]
    fn a_journal_without_events_has_no_numbers() {
        for (first_seq, last_seq) in [(1, 0), (8, 7)] {
            let journal = proto::Journal { first_seq, last_seq, capacity: 16, ..Default::default() };
            assert_eq!(describe_journal(&journal), "no events, at most 16 are kept");
        }
    }

    #[test]
    fn a_program_without_statistics_has_no_number_of_runs() {
        let program = proto::ProgramStats { name: "x".into(), run_count: Some(0), ..Default::default() };
        let text = anstream::adapter::strip_str(&programs_table(&[program])).to_string();
        assert_eq!(text.lines().last(), Some("x        -     -        -"));
    }
}
