//! The bodies of requests to disks and to the source of entropy, and the keys `drives` and `entropy` of a
//! configuration file.

use std::path::PathBuf;

use devices::rate_limiter::{Bucket, BucketError};
use devices::virtio::block::{Access, Cache};
use serde::{Deserialize, Serialize};
use tsc::Nanos;

use super::request::Fault;

/// Checks that a body is about what its path names.
///
/// # Errors
/// Both names.
pub(super) fn same_id(field: &str, in_body: &str, in_path: &str) -> Result<(), Fault> {
    if in_body == in_path {
        return Ok(());
    }
    let shown: String = in_body.chars().take(64).collect();
    Err(Fault::new(format!(
        "{field}: the body has {shown:?} and the path {in_path:?}"
    )))
}

/// Refuses an identifier that no log and no thread's name can show; a path of the API has stricter rules.
///
/// # Errors
/// The name.
pub(super) fn plain_id(field: &str, id: &str) -> Result<(), Fault> {
    if !id.chars().any(char::is_control) {
        return Ok(());
    }
    let shown: String = id.chars().take(64).collect();
    Err(Fault::new(format!(
        "{field}: {shown:?} has control characters; give letters, digits and underscores"
    )))
}

/// A bucket of a rate limiter. One of size 0 or with a refill time of 0 is none, as Firecracker has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// How many tokens it holds.
    pub size: u64,
    /// How many there are once, beside them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// In how many milliseconds an empty one is full.
    pub refill_time: u64,
}

impl TokenBucket {
    /// The bucket, if it is one.
    ///
    /// # Errors
    /// The bound that is not kept.
    pub fn bucket(self) -> Result<Option<Bucket>, BucketError> {
        if self.size == 0 || self.refill_time == 0 {
            return Ok(None);
        }
        let refill = Nanos::from_millis(self.refill_time).unwrap_or(Nanos::new(u64::MAX));
        Bucket::new(self.size, self.one_time_burst.unwrap_or(0), refill).map(Some)
    }
}

/// A limit on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// On bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(default, deserialize_with = "super::object::optional")]
    pub bandwidth: Option<TokenBucket>,
    /// On requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(default, deserialize_with = "super::object::optional")]
    pub ops: Option<TokenBucket>,
}

/// The buckets of bytes and of requests; an outer `None` is one of which nothing was said.
pub(crate) type Buckets = (Option<Option<Bucket>>, Option<Option<Bucket>>);

impl RateLimiter {
    /// Takes over what a PATCH says of a limiter; of what it does not, the old stays.
    pub(crate) fn change(known: &mut Option<Self>, patch: Option<Self>) {
        if let Some(patch) = patch {
            let known = known.get_or_insert_default();
            known.bandwidth = patch.bandwidth.or(known.bandwidth);
            known.ops = patch.ops.or(known.ops);
        }
    }

    /// Its buckets.
    ///
    /// # Errors
    /// The bucket at fault.
    pub(crate) fn buckets(self) -> Result<Buckets, Fault> {
        let bucket = |name: &str, bucket: Option<TokenBucket>| {
            bucket
                .map(TokenBucket::bucket)
                .transpose()
                .map_err(|error| Fault::new(format!("rate_limiter.{name}: {error}")))
        };
        Ok((
            bucket("bandwidth", self.bandwidth)?,
            bucket("ops", self.ops)?,
        ))
    }
}

/// What a flush means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum CacheType {
    /// There is none.
    #[default]
    Unsafe,
    /// It waits for the disk.
    Writeback,
}

impl From<CacheType> for Cache {
    fn from(cache: CacheType) -> Self {
        match cache {
            CacheType::Unsafe => Self::Unsafe,
            CacheType::Writeback => Self::Writeback,
        }
    }
}

/// How a disk's requests reach the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum IoEngine {
    /// One after the other.
    #[default]
    Sync,
    /// Many at once, by io_uring.
    Async,
}

/// `PUT /drives/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Its name, which the guest sees as the disk's serial.
    pub drive_id: String,
    /// Whether the guest's root file system is on it.
    pub is_root_device: bool,
    /// The partition of the root file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// What a flush means.
    #[serde(default)]
    pub cache_type: Option<CacheType>,
    /// Whether the guest may only read.
    #[serde(default)]
    pub is_read_only: Option<bool>,
    /// The image.
    pub path_on_host: Option<PathBuf>,
    /// A limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(default, deserialize_with = "super::object::optional")]
    pub rate_limiter: Option<RateLimiter>,
    /// How requests reach the host.
    #[serde(default)]
    pub io_engine: Option<IoEngine>,
    /// The socket of another process that serves the disk, which this version does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
}

impl Drive {
    /// Checks what its types do not, and says what was left open.
    ///
    /// # Errors
    /// The field at fault.
    pub fn check(mut self) -> Result<Self, Fault> {
        plain_id("drive_id", &self.drive_id)?;
        match (&self.path_on_host, &self.socket) {
            (Some(_), None) => {}
            (None, Some(_)) => {
                return Err(Fault::new(
                    "socket: this version of keeptime has no disks that another process serves yet; give \
                     path_on_host",
                ));
            }
            _ => {
                return Err(Fault::new(
                    "a drive has either a path_on_host or a socket, and not both",
                ));
            }
        }
        if let Some(partuuid) = &self.partuuid {
            if !self.is_root_device {
                return Err(Fault::new(
                    "partuuid: only a root device has one; set is_root_device, or leave it out",
                ));
            }
            // It becomes part of the kernel's command line.
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '/' | '=');
            if partuuid.is_empty() || !partuuid.chars().all(fits) {
                return Err(Fault::new(
                    "partuuid: not a partition's UUID such as 0eaa91a0-01",
                ));
            }
        }
        self.rate_limiter.unwrap_or_default().buckets()?;
        self.cache_type.get_or_insert_default();
        self.is_read_only.get_or_insert_default();
        self.io_engine.get_or_insert_default();
        Ok(self)
    }

    /// The image's path.
    pub(crate) fn path(&self) -> PathBuf {
        self.path_on_host.clone().unwrap_or_default()
    }

    /// Whether many requests are under way at once.
    pub(crate) fn is_async(&self) -> bool {
        self.io_engine == Some(IoEngine::Async)
    }

    /// Whether the guest may write.
    pub(crate) fn access(&self) -> Access {
        if self.is_read_only == Some(true) {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        }
    }

    /// What a kernel is told of its root file system, when it is on this drive, which is then the first.
    pub(crate) fn root_arguments(&self) -> String {
        let access = match self.access() {
            Access::ReadOnly => "ro",
            Access::ReadWrite => "rw",
        };
        match &self.partuuid {
            Some(partuuid) => format!("root=PARTUUID={partuuid} {access}"),
            None => format!("root=/dev/vda {access}"),
        }
    }
}

/// `PATCH /drives/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrivePatch {
    /// Its name.
    pub drive_id: String,
    /// Another image, or the same with another size.
    pub path_on_host: Option<PathBuf>,
    /// Another limit.
    #[serde(default, deserialize_with = "super::object::optional")]
    pub rate_limiter: Option<RateLimiter>,
}

impl DrivePatch {
    /// Checks what its types do not.
    ///
    /// # Errors
    /// The field at fault.
    pub(super) fn check(self, id: &str) -> Result<Self, Fault> {
        same_id("drive_id", &self.drive_id, id)?;
        if self.path_on_host.is_none() && self.rate_limiter.is_none() {
            return Err(Fault::new(
                "the body changes nothing: give path_on_host or rate_limiter",
            ));
        }
        self.rate_limiter.unwrap_or_default().buckets()?;
        Ok(self)
    }
}

/// `PUT /entropy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// A limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(default, deserialize_with = "super::object::optional")]
    pub rate_limiter: Option<RateLimiter>,
}

impl Entropy {
    /// Checks what its types do not.
    ///
    /// # Errors
    /// The field at fault.
    pub fn check(self) -> Result<Self, Fault> {
        self.rate_limiter.unwrap_or_default().buckets()?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive(fields: &str) -> Result<Drive, Fault> {
        let text = format!(r#"{{"drive_id":"a",{fields}}}"#);
        let drive: Drive = serde_json::from_str(&text).expect("well-formed");
        drive.check()
    }

    #[test]
    fn drive_that_cannot_be_had_is_refused_by_its_field() {
        let root = r#""is_root_device":true,"path_on_host":"f""#;
        let other = r#""is_root_device":false,"path_on_host":"f""#;
        let bucket = r#"{"size":1,"refill_time":99999999999}"#;
        for (fields, part) in [
            (format!(r#"{root},"socket":"s""#), "not both"),
            (r#""is_root_device":true"#.to_owned(), "not both"),
            (
                r#""is_root_device":true,"socket":"s""#.to_owned(),
                "socket: this version",
            ),
            (format!(r#"{other},"partuuid":"1-2""#), "only a root device"),
            (format!(r#"{root},"partuuid":"a b""#), "not a partition"),
            (format!(r#"{root},"partuuid":"""#), "not a partition"),
            (
                format!(r#"{root},"rate_limiter":{{"ops":{bucket}}}"#),
                "rate_limiter.ops: a refill time",
            ),
        ] {
            let message = drive(&fields).expect_err(&fields).to_string();
            assert!(message.contains(part), "{fields}: {message}");
        }
        // In a configuration file a name is any text; this one no thread can have.
        let text = r#"{"drive_id":"a\u0000","is_root_device":false,"path_on_host":"f"}"#;
        let unnamed: Drive = serde_json::from_str(text).expect("well-formed");
        let message = unnamed.check().expect_err("no name").to_string();
        assert!(message.contains(r#"drive_id: "a\0""#), "{message}");
    }

    #[test]
    fn root_arguments_name_the_disk_or_its_partition() {
        let arguments = |fields: &str| {
            let fields = format!(r#""is_root_device":true,"path_on_host":"f"{fields}"#);
            drive(&fields).expect("valid").root_arguments()
        };
        assert_eq!(arguments(""), "root=/dev/vda rw");
        assert_eq!(arguments(r#","is_read_only":true"#), "root=/dev/vda ro");
        let partition = arguments(r#","partuuid":"0eaa91a0-01""#);
        assert_eq!(partition, "root=PARTUUID=0eaa91a0-01 rw");
    }

    #[test]
    fn bucket_of_nothing_is_none() {
        for (size, refill_time, there) in [(0, 1, false), (1, 0, false), (1, 1, true)] {
            let bucket = TokenBucket {
                size,
                one_time_burst: None,
                refill_time,
            };
            assert_eq!(bucket.bucket().expect("in bounds").is_some(), there);
        }
    }
}
