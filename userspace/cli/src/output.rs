//! Where output goes: standard output, with colours only where they are seen, and whole messages at a time.

use std::io::{self, Write};

use anstream::adapter::strip_str;
use anstream::{AutoStream, ColorChoice};
use serde::Serialize;

use crate::args::Format;

/// Standard output. `NO_COLOR`, `CLICOLOR_FORCE` and what is not a terminal are honoured.
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

    /// Writes text.
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        if self.colours {
            self.stream.write_all(text.as_bytes())
        } else {
            write!(self.stream, "{}", strip_str(text))
        }
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

    /// Lets everything be seen.
    pub fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
