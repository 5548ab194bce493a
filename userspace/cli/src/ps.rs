//! `kwitness ps`: the containers, once.

use std::path::PathBuf;

use chrono::{DateTime, Utc};

use crate::args::{Format, Ps};
use crate::client::{connect, failed, socket};
use crate::describe::{names, state, word};
use crate::exit::Code;
use crate::output::Output;
use crate::table::{Cell, Table};
use crate::text::{UNKNOWN, age, short_id};
use kwitness_api::proto;

pub async fn run(named: Option<PathBuf>, options: Ps) -> anyhow::Result<Code> {
    let Ps { filter, output } = options;
    let socket = socket(named);
    let request = proto::ListRequest { filter: Some(filter.into_api(Vec::new())) };
    let answer = connect(&socket).await?.list(request).await;
    let mut containers = answer.map_err(|status| failed(&socket, &status))?.into_inner().containers;
    containers.sort_by_cached_key(|state| {
        let names = names(state.container.as_ref(), true);
        (names.namespace, names.pod, names.container)
    });
    let mut out = Output::new();
    let now = Utc::now();
    match output.output {
        Format::Table if containers.is_empty() => eprintln!("no containers found"),
        Format::Wide if containers.is_empty() => eprintln!("no containers found"),
        Format::Table => out.text(&table(&containers, now))?,
        Format::Wide => out.text(&wide_table(&containers, now))?,
        format => {
            for container in &containers {
                out.value(format, container)?;
            }
        }
    }
    out.flush()?;
    Ok(Code::Success)
}

fn table(containers: &[proto::ContainerState], now: DateTime<Utc>) -> String {
    let rows: Vec<[Cell; 7]> = containers
        .iter()
        .map(|container| {
            let names = names(container.container.as_ref(), false);
            let id = container.container.as_ref().map_or(UNKNOWN, |container| short_id(&container.id));
            [
                names.namespace.into(),
                names.pod.into(),
                names.container.into(),
                state(container),
                pid(container).into(),
                age(container.created_at, now).into(),
                id.into(),
            ]
        })
        .collect();
    let columns = ["NAMESPACE", "POD", "CONTAINER", "STATE", "PID", "AGE", "ID"].map(|heading| (heading, 0));
    Table::new(columns).render(&rows)
}

fn wide_table(containers: &[proto::ContainerState], now: DateTime<Utc>) -> String {
    let unknown = || UNKNOWN.to_owned();
    let rows: Vec<[Cell; 14]> = containers
        .iter()
        .map(|state_of| {
            let names = names(state_of.container.as_ref(), true);
            let container = state_of.container.clone().unwrap_or_default();
            let pod = container.pod.clone().unwrap_or_default();
            [
                names.namespace.into(),
                names.pod.into(),
                names.container.into(),
                state(state_of),
                pid(state_of).into(),
                age(state_of.created_at, now).into(),
                age(state_of.started_at, now).into(),
                state_of.execs.to_string().into(),
                state_of.exits.to_string().into(),
                state_of.program.clone().unwrap_or_else(unknown).into(),
                word(pod.qos_class().as_str_name(), "QOS_CLASS_").into(),
                word(container.runtime().as_str_name(), "RUNTIME_").into(),
                container.image.clone().unwrap_or_else(unknown).into(),
                container.id.into(),
            ]
        })
        .collect();
    let columns = [
        "NAMESPACE",
        "POD",
        "CONTAINER",
        "STATE",
        "PID",
        "AGE",
        "STARTED",
        "EXECS",
        "EXITS",
        "PROGRAM",
        "QOS",
        "RUNTIME",
        "IMAGE",
        "ID",
    ];
    Table::new(columns.map(|heading| (heading, 0))).render(&rows)
}

/// Of the main process.
fn pid(state: &proto::ContainerState) -> String {
    state.main.as_ref().map_or_else(|| UNKNOWN.to_owned(), |main| main.pid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::describe::testing::containers;

    #[test]
    fn tables() {
        let now = DateTime::from_timestamp(1_767_357_600, 0).unwrap();
        let plain = |text: String| anstream::adapter::strip_str(&text).to_string();
        insta::assert_snapshot!("ps", plain(table(&containers(), now)));
        insta::assert_snapshot!("ps_wide", plain(wide_table(&containers(), now)));
    }
}
