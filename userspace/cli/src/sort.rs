//! `--sort-by`: the order of objects by one field of what `-o json` prints of them, as kubectl has it.
//!
//! Takes a path of fields, which is what `--sort-by` is used with; filters and indices of JSONPath it refuses. Never drops an object:
//! those without the field come first.

use std::cmp::Ordering;
use std::str::FromStr;

use chrono::DateTime;
use serde::Serialize;
use serde_json::Value;

/// A field: `.container.pod.name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SortBy(Vec<String>);

impl FromStr for SortBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text);
        let is_name = |name: &&str| {
            !name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
        };
        let names: Vec<_> = path.strip_prefix('.').unwrap_or(path).split('.').collect();
        if !names.iter().all(is_name) {
            return Err("expected a field of -o json, such as .container.pod.name".to_owned());
        }
        Ok(Self(names.into_iter().map(str::to_owned).collect()))
    }
}

impl SortBy {
    /// Puts objects in the order of this field; those that have the same stay as they are.
    ///
    /// # Errors
    /// None of them has it.
    pub fn sort<T: Serialize>(&self, objects: &mut Vec<T>) -> anyhow::Result<()> {
        let mut keyed = Vec::with_capacity(objects.len());
        let mut fields = Vec::new();
        for object in objects.drain(..) {
            let value = serde_json::to_value(&object)?;
            let key = self.0.iter().try_fold(&value, |value, name| value.get(name)).cloned();
            if let (None, Value::Object(map)) = (&key, &value) {
                fields.extend(map.keys().cloned());
            }
            keyed.push((key.unwrap_or_default(), object));
        }
        if !keyed.is_empty() && keyed.iter().all(|(key, _)| key.is_null()) {
            fields.sort();
            fields.dedup();
            anyhow::bail!("no object has the field .{}; there are {}", self.0.join("."), fields.join(", "));
        }
        keyed.sort_by(|(left, _), (right, _)| compare(left, right));
        objects.extend(keyed.into_iter().map(|(_, object)| object));
        Ok(())
    }
}

/// Numbers and times before texts, and nothing before all of them. The API has 64-bit numbers as texts of digits.
fn compare(left: &Value, right: &Value) -> Ordering {
    match (number(left), number(right)) {
        (Some(left), Some(right)) => left.cmp(&right),
        _ => rank(left).cmp(&rank(right)).then_with(|| text(left).cmp(&text(right))),
    }
}

fn rank(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        value if number(value).is_some() => 1,
        _ => 2,
    }
}

/// The digits of the largest 64-bit number.
const DIGITS_MAX: usize = 20;

/// A time is its nanoseconds: as texts, `00.5Z` would come before `00Z`.
fn number(value: &Value) -> Option<i128> {
    match value {
        Value::Bool(is) => Some((*is).into()),
        Value::Number(number) => number.as_i128(),
        Value::String(text) => match text.parse::<i128>() {
            Ok(number) => Some(number).filter(|_| text.len() <= DIGITS_MAX),
            Err(_) => DateTime::parse_from_rfc3339(text).ok()?.timestamp_nanos_opt().map(i128::from),
        },
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sorted(by: &str, mut objects: Vec<Value>) -> anyhow::Result<Vec<u64>> {
        by.parse::<SortBy>().unwrap().sort(&mut objects)?;
        Ok(objects.iter().filter_map(|object| object["n"].as_u64()).collect())
    }

    #[test]
    fn numbers_are_sorted_by_their_size_and_texts_by_their_letters() {
        let pods = |values: [Value; 4]| {
            let mut number = 0;
            let pod = |value| {
                number += 1;
                json!({ "n": number, "pod": { "key": value } })
            };
            values.map(pod).to_vec()
        };
        let of = |values| sorted("{.pod.key}", pods(values)).unwrap();
        // 64-bit numbers of protobuf's JSON.
        assert_eq!(of([json!("100"), json!("20"), json!("3"), json!("20")]), [3, 2, 4, 1]);
        assert_eq!(of([json!(7), json!(-1), json!(30), json!(8)]), [2, 1, 4, 3]);
        assert_eq!(of([json!("web-1"), json!("db"), Value::Null, json!("web-0")]), [3, 2, 4, 1]);
        let time = |second| json!(format!("2026-11-29T12:00:0{second}Z"));
        assert_eq!(of([time(2), time(1), time(3), time(0)]), [4, 2, 1, 3]);
        // A fraction has as many digits as it needs.
        let within = |fraction| json!(format!("2026-11-29T12:00:00{fraction}Z"));
        assert_eq!(of([within(".500001"), within(".500"), within(""), within(".25")]), [3, 4, 2, 1]);
    }

    #[test]
    fn a_field_that_no_object_has_is_an_error_that_names_those_there_are() {
        let objects = vec![json!({ "n": 1, "state": "x" }), json!({ "n": 2, "pid": 5 })];
        let error = sorted(".stat", objects.clone()).unwrap_err().to_string();
        assert_eq!(error, "no object has the field .stat; there are n, pid, state");
        assert_eq!(sorted("pid", objects).unwrap(), [1, 2]);
        assert_eq!(sorted(".stat", Vec::new()).unwrap(), [0; 0]);
    }

    #[test]
    fn only_a_path_of_fields_is_taken() {
        for text in ["", ".", "{.items[0].x}", ".a..b", "{.a", "{.a}{.b}", "{range .items[*]}"] {
            assert!(text.parse::<SortBy>().is_err(), "{text}");
        }
    }
}
