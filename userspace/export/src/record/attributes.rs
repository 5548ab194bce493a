//! Attributes of log records: lists of keys with bounded values.
//!
//! Owns the bound of a text. What is not known is left out: an attribute never stands for a default.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};

/// The most bytes of a text; the rest is cut. Paths have at most 4096.
pub const TEXT_BYTES_MAX: usize = 4096;

/// Attributes in the order in which they were added.
#[derive(Debug, Default)]
pub struct Attributes(Vec<KeyValue>);

impl Attributes {
    /// A text.
    pub fn text(&mut self, key: &str, text: &str) {
        self.add(key, text_value(text));
    }

    /// A text that may be unknown.
    pub fn known_text(&mut self, key: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    /// The name of an enum's value without its prefix, in lower case: `oom_killed`; nothing for the unspecified one.
    pub fn word(&mut self, key: &str, name: &str, prefix: &str) {
        match name.strip_prefix(prefix) {
            None | Some("UNSPECIFIED") => {}
            Some(word) => self.text(key, &word.to_lowercase()),
        }
    }

    /// A number. OTLP's are signed: what is larger becomes the largest.
    pub fn number(&mut self, key: &str, number: impl TryInto<i64>) {
        self.add(key, number_value(number));
    }

    /// A number that may be unknown.
    pub fn known_number(&mut self, key: &str, number: Option<impl TryInto<i64>>) {
        if let Some(number) = number {
            self.number(key, number);
        }
    }

    /// Whether something holds; nothing if it does not.
    pub fn flag(&mut self, key: &str, holds: bool) {
        if holds {
            self.add(key, Value::BoolValue(true));
        }
    }

    /// Texts; nothing if there are none.
    pub fn texts(&mut self, key: &str, texts: &[String]) {
        if !texts.is_empty() {
            let values = texts.iter().map(|text| any(text_value(text))).collect();
            self.add(key, Value::ArrayValue(ArrayValue { values }));
        }
    }

    /// Numbers by name; nothing if there are none.
    pub fn counts<'a>(&mut self, key: &str, counts: impl Iterator<Item = (&'a String, &'a u64)>) {
        let values: Vec<_> =
            counts.map(|(name, count)| key_value(&cut(name), number_value(*count))).collect();
        if !values.is_empty() {
            self.add(key, Value::KvlistValue(KeyValueList { values }));
        }
    }

    /// The attributes.
    pub fn into_inner(self) -> Vec<KeyValue> {
        self.0
    }

    fn add(&mut self, key: &str, value: Value) {
        self.0.push(key_value(key, value));
    }
}

/// A text as a value.
pub fn any_text(text: &str) -> AnyValue {
    any(text_value(text))
}

fn any(value: Value) -> AnyValue {
    AnyValue { value: Some(value) }
}

fn key_value(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(any(value)), ..Default::default() }
}

fn text_value(text: &str) -> Value {
    Value::StringValue(cut(text))
}

fn number_value(number: impl TryInto<i64>) -> Value {
    Value::IntValue(number.try_into().unwrap_or(i64::MAX))
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        let mut attributes = Attributes::default();
        attributes.text("long", &"é".repeat(TEXT_BYTES_MAX));
        attributes.text("odd", &format!("a{}", "é".repeat(TEXT_BYTES_MAX)));
        attributes.known_text("unknown", None);
        attributes.word("unspecified", "CHOICE_UNSPECIFIED", "CHOICE_");
        attributes.flag("no", false);
        attributes.texts("none", &[]);
        attributes.counts("none", std::iter::empty());
        let lengths =
            attributes.into_inner().into_iter().map(|attribute| match attribute.value.unwrap().value {
                Some(Value::StringValue(text)) => text.len(),
                other => panic!("{other:?}"),
            });
        assert_eq!(lengths.collect::<Vec<_>>(), [TEXT_BYTES_MAX, TEXT_BYTES_MAX - 1]);
    }

    #[test]
    fn numbers_that_do_not_fit_become_the_largest() {
        let mut attributes = Attributes::default();
        attributes.number("huge", u64::MAX);
        attributes.number("one", 1u32);
        let values = attributes.into_inner().into_iter().map(|attribute| attribute.value.unwrap().value);
        assert_eq!(values.collect::<Vec<_>>(), [Some(Value::IntValue(i64::MAX)), Some(Value::IntValue(1))]);
    }
}
