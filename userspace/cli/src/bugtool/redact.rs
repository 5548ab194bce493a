//! Names and labels as hashes: the same name has the same hash within an archive, and another one in the next.
//!
//! Owns what counts as a name. Replaces it in its own field, whatever it is, and wherever else it stands as a word: in reasons, paths,
//! errors.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, Match};
use anyhow::Context as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Enough hexadecimal digits to distinguish the names of a node.
const DIGITS: usize = 12;
/// The fields whose text is a name.
const NAMES: [&str; 6] = ["namespace", "name", "image", "nodeName", "node", SERVER];
/// The address of the API server, whose host is a name, too.
const SERVER: &str = "server";
/// The objects whose `name` is not a person's choice: of the status and of the doctor.
const PLAIN: [&str; 6] = ["capabilities", "programs", "calls", "problems", "checks", "runtime"];
const LABELS: &str = "labels";

/// The names that are looked for.
#[derive(Debug, Default)]
pub struct Names(BTreeSet<String>);

impl Names {
    /// Learns the names in a value.
    pub fn learn(&mut self, value: &Value) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    match value {
                        Value::String(name) if NAMES.contains(&key.as_str()) => {
                            self.add(name);
                            if key == SERVER {
                                self.add(host(name));
                            }
                        }
                        Value::Object(labels) if key == LABELS => {
                            for (label, value) in labels {
                                if !is_common(label) {
                                    self.add(label);
                                }
                                value.as_str().into_iter().for_each(|value| self.add(value));
                            }
                        }
                        _ if PLAIN.contains(&key.as_str()) => {}
                        _ => self.learn(value),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| self.learn(value)),
            _ => {}
        }
    }

    /// Learns a name.
    pub fn add(&mut self, name: &str) {
        // Numbers are counts and container versions; one letter is in every word.
        if name.len() >= 2 && !name.chars().all(|character| character.is_ascii_digit()) {
            self.0.insert(name.to_owned());
        }
    }
}

/// Replaces names.
#[derive(Debug)]
pub struct Redactor {
    salt: [u8; 16],
    names: AhoCorasick,
}

impl Redactor {
    /// With a salt that is not kept, so that names cannot be guessed and compared later.
    pub fn new(names: &Names) -> anyhow::Result<Self> {
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(|error| anyhow::anyhow!("cannot get random bytes: {error}"))?;
        Ok(Self { salt, names: AhoCorasick::new(&names.0).context("cannot search for so many names")? })
    }

    fn hash(&self, name: &str) -> String {
        let hash = Sha256::new().chain_update(self.salt).chain_update(name).finalize();
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("h-{}", &hex[..DIGITS])
    }

    /// Replaces every name in a value.
    pub fn value(&self, value: &mut Value) {
        self.replace(value, false);
    }

    fn replace(&self, value: &mut Value, is_plain: bool) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(values) => values.iter_mut().for_each(|value| self.replace(value, is_plain)),
            Value::Object(fields) => {
                for (key, value) in fields.iter_mut() {
                    match value {
                        // The kind of an event is not a name, whatever a pod is called.
                        _ if key == "type" => {}
                        Value::String(name) if !is_plain && NAMES.contains(&key.as_str()) => {
                            *name = self.hash(name);
                        }
                        Value::Object(labels) if key == LABELS => self.labels(labels),
                        value => self.replace(value, is_plain || PLAIN.contains(&key.as_str())),
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn labels(&self, labels: &mut serde_json::Map<String, Value>) {
        let redacted = std::mem::take(labels).into_iter().map(|(label, value)| {
            let label = if is_common(&label) { label } else { self.hash(&label) };
            (label, value.as_str().map_or(Value::Null, |value| self.hash(value).into()))
        });
        *labels = redacted.collect();
    }

    /// The text with every name that stands as a word replaced; of those that begin together, the longest.
    pub fn text(&self, text: &str) -> String {
        let is_word = |character: char| character.is_alphanumeric() || "-_.".contains(character);
        let is_alone = |found: &Match| {
            let before = text[..found.start()].chars().next_back();
            let after = text[found.end()..].chars().next();
            // A name may end a sentence.
            !before.is_some_and(is_word) && !after.is_some_and(|next| is_word(next) && next != '.')
        };
        let mut found: Vec<_> = self.names.find_overlapping_iter(text).filter(is_alone).collect();
        found.sort_by_key(|found| (found.start(), Reverse(found.end())));
        let (mut redacted, mut done) = (String::with_capacity(text.len()), 0);
        for name in found {
            if name.start() >= done {
                redacted += &text[done..name.start()];
                redacted += &self.hash(&text[name.range()]);
                done = name.end();
            }
        }
        redacted + &text[done..]
    }
}

/// Kubernetes' own labels have the same names on every node.
fn is_common(label: &str) -> bool {
    label.starts_with("io.kubernetes.")
}

/// The host of `https://host:port/path`.
fn host(address: &str) -> &str {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = address.split('/').next().unwrap_or_default();
    host.rsplit_once(':').map_or(host, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn redactor(value: &Value) -> Redactor {
        let mut names = Names::default();
        names.learn(value);
        Redactor::new(&names).unwrap()
    }

    #[test]
    fn names_are_replaced_wherever_they_stand() {
        let mut value = json!({
            "type": "verdict",
            "container": {
                "name": "secret-app", "image": "registry.example/secret:1", "id": "0123",
                "labels": { "team": "payments", "io.kubernetes.pod.name": "web-0" },
                "pod": { "name": "web-0", "namespace": "prod", "uid": "1d4e" }
            },
            "verdict": { "reason": "memory.max of prod/web-0 secret-app, not of web-01; web-0." },
            "capabilities": [{ "name": "task_exec" }]
        });
        redactor(&value).value(&mut value);
        let text = value.to_string();
        for name in
            ["secret-app", "registry.example", "payments", "team", "prod", "web-0\"", "web-0 ", "web-0."]
        {
            assert!(!text.contains(name), "{name} is in {text}");
        }
        for kept in ["0123", "1d4e", "task_exec", "memory.max of h-", "not of web-01", "\"type\":\"verdict\""]
        {
            assert!(text.contains(kept), "{kept} is not in {text}");
        }
        let pod = value["container"]["pod"]["name"].as_str().unwrap();
        assert_eq!(
            value["container"]["labels"]["io.kubernetes.pod.name"], pod,
            "the same name, the same hash"
        );
        assert_ne!(redactor(&json!({ "name": "web-0" })).text("web-0"), pod, "another archive, another hash");
    }

    #[test]
    fn what_would_be_in_every_text_is_replaced_in_its_own_field() {
        let mut value = json!({
            "namespace": "20394857", "name": "x",
            "labels": { "customer": "4711", "2": "y" },
            "count": "20394857",
        });
        redactor(&value).value(&mut value);
        let text = value.to_string();
        assert!(!text.contains("4711") && !text.contains("customer") && !text.contains("\"2\""), "{text}");
        assert!(value["name"].as_str().unwrap().starts_with("h-"), "{text}");
        assert!(value["namespace"].as_str().unwrap().starts_with("h-"), "{text}");
        assert_eq!(value["count"], "20394857", "elsewhere it is a number");
    }

    #[test]
    fn of_names_that_begin_together_the_longest_that_stands_alone_is_one() {
        let redactor = redactor(&json!([{ "name": "web" }, { "name": "web.x" }, { "name": "web.x-1" }]));
        let [web, webx, webx1] = ["web", "web.x", "web.x-1"].map(|name| redactor.hash(name));
        let text = redactor.text("web web.x web.x-1 web.xy web-0, web.");
        assert_eq!(text, format!("{web} {webx} {webx1} {web}.xy web-0, {web}."));
    }

    #[test]
    fn the_host_of_an_address_is_a_name() {
        let mut value = json!({ "server": "https://api.corp.example:6443", "error": "no api.corp.example" });
        redactor(&value).value(&mut value);
        assert!(!value.to_string().contains("corp"), "{value}");
        assert_eq!((host("https://[::1]:6443/x"), host("h")), ("[::1]", "h"));
    }
}
