//! Names and labels as hashes: the same name has the same hash within an archive, and another one in the next.
//!
//! Owns what counts as a name. Replaces it in its own field and wherever else it stands as a word: in reasons, paths, errors.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Enough hexadecimal digits to distinguish the names of a node.
const DIGITS: usize = 12;
/// The fields whose text is a name.
const NAMES: [&str; 5] = ["namespace", "name", "image", "nodeName", "node"];
/// The objects whose `name` is not a person's choice: of the status and of the doctor.
const PLAIN: [&str; 6] = ["capabilities", "programs", "calls", "problems", "checks", "runtime"];

/// Replaces names.
pub struct Redactor {
    salt: [u8; 16],
    /// By name.
    hashes: BTreeMap<String, String>,
}

impl Redactor {
    /// With a salt that is not kept, so that names cannot be guessed and compared later.
    pub fn new() -> anyhow::Result<Self> {
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(|error| anyhow::anyhow!("cannot get random bytes: {error}"))?;
        Ok(Self { salt, hashes: BTreeMap::new() })
    }

    /// Learns the names in a value.
    pub fn learn(&mut self, value: &Value) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    match value {
                        Value::String(name) if NAMES.contains(&key.as_str()) => self.name(name),
                        Value::Object(labels) if key == "labels" => {
                            for (label, value) in labels {
                                // Kubernetes' own labels have the same names on every node.
                                if !label.starts_with("io.kubernetes.") {
                                    self.name(label);
                                }
                                value.as_str().into_iter().for_each(|value| self.name(value));
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

    fn name(&mut self, name: &str) {
        // Numbers are counts and container versions; one letter is in every word.
        if name.len() < 2 || name.chars().all(|character| character.is_ascii_digit()) {
            return;
        }
        let hash = Sha256::new().chain_update(self.salt).chain_update(name).finalize();
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        self.hashes.insert(name.to_owned(), format!("h-{}", &hex[..DIGITS]));
    }

    /// The value with every name replaced.
    pub fn value(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(values) => values.iter_mut().for_each(|value| self.value(value)),
            Value::Object(fields) => {
                for (key, value) in fields.iter_mut() {
                    // The kind of an event is not a name, whatever a pod is called.
                    if key != "type" {
                        self.value(value);
                    }
                    if key == "labels"
                        && let Value::Object(labels) = value
                    {
                        *labels = std::mem::take(labels)
                            .into_iter()
                            .map(|(label, value)| (self.text(&label), value))
                            .collect();
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// The text with every name that stands as a word replaced; the longest name first.
    pub fn text(&self, text: &str) -> String {
        if let Some(hash) = self.hashes.get(text) {
            return hash.clone();
        }
        let mut names: Vec<_> = self.hashes.iter().collect();
        names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        let mut text = text.to_owned();
        for (name, hash) in names {
            if text.contains(name.as_str()) {
                text = replace(&text, name, hash);
            }
        }
        text
    }
}

fn replace(text: &str, name: &str, hash: &str) -> String {
    let is_word = |character: char| character.is_alphanumeric() || "-_.".contains(character);
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find(name) {
        let (before, after) = (&rest[..place], &rest[place + name.len()..]);
        let begins =
            before.chars().next_back().or(replaced.chars().next_back().filter(|_| before.is_empty()));
        let is_alone = !begins.is_some_and(is_word)
            && !after.chars().next().is_some_and(|next| is_word(next) && next != '.');
        replaced += before;
        replaced += if is_alone { hash } else { name };
        rest = after;
    }
    replaced + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_replaced_wherever_they_stand() {
        let mut redactor = Redactor::new().unwrap();
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
        redactor.learn(&value);
        redactor.value(&mut value);
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
        let mut other = Redactor::new().unwrap();
        other.learn(&json!({ "name": "web-0" }));
        assert_ne!(other.text("web-0"), pod, "another archive, another hash");
    }
}
