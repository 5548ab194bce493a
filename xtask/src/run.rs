//! Running other programs: the ways xtask does it, each with an error that says what was run and how it ended.
//!
//! Never decides what to run.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

const TAIL: usize = 20;

/// Runs `command` with its output in `log`; a failure quotes the end of the log.
pub fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let mut file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    writeln!(file, "$ {}", whole_line(command)).with_context(|| format!("write {}", log.display()))?;
    let copy = file.try_clone().context("duplicate the log's descriptor")?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(copy)
        .status()
        .with_context(|| format!("start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}; the end of {}:\n{}", line(command), log.display(), tail(log, TAIL));
    }
    Ok(())
}

/// Runs `command` and returns its standard output; a failure quotes its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("start `{}`", line(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` ended with {}:\n{}",
            line(command),
            output.status,
            last_lines(&String::from_utf8_lossy(&output.stderr), TAIL)
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` printed no UTF-8", line(command)))
}

/// Runs `command` on our own standard streams.
pub fn shown(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs a cargo that takes long. On a terminal its own progress is shown; elsewhere its output is in `log`, as [`logged`] has it.
pub fn watched(command: &mut Command, log: &Path) -> Result<()> {
    if std::io::stderr().is_terminal() { shown(command.stdin(Stdio::null())) } else { logged(command, log) }
}

/// A cargo to call from xtask, free of what the cargo that started xtask put into the environment.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        let of_the_package = name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_");
        if of_the_package || name_text == "LD_LIBRARY_PATH" || name_text == "CARGO" {
            command.env_remove(&name);
        }
    }
    command
}

/// What makes cargo show its progress to a person, and leave it out of a log.
pub fn cargo_progress() -> &'static [&'static str] {
    if std::io::stderr().is_terminal() { &[] } else { &["--quiet"] }
}

/// The last `count` lines of a file, or why they cannot be shown.
pub fn tail(path: &Path, count: usize) -> String {
    match std::fs::read(path) {
        Ok(bytes) => last_lines(&String::from_utf8_lossy(&bytes), count),
        Err(error) => format!("({}: {error})", path.display()),
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn line(command: &Command) -> String {
    const LONGEST: usize = 120;
    let whole = whole_line(command);
    match whole.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} …", &whole[..end]),
        None => whole,
    }
}

fn whole_line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_quotes_the_end_of_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let error = logged(Command::new("sh").args(["-c", "seq 100; exit 3"]), &log).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(text.ends_with("\n99\n100"), "{text}");
        assert!(!text.contains("\n80\n"), "{text}");
    }
}
