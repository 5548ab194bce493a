use proptest::prelude::*;

use super::*;

crate::metrics! {
    /// For these tests.
    CATALOG {
        EVENTS: Counter, "test_events_total", ["type"], "Events.";
        CPU: Counter, "test_cpu_seconds_total", [], "CPU time.";
        SIZE: Gauge, "test_size_bytes", ["ring", "side"], "Size.";
        DELAY: Histogram, "test_delay_seconds", [], "Delay.";
        NEVER: Gauge, "test_never", [], "Without a sample.";
    }
}

fn exposition() -> Exposition {
    let mut exposition = Exposition::default();
    let mut events = exposition.family(&EVENTS);
    events.add(["started"], 7u64);
    events.add(["a\"b\\c\nd"], 1u64);
    exposition.set(&CPU, 1.5);
    exposition.family(&SIZE).add(["tasks", ""], 4096u64);
    let mut delay = Histogram::new(&[0.1, 1.0]);
    [0.1, 0.5, 7.0].into_iter().for_each(|value| delay.observe(value));
    exposition.set(&DELAY, &delay);
    exposition.family(&NEVER);
    exposition
}

#[test]
fn both_formats_say_the_same() {
    let samples = r#"test_events_total{type="started"} 7
test_events_total{type="a\"b\\c\nd"} 1
test_cpu_seconds_total 1.5
test_size_bytes{ring="tasks"} 4096
test_delay_seconds_sum 7.6
test_delay_seconds_count 3
test_delay_seconds_bucket{le="0.1"} 1
test_delay_seconds_bucket{le="1.0"} 2
test_delay_seconds_bucket{le="+Inf"} 3
"#
    // A line feed in a label value is no longer one after the bound.
    .replace("\\nd", "\u{fffd}d");
    let of = |text: &str| -> Vec<String> {
        let mut lines: Vec<_> =
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let (open, plain) = (exposition().text(Format::OpenMetrics), exposition().text(Format::Prometheus));
    assert_eq!(of(&open), of(&samples));
    // Prometheus' format has the shortest form of a bound.
    assert_eq!(of(&plain), of(&samples.replace("le=\"1.0\"", "le=\"1\"")));
    assert!(open.ends_with("# EOF\n") && !plain.contains("# EOF"), "{open}");
    assert!(open.contains("# TYPE test_events counter\n"), "{open}");
    assert!(plain.contains("# TYPE test_events_total counter\n"), "{plain}");
    assert!(open.contains("# UNIT test_size_bytes bytes\n"), "{open}");
    assert!(!open.contains("test_never"), "without a sample it is not exposed: {open}");
}

#[test]
fn the_unit_is_in_the_name() {
    let units: Vec<_> = CATALOG.iter().map(Definition::unit).collect();
    assert_eq!(units, [None, Some("seconds"), Some("bytes"), Some("seconds"), None]);
}

#[test]
fn a_label_value_is_bounded() {
    assert_eq!(label_value("web-0"), "web-0");
    assert_eq!(label_value(&"x".repeat(253)).len(), 253);
    let cut = label_value(&"x".repeat(254)).into_owned();
    assert!(cut.len() == 253 && cut.ends_with("x…"), "{cut}");
    assert_eq!(label_value("a\x1b]0;b\x07"), "a\u{fffd}]0;b\u{fffd}");
}

#[test]
fn conventions_are_checked_and_a_page_has_the_table() {
    crate::metrics! {
        /// Each breaks a rule.
        BAD {
            FIRST: Counter, "kwitness_things", [], "Things.";
            SECOND: Gauge, "things", ["pid"], "Things";
            THIRD: Gauge, "things", [], "Things.";
        }
    }
    let found = breaches(BAD);
    assert_eq!(found.len(), 6, "{found:?}");
    assert!(
        found[0].starts_with("kwitness_things ends in _total") && found[5].ends_with("twice"),
        "{found:?}"
    );

    let page = "before\n<!-- one -->\nold\n<!-- end of one -->\nafter\n";
    let written = in_page(page, "one", &CATALOG[..1]).unwrap();
    assert!(written.starts_with("before\n<!-- one -->\n| Metric |"), "{written}");
    assert!(
        written.contains("| `test_events_total` | counter | `type` | Events. |\n<!-- end of one -->\nafter"),
        "{written}"
    );
    assert_eq!(in_page(&written, "one", &CATALOG[..1]), Some(written.clone()));
    assert_eq!(in_page(page, "other", CATALOG), None);
}

proptest! {
    #[test]
    fn any_text_is_a_label_value_of_one_line(text in any::<String>()) {
        let value = label_value(&text);
        prop_assert!(value.len() <= LABEL_BYTES_MAX && !value.chars().any(char::is_control));
        let mut exposition = Exposition::default();
        exposition.family(&EVENTS).add([&text], 1u64);
        let text = exposition.text(Format::OpenMetrics);
        prop_assert_eq!(text.lines().count(), 4, "{}", text);
    }
}
