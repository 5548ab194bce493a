//! The `verdicts` task: writes the table of `docs/verdicts.md` from what the last runs of the target `matrix` printed.
//!
//! Never invents a result: a pod that no log has keeps what the page says of it, or is marked as not run. That the page has every pod
//! is checked by the unit tests of the tests' own package.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::workspace::Workspace;

const PAGE: &str = "docs/verdicts.md";
/// Of each column: the log of the machine.
const LOGS: [&str; 2] = ["vm-6.12-trixie-matrix.log", "vm-6.12-trixie-systemd-matrix.log"];
/// What begins the table's last line of its head.
const RULE: &str = "|---";
const NOT_RUN: &str = "not run";

pub fn task(workspace: &Workspace) -> Result<()> {
    let path = workspace.root.join(PAGE);
    let page = fs::read_to_string(&path).with_context(|| format!("read {PAGE}"))?;
    let logs = workspace.scratch("logs")?;
    // A target that has not run here has no log.
    let logs = LOGS.map(|name| fs::read(logs.join(name)).unwrap_or_default());
    let logs = logs.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    fs::write(&path, table(&page, &logs)?).with_context(|| format!("write {PAGE}"))
}

fn table(page: &str, logs: &[String; 2]) -> Result<String> {
    let (head, rows) = page.split_once(RULE).with_context(|| format!("{PAGE} has no table"))?;
    let (rule, rows) = rows.split_once('\n').unwrap_or((rows, ""));
    let mut order: Vec<&str> = Vec::new();
    let mut results: BTreeMap<&str, [&str; 2]> = BTreeMap::new();
    for (row, old) in rows.lines().filter_map(|line| split(line, 2)) {
        let [cgroupfs, systemd] = old[..] else { continue };
        order.push(row);
        results.insert(row, [cgroupfs, systemd]);
    }
    for (column, log) in logs.iter().enumerate() {
        for (row, result) in log.lines().filter_map(|line| split(line, 1)) {
            let [result] = result[..] else { continue };
            ensure!(!result.contains("WRONG"), "the last run failed: {row} {result}");
            if !order.contains(&row) {
                order.push(row);
            }
            results.entry(row).or_insert([NOT_RUN; 2])[column] = result;
        }
    }
    let rows = order.into_iter().map(|row| format!("{row} {} |\n", results[row].join(" | ")));
    Ok(format!("{head}{RULE}{rule}\n{}", rows.collect::<String>()))
}

/// A row, and what its last columns say.
fn split(line: &str, results: usize) -> Option<(&str, Vec<&str>)> {
    let line = line.trim_end();
    if !line.starts_with("| ") || line.matches('|').count() != 5 + results {
        return None;
    }
    let bars: Vec<_> = line.match_indices('|').map(|(at, _)| at).collect();
    let cells = bars[4..].windows(2).map(|ends| line[ends[0] + 1..ends[1]].trim());
    Some((&line[..=bars[4]], cells.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_run_replaces_what_the_page_says() {
        let page = "# Head\n\n| Kubelet | Pod | Resources | Verdicts | cgroupfs | systemd |\n|---|---|---|---|---|---|\n\
                    | default | a | - | in force | 3 (runc) | 3 (crun) |\n";
        let log = "test x ... noise\n| default | a | - | in force | 4 (runc) |\r\n| default | b | - | in force | 5 (crun) |\n";
        let written = table(page, &[log.to_owned(), String::new()]).unwrap();
        let rows: Vec<_> = written.lines().skip(4).collect();
        assert_eq!(
            rows,
            [
                "| default | a | - | in force | 4 (runc) | 3 (crun) |",
                "| default | b | - | in force | 5 (crun) | not run |"
            ]
        );
        assert_eq!(table(&written, &[String::new(), String::new()]).unwrap(), written);
        let failed = "| default | a | - | in force | 4 (runc) WRONG |";
        assert!(table(page, &[failed.to_owned(), String::new()]).is_err());
    }
}
