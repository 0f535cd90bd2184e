//! The body of the request to the socket device, and the key `vsock` of a configuration file.

use std::path::PathBuf;

use devices::virtio::vsock::Cid;
use serde::{Deserialize, Serialize};

use super::request::Fault;

/// The longest path of a Unix socket (unix(7): 108 bytes with the zero at its end).
pub const MAX_PATH: usize = 107;

/// `PUT /vsock`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's address.
    pub guest_cid: u32,
    /// Where programs of the host connect to the guest; with `_PORT` after it, where the guest's connections to the
    /// host's port arrive.
    pub uds_path: PathBuf,
    /// Older clients give the device a name. It has no use, as there is one device.
    #[serde(default, skip_serializing)]
    pub vsock_id: Option<String>,
}

impl Vsock {
    /// Checks what its types do not.
    ///
    /// # Errors
    /// The field at fault.
    pub fn check(self) -> Result<Self, Fault> {
        if self.cid().is_none() {
            return Err(Fault::new(format!(
                "guest_cid is {}: a guest's is from {} to {}",
                self.guest_cid,
                Cid::MIN_GUEST,
                u32::MAX - 1
            )));
        }
        let len = self.uds_path.as_os_str().len();
        if !(1..=MAX_PATH).contains(&len) {
            return Err(Fault::new(format!(
                "uds_path has {len} bytes: a socket's path has 1 to {MAX_PATH}"
            )));
        }
        Ok(self)
    }

    /// The guest's address, if the number is one.
    pub(crate) fn cid(&self) -> Option<Cid> {
        Cid::guest(self.guest_cid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_that_cannot_be_had_is_refused_by_its_field() {
        let path = |len: usize| "p".repeat(len);
        for (cid, path, part) in [
            (0, path(1), "guest_cid is 0"),
            (2, path(1), "guest_cid is 2: a guest's is from 3"),
            (3, path(1), ""),
            (u32::MAX - 1, path(MAX_PATH), ""),
            (u32::MAX, path(1), "guest_cid is 4294967295"),
            (3, path(0), "uds_path has 0 bytes"),
            (3, path(MAX_PATH + 1), "uds_path has 108 bytes"),
        ] {
            let text = format!(r#"{{"guest_cid":{cid},"uds_path":"{path}","vsock_id":"v"}}"#);
            let vsock: Vsock = serde_json::from_str(&text).expect("well-formed");
            let message = vsock.check().err().map(|fault| fault.to_string());
            let message = message.unwrap_or_default();
            assert_eq!(message.is_empty(), part.is_empty(), "{text}: {message}");
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn name_of_the_device_is_taken_and_not_kept() {
        let text = r#"{"guest_cid":3,"uds_path":"v.sock","vsock_id":"v"}"#;
        let vsock: Vsock = serde_json::from_str(text).expect("well-formed");
        let shown = serde_json::to_string(&vsock).expect("text");
        assert_eq!(shown, r#"{"guest_cid":3,"uds_path":"v.sock"}"#);
    }
}
