//! What the command line may say, in types that hold nothing else.

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use rustix::process::Resource;

/// The longest id.
const MAX_ID: usize = 64;

/// The longest value of a cgroup's file: a write that the kernel takes at once.
const MAX_VALUE: usize = 4095;

/// The longest name of a file: `NAME_MAX`.
const MAX_NAME: usize = 255;

/// Why a value of a flag is refused. The flag is named by whoever parses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SettingError {
    #[error("not 1 to {MAX_ID} letters, digits and hyphens")]
    Id,
    #[error("not a user or group: choose 0 to 4294967294")]
    User,
    #[error("not FILE=VALUE, such as cpu.weight=100")]
    NoValue,
    #[error(
        "the file's name is not CONTROLLER.FILE of letters, digits, dots, dashes and underscores"
    )]
    CgroupFile,
    #[error(
        "the value is empty, longer than {MAX_VALUE} bytes or holds control characters: give one line"
    )]
    CgroupValue,
    #[error(
        "not a path below the root of the cgroups, without `..`, a leading slash or control characters"
    )]
    ParentCgroup,
    #[error("unknown limit {0:?}: choose fsize or no-file")]
    Limit(String),
    #[error("{0:?} is not a number: give fsize=BYTES or no-file=COUNT")]
    LimitValue(String),
}

/// The name of a jail.
#[derive(Debug, Clone)]
pub(crate) struct JailId(String);

impl FromStr for JailId {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let valid = (1..=MAX_ID).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        valid.then(|| Self(text.to_owned())).ok_or(SettingError::Id)
    }
}

impl AsRef<str> for JailId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Parses a user's or a group's number; the largest means "unchanged" to the kernel.
pub(crate) fn parse_user(text: &str) -> Result<u32, SettingError> {
    match text.parse() {
        Ok(u32::MAX) | Err(_) => Err(SettingError::User),
        Ok(number) => Ok(number),
    }
}

/// A value that is written to a file of the jail's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CgroupSetting {
    pub(crate) file: String,
    pub(crate) value: String,
}

impl CgroupSetting {
    /// What comes before the first dot of the file's name.
    pub(crate) fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or_default()
    }
}

impl FromStr for CgroupSetting {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let (file, value) = text.split_once('=').ok_or(SettingError::NoValue)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let named = file.len() <= MAX_NAME
            && file.split('.').count() > 1
            && file.split('.').all(|part| !part.is_empty())
            && file.chars().all(plain);
        if !named {
            return Err(SettingError::CgroupFile);
        }
        if value.is_empty() || value.len() > MAX_VALUE || value.chars().any(char::is_control) {
            return Err(SettingError::CgroupValue);
        }
        Ok(Self {
            file: file.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// The cgroup, relative to the root of the hierarchy, that the jail's is made in.
pub(crate) fn parse_parent_cgroup(text: &str) -> Result<PathBuf, SettingError> {
    let path = Path::new(text);
    let normal = path
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    let valid = !text.is_empty() && normal && !text.chars().any(char::is_control);
    valid
        .then(|| path.to_owned())
        .ok_or(SettingError::ParentCgroup)
}

/// A limit of the jailed process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResourceLimit {
    pub(crate) resource: Resource,
    pub(crate) most: u64,
}

impl FromStr for ResourceLimit {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let (name, most) = text.split_once('=').unwrap_or((text, ""));
        let resource = match name {
            "fsize" => Resource::Fsize,
            "no-file" => Resource::Nofile,
            _ => return Err(SettingError::Limit(name.to_owned())),
        };
        let most = most
            .parse()
            .map_err(|_| SettingError::LimitValue(most.to_owned()))?;
        Ok(Self { resource, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_bounds() {
        for (id, valid) in [
            (String::new(), false),
            ("a".to_owned(), true),
            ("a".repeat(64), true),
            ("a".repeat(65), false),
            ("a/b".to_owned(), false),
            ("..".to_owned(), false),
            ("a_b".to_owned(), false),
            ("é".to_owned(), false),
            ("a\n".to_owned(), false),
        ] {
            assert_eq!(id.parse::<JailId>().is_ok(), valid, "{id:?}");
        }
    }

    #[test]
    fn users_go_up_to_the_last_but_one() {
        assert_eq!(parse_user("0"), Ok(0));
        assert_eq!(parse_user("4294967294"), Ok(u32::MAX - 1));
        for text in ["4294967295", "4294967296", "-1", "root", ""] {
            assert_eq!(parse_user(text), Err(SettingError::User), "{text}");
        }
    }

    #[test]
    fn cgroup_settings_are_one_line_for_one_file() {
        let setting: CgroupSetting = "cpu.max=1 = 2".parse().expect("valid");
        assert_eq!(
            (setting.controller(), setting.value.as_str()),
            ("cpu", "1 = 2")
        );
        let long = format!("cpu.max={}", "1".repeat(4096));
        for (text, error) in [
            ("cpu.max", SettingError::NoValue),
            ("tasks=1", SettingError::CgroupFile),
            ("cpu..max=1", SettingError::CgroupFile),
            ("../cpu.max=1", SettingError::CgroupFile),
            ("a/cpu.max=1", SettingError::CgroupFile),
            ("=1", SettingError::CgroupFile),
            ("cpu.max=", SettingError::CgroupValue),
            ("cpu.max=1\n2", SettingError::CgroupValue),
            (&long, SettingError::CgroupValue),
        ] {
            assert_eq!(text.parse::<CgroupSetting>(), Err(error), "{text}");
        }
    }

    #[test]
    fn parent_cgroups_stay_below_the_root() {
        assert!(parse_parent_cgroup("a/b.slice").is_ok());
        for text in ["", "/a", "../a", "a/../../b", "a\nb"] {
            assert!(parse_parent_cgroup(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn limits_are_two() {
        let limit: ResourceLimit = "no-file=7".parse().expect("valid");
        assert_eq!((limit.resource, limit.most), (Resource::Nofile, 7));
        for text in ["nofile=7", "fsize", "fsize=", "fsize=-1", "fsize=x"] {
            assert!(text.parse::<ResourceLimit>().is_err(), "{text}");
        }
    }
}
