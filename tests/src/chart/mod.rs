//! What containers used of a limit, on one time line: as lines for a terminal, and as a picture for the documentation.
//!
//! Owns how it looks. What is drawn, and what it proves, is the business of the demo that measured it.

mod svg;
mod terminal;

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Chart {
    pub title: &'static str,
    pub unit: Unit,
    pub busy: &'static str,
    pub panels: Vec<Panel>,
    pub notes: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Panel {
    pub name: &'static str,
    pub end: String,
    pub points: Vec<Point>,
}

/// A container at one moment; amounts are in the chart's [`Unit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub at: Duration,
    pub used: u64,
    pub limit: Option<u64>,
    /// Where something happens before the limit, if it does.
    pub threshold: Option<u64>,
    pub mark: Mark,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    #[default]
    None,
    /// A raise is in force, by the daemon's verdict.
    InForce,
    /// What [`Chart::busy`] says.
    Busy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Memory, in bytes.
    Memory,
    /// Time of processors, in thousandths of one.
    Cpu,
}

impl Unit {
    /// An amount, in seven columns at most.
    fn label(self, amount: u64) -> String {
        match self {
            Self::Memory => format!("{} MiB", amount >> 20),
            Self::Cpu => format!("{amount}m"),
        }
    }

    const fn grid(self) -> u64 {
        match self {
            Self::Memory => 64 << 20,
            Self::Cpu => 500,
        }
    }
}

impl Chart {
    /// For a terminal: lines of at most 80 columns.
    pub fn lines(&self) -> Vec<String> {
        terminal::lines(self)
    }

    /// For the documentation: light and dark.
    pub fn svg(&self) -> String {
        svg::picture(self)
    }

    pub fn duration(&self) -> Duration {
        self.panels.iter().filter_map(|panel| Some(panel.points.last()?.at)).max().unwrap_or_default()
    }

    fn top(&self) -> u64 {
        let highest = self.points().map(|point| point.used.max(point.limit.unwrap_or_default())).max();
        highest.unwrap_or_default().max(self.unit.grid()) / 8 * 9
    }

    fn has_threshold(&self) -> bool {
        self.points().any(|point| point.threshold.is_some())
    }

    fn points(&self) -> impl Iterator<Item = &Point> {
        self.panels.iter().flat_map(|panel| &panel.points)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three containers of ten seconds: one of half a processor, one that was raised to two after three seconds, one without a limit.
    fn chart() -> Chart {
        let panel = |name, points: &dyn Fn(u64) -> (u64, Option<u64>, Mark)| Panel {
            name,
            end: "ready after 10.0 s".to_owned(),
            points: (0..=10)
                .map(|second| {
                    let (used, limit, mark) = points(second);
                    Point { at: Duration::from_secs(second), used, limit, threshold: None, mark }
                })
                .collect(),
        };
        Chart {
            title: "A start",
            unit: Unit::Cpu,
            busy: "starting",
            panels: vec![
                panel("no boost", &|_| (500, Some(500), Mark::Busy)),
                panel("boost", &|second| match second {
                    0..3 => (500, Some(500), Mark::Busy),
                    _ => (1000, Some(2000), Mark::InForce),
                }),
                panel("no limit", &|_| (900, None, Mark::Busy)),
            ],
            notes: vec!["one <note>".to_owned(), "another".to_owned()],
        }
    }

    #[test]
    fn lines_have_80_columns_at_most_and_every_panel() {
        let lines = chart().lines();
        let text = lines.join("\n");
        println!("{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
        for part in ["no boost: ready", "  boost: ready", "no limit: ready", "■ starting", "✓✓✓", "another"]
        {
            assert!(text.contains(part), "no {part}:\n{text}");
        }
        assert!(!text.contains("threshold"), "there is none:\n{text}");
    }

    #[test]
    fn a_picture_has_every_panel_and_every_element_is_closed() {
        let svg = chart().svg();
        println!("{svg}");
        assert_eq!(svg.matches("class=\"usage\"").count(), 3, "{svg}");
        assert_eq!(svg.matches("class=\"limit\"").count(), 2, "one has no limit: {svg}");
        assert_eq!(svg.matches("class=\"busy\"").count(), 3, "{svg}");
        assert_eq!(svg.matches("<text ").count(), svg.matches("</text>").count(), "{svg}");
        assert!(svg.contains("one &lt;note>") && !svg.contains("threshold\""), "{svg}");
        assert!(!svg.contains("NaN") && svg.ends_with("</svg>\n"), "{svg}");
    }

    #[test]
    fn nothing_to_draw_is_no_error() {
        let chart = Chart { panels: Vec::new(), notes: Vec::new(), ..chart() };
        assert!(!chart.lines().is_empty());
        assert!(!chart.svg().contains("NaN"));
    }
}
