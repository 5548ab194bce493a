//! Prometheus' text format 0.0.4, as the daemon writes it: families in a row, each with its type before its samples.
//!
//! Never panics, whatever the text is: it comes from a socket.

/// How the values of a family behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They only grow.
    Counter,
    /// They go up and down; so does what has no type.
    Gauge,
    /// Cumulative buckets, a sum and a count.
    Histogram,
}

/// One metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// As its type line says it.
    pub name: String,
    /// What it says.
    pub help: String,
    /// How its values behave.
    pub kind: Kind,
    /// In the order of the page.
    pub samples: Vec<Sample>,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// With the suffix of a part of a histogram.
    pub name: String,
    /// In the order of the line.
    pub labels: Vec<(String, String)>,
    /// The value as it is written.
    pub value: String,
}

/// The families of a page.
///
/// # Errors
/// The number of the first line that is not understood.
pub fn parse(page: &str) -> Result<Vec<Family>, usize> {
    let mut families: Vec<Family> = Vec::new();
    let mut help = ("", String::new());
    for (number, line) in (1usize..).zip(page.lines()) {
        let line = line.trim();
        if let Some(comment) = line.strip_prefix('#') {
            let mut words = comment.trim_start().splitn(3, ' ');
            match (words.next(), words.next(), words.next()) {
                (Some("HELP"), Some(name), text) => help = (name, unescape(text.unwrap_or_default())),
                (Some("TYPE"), Some(name), Some(kind)) => {
                    let kind = match kind {
                        "counter" => Kind::Counter,
                        "histogram" => Kind::Histogram,
                        _ => Kind::Gauge,
                    };
                    let text = if help.0 == name { std::mem::take(&mut help.1) } else { String::new() };
                    families.push(Family { name: name.to_owned(), help: text, kind, samples: Vec::new() });
                }
                _ => {}
            }
        } else if !line.is_empty() {
            let sample = sample(line).ok_or(number)?;
            let is_of = |family: &Family| {
                let suffix = sample.name.strip_prefix(&family.name);
                let parts: &[&str] =
                    if family.kind == Kind::Histogram { &["_bucket", "_sum", "_count"] } else { &[""] };
                suffix.is_some_and(|suffix| parts.contains(&suffix))
            };
            if !families.last().is_some_and(is_of) {
                let name = sample.name.clone();
                families.push(Family { name, help: String::new(), kind: Kind::Gauge, samples: Vec::new() });
            }
            families.last_mut().ok_or(number)?.samples.push(sample);
        }
    }
    Ok(families)
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' ', '\t'])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.split_once("=\"")?;
            let length = quoted(after)?;
            labels.push((label.trim().to_owned(), unescape(&after[..length])));
            rest = &after[length + 1..];
        }
    }
    // A time may follow; the daemon writes none.
    let value = rest.split_ascii_whitespace().next()?;
    value.parse::<f64>().ok()?;
    (!name.is_empty()).then(|| Sample { name: name.to_owned(), labels, value: value.to_owned() })
}

/// The bytes up to the quote that ends a text.
fn quoted(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    })
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('n') => plain.push('\n'),
                Some(other) => plain.push(other),
                None => plain.push('\\'),
            },
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read() {
        let page = "# HELP a_total Help \\\\ of a.\n# TYPE a_total counter\na_total{x=\"q\\\"\\\\\\n,}\",y=\"\"} 7\n\
                    a_total 18446744073709551615\n\n# TYPE h_seconds histogram\n\
                    h_seconds_bucket{le=\"+Inf\"} 3\nh_seconds_sum 1.5 1700000000\n# EOF\nlonely{} NaN\n";
        let families = parse(page).unwrap();
        let names: Vec<_> = families.iter().map(|family| (family.name.as_str(), family.kind)).collect();
        assert_eq!(
            names,
            [("a_total", Kind::Counter), ("h_seconds", Kind::Histogram), ("lonely", Kind::Gauge)]
        );
        assert_eq!(families[0].help, "Help \\ of a.");
        let labels = vec![("x".to_owned(), "q\"\\\n,}".to_owned()), ("y".to_owned(), String::new())];
        assert_eq!(families[0].samples[0].labels, labels);
        assert_eq!(families[0].samples[1].value, "18446744073709551615");
        assert_eq!(families[1].samples.len(), 2);
    }

    #[test]
    fn what_is_no_page_is_an_error() {
        for (page, line) in [
            ("<html>", 1),
            ("\na{b=\"c} 1", 2),
            ("a{b} 1", 1),
            ("a{b=\"c\"}", 1),
            ("a one", 1),
            ("{} 1", 1),
            ("a{é=\"\\", 1),
        ] {
            assert_eq!(parse(page), Err(line), "{page}");
        }
        assert_eq!(parse(""), Ok(Vec::new()));
    }
}
