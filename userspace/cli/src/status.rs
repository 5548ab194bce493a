//! `kwitness status`: what the daemon is, and what it counted.

use std::fmt::Write as _;
use std::path::PathBuf;

use chrono::{DateTime, Utc};

use crate::args::{Format, Status};
use crate::capabilities::needs_table;
use crate::client::{connect, failed, socket};
use crate::exit::Code;
use crate::output::Output;
use crate::table::Table;
use crate::text::{UNKNOWN, age, full_time};
use kwitness_api::proto;

pub async fn run(named: Option<PathBuf>, options: Status) -> anyhow::Result<Code> {
    let Status { output } = options;
    let socket = socket(named);
    let answer = connect(&socket).await?.status(proto::StatusRequest {}).await;
    let status = answer.map_err(|status| failed(&socket, &status))?.into_inner();
    let mut out = Output::new();
    match output.output {
        Format::Table => out.text(&text(&status, Utc::now(), false))?,
        Format::Wide => out.text(&text(&status, Utc::now(), true))?,
        format => out.value(format, &status)?,
    }
    out.flush()?;
    Ok(Code::Success)
}

fn text(status: &proto::StatusResponse, now: DateTime<Utc>, wide: bool) -> String {
    let journal = status.journal.unwrap_or_default();
    let runtime = status.runtime.clone().unwrap_or_default();
    let mut lines = vec![
        ("Version", status.version.clone()),
        ("Node", status.node_name.clone()),
        ("Kernel", status.kernel_release.clone()),
        ("Started", format!("{} ago ({})", age(status.started_at, now), full_time(status.started_at))),
        ("Epoch", status.epoch.clone()),
        ("Cgroups", format!("below {}", status.cgroup_subtree)),
        ("Containers", status.containers.to_string()),
        ("Watchers", status.watchers.to_string()),
        (
            "Journal",
            format!(
                "events {} to {}, at most {} kept",
                journal.first_seq, journal.last_seq, journal.capacity
            ),
        ),
        ("Runtime", describe_runtime(&runtime)),
    ];
    let lost: Vec<String> = status.lost.iter().map(|(what, count)| format!("{count} {what}")).collect();
    lines.push(("Lost", if lost.is_empty() { "nothing".to_owned() } else { lost.join(", ") }));
    let mut text = String::new();
    for (name, value) in lines {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:<14}{value}", format!("{name}:"));
    }
    text += "\n";
    text += &needs_table(&status.needs);
    if wide {
        text += "\n";
        let unknown = || UNKNOWN.to_owned();
        let rows: Vec<_> = status
            .programs
            .iter()
            .map(|program| {
                let per_run = program.run_count.zip(program.run_time_ns).filter(|(runs, _)| *runs > 0);
                [
                    program.name.clone().into(),
                    program.run_count.map_or_else(unknown, |count| count.to_string()).into(),
                    per_run.map_or_else(unknown, |(runs, time)| format!("{} ns", time / runs)).into(),
                    program.recursion_misses.map_or_else(unknown, |count| count.to_string()).into(),
                ]
            })
            .collect();
        let columns = [("PROGRAM", 0), ("RUNS", 0), ("PER RUN", 0), ("MISSES", 0)];
        text += &Table::new(columns).render(&rows);
        text += "\n";
        let rows: Vec<_> = status
            .counters
            .iter()
            .map(|(name, count)| [name.clone().into(), count.to_string().into()])
            .collect();
        text += &Table::new([("COUNTER", 0), ("VALUE", 0)]).render(&rows);
    }
    text
}

fn describe_runtime(runtime: &proto::RuntimeStatus) -> String {
    let proto::RuntimeStatus { endpoint, name, version, error } = runtime;
    match (&**endpoint, &**error) {
        ("", "") => "not asked".to_owned(),
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
    fn a_status_in_words() {
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
            needs: vec![proto::Need {
                name: "task_exec".into(),
                vital: true,
                hook: "tp_btf:sched_process_exec".into(),
                ..Default::default()
            }],
            programs: vec![proto::ProgramStats {
                name: "task_exec_btf".into(),
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
            ..Default::default()
        };
        let now = DateTime::from_timestamp(1_767_357_600, 0).unwrap();
        let text = text(&status, now, true).replace(&full_time(status.started_at), "LOCAL TIME");
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string());
    }
}
