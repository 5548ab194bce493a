//! Which containers are guarded, and every number that a hold and a raise keep to. Read from a TOML file:
//!
//! ```toml
//! node_reserve = "200Mi"  # what each raise leaves of MemAvailable; default 5% of MemTotal, at least 200Mi
//!
//! [[rule]]
//! namespace = "dev-*"     # default "*"
//! pod = "*"               # default "*"
//! container = "build"     # default "*"
//! threshold = "90%"       # of the limit in force, 50% to 98%; default 90%
//! step = "64Mi"           # added to the limit by one raise, at least 1Mi
//! ceiling = "1Gi"         # no raise goes beyond
//! longest_hold = "3s"     # 100ms to 10s; default 3s
//! cool_down = "10s"       # after a refusal nothing of the container is held; longest_hold to 1h, default 10s
//! budget = 8              # raises that a container may have had and not given back, 1 to 1000; default 8
//! give_back_after = "10m" # quiet time after which a raise is given back, 10s to 1440m; default: never
//! brake = true            # memory.high is lowered while a held process is inside a system call; default true
//! ```
//!
//! The first rule that matches a container decides. `*` in a pattern stands for any text. What makes no sense is rejected with
//! its line. Pure: never looks at a node.

mod check;

use std::time::Duration;

use kwitness_core::units;
use kwitness_core::verdicts::quantity;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

pub use check::{PolicyError, Problem};

/// The longest that any process is ever held.
pub const LONGEST_HOLD_MAX: Duration = Duration::from_secs(10);
const LONGEST_HOLD_MIN: Duration = Duration::from_millis(100);
const COOL_DOWN_MAX: Duration = Duration::from_secs(3600);
const GIVE_BACK_AFTER_MIN: Duration = Duration::from_secs(10);
const GIVE_BACK_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
const STEP_MIN: Bytes = Bytes(1 << 20);
const THRESHOLD_PERCENT: std::ops::RangeInclusive<u32> = 50..=98;
/// The default of `node_reserve`: that part of the node's memory, and no less than this. The kubelet evicts pods from 100Mi on.
const RESERVE_PART: u64 = 20;
const RESERVE_MIN: Bytes = Bytes(200 << 20);
const BUDGET: std::ops::RangeInclusive<u32> = 1..=1000;

/// An amount of memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bytes(pub u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&units::bytes(self.0))
    }
}

/// The whole policy.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    #[serde(default, deserialize_with = "reserve")]
    node_reserve: Option<Bytes>,
    #[serde(rename = "rule")]
    rules: Vec<Rule>,
}

/// What holds for the containers that it selects.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    #[serde(default)]
    namespace: Pattern,
    #[serde(default)]
    pod: Pattern,
    #[serde(default)]
    container: Pattern,
    /// From what share of the limit on a process is held.
    #[serde(default)]
    pub threshold: Threshold,
    /// What one raise adds.
    #[serde(deserialize_with = "step")]
    pub step: Bytes,
    /// What no raise goes beyond.
    #[serde(deserialize_with = "bytes")]
    pub ceiling: Bytes,
    /// The longest that a process is held.
    #[serde(default = "default_longest_hold", deserialize_with = "longest_hold")]
    pub longest_hold: Duration,
    /// How long nothing of the container is held after a refusal.
    #[serde(default = "default_cool_down", deserialize_with = "cool_down")]
    pub cool_down: Duration,
    /// Raises that a container may have had and not given back.
    #[serde(default = "default_budget", deserialize_with = "budget")]
    pub budget: u32,
    /// The quiet time after which a raise is given back; none: never.
    #[serde(default, deserialize_with = "give_back_after")]
    pub give_back_after: Option<Duration>,
    /// Whether `memory.high` is lowered while a held process has not stopped.
    #[serde(default = "default_brake")]
    pub brake: bool,
}

/// A share of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    percent: u32,
}

impl Threshold {
    /// In thousandths.
    pub fn per_mille(self) -> u32 {
        self.percent * 10
    }
}

impl Default for Threshold {
    fn default() -> Self {
        Self { percent: 90 }
    }
}

impl std::fmt::Display for Threshold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}%", self.percent)
    }
}

/// Text in which `*` stands for any text, the empty one included.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
struct Pattern(String);

impl Default for Pattern {
    fn default() -> Self {
        Self("*".to_owned())
    }
}

impl Pattern {
    /// Whether it matches a name; none: that depends on the name, which is not known.
    fn fits(&self, name: Option<&str>) -> Option<bool> {
        match name {
            Some(name) => Some(self.matches(name)),
            None if self.0.bytes().all(|byte| byte == b'*') => Some(true),
            None => None,
        }
    }

    fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

/// A container by its names, as far as they are known.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// The pod's namespace.
    pub namespace: Option<&'a str>,
    /// The pod's name.
    pub pod: Option<&'a str>,
    /// The container's name.
    pub container: Option<&'a str>,
}

/// What a policy says of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection<'a> {
    /// It is guarded by this rule.
    Rule(&'a Rule),
    /// No rule matches it.
    Nothing,
    /// A name that a rule asks for is not known: which rule is the first to match, if any, cannot be said.
    Undecided,
}

impl Rule {
    /// Whether it is for that namespace alone.
    pub(crate) fn is_for_namespace(&self, namespace: &str) -> bool {
        self.namespace.0 == namespace
    }
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// What is wrong, with its line.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let source = check::Source::parse(text)?;
        source.check_keys()?;
        let policy: Self = toml::from_str(text)?;
        if policy.rules.is_empty() {
            return Err(
                toml::de::Error::custom("the policy has no [[rule]]: nothing would be guarded").into()
            );
        }
        source.check_rules(&policy.rules)?;
        Ok(policy)
    }

    /// What each raise leaves of a node's available memory, if the node has that much in all.
    pub fn node_reserve(&self, total: Bytes) -> Bytes {
        self.node_reserve.unwrap_or(Bytes(total.0 / RESERVE_PART).max(RESERVE_MIN))
    }

    /// The rule for a container. Never a later one because a name that an earlier one asks for is not known yet.
    pub fn select(&self, names: Names<'_>) -> Selection<'_> {
        for rule in &self.rules {
            let fits = [
                rule.namespace.fits(names.namespace),
                rule.pod.fits(names.pod),
                rule.container.fits(names.container),
            ];
            if fits.contains(&Some(false)) {
                continue;
            }
            return if fits.contains(&None) { Selection::Undecided } else { Selection::Rule(rule) };
        }
        Selection::Nothing
    }
}

fn default_longest_hold() -> Duration {
    Duration::from_secs(3)
}

fn default_cool_down() -> Duration {
    Duration::from_secs(10)
}

fn default_budget() -> u32 {
    8
}

fn default_brake() -> bool {
    true
}

fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(from)?;
    quantity::whole(&text).map(Bytes).map_err(D::Error::custom)
}

fn reserve<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Bytes>, D::Error> {
    bytes(from).map(Some)
}

fn step<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
    let step = bytes(from)?;
    if step < STEP_MIN {
        return Err(D::Error::custom(format!("a step of {step} is less than {STEP_MIN}")));
    }
    Ok(step)
}

fn longest_hold<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    duration(from, LONGEST_HOLD_MIN, LONGEST_HOLD_MAX)
}

fn cool_down<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    duration(from, Duration::ZERO, COOL_DOWN_MAX)
}

fn give_back_after<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    duration(from, GIVE_BACK_AFTER_MIN, GIVE_BACK_AFTER_MAX).map(Some)
}

fn duration<'de, D: Deserializer<'de>>(from: D, min: Duration, max: Duration) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    let number = |suffix: &str| text.strip_suffix(suffix)?.parse::<u64>().ok();
    let minutes = || number("m")?.checked_mul(60).map(Duration::from_secs);
    let parsed = number("ms").map(Duration::from_millis).or_else(|| number("s").map(Duration::from_secs));
    let parsed = parsed.or_else(minutes);
    parsed.filter(|duration| (min..=max).contains(duration)).ok_or_else(|| {
        D::Error::custom(format!(
            "\"{text}\" is not a duration from {} to {} (\"500ms\", \"3s\", \"10m\")",
            written(min),
            written(max)
        ))
    })
}

/// A duration as a policy writes it, in the largest unit that divides it.
fn written(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [(60_000, "m"), (1000, "s"), (1, "ms")];
    let fits = |(of, _): &(u128, _)| millis >= *of && millis.is_multiple_of(*of);
    units
        .into_iter()
        .find(fits)
        .map_or_else(|| "0s".to_owned(), |(of, unit)| format!("{}{unit}", millis / of))
}

fn budget<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let budget = u32::deserialize(from)?;
    if !BUDGET.contains(&budget) {
        return Err(D::Error::custom(format!(
            "{budget} is not between {} and {}",
            BUDGET.start(),
            BUDGET.end()
        )));
    }
    Ok(budget)
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let percent = text.strip_suffix('%').and_then(|digits| digits.parse().ok());
        let percent = percent.filter(|percent| THRESHOLD_PERCENT.contains(percent)).ok_or_else(|| {
            let (from, to) = (THRESHOLD_PERCENT.start(), THRESHOLD_PERCENT.end());
            D::Error::custom(format!("\"{text}\" is not a share from \"{from}%\" to \"{to}%\""))
        })?;
        Ok(Self { percent })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn rule<'a>(policy: &'a Policy, names: Names<'_>) -> &'a Rule {
        match policy.select(names) {
            Selection::Rule(rule) => rule,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_duration_is_written_in_its_largest_unit() {
        for (millis, expected) in
            [(0, "0s"), (100, "100ms"), (1500, "1500ms"), (10_000, "10s"), (3_600_000, "60m")]
        {
            assert_eq!(written(Duration::from_millis(millis)), expected);
        }
    }

    fn names<'a>(namespace: &'a str, pod: &'a str, container: &'a str) -> Names<'a> {
        Names { namespace: Some(namespace), pod: Some(pod), container: Some(container) }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = Policy::parse(
            "[[rule]]\nnamespace = \"dev-*\"\ncontainer = \"build\"\nstep = \"64Mi\"\nceiling = \"1Gi\"\n\
             longest_hold = \"500ms\"\nthreshold = \"85%\"\nbudget = 2\nbrake = false\n\
             [[rule]]\nnamespace = \"dev-*\"\nstep = \"1Mi\"\nceiling = \"128Mi\"\n",
        )
        .unwrap();
        let first = rule(&policy, names("dev-1", "p", "build"));
        assert_eq!((first.step, first.ceiling), (Bytes(64 << 20), Bytes(1 << 30)));
        assert_eq!((first.threshold.per_mille(), first.longest_hold.as_millis()), (850, 500));
        assert!(!first.brake);
        let second = rule(&policy, names("dev-1", "p", "sidecar"));
        assert_eq!((second.step, second.threshold.per_mille()), (Bytes(1 << 20), 900));
        assert_eq!((second.longest_hold, second.give_back_after), (Duration::from_secs(3), None));
        assert!(second.brake);
        assert_eq!(policy.select(names("prod", "p", "build")), Selection::Nothing);
    }

    #[test]
    fn the_nodes_reserve_is_a_share_of_its_memory_unless_the_policy_has_one() {
        let with = |line: &str, total: u64| {
            let text = format!("{line}[[rule]]\nstep = \"64Mi\"\nceiling = \"1Gi\"\n");
            Policy::parse(&text).unwrap().node_reserve(Bytes(total << 30)).0 >> 20
        };
        assert_eq!((with("", 2), with("", 64)), (200, 3276));
        let line = "node_reserve = \"64Mi\"\n";
        assert_eq!((with(line, 2), with(line, 64)), (64, 64));
    }

    #[test]
    fn a_name_that_is_not_known_yet_is_neither_matched_nor_passed_over() {
        let of = |pod, container| Names { namespace: Some("dev-1"), pod, container };
        let policy = Policy::parse(
            "[[rule]]\nnamespace = \"dev-*\"\ncontainer = \"build\"\nstep = \"64Mi\"\nceiling = \"1Gi\"\n\
             [[rule]]\nnamespace = \"dev-*\"\nstep = \"1Mi\"\nceiling = \"128Mi\"\n",
        )
        .unwrap();
        assert_eq!(policy.select(of(None, None)), Selection::Undecided);
        assert_eq!(policy.select(of(Some("p"), None)), Selection::Undecided);
        assert_eq!(rule(&policy, of(None, Some("build"))).step, Bytes(64 << 20), "no rule asks for the pod");
        let nameless = Names { namespace: Some("prod"), pod: None, container: None };
        assert_eq!(policy.select(nameless), Selection::Nothing, "no name could make a rule match");
    }

    #[test]
    fn every_error_names_what_is_wrong() {
        let rule =
            |line: &str| Policy::parse(&format!("[[rule]]\nstep = \"64Mi\"\nceiling = \"1Gi\"\n{line}\n"));
        assert!(rule("").is_ok());
        for (line, part) in [
            ("longest_hold = \"11s\"", "100ms to 10s"),
            ("longest_hold = \"99ms\"", "100ms to 10s"),
            ("longest_hold = \"3\"", "\"3\""),
            ("threshold = \"99%\"", "50%"),
            ("threshold = \"0.9\"", "0.9"),
            ("budget = 0", "between 1 and 1000"),
            ("cool_down = \"2h\"", "2h"),
            ("give_back_after = \"9s\"", "10s to 1440m"),
            ("give_back_after = \"off\"", "off"),
            ("thresold = \"90%\"", "thresold"),
        ] {
            let error = rule(line).unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
        for (text, part) in [
            ("rule = []", "no [[rule]]"),
            ("[[rule]]\nceiling = \"1Gi\"", "step"),
            ("[[rule]]\nstep = \"1Ki\"\nceiling = \"1Gi\"", "less than 1Mi"),
            ("[[rule]]\nstep = \"64MB\"\nceiling = \"1Gi\"", "64MB"),
        ] {
            let error = Policy::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn quantities_are_kubernetes_and_none_is_taken_for_another() {
        let ceiling = |text: &str| {
            let policy = Policy::parse(&format!("[[rule]]\nstep = \"1Mi\"\nceiling = \"{text}\"\n"))?;
            Ok::<_, PolicyError>(policy.rules[0].ceiling.0)
        };
        let largest = i64::MAX.unsigned_abs();
        for (text, bytes) in [
            ("0.5Gi", 1 << 29),
            ("1e9", 1_000_000_000),
            ("2147483648500m", 2_147_483_649),
            ("9223372036854775807", largest),
        ] {
            assert_eq!(ceiling(text).unwrap(), bytes, "{text}");
        }
        for text in ["0", "0.5Mi", "9223372036854775808", "8Ei", "-1Gi", "1GiB", "1e", "", "max"] {
            ceiling(text).expect_err(text);
        }
    }

    #[test]
    fn a_star_stands_for_any_text() {
        let matches = |pattern: &str, text: &str| Pattern(pattern.to_owned()).matches(text);
        for (pattern, text) in
            [("*", ""), ("a", "a"), ("a*", "a"), ("a*c", "abc"), ("*b*", "abc"), ("a*b*c", "a-b-b-c")]
        {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("", "a"), ("a", "ab"), ("a*c", "ab"), ("*bc", "ab"), ("ab*bc", "abc"), ("a*b*c", "acb")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }
}
