//! Log levels by the names that Firecracker has for them.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The least important level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What is not as it should be.
    #[value(alias = "warn")]
    Warning,
    /// What happened.
    Info,
    /// What helps to find a fault.
    Debug,
    /// All there is.
    Trace,
}

impl Level {
    /// A number that grows with what is logged.
    pub(super) fn rank(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Error => 1,
            Self::Warning => 2,
            Self::Info => 3,
            Self::Debug => 4,
            Self::Trace => 5,
        }
    }
}

impl From<tracing::Level> for Level {
    fn from(level: tracing::Level) -> Self {
        match level {
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warning,
            tracing::Level::INFO => Self::Info,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::TRACE => Self::Trace,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "Off",
            Self::Error => "Error",
            Self::Warning => "Warning",
            Self::Info => "Info",
            Self::Debug => "Debug",
            Self::Trace => "Trace",
        })
    }
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::from_str(&name, true).map_err(|_| {
            serde::de::Error::custom(format_args!(
                "{name:?} is no level: choose Off, Error, Warning, Info, Debug or Trace"
            ))
        })
    }
}

impl Serialize for Level {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_is_read_in_any_case_and_written_in_one() {
        for (text, level) in [
            ("\"Info\"", Level::Info),
            ("\"WARNING\"", Level::Warning),
            ("\"warn\"", Level::Warning),
            ("\"off\"", Level::Off),
        ] {
            let read: Level = serde_json::from_str(text).expect(text);
            assert_eq!(read, level);
        }
        let text = serde_json::to_string(&Level::Warning).expect("text");
        assert_eq!(text, "\"Warning\"");
        let error = serde_json::from_str::<Level>("\"loud\"").expect_err("no level");
        assert!(error.to_string().contains("loud"), "{error}");
    }
}
