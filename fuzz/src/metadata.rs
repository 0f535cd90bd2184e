//! The metadata service, as a guest reaches it over its network card.

use std::cell::Cell;
use std::sync::Arc;

use arbitrary::Arbitrary;
use devices::virtio::net::{Detour, HEADER, MAX_FRAME, PEEK};
use tsc::Nanos;
use vmm::api::body::{MmdsConfig, MmdsVersion};
use vmm::mmds::{CONNECTIONS, DEFAULT_ADDRESS, Endpoint, Host, Metadata, Service};

use crate::input::decode;

/// Where the parts of a frame are.
const IPV4: usize = HEADER + 14;
const TCP: usize = IPV4 + 20;

const GUEST: [u8; 4] = [172, 16, 0, 2];
const MAC: [u8; 6] = [0xaa, 0xfc, 0, 0, 0, 1];

#[derive(Arbitrary, Debug)]
enum Step {
    /// Any frame, with its virtio header.
    Frame(Vec<u8>),
    /// A frame for the service as it should be, but for what is changed in it.
    Segment(Segment),
    /// Milliseconds go by.
    Wait(u16),
    /// The guest takes so many frames.
    Take(u8),
}

#[derive(Arbitrary, Debug)]
struct Segment {
    connection: u8,
    /// The flags of TCP's header (RFC 9293, section 3.1).
    flags: u8,
    window: u16,
    /// Sent is the number that is next, plus this.
    ahead: i8,
    /// Acknowledged is what came last, plus this.
    acknowledges: i8,
    text: Text,
    /// A byte of the frame that is another: where, and which.
    wrong: Option<(u8, u8)>,
    /// The checksum is left undone.
    undone: bool,
}

#[derive(Arbitrary, Debug)]
enum Text {
    None,
    Token(u8),
    Get(u8),
    Any(Vec<u8>),
    Long(u16),
}

impl Text {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Token(seconds) => format!(
                "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: {seconds}\r\n\r\n"
            )
            .into_bytes(),
            Self::Get(path) => {
                let paths = ["", "a", "a/b", "large", "none"];
                let path = paths[usize::from(*path) % paths.len()];
                format!("GET /{path} HTTP/1.1\r\n\r\n").into_bytes()
            }
            Self::Any(bytes) => bytes.clone(),
            Self::Long(len) => vec![b'x'; usize::from(*len) % 4_096],
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Input {
    second: bool,
    compatible: bool,
    steps: Vec<Step>,
}

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
}

fn clock() -> Nanos {
    Nanos::new(NOW.get())
}

/// The numbers of one connection: what the guest sends next, and what it had of the service.
#[derive(Clone, Copy, Default)]
struct Numbers {
    next: u32,
    had: u32,
}

/// RFC 1071.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

fn port(connection: u8) -> u16 {
    1_000 + u16::from(connection % 40)
}

fn frame(segment: &Segment, numbers: &mut Numbers) -> Vec<u8> {
    let text = segment.text.bytes();
    let mut frame = vec![0; TCP + 20];
    frame.extend_from_slice(&text);
    let len = u16::try_from(40 + text.len()).expect("short");
    frame[HEADER + 6..][..6].copy_from_slice(&MAC);
    frame[HEADER + 12..][..2].copy_from_slice(&[8, 0]);
    frame[IPV4..][..2].copy_from_slice(&[0x45, 0]);
    frame[IPV4 + 2..][..2].copy_from_slice(&len.to_be_bytes());
    frame[IPV4 + 8..][..2].copy_from_slice(&[64, 6]);
    frame[IPV4 + 12..][..4].copy_from_slice(&GUEST);
    frame[IPV4 + 16..][..4].copy_from_slice(&DEFAULT_ADDRESS.octets());
    let sum = checksum(&[&frame[IPV4..TCP]]);
    frame[IPV4 + 10..][..2].copy_from_slice(&sum.to_be_bytes());
    let sent = numbers.next.wrapping_add_signed(segment.ahead.into());
    let had = numbers.had.wrapping_add_signed(segment.acknowledges.into());
    frame[TCP..][..2].copy_from_slice(&port(segment.connection).to_be_bytes());
    frame[TCP + 2..][..2].copy_from_slice(&80_u16.to_be_bytes());
    frame[TCP + 4..][..4].copy_from_slice(&sent.to_be_bytes());
    frame[TCP + 8..][..4].copy_from_slice(&had.to_be_bytes());
    frame[TCP + 12..][..2].copy_from_slice(&[0x50, segment.flags]);
    frame[TCP + 14..][..2].copy_from_slice(&segment.window.to_be_bytes());
    if segment.undone {
        frame[0] = 1;
        frame[6..10].copy_from_slice(&[34, 0, 16, 0]);
    } else {
        let tcp = (len - 20).to_be_bytes();
        let address = DEFAULT_ADDRESS.octets();
        let sum = checksum(&[&GUEST, &address, &[0, 6], &tcp, &frame[TCP..]]);
        frame[TCP + 16..][..2].copy_from_slice(&sum.to_be_bytes());
    }
    // SYN and FIN count as one each.
    let counts = u32::from(segment.flags & 2 != 0) + u32::from(segment.flags & 1 != 0);
    let all = u32::try_from(text.len()).expect("short") + counts;
    numbers.next = sent.wrapping_add(all);
    if let Some((at, byte)) = segment.wrong {
        let at = usize::from(at) % frame.len();
        frame[at] = byte;
    }
    frame
}

/// Checks that a frame for the guest is one, and notes what it says of its connection.
fn heard(frame: &[u8], numbers: &mut [Numbers]) {
    assert!(frame.len() >= IPV4, "{} bytes", frame.len());
    assert_eq!(frame[..HEADER], [0; HEADER]);
    // Nobody but who has sent something is answered, from the address that is the service's.
    assert_eq!(frame[HEADER + 6..][..6], [6, 1, 0x23, 0x45, 0x67, 1]);
    if frame[HEADER + 12..][..2] == [8, 6] {
        return;
    }
    assert_eq!(frame[HEADER + 12..][..2], [8, 0]);
    let len = u16::from_be_bytes([frame[IPV4 + 2], frame[IPV4 + 3]]);
    assert_eq!(usize::from(len), frame.len() - IPV4);
    assert!(len <= 1_500);
    assert_eq!(frame[IPV4 + 12..][..4], DEFAULT_ADDRESS.octets());
    assert_eq!(checksum(&[&frame[IPV4..TCP]]), 0);
    let tcp = (len - 20).to_be_bytes();
    assert_eq!(
        checksum(&[&frame[IPV4 + 12..TCP], &[0, 6], &tcp, &frame[TCP..]]),
        0
    );
    let to = u16::from_be_bytes([frame[TCP + 2], frame[TCP + 3]]);
    let Some(numbers) = numbers.get_mut(usize::from(to.wrapping_sub(1_000))) else {
        return;
    };
    let sent = u32::from_be_bytes(frame[TCP + 4..][..4].try_into().expect("four"));
    let text = frame.len() - TCP - usize::from(frame[TCP + 12] >> 4) * 4;
    let counts = u32::from(frame[TCP + 13] & 2 != 0) + u32::from(frame[TCP + 13] & 1 != 0);
    let all = u32::try_from(text).expect("short") + counts;
    numbers.had = sent.wrapping_add(all);
}

/// Frames of any kind, and segments of connections that make sense: what comes back are frames with right lengths and
/// checksums, of a bounded number; and when time has gone by, nothing is left and a new connection is answered.
///
/// # Panics
/// When they are not, or it is not.
pub fn mmds_frames(data: &[u8]) {
    let Some(input) = decode::<Input>(data) else {
        return;
    };
    NOW.set(1_000_000_000);
    let metadata = Metadata::new(1 << 20);
    let large = "0123456789".repeat(1_000);
    let value = format!(r#"{{"a":{{"b":"c"}},"large":"{large}"}}"#);
    let value = value.parse().expect("JSON");
    metadata.put(value).expect("room");
    let config = MmdsConfig {
        version: if input.second {
            MmdsVersion::V2
        } else {
            MmdsVersion::V1
        },
        network_interfaces: Vec::new(),
        ipv4_address: None,
        imds_compat: input.compatible,
    };
    let host = Host {
        clock,
        random: |bytes| {
            bytes.fill(7);
            Ok(())
        },
    };
    let service = Arc::new(Service::new(Arc::new(metadata), &config, host));
    let mut endpoint = Endpoint::new(service).expect("random");
    let mut numbers = [Numbers::default(); 40];
    let mut buffer = vec![0; MAX_FRAME];
    for step in input.steps.iter().take(256) {
        match step {
            Step::Frame(frame) => {
                let frame = frame.get(..MAX_FRAME).unwrap_or(frame);
                let _ = endpoint.wants(frame.get(..PEEK).unwrap_or(frame));
                endpoint.take(frame);
            }
            Step::Segment(segment) => {
                let numbers = &mut numbers[usize::from(segment.connection % 40)];
                endpoint.take(&frame(segment, numbers));
            }
            Step::Wait(time) => NOW.set(NOW.get() + u64::from(*time) * 1_000_000),
            Step::Take(count) => {
                for _ in 0..*count {
                    let Some(len) = endpoint.give(&mut buffer) else {
                        break;
                    };
                    heard(&buffer[..len], &mut numbers);
                }
            }
        }
        assert!(endpoint.wait().is_none_or(|wait| wait.get() > 0));
    }
    // Enough for all connections to be given up, and their resets to be taken.
    NOW.set(NOW.get() + 3_600_000_000_000);
    let mut left = 0;
    while let Some(len) = endpoint.give(&mut buffer) {
        heard(&buffer[..len], &mut numbers);
        left += 1;
        assert!(left < 4 * CONNECTIONS, "frames without end");
    }
    assert_eq!(endpoint.wait(), None);
    let syn = Segment {
        connection: 0,
        flags: 2,
        window: 1_000,
        ahead: 0,
        acknowledges: 0,
        text: Text::None,
        wrong: None,
        undone: false,
    };
    endpoint.take(&frame(&syn, &mut numbers[0]));
    let len = endpoint.give(&mut buffer).expect("an answer");
    heard(&buffer[..len], &mut numbers);
    assert_eq!(buffer[TCP + 13], 0x12, "SYN and ACK");
}
