//! Aligned columns, for a list and for a stream.
//!
//! Owns what is shortened, and when: on a terminal every row fits its width, and after the headings no column moves; elsewhere,
//! and where the caller gives no width, nothing is shortened and columns only grow. Other people's text is escaped here, as it
//! becomes a [`Cell`].

use std::fmt::Write as _;

use anstyle::Style;
use kwitness_api::text::escape;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Between two columns.
const GAP: usize = 2;
/// No column is made narrower, not even on a terminal that is too small.
const NARROWEST: usize = 4;

/// A cell: printable text, and how it looks on a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// With a style.
    pub fn styled(text: impl AsRef<str>, style: Style) -> Self {
        Self { text: escape(text.as_ref()).into_owned(), style }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::new())
    }
}

/// How a column gives way where there is not enough room, and down to which width.
#[derive(Clone, Copy, Debug)]
pub enum Fit {
    /// A cell is never shortened.
    Whole,
    /// The middle is left out: names differ at both ends.
    Middle(usize),
    /// The end is left out.
    End(usize),
}

/// The columns, and how wide each has become.
#[derive(Clone, Debug)]
pub struct Table {
    headings: Vec<String>,
    fits: Vec<Fit>,
    /// What the cells so far would take.
    natural: Vec<usize>,
    widths: Vec<usize>,
    /// The width of the terminal.
    limit: Option<usize>,
    gap: usize,
    is_fixed: bool,
}

impl Table {
    /// Without columns; `limit` is the width of the terminal, if rows are to fit one.
    pub fn new(limit: Option<usize>) -> Self {
        Self {
            headings: Vec::new(),
            fits: Vec::new(),
            natural: Vec::new(),
            widths: Vec::new(),
            limit,
            gap: GAP,
            is_fixed: false,
        }
    }

    /// With one space between two columns, for many narrow ones.
    pub fn dense(self) -> Self {
        Self { gap: 1, ..self }
    }

    /// With one more column, at least so wide if there is room.
    pub fn column(mut self, heading: impl Into<String>, width: usize, fit: Fit) -> Self {
        let heading = heading.into();
        self.natural.push(width.max(heading.width()));
        self.fits.push(fit);
        self.headings.push(heading);
        self.widths = self.fitted();
        self
    }

    /// Makes room for the rows, unless the headings stand already on a terminal.
    pub fn fit(&mut self, rows: &[Vec<Cell>]) {
        if self.is_fixed {
            return;
        }
        for row in rows {
            for (natural, cell) in self.natural.iter_mut().zip(row) {
                *natural = (*natural).max(cell.text.width());
            }
        }
        self.widths = self.fitted();
    }

    /// The widths that the terminal has room for.
    fn fitted(&self) -> Vec<usize> {
        let mut widths = self.natural.clone();
        let (Some(limit), Some(last)) = (self.limit, widths.len().checked_sub(1)) else { return widths };
        let total = |widths: &[usize]| widths.iter().sum::<usize>() + self.gap * last;
        let floor = |index: usize| match self.fits[index] {
            Fit::Whole => usize::MAX,
            Fit::Middle(floor) | Fit::End(floor) => floor,
        };
        for is_desperate in [false, true] {
            let floor =
                |index| if is_desperate && floor(index) < usize::MAX { NARROWEST } else { floor(index) };
            while total(&widths) > limit {
                let widest = (0..=last)
                    .filter(|index| widths[*index] > floor(*index))
                    .max_by_key(|index| widths[*index]);
                let Some(widest) = widest else { break };
                widths[widest] -= 1;
            }
        }
        if matches!(self.fits[last], Fit::End(_)) {
            widths[last] += limit.saturating_sub(total(&widths));
        }
        widths
    }

    /// The headings.
    pub fn header(&mut self) -> String {
        self.is_fixed = self.limit.is_some();
        self.line(&self.headings())
    }

    /// The headings, as a row.
    pub fn headings(&self) -> Vec<Cell> {
        self.headings.iter().map(|heading| Cell::styled(heading, Style::new().bold())).collect()
    }

    /// A row.
    pub fn line(&self, row: &[Cell]) -> String {
        let mut line = String::new();
        for (text, style) in self.spans(row) {
            // Writing to a string does not fail.
            let _ = write!(line, "{style}{text}{style:#}");
        }
        line.push('\n');
        line
    }

    /// A row, the last cell on as many lines as it takes.
    pub fn wrapped(&self, row: &[Cell]) -> String {
        let (Some(limit), Some((last, others))) = (self.limit, row.split_last()) else {
            return self.line(row);
        };
        let before: usize = self.widths.iter().take(others.len()).map(|width| width + self.gap).sum();
        let lines = wrap(&last.text, &" ".repeat(before), limit);
        let (first, rest) = lines.split_at(1);
        let first = first.iter().map(|line| Cell::styled(line.trim_start(), last.style));
        let mut text = self.line(&others.iter().cloned().chain(first).collect::<Vec<_>>());
        rest.iter().for_each(|line| text += &format!("{line}\n"));
        text
    }

    /// A row's cells as they fit, each with its style, and the spaces between them.
    pub fn spans(&self, row: &[Cell]) -> Vec<(String, Style)> {
        let mut spans = Vec::new();
        for (index, (Cell { text, style }, width)) in row.iter().zip(&self.widths).enumerate() {
            let text = match self.fits[index] {
                Fit::Middle(_) if self.limit.is_some() => without_middle(text, *width),
                Fit::End(_) if self.limit.is_some() => without_end(text, *width),
                _ => text.clone(),
            };
            let fill = (width + self.gap).saturating_sub(text.width()).max(1);
            spans.push((text, *style));
            if index + 1 < row.len() {
                spans.push((" ".repeat(fill), Style::new()));
            }
        }
        spans
    }

    /// All of it: headings and rows.
    pub fn render(mut self, rows: &[Vec<Cell>]) -> String {
        self.fit(rows);
        let header = self.header();
        std::iter::once(header).chain(rows.iter().map(|row| self.line(row))).collect()
    }
}

/// Breaks at spaces, and within words that are longer than a line.
pub fn wrap(text: &str, indent: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = indent.to_owned();
    // What is escaped only when it is printed is wider than it was here.
    for word in escape(text).split(' ') {
        let is_begun = line.len() > indent.len();
        if is_begun && line.width() + 1 + word.width() > width {
            lines.push(std::mem::replace(&mut line, indent.to_owned()));
        } else if is_begun {
            line.push(' ');
        }
        for character in word.chars() {
            if line.width() + character.width().unwrap_or(0) > width.max(indent.len() + 2) {
                lines.push(std::mem::replace(&mut line, indent.to_owned()));
            }
            line.push(character);
        }
    }
    lines.push(line);
    lines
}

/// A line on as many as it takes on a terminal, the others indented further.
#[cfg(any(node, test))]
pub fn hanging(line: &str, width: Option<usize>) -> Vec<String> {
    let Some(width) = width else { return vec![line.to_owned()] };
    let text = line.trim_start();
    let indent = line.len() - text.len();
    let mut lines = wrap(text, &" ".repeat(indent + 2), width);
    if let Some(first) = lines.first_mut() {
        first.replace_range(..2, "");
    }
    lines
}

/// The beginning that is not wider.
pub fn beginning(text: &str, width: usize) -> &str {
    let mut used = 0;
    let end = text.char_indices().find(|(_, character)| {
        used += character.width().unwrap_or(0);
        used > width
    });
    end.map_or(text, |(end, _)| &text[..end])
}

fn without_end(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    format!("{}…", beginning(text, width.saturating_sub(1)))
}

fn without_middle(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let head = beginning(text, width / 2);
    let tail = width.saturating_sub(head.width() + 1);
    let reversed: String = text.chars().rev().collect();
    let tail: String = beginning(&reversed, tail).chars().rev().collect();
    format!("{head}…{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Vec<String> {
        anstream::adapter::strip_str(text).to_string().lines().map(str::to_owned).collect()
    }

    fn table(limit: Option<usize>) -> Table {
        Table::new(limit).column("TIME", 8, Fit::Whole).column("POD", 0, Fit::Middle(12)).column(
            "DETAIL",
            0,
            Fit::End(16),
        )
    }

    #[test]
    fn a_cell_cannot_forge_a_row_nor_reach_the_terminal() {
        let rows = [vec!["12:00".into(), "web".into(), "x\n12:00  bank\x1b]0;owned\x07\u{202e}".into()]];
        for limit in [None, Some(200)] {
            let text = table(limit).render(&rows);
            let lines = plain(&text);
            assert_eq!(lines.len(), 2, "{text}");
            assert!(lines[1].ends_with("x\\n12:00  bank\\x1b]0;owned\\x07\\u{202e}"), "{text}");
        }
    }

    #[test]
    fn rows_fit_the_terminal_and_stay_below_their_headings() {
        let long = vec![
            "12:00:00".into(),
            "a-deployment-5d9c7b8f6d-x2x7p".into(),
            "a detail that is longer than what is left of the line".into(),
        ];
        for limit in [40, 60, 80, 120] {
            let mut table = table(Some(limit));
            let mut lines = plain(&table.header());
            table.fit(std::slice::from_ref(&long));
            lines.extend(plain(&table.line(&long)));
            assert!(lines.iter().all(|line| line.width() <= limit), "{limit}: {lines:#?}");
            let at = lines[0].find("DETAIL").unwrap();
            let before: String = lines[1].chars().take(at).collect();
            assert!(before.ends_with("  "), "{lines:#?}");
        }
        let rows = plain(&table(Some(60)).render(&[long]));
        assert_eq!(rows[1], "12:00:00  a-deployment…b8f6d-x2x7p  a detail that is longer…");
    }

    #[test]
    fn a_wrapped_row_loses_no_word() {
        let detail =
            "OOMKilled by the container limit (24Mi of 24Mi): tail (864), while head (863) was allocating";
        let row = vec!["12:00:00".into(), "web-0".into(), detail.into()];
        let mut table = table(Some(60));
        table.fit(std::slice::from_ref(&row));
        let lines = plain(&table.wrapped(&row));
        assert!(lines.len() > 1 && lines.iter().all(|line| line.width() <= 60), "{lines:#?}");
        let at = lines[0].find("OOMKilled").unwrap();
        assert!(lines[1..].iter().all(|line| line[..at].trim().is_empty()), "{lines:#?}");
        let words: Vec<_> = lines.iter().flat_map(|line| line[at..].split_whitespace()).collect();
        assert_eq!(words.join(" "), detail);
        assert_eq!(table.wrapped(&["a".into(), "b".into(), "c".into()]).lines().count(), 1);
    }

    #[test]
    fn a_pipe_gets_everything() {
        let rows = [vec!["12".into(), "a".repeat(300).into(), "b".repeat(300).into()]];
        let lines = plain(&table(None).render(&rows));
        assert!(lines[1].ends_with(&"b".repeat(300)) && lines[1].contains(&"a".repeat(300)));
        assert_eq!(lines[0].find("DETAIL"), lines[1].find('b'));
    }

    #[test]
    fn wide_characters_take_two_columns() {
        let lines = plain(
            &Table::new(None)
                .column("A", 0, Fit::Whole)
                .column("B", 0, Fit::Whole)
                .render(&[vec!["数据".into(), "x".into()], vec!["abcd".into(), "y".into()]]),
        );
        assert_eq!(lines, ["A     B", "数据  x", "abcd  y"]);
        assert_eq!(without_middle("数据库数据库", 7), "数…据库");
        assert_eq!(without_end("数据库", 4), "数…");
    }

    #[test]
    fn a_line_hangs_below_its_indent() {
        let line = format!("  oom_scope: {}", "a remedy ".repeat(20));
        let lines = hanging(line.trim_end(), Some(80));
        assert!(lines.len() > 1 && lines.iter().all(|line| line.len() <= 80), "{lines:#?}");
        assert!(lines[0].starts_with("  oom_scope") && lines[1].starts_with("    remedy"), "{lines:#?}");
        assert_eq!(lines.join(" ").split_whitespace().count(), 41);
        assert_eq!(hanging(&line, None), [line]);
    }
}
