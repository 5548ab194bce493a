//! The chart as a picture for the documentation: the containers side by side, in light and dark.

use std::time::Duration;

use super::{Chart, Mark, Panel, Point, Unit};

const WIDTH: f64 = 960.0;
/// Without the notes.
const HEIGHT: f64 = 348.0;
/// The first panel's left edge, and what is between two: both have the names of amounts in it.
const LEFT: f64 = 64.0;
const GAP: f64 = 60.0;
const RIGHT: f64 = WIDTH - 16.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 290.0;
const LINE: f64 = 20.0;

const STYLE: &str = "\
  svg { color-scheme: light dark; font: 13px system-ui, sans-serif; }
  .ground { fill: #ffffff; } text { fill: #1f2328; } .soft { fill: #59636e; } .axis { stroke: #d1d9e0; }
  .usage { fill: #0969da; fill-opacity: .25; stroke: #0969da; stroke-width: 1.5; }
  .limit { fill: none; stroke: #cf222e; stroke-width: 2; }
  .threshold { fill: none; stroke: #9a6700; stroke-dasharray: 4 4; }
  .busy { fill: #9a6700; fill-opacity: .18; }
  .end { font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117; } text { fill: #f0f6fc; } .soft { fill: #9198a1; } .axis { stroke: #3d444d; }
    .usage { fill: #4493f8; stroke: #4493f8; } .limit { stroke: #f85149; }
    .threshold { stroke: #d29922; } .busy { fill: #d29922; }
  }
";

/// Where a time and an amount are in a panel; all panels have the same scales.
#[derive(Clone, Copy)]
struct Scale {
    left: f64,
    width: f64,
    whole: f64,
    top: f64,
    unit: Unit,
}

impl Scale {
    fn x(self, at: Duration) -> f64 {
        self.left + self.width * at.as_secs_f64() / self.whole
    }

    fn y(self, amount: u64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * amount as f64 / self.top
    }

    fn points(self, points: &[Point], amount: impl Fn(&Point) -> Option<u64>) -> Option<String> {
        let points = points.iter().filter_map(|point| {
            let (x, y) = (self.x(point.at), self.y(amount(point)?));
            Some(format!("{x:.1},{y:.1}"))
        });
        let points: Vec<_> = points.collect();
        (!points.is_empty()).then(|| points.join(" "))
    }
}

pub(super) fn picture(chart: &Chart) -> String {
    let height = HEIGHT + LINE * chart.notes.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>{}</title>\n\
         <style>\n{STYLE}</style>\n<rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\"/>\n",
        escaped(chart.title)
    );
    let count = chart.panels.len().max(1) as f64;
    let width = (RIGHT - LEFT - GAP * (count - 1.0)) / count;
    let whole = chart.duration().as_secs_f64().max(0.001);
    let (top, unit) = (chart.top() as f64, chart.unit);
    for (number, of) in chart.panels.iter().enumerate() {
        let left = LEFT + number as f64 * (width + GAP);
        svg += &panel(Scale { left, width, whole, top, unit }, of);
    }
    let threshold = if chart.has_threshold() { "; dashed: threshold" } else { "" };
    let legend = format!("blue: usage; red: limit{threshold}; shaded: {}", chart.busy);
    for (number, text) in std::iter::once(&legend).chain(&chart.notes).enumerate() {
        svg += &label(LEFT, HEIGHT - 14.0 + number as f64 * LINE, "soft", "start", text);
    }
    svg += "</svg>\n";
    svg
}

fn panel(scale: Scale, panel: &Panel) -> String {
    let Scale { left, width, whole, top, unit } = scale;
    let right = left + width;
    let mut svg = label(left, 26.0, "end", "start", panel.name);
    svg += &label(right, 26.0, "end", "end", &panel.end);
    for amount in (0..=top as u64).step_by(unit.grid() as usize) {
        let y = scale.y(amount);
        svg += &line((left, y), (right, y));
        svg += &label(left - 6.0, y + 4.0, "soft", "end", &unit.label(amount));
    }
    svg += &label(left, BOTTOM + LINE, "soft", "start", "0");
    svg += &label(right, BOTTOM + LINE, "soft", "end", &format!("{whole:.0} s"));
    let (Some(first), Some(last)) = (panel.points.first(), panel.points.last()) else { return svg };
    for phase in panel.points.chunk_by(|a, b| a.mark == b.mark) {
        let (from, to) = (scale.x(phase[0].at), scale.x(phase[phase.len() - 1].at));
        match phase[0].mark {
            Mark::None => {}
            Mark::Busy => {
                let (width, height) = ((to - from).max(1.0), BOTTOM - TOP);
                svg += &format!(
                    "<rect class=\"busy\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\"/>\n"
                );
            }
            Mark::InForce => svg += &label(from + 4.0, BOTTOM - 8.0, "soft", "start", "✓ raise in force"),
        }
    }
    if let Some(usage) = scale.points(&panel.points, |point| Some(point.used)) {
        let (from, to) = (scale.x(first.at), scale.x(last.at));
        svg +=
            &format!("<polygon class=\"usage\" points=\"{from:.1},{BOTTOM} {usage} {to:.1},{BOTTOM}\"/>\n");
    }
    svg += &polyline("threshold", scale.points(&panel.points, |point| point.threshold));
    svg += &polyline("limit", scale.points(&panel.points, |point| point.limit));
    svg
}

fn polyline(class: &str, points: Option<String>) -> String {
    points.map_or_else(String::new, |points| format!("<polyline class=\"{class}\" points=\"{points}\"/>\n"))
}

fn line((x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> String {
    format!("<line class=\"axis\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>\n")
}

fn label(x: f64, y: f64, class: &str, anchor: &str, text: &str) -> String {
    let text = escaped(text);
    format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>\n")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
