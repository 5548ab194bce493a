//! A curve as a drawing: points with their quartiles on two logarithmic axes, and a dashed line that grows in proportion.

use std::fmt::Write as _;

use serde::Deserialize;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
/// Left, right, top and bottom of the plot.
const PLOT: (f64, f64, f64, f64) = (80.0, 620.0, 50.0, 340.0);
/// On light and on dark pages.
const INK: &str = "#888";
const LINE: &str = "#2a78c8";
const BAD: &str = "#d03030";

#[derive(Debug, Deserialize)]
pub struct Curve {
    #[serde(rename = "curve")]
    name: String,
    x: String,
    unit: String,
    points: Vec<Point>,
    exponent: Option<f64>,
    too_fast: Vec<f64>,
}

#[derive(Debug, Deserialize)]
struct Point {
    x: f64,
    value: f64,
    spread: (f64, f64),
}

/// A logarithmic axis: from and to whole powers of ten, and where these are drawn.
#[derive(Clone, Copy, Debug)]
struct Axis {
    powers: (i32, i32),
    ends: (f64, f64),
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>, ends: (f64, f64)) -> Self {
        let logs = values.filter(|value| *value > 0.0).map(f64::log10);
        let (low, high) = logs.fold((f64::MAX, f64::MIN), |(low, high), log| (low.min(log), high.max(log)));
        if low > high {
            return Self { powers: (0, 1), ends };
        }
        let low = low.floor() as i32;
        Self { powers: (low, (high.ceil() as i32).max(low + 1)), ends }
    }

    /// Where a value is drawn; what is zero, at the beginning.
    fn at(self, value: f64) -> f64 {
        let (low, high) = (f64::from(self.powers.0), f64::from(self.powers.1));
        let share = ((value.max(f64::MIN_POSITIVE).log10() - low) / (high - low)).clamp(0.0, 1.0);
        self.ends.0 + share * (self.ends.1 - self.ends.0)
    }

    fn ticks(self) -> impl Iterator<Item = f64> {
        (self.powers.0..=self.powers.1).map(|power| 10_f64.powi(power))
    }
}

impl Curve {
    pub fn file_name(&self) -> String {
        let words = self.name.split(|letter: char| !letter.is_ascii_alphanumeric());
        let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
        format!("{}.svg", words.join("-").to_lowercase())
    }

    pub fn draw(&self) -> String {
        let (left, right, top, bottom) = PLOT;
        let x_axis = Axis::of(self.points.iter().map(|point| point.x), (left, right));
        let values = self.points.iter().flat_map(|point| [point.value, point.spread.0, point.spread.1]);
        let y_axis = Axis::of(values, (bottom, top));
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"13\" fill=\"{INK}\">\n"
        );
        let exponent = self.exponent.map(|exponent| format!(", exponent {exponent:.2}")).unwrap_or_default();
        text(&mut out, (left, 28.0), "start", &format!("{} ({}){exponent}", self.name, self.unit));
        text(&mut out, ((left + right) / 2.0, HEIGHT - 14.0), "middle", &self.x);
        for tick in x_axis.ticks() {
            let x = x_axis.at(tick);
            line(&mut out, (x, top), (x, bottom), INK, "stroke-opacity=\".3\"");
            text(&mut out, (x, bottom + 20.0), "middle", &tick.to_string());
        }
        for tick in y_axis.ticks() {
            let y = y_axis.at(tick);
            line(&mut out, (left, y), (right, y), INK, "stroke-opacity=\".3\"");
            text(&mut out, (left - 8.0, y + 4.0), "end", &tick.to_string());
        }
        let at = |point: &Point| (x_axis.at(point.x), y_axis.at(point.value));
        if let [first, .., last] = &self.points[..] {
            // In proportion, to the end of either axis.
            let most = 10_f64.powi(y_axis.powers.1);
            let value = (first.value * last.x / first.x).min(most);
            let x = first.x * value / first.value.max(f64::MIN_POSITIVE);
            line(&mut out, at(first), (x_axis.at(x), y_axis.at(value)), INK, "stroke-dasharray=\"4\"");
        }
        for pair in self.points.windows(2) {
            line(&mut out, at(&pair[0]), at(&pair[1]), LINE, "stroke-width=\"2\"");
        }
        for point in &self.points {
            let (x, y) = at(point);
            let color = if self.too_fast.contains(&point.x) { BAD } else { LINE };
            line(&mut out, (x, y_axis.at(point.spread.0)), (x, y_axis.at(point.spread.1)), color, "");
            _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{color}\"/>");
        }
        out.push_str("</svg>\n");
        out
    }
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64), color: &str, style: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    // A String takes everything.
    _ = writeln!(
        out,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{color}\" {style}/>"
    );
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &str) -> Curve {
        let json = format!(
            r#"{{"curve":"growth: List & <x>","x":"containers","unit":"ms","points":{points},"exponent":0.5,"too_fast":[1000.0]}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn a_point_is_where_its_powers_of_ten_are() {
        let curve = curve(
            r#"[{"x":100.0,"value":1.0,"spread":[1.0,1.0],"note":""},{"x":1000.0,"value":10.0,"spread":[9.0,10.0],"note":""}]"#,
        );
        let drawn = curve.draw();
        assert!(drawn.contains(r##"<circle cx="80.0" cy="340.0" r="4" fill="#2a78c8"/>"##), "{drawn}");
        assert!(drawn.contains(r##"<circle cx="620.0" cy="50.0" r="4" fill="#d03030"/>"##), "{drawn}");
        assert!(drawn.contains("List &amp; &lt;x> (ms), exponent 0.50"), "{drawn}");
        assert_eq!(curve.file_name(), "growth-list-x.svg");
    }

    #[test]
    fn nothing_and_zero_are_drawn() {
        assert!(curve("[]").draw().ends_with("</svg>\n"));
        let zero = curve(r#"[{"x":10.0,"value":0.0,"spread":[0.0,0.0],"note":""}]"#).draw();
        assert!(zero.contains("<circle") && !zero.contains("NaN") && !zero.contains("inf"), "{zero}");
    }
}
