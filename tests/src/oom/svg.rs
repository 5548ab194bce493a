//! The run as a picture for the documentation: both containers side by side, in light and dark.

use std::time::Duration;

use super::{Life, MIB, Run, Sample, State, outcome, threshold};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 360.0;
/// Of one panel; both have the same scales.
const PANEL: f64 = 410.0;
const LEFT: [f64; 2] = [64.0, 534.0];
const TOP: f64 = 56.0;
const BOTTOM: f64 = 290.0;
/// Between two marks of the axis.
const MARK: u64 = 64 * MIB;

const STYLE: &str = "\
  svg { color-scheme: light dark; font: 13px system-ui, sans-serif; }
  .ground { fill: #ffffff; } text { fill: #1f2328; } .soft { fill: #59636e; } .axis { stroke: #d1d9e0; }
  .usage { fill: #0969da; fill-opacity: .25; stroke: #0969da; stroke-width: 1.5; }
  .limit { fill: none; stroke: #cf222e; stroke-width: 2; }
  .threshold { fill: none; stroke: #9a6700; stroke-dasharray: 4 4; }
  .held { fill: #9a6700; fill-opacity: .18; }
  .end { font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117; } text { fill: #f0f6fc; } .soft { fill: #9198a1; } .axis { stroke: #3d444d; }
    .usage { fill: #4493f8; stroke: #4493f8; } .limit { stroke: #f85149; }
    .threshold { stroke: #d29922; } .held { fill: #d29922; }
  }
";

/// Where a time and an amount are in a panel.
#[derive(Clone, Copy)]
struct Scale {
    left: f64,
    whole: f64,
    top: f64,
}

impl Scale {
    fn x(self, at: Duration) -> f64 {
        self.left + PANEL * at.as_secs_f64() / self.whole
    }

    fn y(self, bytes: u64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * bytes as f64 / self.top
    }

    fn points(self, samples: &[Sample], level: impl Fn(&Sample) -> u64) -> String {
        let points = samples.iter().map(|sample| {
            let (x, y) = (self.x(sample.at), self.y(level(sample)));
            format!("{x:.1},{y:.1}")
        });
        points.collect::<Vec<_>>().join(" ")
    }
}

pub(super) fn picture(run: &Run) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
         <title>The same work in a container of 64 MiB, without and with kwitness guard</title>\n\
         <style>\n{STYLE}</style>\n<rect class=\"ground\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n"
    );
    // Room above the highest limit.
    let whole = run.duration().as_secs_f64().max(0.001);
    let top = (run.top() / 8 * 9) as f64;
    for (left, name, life) in
        [(LEFT[0], "Without the guard", &run.unguarded), (LEFT[1], "With the guard", &run.guarded)]
    {
        svg += &panel(Scale { left, whole, top }, name, life);
    }
    svg += &label(
        LEFT[0],
        HEIGHT - 18.0,
        "soft",
        "start",
        "blue: usage; red: limit; dashed: threshold; shaded: held",
    );
    let outcome = run.holds.iter().find(|hold| hold.raised_to.is_some()).or(run.holds.first()).map(outcome);
    svg += &label(LEFT[1], HEIGHT - 18.0, "soft", "start", &outcome.unwrap_or_default());
    svg += "</svg>\n";
    svg
}

fn panel(scale: Scale, name: &str, life: &Life) -> String {
    let Scale { left, whole, .. } = scale;
    let right = left + PANEL;
    let mut svg = label(left, 26.0, "end", "start", name);
    svg += &label(right, 26.0, "end", "end", &life.end());
    for bytes in (0..=scale.top as u64).step_by(MARK as usize) {
        let y = scale.y(bytes);
        svg += &line((left, y), (right, y));
        svg += &label(left - 6.0, y + 4.0, "soft", "end", &format!("{} MiB", bytes / MIB));
    }
    svg += &label(left, BOTTOM + 20.0, "soft", "start", "0");
    svg += &label(right, BOTTOM + 20.0, "soft", "end", &format!("{whole:.0} s"));
    let (Some(first), Some(last)) = (life.samples.first(), life.samples.last()) else { return svg };
    for phase in life.samples.chunk_by(|a, b| a.state == b.state) {
        let (from, to) = (scale.x(phase[0].at), scale.x(phase[phase.len() - 1].at));
        match phase[0].state {
            State::Free => {}
            State::Held => {
                let (width, height) = ((to - from).max(1.0), BOTTOM - TOP);
                svg += &format!(
                    "<rect class=\"held\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\"/>\n"
                );
            }
            State::InForce => svg += &label(from + 4.0, BOTTOM - 8.0, "soft", "start", "✓ raise in force"),
        }
    }
    let usage = scale.points(&life.samples, |sample| sample.usage);
    let (from, to) = (scale.x(first.at), scale.x(last.at));
    svg += &format!("<polygon class=\"usage\" points=\"{from:.1},{BOTTOM} {usage} {to:.1},{BOTTOM}\"/>\n");
    svg += &polyline("threshold", &scale.points(&life.samples, |sample| threshold(sample.limit)));
    svg += &polyline("limit", &scale.points(&life.samples, |sample| sample.limit));
    svg
}

fn polyline(class: &str, points: &str) -> String {
    format!("<polyline class=\"{class}\" points=\"{points}\"/>\n")
}

fn line((x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> String {
    format!("<line class=\"axis\" x1=\"{x1}\" y1=\"{y1:.1}\" x2=\"{x2}\" y2=\"{y2:.1}\"/>\n")
}

fn label(x: f64, y: f64, class: &str, anchor: &str, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>\n")
}
