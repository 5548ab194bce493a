//! Values: sizes with units, whole numbers within a range, words, texts and paths. Never a setting's meaning.

use std::fmt::Display;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use toml::Value;

/// A whole number of the range.
pub(super) fn count(value: &Value, range: RangeInclusive<u64>) -> Result<u64, String> {
    let number = value.as_integer().ok_or_else(|| wrong_type(value))?;
    within(u64::try_from(number).map_err(|_| "it is negative".to_owned())?, range)
}

/// A list of small whole numbers of the range.
pub(super) fn counts(value: &Value, range: RangeInclusive<u8>) -> Result<Vec<u8>, String> {
    let Some(items) = value.as_array() else { return Err(wrong_type(value)) };
    let range = u64::from(*range.start())..=u64::from(*range.end());
    let small = |number: u64| u8::try_from(number).map_err(|_| "it is too large".to_owned());
    items.iter().map(|item| count(item, range.clone()).and_then(small)).collect()
}

/// A size in bytes: a whole number, alone or with `KiB`, `MiB` or `GiB`.
pub(super) fn size(value: &Value, range: RangeInclusive<u64>) -> Result<u64, String> {
    let Some(text) = value.as_str() else { return count(value, range) };
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit: u64 = match text[digits.len()..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => return Err(format!("\"{other}\" is none of the units B, KiB, MiB, GiB")),
    };
    let number: u64 = digits.trim().parse().map_err(|_| format!("\"{digits}\" is not a whole number"))?;
    within(number.checked_mul(unit).ok_or("it is too large")?, range)
}

fn within(number: u64, range: RangeInclusive<u64>) -> Result<u64, String> {
    if range.contains(&number) { Ok(number) } else { Err("out of range".to_owned()) }
}

/// A string that is not empty.
pub(super) fn text(value: &Value) -> Result<&str, String> {
    match value.as_str() {
        Some("") => Err("it is empty".to_owned()),
        Some(text) => Ok(text),
        None => Err(wrong_type(value)),
    }
}

/// One of these words.
pub(super) fn choice<T: Copy>(value: &Value, words: &[(&str, T)]) -> Result<T, String> {
    let found = text(value)?;
    let word = words.iter().find(|(word, _)| *word == found);
    word.map(|(_, meaning)| *meaning).ok_or_else(|| "unknown value".to_owned())
}

/// True or false.
pub(super) fn boolean(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| wrong_type(value))
}

/// A list of strings that each read as a `T`.
pub(super) fn parsed<T: FromStr<Err: Display>>(value: &Value) -> Result<Vec<T>, String> {
    let Some(items) = value.as_array() else { return Err(wrong_type(value)) };
    items.iter().map(|item| text(item)?.parse().map_err(|wrong: T::Err| wrong.to_string())).collect()
}

/// As the probes' sizes are.
pub(super) fn non_zero(value: u64) -> Result<NonZeroU32, String> {
    u32::try_from(value).ok().and_then(NonZeroU32::new).ok_or_else(|| "it is zero or too large".to_owned())
}

/// A path from the root.
pub(super) fn absolute(value: &Value) -> Result<PathBuf, String> {
    let path = PathBuf::from(text(value)?);
    if path.is_absolute() { Ok(path) } else { Err("it is not absolute".to_owned()) }
}

/// "it is an integer".
fn wrong_type(value: &Value) -> String {
    let name = value.type_str();
    let article = if name.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("it is {article} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let size = |text: &str| size(&Value::from(text), 1..=1 << 40);
        assert_eq!(size("4MiB"), Ok(4 << 20));
        assert_eq!(size("64 KiB"), Ok(64 << 10));
        assert_eq!(size("17"), Ok(17));
        assert_eq!(size("4MB"), Err("\"MB\" is none of the units B, KiB, MiB, GiB".to_owned()));
        assert_eq!(size("1.5MiB"), Err("\"1.5\" is not a whole number".to_owned()));
        assert_eq!(size("99999999999GiB"), Err("it is too large".to_owned()));
        assert_eq!(size("0"), Err("out of range".to_owned()));
    }
}
