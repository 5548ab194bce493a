//! Settings on the command line: `--set KEY=VALUE`, and the flags that stand for one setting. An error names them as they were typed.

use std::fmt;

use super::{Setting, find, parse_value};

/// A setting from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flag {
    /// `--set`, with what follows it: "KEY=VALUE".
    Set(String),
    /// A flag that stands for a setting.
    Named {
        /// The flag: "--log-level".
        name: &'static str,
        /// The setting's key: "log.level".
        key: &'static str,
        /// What follows the flag, a string.
        value: String,
    },
}

impl Flag {
    pub(super) fn read(&self) -> Result<(&'static Setting, toml::Value), String> {
        match self {
            Self::Set(text) => {
                let (key, text) = text.split_once('=').ok_or("not of the form KEY=VALUE")?;
                let (key, text) = (key.trim(), text.trim());
                // A bare word is a string, so that the shell's quotes are enough.
                let value = parse_value(text).unwrap_or_else(|_| toml::Value::String(text.to_owned()));
                Ok((find(key)?, value))
            }
            Self::Named { key, value, .. } => Ok((find(key)?, toml::Value::String(value.clone()))),
        }
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(text) => write!(f, "--set {text}"),
            Self::Named { name, value, .. } => write!(f, "{name} {value}"),
        }
    }
}
