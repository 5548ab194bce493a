//! Other people's text on a terminal: names of programs and pods, paths, errors of a runtime.
//!
//! Owns the one rule of what may be printed as it is. Whatever prints text for people calls [`escape`] on it, and [`escape_json`] on
//! what is JSON already.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

/// Replaces every character that a terminal acts on, or that cannot be seen, by its escape: `\n`, `\x1b`, `\u{202e}`.
///
/// These are the characters that the standard library does not consider printable: control characters (C0, DEL, C1),
/// bidirectional marks, zero-width characters, line and paragraph separators, spaces other than the space, private and
/// unassigned ones. A backslash stays as it is, for systemd's cgroup names are full of them.
pub fn escape(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            _ if is_plain(character) => escaped.push(character),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            // Writing to a string does not fail.
            '\0'..='\u{ff}' => drop(write!(escaped, "\\x{:02x}", u32::from(character))),
            _ => drop(write!(escaped, "{}", character.escape_unicode())),
        }
    }
    Cow::Owned(escaped)
}

/// Replaces in JSON what [`escape`] replaces in a text, by JSON's own escapes: `\u202e`, in UTF-16. Parsers read the same; JSON itself
/// asks for no more than C0.
pub fn escape_json(json: &str) -> Cow<'_, str> {
    if json.chars().all(is_plain) {
        return Cow::Borrowed(json);
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        if is_plain(character) {
            escaped.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            _ = write!(escaped, "\\u{unit:04x}");
        }
    }
    Cow::Owned(escaped)
}

fn is_plain(character: char) -> bool {
    match character {
        ' '..='~' => true,
        '\0'..='\u{9f}' => false,
        _ => character.escape_debug().len() == 1,
    }
}

/// The first line of a parser's error. Others quote the file, and a file of credentials is not to be quoted.
pub fn without_excerpt(error: &dyn fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_escaped() {
        for (text, escaped) in [
            ("evil\x1b]0;pwned\x07\nFAKE", "evil\\x1b]0;pwned\\x07\\nFAKE"),
            ("a\tb\rc\x7f", "a\\tb\\rc\\x7f"),
            ("csi \u{9b}31m", "csi \\x9b31m"),
            ("right \u{202e}to left \u{2066}", "right \\u{202e}to left \\u{2066}"),
            ("zero\u{200b}width\u{feff}", "zero\\u{200b}width\\u{feff}"),
            ("line\u{2028}separator", "line\\u{2028}separator"),
            ("no\u{a0}break", "no\\xa0break"),
            ("tag\u{e0041}", "tag\\u{e0041}"),
        ] {
            assert_eq!(escape(text), escaped);
        }
    }

    #[test]
    fn json_reads_as_the_same() {
        let text = "evil\x1b]0;x\x07\n \u{9b}31m \u{202e} \x7f \u{e0041} \\x01 \"größer\" 数据库 \u{1f980}";
        let json = serde_json::to_string(text).unwrap();
        let escaped = escape_json(&json);
        assert!(matches!(escape(&escaped), Cow::Borrowed(_)), "{escaped}");
        assert!(escaped.contains("\\u202e") && escaped.contains("größer"), "{escaped}");
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
        assert!(matches!(escape_json("{\"a\":\"größer\"}"), Cow::Borrowed(_)));
    }

    #[test]
    fn names_of_all_languages_stay() {
        for text in ["web-0", "kubepods-pod\\x2d1.slice", "größer 数据库 \u{1f980}", "\"quoted\" it's"] {
            assert!(matches!(escape(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn nothing_that_is_left_is_a_control_character() {
        let all: String = (0..=0x0010_ffff).filter_map(char::from_u32).collect();
        assert!(!escape(&all).chars().any(char::is_control));
    }
}
