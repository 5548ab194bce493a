//! Every command that the documentation or the help shows is one that the program accepts, and every flag is documented.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::{CommandFactory as _, Parser as _};

use crate::args::{Args, Command};
use crate::examples;

/// The command lines of a Markdown file: lines of code that begin with `kwitness`, after a prompt and `sudo`.
fn commands(text: &str) -> Vec<String> {
    let mut is_code = false;
    let mut commands = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            continue;
        }
        let line = line.trim_start_matches([' ', '$', '#']).trim_start_matches("sudo ");
        if is_code && line.starts_with("kwitness ") {
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

#[test]
fn documented_commands_parse() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let documents = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let documents = documents.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let mut count = 0;
    for path in documents.chain([root.join("README.md")]) {
        for line in commands(&fs::read_to_string(&path).unwrap()) {
            check(&line, &path.display().to_string());
            count += 1;
        }
    }
    assert!(count >= 8, "only {count} commands were found");
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

#[test]
fn examples_parse() {
    for command in [
        "events",
        "ps",
        "verify",
        "status",
        "timeline",
        "record",
        "bugtool",
        "demo",
        "daemon",
        "cri-proxy",
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
    let found = commands(text);
    assert_eq!(found, ["kwitness ps -o json | jq .   # a comment", "kwitness events &"]);
    assert_eq!(words(&found[0]), ["kwitness", "ps", "-o", "json"]);
}
