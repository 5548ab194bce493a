//! A timeline as one page for a browser: no network, no dependency.
//!
//! Names of pods, containers and programs are hostile here: they are escaped as text, the script reads its data from an element
//! that the browser does not interpret and writes text only, and the page's policy allows no script and no style but its own.

use std::borrow::Cow;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kwitness_api::Timestamp;
use kwitness_api::text::escape;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::micros::Micros;
use super::model::Timeline;

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");
const STYLE: &str = include_str!("page.css");

/// The page.
///
/// # Errors
/// A timeline without JSON.
pub fn page(timeline: &Timeline) -> anyhow::Result<String> {
    let mut data = serde_json::to_value(timeline)?;
    if let Some(fields) = data.as_object_mut() {
        // These are in the page's text already.
        fields.remove("events");
        fields.remove("answers");
    }
    escape_all(&mut data);
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; base-uri 'none'; form-action 'none'",
        hash(SCRIPT),
        hash(STYLE)
    );
    let fields = [
        ("policy", policy),
        ("style", STYLE.to_owned()),
        ("subject", markup(&timeline.subject)),
        ("node", markup(&timeline.node)),
        ("from", date(timeline.from)),
        ("to", date(timeline.to)),
        ("answers", answers(timeline)),
        ("events", events(timeline)),
        // `<` ends a script; the others are for old parsers.
        ("data", data.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")),
        ("script", SCRIPT.to_owned()),
    ];
    Ok(fill(PAGE, &fields))
}

/// Puts each field at its `{{name}}`, in one pass: what is put in is not looked at again.
fn fill(mut template: &str, fields: &[(&str, String)]) -> String {
    let mut page = String::new();
    while let Some((before, rest)) = template.split_once("{{") {
        let Some((name, after)) = rest.split_once("}}") else { break };
        page += before;
        page += fields.iter().find(|(field, _)| *field == name).map_or("", |(_, text)| text);
        template = after;
    }
    page + template
}

/// With the day, which the chart does not have.
fn date(at: Micros) -> String {
    let time = Timestamp::from_unix_nanos(at.saturating_mul(1000)).to_utc();
    time.map_or_else(|| "-".to_owned(), |time| time.format("%Y-%m-%d %H:%M:%S").to_string())
}

fn hash(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

fn answers(timeline: &Timeline) -> String {
    let mut text = String::new();
    for answer in &timeline.answers {
        let _ = write!(text, "<article><h2>{}</h2><dl>", markup(&answer.what));
        for (label, fact) in &answer.facts {
            let _ = write!(text, "<dt>{}</dt><dd>{}</dd>", markup(label), markup(fact));
        }
        text += "</dl></article>\n";
    }
    if text.is_empty() { format!("<p>{}</p>", timeline.without_answers()) } else { text }
}

fn events(timeline: &Timeline) -> String {
    let mut text = String::new();
    for row in &timeline.events {
        let at = row.at.unwrap_or_default();
        let time = row.time.and_then(Timestamp::to_utc);
        let time = time.map_or_else(|| "-".to_owned(), |time| time.format("%H:%M:%S%.3f").to_string());
        let [kind, subject, detail] = [&row.kind, &row.subject, &row.detail].map(|text| markup(text));
        let _ = writeln!(
            text,
            "<tr data-at=\"{at}\"><td>{time}</td><td>{kind}</td><td>{subject}</td><td>{detail}</td></tr>"
        );
    }
    text
}

/// Text as markup, and what cannot be seen made visible.
fn markup(text: &str) -> String {
    let mut markup = String::with_capacity(text.len());
    for character in escape(text).chars() {
        match character {
            '&' => markup += "&amp;",
            '<' => markup += "&lt;",
            '>' => markup += "&gt;",
            '"' => markup += "&quot;",
            '\'' => markup += "&#39;",
            _ => markup.push(character),
        }
    }
    markup
}

fn escape_all(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(escaped) = escape(text) {
                *text = escaped;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(escape_all),
        Value::Object(fields) => fields.values_mut().for_each(escape_all),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
