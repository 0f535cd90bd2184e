//! The bodies of requests to persistent memory, and the key `pmem` of a configuration file.

use std::path::PathBuf;

use devices::virtio::block::Access;
use serde::{Deserialize, Serialize};

use super::drive::{RateLimiter, plain_id, same_id};
use super::request::Fault;

/// `PUT /pmem/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pmem {
    /// Its name.
    pub id: String,
    /// The file behind it.
    pub path_on_host: PathBuf,
    /// Whether the guest's root file system is on it.
    #[serde(default)]
    pub root_device: bool,
    /// Whether the guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// A limit on flushes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(default, deserialize_with = "super::object::optional")]
    pub rate_limiter: Option<RateLimiter>,
}

impl Pmem {
    /// Checks what its types do not.
    ///
    /// # Errors
    /// The field at fault.
    pub fn check(self) -> Result<Self, Fault> {
        plain_id("id", &self.id)?;
        self.rate_limiter.unwrap_or_default().buckets()?;
        Ok(self)
    }

    /// The same for the path's `id`.
    ///
    /// # Errors
    /// The field at fault.
    pub(super) fn check_of(self, id: &str) -> Result<Self, Fault> {
        same_id("id", &self.id, id)?;
        self.check()
    }

    /// Whether the guest may write.
    pub(crate) fn access(&self) -> Access {
        if self.read_only {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        }
    }

    /// What a kernel is told of its root file system, when it is on this memory, which is the one with this `index`.
    pub(crate) fn root_arguments(&self, index: usize) -> String {
        let access = if self.read_only { "ro" } else { "rw" };
        format!("root=/dev/pmem{index} {access}")
    }
}

/// `PATCH /pmem/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmemPatch {
    /// Its name.
    pub id: String,
    /// Another limit on flushes.
    #[serde(default, deserialize_with = "super::object::optional")]
    pub rate_limiter: Option<RateLimiter>,
}

impl PmemPatch {
    /// Checks what its types do not.
    ///
    /// # Errors
    /// The field at fault.
    pub(super) fn check(self, id: &str) -> Result<Self, Fault> {
        same_id("id", &self.id, id)?;
        let Some(limiter) = self.rate_limiter else {
            return Err(Fault::new("the body changes nothing: give rate_limiter"));
        };
        limiter.buckets()?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pmem(fields: &str) -> Pmem {
        let text = format!(r#"{{"id":"a","path_on_host":"f"{fields}}}"#);
        serde_json::from_str(&text).expect("well-formed")
    }

    #[test]
    fn what_is_left_out_is_no_root_and_writable() {
        let left_out = pmem("");
        assert!(!left_out.root_device && !left_out.read_only);
        assert_eq!(left_out.access(), Access::ReadWrite);
        assert_eq!(pmem(r#","read_only":true"#).access(), Access::ReadOnly);
    }

    #[test]
    fn limit_that_cannot_be_is_refused_by_its_field() {
        let bucket = r#"{"size":1,"refill_time":99999999999}"#;
        let limited = pmem(&format!(r#","rate_limiter":{{"ops":{bucket}}}"#));
        let message = limited.clone().check().expect_err("too long").to_string();
        assert!(
            message.contains("rate_limiter.ops: a refill time"),
            "{message}"
        );
        let patch = |rate_limiter| PmemPatch {
            id: "a".to_owned(),
            rate_limiter,
        };
        for (patch, id, part) in [
            (patch(limited.rate_limiter), "a", "rate_limiter.ops"),
            (patch(None), "a", "changes nothing"),
            (patch(Some(RateLimiter::default())), "b", "\"b\""),
        ] {
            let message = patch.check(id).expect_err(part).to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
