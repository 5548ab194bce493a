//! Aligned columns, for a list and for a stream: a column only ever grows, so that what comes later stays below what
//! came before. Never shortens a cell.

use std::fmt::Write as _;

use anstyle::Style;

/// Between two columns.
const GAP: usize = 3;

/// A cell: its text, and how it looks on a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// With a style.
    pub fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), style: Style::new() }
    }
}

/// The columns, and how wide each has become.
#[derive(Clone, Debug)]
pub struct Table<const N: usize> {
    columns: [&'static str; N],
    widths: [usize; N],
}

impl<const N: usize> Table<N> {
    /// With these headings, each at least so wide.
    pub fn new(columns: [(&'static str, usize); N]) -> Self {
        let widths = columns.map(|(heading, width)| width.max(heading.len()));
        Self { columns: columns.map(|(heading, _)| heading), widths }
    }

    /// Makes room for the rows.
    pub fn fit(&mut self, rows: &[[Cell; N]]) {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
    }

    /// The headings.
    pub fn header(&self) -> String {
        self.line(&self.columns.map(|heading| Cell::styled(heading, Style::new().bold())))
    }

    /// A row.
    pub fn line(&self, row: &[Cell; N]) -> String {
        let mut line = String::new();
        for (index, (Cell { text, style }, width)) in row.iter().zip(self.widths).enumerate() {
            // Writing to a string does not fail.
            let _ = write!(line, "{style}{text}{style:#}");
            if index + 1 < N {
                let fill = (width + GAP).saturating_sub(text.chars().count()).max(1);
                let _ = write!(line, "{:fill$}", "");
            }
        }
        line.push('\n');
        line
    }

    /// All of it: headings and rows.
    pub fn render(mut self, rows: &[[Cell; N]]) -> String {
        self.fit(rows);
        std::iter::once(self.header()).chain(rows.iter().map(|row| self.line(row))).collect()
    }
}
