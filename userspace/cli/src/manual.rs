//! `kwitness completion` and `kwitness man`: made from the arguments and from the list of settings.

use std::io::Write as _;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use crate::args::Args;
use crate::exit::{CODES, Code};
use crate::output::Output;
#[cfg(node)]
use kwitness_agent::config::{DEFAULT_FILE, SETTINGS};
use kwitness_api::DEFAULT_SOCKET;

pub fn completion(shell: Shell) -> anyhow::Result<Code> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "kwitness", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(Code::Success)
}

pub fn man(command: Option<&str>) -> anyhow::Result<Code> {
    let mut root = Args::command();
    root.build();
    let mut page = Vec::new();
    match command {
        Some(name) => {
            let command =
                root.find_subcommand(name).with_context(|| format!("there is no command {name}"))?;
            Man::new(command.clone()).render(&mut page)?;
        }
        None => {
            let man = Man::new(root.after_help(""));
            man.render_title(&mut page)?;
            man.render_name_section(&mut page)?;
            man.render_synopsis_section(&mut page)?;
            man.render_description_section(&mut page)?;
            man.render_options_section(&mut page)?;
            man.render_subcommands_section(&mut page)?;
            sections().to_writer(&mut page)?;
            man.render_version_section(&mut page)?;
        }
    }
    let mut output = Output::new();
    output.text(&String::from_utf8(page).context("the manual page is not UTF-8")?)?;
    output.flush()?;
    Ok(Code::Success)
}

fn sections() -> Roff {
    let mut roff = Roff::new();
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
            "systemd's: readiness is told, and log lines leave the time to journald.",
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
        roman(" (TOML), or the file named with --config. A setting is also taken from --set KEY=VALUE, which wins. \
               All errors are reported together, before anything starts."),
    ]);
    for setting in SETTINGS {
        roff.control("TP", []);
        let default =
            setting.default.map_or_else(|| "not set".to_owned(), |default| format!("default {default}"));
        roff.text([bold(setting.key), roman(format!(" ({default})"))]);
        roff.text([roman(format!("{} Takes {}.", setting.doc, setting.expects))]);
    }
}
