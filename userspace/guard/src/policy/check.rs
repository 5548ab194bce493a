//! What is wrong with a policy that is valid TOML: keys that do not exist, names that no container has, rules that contradict
//! themselves, and rules that are never reached. Each problem with its line, all of them together. Pure.

use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Pattern, Rule, written};

/// The keys of a rule.
const KEYS: [&str; 11] = [
    "namespace",
    "pod",
    "container",
    "threshold",
    "step",
    "ceiling",
    "longest_hold",
    "cool_down",
    "budget",
    "give_back_after",
    "brake",
];
const RULE: &str = "rule";
/// The keys outside of rules.
const OUTSIDE: [&str; 2] = ["node_reserve", RULE];
/// How alike two keys must be to suggest one for the other (Jaro-Winkler, 0 to 1).
const ALIKE: f64 = 0.75;
/// The longest name: that of a Kubernetes object (RFC 1123 subdomain).
const NAME_MAX: usize = 253;

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// No TOML, or a value of another type.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// It has rules that must not be applied as they are; in the order of their lines.
    #[error("{}", lines(.0))]
    Problems(Vec<Problem>),
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    line: usize,
    message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A policy's text with its parts' places in it.
pub(super) struct Source<'a> {
    text: &'a str,
    table: Spanned<DeTable<'a>>,
}

impl<'a> Source<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, toml::de::Error> {
        Ok(Self { text, table: DeTable::parse(text)? })
    }

    /// Fails if a key does not exist.
    pub(super) fn check_keys(&self) -> Result<(), PolicyError> {
        let mut problems = Vec::new();
        for key in self.table.get_ref().keys().filter(|key| !OUTSIDE.contains(&key.get_ref().as_ref())) {
            problems.push(self.unknown(key.span().start, key.get_ref(), &OUTSIDE));
        }
        for key in self.rules().into_iter().flat_map(DeTable::keys) {
            if !KEYS.contains(&key.get_ref().as_ref()) {
                problems.push(self.unknown(key.span().start, key.get_ref(), &KEYS));
            }
        }
        none(problems)
    }

    /// Fails if a rule, as it was read from this text, cannot be meant.
    pub(super) fn check_rules(&self, rules: &[Rule]) -> Result<(), PolicyError> {
        let mut problems = Vec::new();
        for (at, (rule, table)) in rules.iter().zip(self.rules()).enumerate() {
            let mut add = |key: &str, message: String| {
                // A default has no line of its own: that of the rule's first key stands for it.
                let key = table
                    .keys()
                    .find(|found| found.get_ref() == key)
                    .or_else(|| table.keys().min_by_key(|key| key.span().start));
                problems.push(Problem { line: self.line(key.map_or(0, |key| key.span().start)), message });
            };
            for (key, pattern) in rule.patterns() {
                if let Some(flaw) = pattern.flaw() {
                    add(key, format!("{key} = {:?} never matches: {flaw}", pattern.0));
                }
            }
            if rule.ceiling < rule.step {
                let Rule { step, ceiling, .. } = rule;
                add("ceiling", format!("the ceiling of {ceiling} is below one step of {step}"));
            }
            if rule.cool_down < rule.longest_hold {
                let (cool_down, longest_hold) = (written(rule.cool_down), written(rule.longest_hold));
                add(
                    "cool_down",
                    format!(
                        "the cool_down of {cool_down} is shorter than the longest_hold of {longest_hold}: a container \
                         whose raises are refused would be stopped most of the time"
                    ),
                );
            }
            if let Some(earlier) = rules[..at].iter().position(|earlier| earlier.covers(rule)) {
                let message = format!(
                    "rule {} is never used: rule {} above matches whatever it matches, and the first one decides",
                    at + 1,
                    earlier + 1
                );
                add("namespace", message);
            }
        }
        none(problems)
    }

    fn rules(&self) -> Vec<&DeTable<'a>> {
        let rules = self.table.get_ref().iter().find(|(key, _)| key.get_ref() == RULE);
        let Some(DeValue::Array(rules)) = rules.map(|(_, value)| value.get_ref()) else { return Vec::new() };
        rules.iter().filter_map(|rule| rule.get_ref().as_table()).collect()
    }

    fn line(&self, offset: usize) -> usize {
        1 + self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
    }

    fn unknown(&self, offset: usize, key: &str, known: &[&str]) -> Problem {
        let alike = known.iter().map(|known| (strsim::jaro_winkler(known, key), known));
        let best = alike.max_by(|(a, _), (b, _)| a.total_cmp(b)).filter(|(alike, _)| *alike > ALIKE);
        let hint = match best {
            Some((_, known)) => format!("did you mean {known}?"),
            None => format!("known here: {}", known.join(", ")),
        };
        Problem { line: self.line(offset), message: format!("there is no key {key:?}; {hint}") }
    }
}

fn none(mut problems: Vec<Problem>) -> Result<(), PolicyError> {
    problems.sort();
    if problems.is_empty() { Ok(()) } else { Err(PolicyError::Problems(problems)) }
}

impl Rule {
    fn patterns(&self) -> [(&'static str, &Pattern); 3] {
        [("namespace", &self.namespace), ("pod", &self.pod), ("container", &self.container)]
    }

    /// Whether it matches every container that the other one does.
    fn covers(&self, other: &Self) -> bool {
        self.patterns().into_iter().zip(other.patterns()).all(|((_, a), (_, b))| a.covers(b))
    }
}

impl Pattern {
    /// Why no name matches it, if none does.
    fn flaw(&self) -> Option<String> {
        let never = |c: &char| c.is_control() || c.is_whitespace() || "?[]{}/,|\"'\\".contains(*c);
        if self.0.is_empty() {
            Some("no name is empty; leave the key out, or write \"*\"".to_owned())
        } else if let Some(c) = self.0.chars().find(never) {
            Some(format!("no name has a {c:?}; only * is special"))
        } else if self.0.chars().filter(|c| *c != '*').count() > NAME_MAX {
            Some(format!("no name is longer than {NAME_MAX} bytes"))
        } else {
            None
        }
    }

    /// Whether it matches every text that the other one does: only a `*` of its own can stand for a `*` of the other.
    fn covers(&self, other: &Self) -> bool {
        self.matches(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Policy;
    use super::*;

    const REST: &str = "step = \"64Mi\"\nceiling = \"1Gi\"\n";

    fn problems(text: &str) -> String {
        Policy::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_key_that_does_not_exist_is_named_with_its_line_and_what_was_meant() {
        let text = format!(
            "[[rule]]\n{REST}thresold = \"90%\"\n\n[[rule]]\npod = \"a\"\n{REST}zzz = 1\n[[rules]]\n{REST}"
        );
        assert_eq!(
            problems(&text),
            "line 4: there is no key \"thresold\"; did you mean threshold?\n\
             line 10: there is no key \"zzz\"; known here: namespace, pod, container, threshold, step, ceiling, \
             longest_hold, cool_down, budget, give_back_after, brake\n\
             line 11: there is no key \"rules\"; did you mean rule?"
        );
    }

    #[test]
    fn every_key_is_known() {
        let text = format!(
            "[[rule]]\nnamespace = \"a\"\npod = \"b\"\ncontainer = \"c\"\nthreshold = \"90%\"\n{REST}\
             longest_hold = \"3s\"\ncool_down = \"3s\"\nbudget = 1\ngive_back_after = \"10m\"\nbrake = false\n"
        );
        assert!(KEYS.iter().all(|key| text.contains(key)));
        Policy::parse(&text).unwrap();
    }

    #[test]
    fn a_name_that_no_container_has_is_rejected() {
        for (line, part) in [
            ("container = \"\"", "line 4: container = \"\" never matches: no name is empty"),
            ("pod = \"web-?\"", "no name has a '?'; only * is special"),
            ("namespace = \"a,b\"", "no name has a ','"),
            ("namespace = \"my dev\"", "no name has a ' '"),
        ] {
            let found = problems(&format!("[[rule]]\n{REST}{line}\n"));
            assert!(found.contains(part), "{line}: {found}");
        }
        let long = "x".repeat(NAME_MAX);
        assert!(Policy::parse(&format!("[[rule]]\n{REST}pod = \"{long}*\"\n")).is_ok());
        assert!(problems(&format!("[[rule]]\n{REST}pod = \"{long}x\"\n")).contains("longer than 253"));
    }

    #[test]
    fn a_rule_that_contradicts_itself_is_rejected() {
        let found = problems("[[rule]]\nstep = \"64Mi\"\nceiling = \"63Mi\"\n");
        assert_eq!(found, "line 3: the ceiling of 63Mi is below one step of 64Mi");
        let found = problems(&format!("[[rule]]\n{REST}longest_hold = \"10s\"\ncool_down = \"1s\"\n"));
        assert!(found.starts_with("line 5: the cool_down of 1s is shorter than the longest_hold"), "{found}");
    }

    #[test]
    fn a_rule_that_is_never_reached_is_rejected() {
        let rules = |patterns: &[&str]| -> String {
            patterns.iter().map(|pattern| format!("[[rule]]\npod = \"{pattern}\"\n{REST}")).collect()
        };
        for reached in [&["web-0", "web-*"][..], &["a*", "*a"], &["a*b", "a*"], &["*"]] {
            assert!(Policy::parse(&rules(reached)).is_ok(), "{reached:?}");
        }
        for never in [&["web-*", "web-0"][..], &["*", "a*b"], &["a", "a"], &["a*", "a*b*"]] {
            let found = problems(&rules(never));
            assert_eq!(
                found,
                "line 6: rule 2 is never used: rule 1 above matches whatever it matches, and the first one decides",
                "{never:?}"
            );
        }
    }
}
