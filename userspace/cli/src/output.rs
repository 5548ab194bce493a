//! Where output goes: standard output, with colours only where they are seen, and whole messages at a time; notes on
//! standard error.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::path::Path;

use anstream::adapter::strip_str;
use anstream::{AutoStream, ColorChoice};
use anyhow::Context as _;
use clap::ValueEnum;
use kwitness_api::proto;
use kwitness_api::text::{escape, escape_json};
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
    /// Only the pods' names, as pod/NAME; where there are objects with pods, see `ListOutput`
    #[value(skip)]
    Name,
}

/// A value, and which of several nodes has it. In JSON and YAML, `node` is one more field of the value.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct OfNode<'a, T> {
    /// The node's name; none where there is one node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<&'a str>,
    /// The value.
    #[serde(flatten)]
    pub value: &'a T,
}

impl<'a, T> OfNode<'a, T> {
    /// Values of a node.
    #[cfg(feature = "kubectl")]
    pub fn all_of(node: &'a str, values: impl IntoIterator<Item = &'a T>) -> impl Iterator<Item = Self> {
        values.into_iter().map(move |value| Self { node: Some(node), value })
    }

    /// A value of the one node there is.
    pub const fn here(value: &'a T) -> Self {
        Self { node: None, value }
    }

    /// Values of the one node there is.
    pub fn all(values: impl IntoIterator<Item = &'a T>) -> Vec<Self> {
        values.into_iter().map(Self::here).collect()
    }
}

/// Standard output. `--color`, `NO_COLOR`, `CLICOLOR_FORCE` and what is not a terminal are honoured.
pub struct Output {
    stream: io::BufWriter<Standard>,
    colours: bool,
    /// The pods that were named, by UID.
    named: BTreeSet<String>,
}

impl Output {
    /// For this process.
    pub fn new() -> Self {
        let colours = AutoStream::choice(&io::stdout()) != ColorChoice::Never;
        Self { stream: io::BufWriter::new(Standard(io::stdout())), colours, named: BTreeSet::new() }
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

    /// Writes pods as `kubectl get pods -o name` does, each once. One whose name is not known yet has its UID in place of it.
    pub fn pods<'a>(&mut self, pods: impl Iterator<Item = &'a proto::Pod>) -> io::Result<()> {
        for pod in pods {
            if self.named.insert(pod.uid.clone()) {
                self.line(&format!("pod/{}", pod.name.as_ref().unwrap_or(&pod.uid)))?;
            }
        }
        Ok(())
    }

    /// Whether a person sees what is written.
    pub fn is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// Writes a file's contents.
    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Writes a value in a format made for programs.
    pub fn value(&mut self, format: Format, value: &impl Serialize) -> anyhow::Result<()> {
        match format {
            Format::Yaml => yaml(&mut self.stream, value)?,
            Format::Json | Format::Table | Format::Wide | Format::Name => {
                flow(&mut self.stream, value, Escapes::Json)?;
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

/// Standard output, which its errors name.
struct Standard(io::Stdout);

impl Write for Standard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(of_output)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(of_output)
    }
}

fn of_output(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write the output: {error}"))
}

/// Writes a new file, which its owner alone may read; none that exists is replaced, and a part of one does not stay.
pub fn write_new(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).with_context(|| format!("cannot create {}", path.display()))?;
    fill(file, path, contents)
}

fn fill(mut file: File, path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    file.write_all(contents).with_context(|| {
        let left = std::fs::remove_file(path).err();
        let left = left.map_or_else(String::new, |error| format!(" (a part of it stays: {error})"));
        format!("cannot write {}{left}", path.display())
    })
}

/// A note for people, on standard error: one line, whatever is in it.
pub fn note(text: &str) {
    // There is nowhere to report that standard error is closed.
    let _ = writeln!(io::stderr(), "kwitness: {}", escape(text));
}

/// Writes a YAML document that may be seen on a terminal, too. The usual style leaves marks that cannot be seen as they are; the flow
/// style, which JSON is as well, has an escape for each.
fn yaml(to: &mut impl Write, value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_yaml_ng::to_string(value)?;
    to.write_all(b"---\n")?;
    if text.split('\n').all(|line| matches!(escape(line), Cow::Borrowed(_))) {
        return Ok(to.write_all(text.as_bytes())?);
    }
    flow(to, value, Escapes::Yaml)?;
    Ok(to.write_all(b"\n")?)
}

/// Writes a value in one line, with everything escaped in its strings that [`escape`] escapes: JSON itself asks for no more than C0.
/// Parsers read the same text.
fn flow(to: &mut impl Write, value: &impl Serialize, escapes: Escapes) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(to, escapes);
    value.serialize(&mut serializer).map_err(io::Error::from)
}

/// How a string says a character that is not to be seen.
#[derive(Clone, Copy, Debug)]
enum Escapes {
    /// In UTF-16: `\u202e`.
    Json,
    /// By its number, for YAML has no surrogates: `\U0000202e`.
    Yaml,
}

impl serde_json::ser::Formatter for Escapes {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, to: &mut W, fragment: &str) -> io::Result<()> {
        if let Self::Json = self {
            return to.write_all(escape_json(fragment).as_bytes());
        }
        for character in fragment.chars() {
            match escape(character.encode_utf8(&mut [0; 4])) {
                Cow::Borrowed(plain) => to.write_all(plain.as_bytes())?,
                Cow::Owned(_) => write!(to, "\\U{:08x}", u32::from(character))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str =
        "evil\x1b]0;x\x07\n \u{9b}31m \u{202e} \x7f \u{e0041} \\x01 \"größer\" 数据库 \u{1f980}";

    #[test]
    fn a_node_is_one_more_field_of_what_it_has() {
        let event = kwitness_api::proto::Event { kernel_time: 7, ..Default::default() };
        let json = |node| serde_json::to_value(OfNode { node, value: &event }).unwrap();
        assert_eq!(json(None), serde_json::to_value(&event).unwrap());
        let of_node = json(Some("worker-1"));
        assert_eq!((&of_node["node"], &of_node["kernelTime"]), (&"worker-1".into(), &"7".into()));
        let read: kwitness_api::proto::Event = serde_json::from_value(of_node).unwrap();
        assert_eq!(read, event, "clients that do not know of nodes read it as well");
    }

    #[test]
    fn an_error_says_what_could_not_be_written_and_a_reader_that_is_gone_is_known() {
        let full = of_output(io::ErrorKind::StorageFull.into());
        assert!(full.to_string().starts_with("cannot write the output: "), "{full}");
        let closed = anyhow::Error::from(of_output(io::ErrorKind::BrokenPipe.into()));
        assert_eq!(crate::exit::code(Err(closed)), crate::exit::Code::Success);
    }

    #[test]
    fn a_file_that_exists_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("incident.kwr");
        write_new(&path, b"evidence").unwrap();
        let error = format!("{:#}", write_new(&path, b"demo").unwrap_err());
        assert!(error.starts_with(&format!("cannot create {}: File exists", path.display())), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"evidence");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_part_of_a_file_does_not_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("archive");
        std::fs::write(&path, b"a part").unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let error = format!("{:#}", fill(full, &path, b"all of it").unwrap_err());
        assert!(error.starts_with(&format!("cannot write {}: No space left", path.display())), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn json_has_nothing_that_a_terminal_acts_on_and_reads_as_the_same() {
        let mut written = Vec::new();
        flow(&mut written, &HOSTILE, Escapes::Json).unwrap();
        let written = String::from_utf8(written).unwrap();
        assert!(matches!(escape(&written), Cow::Borrowed(_)), "{written}");
        assert!(written.contains("größer") && written.contains("数据库 \u{1f980}"), "{written}");
        assert_eq!(serde_json::from_str::<String>(&written).unwrap(), HOSTILE);
    }

    #[test]
    fn yaml_has_nothing_that_a_terminal_acts_on_and_reads_as_the_same() {
        // Each by itself, for YAML escapes some of them in its usual style, and with them all that is in the same text.
        let texts = HOSTILE.split(' ').chain(["plain", HOSTILE, "a\u{202e}b", "\u{200b}"]);
        for text in texts {
            let value = std::collections::BTreeMap::from([("name", text)]);
            let mut written = Vec::new();
            yaml(&mut written, &value).unwrap();
            let written = String::from_utf8(written).unwrap();
            assert!(written.split('\n').all(|line| matches!(escape(line), Cow::Borrowed(_))), "{written:?}");
            let read: std::collections::BTreeMap<String, String> = serde_yaml_ng::from_str(&written).unwrap();
            assert_eq!(read["name"], text, "{written}");
        }
    }
}
