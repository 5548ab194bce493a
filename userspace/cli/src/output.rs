//! Where output goes: standard output, with colours only where they are seen, and whole messages at a time; notes on
//! standard error.

use clap::ValueEnum;
use std::io::{self, IsTerminal as _, Write};

use anstream::adapter::strip_str;
use anstream::{AutoStream, ColorChoice};
use kwitness_api::text::escape;
use serde::Serialize;

/// How things are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// An aligned table that fits the terminal
    Table,
    /// A table with more columns, nothing shortened
    Wide,
    /// One JSON object per line
    Json,
    /// YAML documents
    Yaml,
}

/// Standard output. `--color`, `NO_COLOR`, `CLICOLOR_FORCE` and what is not a terminal are honoured.
pub struct Output {
    stream: io::BufWriter<io::Stdout>,
    colours: bool,
}

impl Output {
    /// For this process.
    pub fn new() -> Self {
        let colours = AutoStream::choice(&io::stdout()) != ColorChoice::Never;
        Self { stream: io::BufWriter::new(io::stdout()), colours }
    }

    /// The width that rows are to fit: the terminal's, unless everything is to be shown.
    pub fn width(&self, format: Format) -> Option<usize> {
        if format == Format::Wide || !io::stdout().is_terminal() {
            return None;
        }
        terminal_size::terminal_size_of(io::stdout())
            .map(|(width, _)| width.0.into())
            .filter(|width| *width > 0)
    }

    /// Writes text that is printable already: a table, a manual page.
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        if self.colours {
            self.stream.write_all(text.as_bytes())
        } else {
            write!(self.stream, "{}", strip_str(text))
        }
    }

    /// Writes a line of text from anywhere.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.stream, "{}", escape(text))
    }

    /// Writes a file's contents.
    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Writes a value in a format made for programs.
    pub fn value(&mut self, format: Format, value: &impl Serialize) -> anyhow::Result<()> {
        match format {
            Format::Yaml => {
                self.stream.write_all(b"---\n")?;
                serde_yaml_ng::to_writer(&mut self.stream, value)?;
            }
            Format::Json | Format::Table | Format::Wide => {
                serde_json::to_writer(&mut self.stream, value).map_err(io::Error::from)?;
                self.stream.write_all(b"\n")?;
            }
        }
        Ok(())
    }

    /// Makes everything visible.
    pub fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A note for people, on standard error: one line, whatever is in it.
pub fn note(text: &str) {
    // There is nowhere to report that standard error is closed.
    let _ = writeln!(io::stderr(), "kwitness: {}", escape(text));
}
