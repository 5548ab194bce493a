//! Every command that the documentation, a unit or the help shows is one that the program accepts, and every flag is documented.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory as _, Parser as _};
use kwitness_api::EventKind;

use crate::args::{Args, Command};
use crate::examples;

/// A command line in another one: of a unit, or behind `kubectl exec`.
fn embedded(line: &str) -> Option<&str> {
    let behind = || line.find(" -- kwitness ").map(|at| &line[at + " -- ".len()..]);
    line.strip_prefix("ExecStart=").or_else(behind).filter(|line| line.starts_with("kwitness "))
}

/// The words in single back quotes that begin with `kwitness`. What a template fills in is one word.
fn spans(text: &str) -> Vec<String> {
    spans_of(text, "kwitness ")
}

fn spans_of(text: &str, program: &str) -> Vec<String> {
    let mut spans = Vec::new();
    for line in text.lines().filter(|line| !line.contains("```")) {
        let quoted = line.split('`').skip(1).step_by(2).filter(|span| span.starts_with(program));
        for span in quoted {
            let mut parts = span.split("{{");
            let first = parts.next().unwrap_or_default().to_owned();
            spans.push(
                parts.fold(first, |line, part| {
                    line + "X" + part.split_once("}}").map_or("", |(_, rest)| rest)
                }),
            );
        }
    }
    spans
}

/// The command lines of a Markdown file: lines of code that begin with the program's name, after a prompt and `sudo`, or have one
/// of kwitness [`embedded`].
fn commands(text: &str, program: &str) -> Vec<String> {
    let mut is_code = false;
    let mut commands = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            continue;
        }
        let line = line.trim_start_matches([' ', '$', '#']).trim_start_matches("sudo ");
        if !is_code {
            continue;
        }
        if line.strip_prefix(program).is_some_and(|rest| rest.starts_with(' ')) {
            commands.push(line.to_owned());
        } else if let Some(line) = embedded(line).filter(|_| program == "kwitness") {
            commands.push(line.to_owned());
        }
    }
    commands
}

/// The words of the command up to where the shell does something else.
fn words(line: &str) -> Vec<String> {
    let line = line.split(" #").next().unwrap_or(line);
    let words = shlex::split(line).unwrap_or_else(|| panic!("not a command line: {line}"));
    words
        .into_iter()
        .take_while(|word| !["|", "&", "&&", ">", "2>&1", ";"].contains(&word.as_str()))
        .collect()
}

/// That a command of which prose speaks exists, with its flags; a value that they ask for may be missing, or a placeholder in
/// capitals.
fn check_mention(line: &str, whence: &str) {
    use clap::error::ErrorKind::{InvalidSubcommand, UnknownArgument};
    let is_placeholder = |word: &String| word.chars().all(|char| char.is_ascii_uppercase());
    let words = words(line).into_iter().filter(|word| !is_placeholder(word));
    match Args::try_parse_from(words).map(|args| args.command) {
        Ok(Command::Get { .. }) => panic!("{whence}: `{line}` is no command of kwitness"),
        Err(error) if matches!(error.kind(), UnknownArgument | InvalidSubcommand) => {
            panic!("{whence}: `{line}`: {error}")
        }
        Ok(_) | Err(_) => {}
    }
}

/// Every file below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory");
    let entries = entries.map(|entry| entry.expect("an entry of it").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn check(line: &str, whence: &str) {
    match Args::try_parse_from(words(line)).map(|args| args.command) {
        Ok(Command::Get { .. }) => panic!("{whence}: `{line}` is no command of kwitness"),
        Ok(_) => {}
        Err(error)
            if matches!(
                error.kind(),
                clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion
            ) => {}
        Err(error) => panic!("{whence}: `{line}`: {error}"),
    }
}

/// The documentation: the name and the text of each page.
fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let is_document = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    let pages = ["README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(|page| root.join(page));
    let documents =
        files(&root.join("docs")).into_iter().chain(files(&root.join("deploy"))).filter(is_document);
    documents
        .chain(pages)
        .map(|path| (path.display().to_string(), fs::read_to_string(&path).expect("a page can be read")))
        .collect()
}

#[test]
fn documented_commands_parse() {
    let (mut count, mut mentioned) = (0, 0);
    for (name, text) in pages() {
        for line in commands(&text, "kwitness") {
            check(&line, &name);
            count += 1;
        }
        for line in spans(&text) {
            check_mention(&line, &name);
            mentioned += 1;
        }
    }
    assert!(count >= 8 && mentioned >= 40, "only {count} commands were found, and {mentioned} in prose");
}

#[cfg(feature = "kubectl")]
#[test]
fn documented_commands_of_the_plugin_parse() {
    let mut count = 0;
    for (name, text) in pages() {
        for line in commands(&text, "kubectl kwitness") {
            let words = words(&line).into_iter().skip(1);
            crate::kubectl::command()
                .try_get_matches_from(words)
                .unwrap_or_else(|error| panic!("{name}: `{line}`: {error}"));
            count += 1;
        }
    }
    assert!(count >= 8, "only {count} commands were found");
}

/// The sources but for this one, with the commands that errors and notes name.
fn messages() -> impl Iterator<Item = (String, String)> {
    let sources = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    let is_source = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("documented.rs")
    };
    let read = |path: PathBuf| (path.display().to_string(), fs::read_to_string(&path).expect("a source"));
    sources.into_iter().filter(is_source).map(read)
}

#[test]
fn commands_in_messages_parse() {
    let mut count = 0;
    for (name, text) in messages() {
        for line in spans(&text) {
            check_mention(&line, &name);
            count += 1;
        }
    }
    assert!(count >= 40, "only {count} commands were found");
}

#[cfg(feature = "kubectl")]
#[test]
fn commands_of_the_plugin_in_messages_parse() {
    let mut count = 0;
    for (name, text) in messages() {
        for line in spans_of(&text, "kubectl kwitness ") {
            let words = words(&line).into_iter().skip(1);
            if let Err(error) = crate::kubectl::command().try_get_matches_from(words) {
                panic!("{name}: `{line}`: {error}");
            }
            count += 1;
        }
    }
    assert!(count >= 2, "only {count} commands were found");
}

/// The chart's notes, units, alert rules and whatever else is deployed.
#[test]
fn deployed_commands_parse() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
    let (mut count, mut mentioned) = (0, 0);
    for path in files(&deploy) {
        let (text, name) = (fs::read_to_string(&path).unwrap(), path.display().to_string());
        for line in text.lines().filter_map(embedded) {
            check(line, &name);
            count += 1;
        }
        for line in spans(&text) {
            check_mention(&line, &name);
            mentioned += 1;
        }
    }
    assert!(count >= 4 && mentioned >= 4, "only {count} commands were found, and {mentioned} in prose");
}

#[test]
fn units_start_what_exists() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/systemd");
    let units = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut count = 0;
    for path in units.filter(|path| path.extension().is_some_and(|extension| extension == "service")) {
        let text = fs::read_to_string(&path).unwrap();
        for line in text.lines().filter_map(|line| line.strip_prefix("ExecStart=")) {
            check(line, &path.display().to_string());
            count += 1;
        }
    }
    assert_eq!(count, 4);
}

/// The long flags of the program and of all its commands.
fn flags(command: &clap::Command, all: &mut BTreeSet<String>) {
    all.extend(command.get_arguments().filter_map(|argument| Some(format!("--{}", argument.get_long()?))));
    command.get_subcommands().for_each(|command| flags(command, all));
}

/// The table of flags names all that exist and no others.
#[test]
fn the_table_of_flags_is_complete() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    let text = fs::read_to_string(page).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with("Flags\n")).unwrap();
    let column = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let quoted = column.flat_map(|flags| flags.split('`').filter(|flag| flag.starts_with("--")));
    let documented: BTreeSet<_> = quoted.map(str::to_owned).collect();
    let mut command = Args::command();
    command.build();
    let mut existing = BTreeSet::new();
    flags(&command, &mut existing);
    assert_eq!(documented, existing);
}

/// Each table of events names every kind once, and no other.
#[test]
fn the_tables_of_events_are_complete() {
    let mut kinds = EventKind::ALL.map(EventKind::name);
    kinds.sort_unstable();
    for (page, head, column) in [
        ("README.md", "| Event | Based on |", 1),
        ("docs/events.md", "| Event | Evidence", 1),
        ("docs/export.md", "| Event name | The daemon's", 2),
    ] {
        let text =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(page)).unwrap();
        let table = text.lines().skip_while(|line| !line.starts_with(head)).skip(2);
        let cells = table.map_while(|line| line.strip_prefix('|').map(|_| line.split('|').nth(column)));
        let names = cells.flatten().flat_map(|cell| cell.split('`').skip(1).step_by(2));
        let mut named: Vec<_> = names.filter(|name| EventKind::named(name).is_some()).collect();
        named.sort_unstable();
        assert_eq!(named, kinds, "{page}");
    }
}

#[test]
fn examples_parse() {
    for command in [
        "events",
        "ps",
        "top",
        "verify",
        "status",
        "timeline",
        "record",
        "bugtool",
        "demo",
        "daemon",
        "cri-proxy",
        "export",
        "guard",
        "doctor",
        "completion",
        "man",
    ] {
        assert!(examples::all(command).count() > 0, "{command}");
        for (line, _) in examples::all(command) {
            check(line.trim_start_matches("sudo "), command);
        }
    }
}

#[test]
fn commands_are_found_in_code_only() {
    let text = "kwitness prose\n```console\n# kwitness ps -o json | jq .   # a comment\n$ sudo kwitness events &\nother\n```\n";
    let found = commands(text, "kwitness");
    assert_eq!(found, ["kwitness ps -o json | jq .   # a comment", "kwitness events &"]);
    assert_eq!(words(&found[0]), ["kwitness", "ps", "-o", "json"]);
    let behind = "```\n$ kubectl exec daemonset/kwitness -- kwitness events -n prod\n```";
    assert_eq!(commands(behind, "kwitness"), ["kwitness events -n prod"]);
    assert_eq!(embedded("ExecStart=kwitness daemon"), Some("kwitness daemon"));
    assert_eq!(embedded("kwitness 1.0 watches every node"), None);
    let prose = "`kwitness status` says so, `kwitness events --pod {{ $labels.pod }} -w` too; `jq` and `kwitness` do not.";
    assert_eq!(spans(prose), ["kwitness status", "kwitness events --pod X -w"]);
}
