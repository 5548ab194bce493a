//! `kwitness completion` and `kwitness man`: made from the arguments and from the list of settings.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_complete::env::Shells;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
#[cfg(node)]
use kwitness_agent::config::{DEFAULT_FILE, SETTINGS};
use kwitness_api::DEFAULT_SOCKET;

use crate::args::Args;
use crate::examples;
use crate::exit::{CODES, Code};
use crate::output::Output;

/// Scripts that ask the program itself, which knows what is on the node.
pub fn completion(shell: Shell) -> anyhow::Result<Code> {
    let mut script = Vec::new();
    match Shells::builtins().completer(&shell.to_string()) {
        Some(completer) => {
            completer.write_registration("COMPLETE", "kwitness", "kwitness", "kwitness", &mut script)?;
        }
        None => clap_complete::generate(shell, &mut Args::command(), "kwitness", &mut script),
    }
    let mut output = Output::new();
    output.bytes(&script)?;
    output.flush()?;
    Ok(Code::Success)
}

/// The section of a command's page: what runs on a node, and is its administrator's, is in 8.
#[cfg_attr(not(node), expect(unused_variables, reason = "only the commands of a node are in 8"))]
fn section(command: &str) -> &'static str {
    #[cfg(node)]
    let is_of_node = <crate::node::Command as clap::Subcommand>::has_subcommand(command);
    #[cfg(not(node))]
    let is_of_node = false;
    if is_of_node { "8" } else { "1" }
}

pub fn man(command: Option<&str>, directory: Option<&Path>) -> anyhow::Result<Code> {
    let mut root = Args::command();
    root.build();
    if let Some(directory) = directory {
        write(directory, "kwitness", &page(&root, None)?)?;
        for command in root.get_subcommands().filter(|command| is_documented(command)) {
            write(directory, command.get_name(), &page(&root, Some(command.get_name()))?)?;
        }
        return Ok(Code::Success);
    }
    let mut output = Output::new();
    output.text(&String::from_utf8(page(&root, command)?).context("the manual page is not UTF-8")?)?;
    output.flush()?;
    Ok(Code::Success)
}

fn is_documented(command: &clap::Command) -> bool {
    !command.is_hide_set() && command.get_name() != "help"
}

fn write(directory: &Path, command: &str, page: &[u8]) -> anyhow::Result<()> {
    let section = section(command);
    let directory = directory.join(format!("man{section}"));
    let name = if command == "kwitness" { command.to_owned() } else { format!("kwitness-{command}") };
    let file = directory.join(format!("{name}.{section}"));
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    fs::write(&file, page).with_context(|| format!("cannot write {}", file.display()))
}

fn page(root: &clap::Command, command: Option<&str>) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    let Some(name) = command else {
        let man = Man::new(root.clone().after_help(""));
        man.render_title(&mut page)?;
        man.render_name_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
        sections(root).to_writer(&mut page)?;
        man.render_version_section(&mut page)?;
        return Ok(page);
    };
    let command = root.find_subcommand(name).with_context(|| format!("there is no command {name}"))?;
    let man =
        Man::new(command.clone().after_help("")).title(format!("kwitness-{name}")).section(section(name));
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]);
    for (line, what) in examples::all(name) {
        roff.control("TP", []);
        roff.text([bold(line)]);
        roff.text([roman(what)]);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold("kwitness"), roman("(1)")]);
    roff.to_writer(&mut page)?;
    Ok(page)
}

fn sections(root: &clap::Command) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    for command in root.get_subcommands().filter(|command| is_documented(command)) {
        let name = command.get_name();
        roff.control("TP", []);
        roff.text([bold(format!("kwitness-{name}")), roman(format!("({})", section(name)))]);
        roff.text([roman(command.get_about().map(ToString::to_string).unwrap_or_default())]);
    }
    #[cfg(node)]
    configuration(&mut roff);
    roff.control("SH", ["FILES"]);
    for (file, what) in [
        #[cfg(node)]
        (DEFAULT_FILE, "The daemon's configuration."),
        (DEFAULT_SOCKET, "The daemon's API."),
    ] {
        roff.control("TP", []);
        roff.text([italic(file)]);
        roff.text([roman(what)]);
    }
    roff.control("SH", ["ENVIRONMENT"]);
    for (name, what) in [
        ("KWITNESS_SOCKET", "The daemon's socket, where --socket is not given."),
        ("NO_COLOR", "If set, no colours."),
        (
            "NOTIFY_SOCKET, JOURNAL_STREAM",
            "Set by systemd: readiness is reported, and log lines leave the time to journald.",
        ),
    ] {
        roff.control("TP", []);
        roff.text([bold(name)]);
        roff.text([roman(what)]);
    }
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in CODES {
        roff.control("TP", []);
        roff.text([bold(*code)]);
        roff.text([roman(*meaning)]);
    }
    roff
}

#[cfg(node)]
fn configuration(roff: &mut Roff) {
    roff.control("SH", ["CONFIGURATION"]);
    roff.text([
        roman("The daemon reads "),
        italic(DEFAULT_FILE),
        roman(
            " (TOML), or the file named with --config. --set KEY=VALUE replaces a setting of the file. \
               The whole configuration is validated at startup and all errors are reported together.",
        ),
    ]);
    for setting in SETTINGS {
        roff.control("TP", []);
        let default =
            setting.default.map_or_else(|| "not set".to_owned(), |default| format!("default {default}"));
        roff.text([bold(setting.key), roman(format!(" ({default})"))]);
        roff.text([roman(format!("{} Takes {}.", setting.doc, setting.expects))]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_in_its_section() {
        let directory = tempfile::tempdir().unwrap();
        man(None, Some(directory.path())).unwrap();
        let events = fs::read_to_string(directory.path().join("man1/kwitness-events.1")).unwrap();
        assert!(events.contains(".SH EXAMPLES") && events.contains(".TH kwitness-events 1"), "{events}");
        let root = fs::read_to_string(directory.path().join("man1/kwitness.1")).unwrap();
        assert!(root.contains("kwitness\\-events") && !root.contains("kwitness\\-get"), "{root}");
        #[cfg(node)]
        for command in ["daemon", "guard", "doctor"] {
            assert!(directory.path().join(format!("man8/kwitness-{command}.8")).exists(), "{command}");
        }
    }
}
