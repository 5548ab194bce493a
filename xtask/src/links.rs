//! The links of the documentation: each leads to a file that exists, and to a heading that it has.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::promises::root;

/// The pages that people read.
fn pages() -> Vec<PathBuf> {
    let mut all = Vec::new();
    for directory in ["docs", "deploy"] {
        crate::ebpf::list_files(&root().join(directory), &mut all).expect("a directory");
    }
    let of_root = fs::read_dir(root()).expect("a directory").map(|entry| entry.expect("an entry").path());
    all.extend(of_root.filter(|path| path.is_file()));
    all.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    all
}

/// The lines that are not code.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    page.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// The targets of `[text](target)` in a line.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0))
}

/// What a link calls a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let is_kept = |character: &char| character.is_alphanumeric() || "-_ ".contains(*character);
    heading.trim().to_lowercase().chars().filter(is_kept).map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(page: &str) -> BTreeSet<String> {
    let headings = prose(page).filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

#[test]
fn links_lead_to_files_and_headings_that_exist() {
    let (mut count, mut wrong) = (0, Vec::new());
    for path in pages() {
        let page = fs::read_to_string(&path).expect("a page");
        let directory = path.parent().expect("a directory");
        for target in prose(&page).flat_map(targets).filter(|target| !target.contains("://")) {
            count += 1;
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let of = if file.is_empty() { path.clone() } else { directory.join(file) };
            let is_there = match heading {
                "" => of.exists(),
                heading => fs::read_to_string(&of).is_ok_and(|page| anchors(&page).contains(heading)),
            };
            if !is_there {
                wrong.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 100, "only {count} links were found");
}

#[test]
fn headings_are_linked_as_github_does() {
    assert_eq!(anchor(" A node that is a container"), "a-node-that-is-a-container");
    assert_eq!(anchor("The guard's metrics"), "the-guards-metrics");
    let page = "# One\n```\n# no heading, [no link](x)\n```\n## `two` and three\nSee [four](four.md#five).\n";
    assert_eq!(anchors(page), ["one", "two-and-three"].map(str::to_owned).into());
    assert_eq!(prose(page).flat_map(targets).collect::<Vec<_>>(), ["four.md#five"]);
}
