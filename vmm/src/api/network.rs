//! The bodies of requests to network interfaces, and the key `network-interfaces` of a configuration file.

use std::fmt;

use devices::virtio::net::{Identity, MacAddress};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::drive::{RateLimiter, plain_id, same_id};
use super::request::Fault;
/// The longest name of an interface: `IFNAMSIZ` with its end (include/uapi/linux/if.h).
pub const MAX_NAME: usize = libc::IFNAMSIZ - 1;

/// Whether an interface can have such a name (`dev_valid_name`, net/core/dev.c). A name with "%d" in it asks the
/// kernel for any number, and so is none.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let valid = |byte: u8| !b"/:%\0".contains(&byte) && !byte.is_ascii_whitespace();
    (1..=MAX_NAME).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(valid)
}

/// The smallest unit that IPv4 lets a link have (RFC 791, section 3.2).
const MIN_MTU: u16 = 68;

/// An Ethernet address in a body: six bytes in hexadecimal, with colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub MacAddress);

impl Mac {
    /// Reads such a text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next()?;
            // Not "+f", which is a number, too.
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(Self(MacAddress(bytes)))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom("guest_mac is not six bytes such as AA:FC:00:00:00:01")
        })
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `PUT /network-interfaces/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// Its name, for requests.
    pub iface_id: String,
    /// The tap interface of the host.
    pub host_dev_name: String,
    /// The guest's address on it; its driver makes one up when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<Mac>,
    /// The longest packet that the guest is to send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// A limit on what the guest receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(default, deserialize_with = "super::object::optional")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// A limit on what it sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(default, deserialize_with = "super::object::optional")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

impl NetworkInterface {
    /// Checks what its types do not.
    ///
    /// # Errors
    /// The field at fault.
    pub fn check(self) -> Result<Self, Fault> {
        plain_id("iface_id", &self.iface_id)?;
        if !is_name(&self.host_dev_name) {
            return Err(Fault::new(format!(
                "host_dev_name: an interface's name has 1 to {} bytes without \"/\" and spaces",
                MAX_NAME
            )));
        }
        if let Some(Mac(MacAddress([first, ..]))) = self.guest_mac
            && first & 1 != 0
        {
            return Err(Fault::new(
                "guest_mac is the address of a group: the lowest bit of its first byte must be 0",
            ));
        }
        if self.mtu.is_some_and(|mtu| mtu < MIN_MTU) {
            return Err(Fault::new(format!("mtu is less than {MIN_MTU}")));
        }
        limits("rx_rate_limiter", self.rx_rate_limiter)?;
        limits("tx_rate_limiter", self.tx_rate_limiter)?;
        Ok(self)
    }

    /// What the guest is told of its card.
    pub(crate) fn identity(&self) -> Identity {
        Identity {
            mac: self.guest_mac.map(|Mac(address)| address),
            mtu: self.mtu,
        }
    }
}

/// Checks a limiter's bounds, and names the field.
fn limits(field: &str, limiter: Option<RateLimiter>) -> Result<(), Fault> {
    let buckets = limiter.unwrap_or_default().buckets();
    buckets.map(|_| ()).map_err(|fault| {
        let fault = fault.to_string();
        let fault = fault.strip_prefix("rate_limiter").unwrap_or(&fault);
        Fault::new(format!("{field}{fault}"))
    })
}

/// `PATCH /network-interfaces/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterfacePatch {
    /// Its name.
    pub iface_id: String,
    /// Another limit on what the guest receives.
    #[serde(default, deserialize_with = "super::object::optional")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Another limit on what it sends.
    #[serde(default, deserialize_with = "super::object::optional")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

impl NetworkInterfacePatch {
    /// Checks what its types do not.
    ///
    /// # Errors
    /// The field at fault.
    pub(super) fn check(self, id: &str) -> Result<Self, Fault> {
        same_id("iface_id", &self.iface_id, id)?;
        if self.rx_rate_limiter.is_none() && self.tx_rate_limiter.is_none() {
            return Err(Fault::new(
                "the body changes nothing: give rx_rate_limiter or tx_rate_limiter",
            ));
        }
        limits("rx_rate_limiter", self.rx_rate_limiter)?;
        limits("tx_rate_limiter", self.tx_rate_limiter)?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_interfaces() {
        for (name, valid) in [
            ("tap0", true),
            ("a.b-c_d", true),
            ("fifteen-bytes-x", true),
            ("sixteen-bytes-xy", false),
            ("", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("a b", false),
            ("a:1", false),
            ("tap%d", false),
            ("a\0", false),
        ] {
            assert_eq!(is_name(name), valid, "{name:?}");
        }
    }

    #[test]
    fn mac_is_six_bytes() {
        for (text, valid) in [
            ("AA:FC:00:00:00:01", true),
            ("aa:fc:00:00:00:0g", false),
            ("AA:FC:00:00:00", false),
            ("AA:FC:00:00:00:01:02", false),
            ("AAFC00000001", false),
            ("A:FC:00:00:00:011", false),
            ("+a:fc:00:00:00:01", false),
        ] {
            assert_eq!(Mac::parse(text).is_some(), valid, "{text}");
        }
        let mac = Mac::parse("AA:FC:00:00:00:01").expect("valid");
        assert_eq!(mac.to_string(), "aa:fc:00:00:00:01");
    }

    #[test]
    fn interface_that_cannot_be_had_is_refused_by_its_field() {
        let bucket = r#"{"size":1,"refill_time":99999999999}"#;
        for (fields, part) in [
            (r#""host_dev_name":"a b""#.to_owned(), "host_dev_name: "),
            (
                r#""host_dev_name":"t","guest_mac":"01:00:5e:00:00:01""#.to_owned(),
                "address of a group",
            ),
            (
                r#""host_dev_name":"t","mtu":67"#.to_owned(),
                "mtu is less than 68",
            ),
            (
                format!(r#""host_dev_name":"t","rx_rate_limiter":{{"ops":{bucket}}}"#),
                "rx_rate_limiter.ops: a refill time",
            ),
            (
                format!(r#""host_dev_name":"t","tx_rate_limiter":{{"bandwidth":{bucket}}}"#),
                "tx_rate_limiter.bandwidth: a refill time",
            ),
        ] {
            let text = format!(r#"{{"iface_id":"a",{fields}}}"#);
            let interface: NetworkInterface = serde_json::from_str(&text).expect("well-formed");
            let message = interface.check().expect_err(&fields).to_string();
            assert!(message.contains(part), "{fields}: {message}");
        }
    }
}
