//! What the metadata service allocates: nothing for what is not for it or makes no sense, and a bounded number of
//! bytes for a request. A process of its own, whose allocator counts.
#![expect(unsafe_code, reason = "an allocator is unsafe to implement")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use devices::virtio::net::{Detour, HEADER, MAX_FRAME, PEEK};
use tsc::Nanos;
use vmm::api::body::{MmdsConfig, MmdsVersion};
use vmm::mmds::{DEFAULT_ADDRESS, Endpoint, Host, Metadata, Service};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator as it is. The counts are a thread's own `Cell`s
// without a destructor, so looking at them neither allocates nor finds them gone.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        BYTES.with(|bytes| bytes.set(bytes.get() + layout.size()));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `pointer` came from the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LIMIT: usize = 100_000;

fn endpoint() -> Endpoint {
    let metadata = Metadata::new(LIMIT);
    let text = "x".repeat(LIMIT - 20);
    let value = format!(r#"{{"a":"{text}"}}"#).parse().expect("JSON");
    metadata.put(value).expect("room");
    let config = MmdsConfig {
        version: MmdsVersion::V1,
        network_interfaces: Vec::new(),
        ipv4_address: None,
        imds_compat: false,
    };
    let host = Host {
        clock: || Nanos::new(1),
        random: |bytes| {
            bytes.fill(1);
            Ok(())
        },
    };
    Endpoint::new(Arc::new(Service::new(Arc::new(metadata), &config, host))).expect("random")
}

/// Allocations of a card that gives this frame to the service if it wants it, and takes what it has.
fn of_frame(endpoint: &mut Endpoint, frame: &[u8], buffer: &mut [u8]) -> (bool, u64, usize) {
    let before = (ALLOCATIONS.get(), BYTES.get());
    let beginning = &frame[HEADER..];
    let wanted = endpoint.wants(beginning.get(..PEEK).unwrap_or(beginning));
    if wanted {
        endpoint.take(frame);
    }
    while endpoint.give(buffer).is_some() {}
    let _ = endpoint.wait();
    (wanted, ALLOCATIONS.get() - before.0, BYTES.get() - before.1)
}

/// A frame with a TCP segment, whose checksum is left to the card.
fn segment(flags: u8, sent: u32, had: u32, text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEADER + 54];
    frame[0] = 1;
    frame[6..10].copy_from_slice(&[34, 0, 16, 0]);
    frame[HEADER + 6..][..8].copy_from_slice(&[2, 0, 0, 0, 0, 1, 8, 0]);
    let len = u16::try_from(40 + text.len()).expect("short").to_be_bytes();
    let packet = &mut frame[HEADER + 14..];
    packet[..4].copy_from_slice(&[0x45, 0, len[0], len[1]]);
    packet[8..10].copy_from_slice(&[64, 6]);
    packet[12..16].copy_from_slice(&[172, 16, 0, 2]);
    packet[16..20].copy_from_slice(&DEFAULT_ADDRESS.octets());
    let sum = packet[..20].chunks(2).fold(0, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], pair[1]]))
    });
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..24].copy_from_slice(&[0x10, 0, 0, 80]);
    packet[24..28].copy_from_slice(&sent.to_be_bytes());
    packet[28..32].copy_from_slice(&had.to_be_bytes());
    packet[32..36].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
    frame.extend_from_slice(text);
    frame
}

#[test]
fn frames_for_others_and_frames_without_sense_allocate_nothing() {
    let mut endpoint = endpoint();
    let mut buffer = vec![0; MAX_FRAME];
    let mut to_others = segment(2, 0, 0, &[]);
    to_others[HEADER + 33] = 1;
    let mut wrong = segment(2, 0, 0, &[]);
    wrong[HEADER + 24] ^= 1;
    let jumbo = segment(16, 0, 0, &[0; 9_000]);
    for (frame, is_wanted) in [(to_others, false), (wrong, true), (jumbo, true)] {
        let (wanted, allocations, _) = of_frame(&mut endpoint, &frame, &mut buffer);
        assert_eq!((wanted, allocations), (is_wanted, 0));
    }
}

#[test]
fn request_allocates_no_more_than_its_answer_a_few_times() {
    let mut endpoint = endpoint();
    let mut buffer = vec![0; MAX_FRAME];
    let (wanted, _, bytes) = of_frame(&mut endpoint, &segment(2, 0, 0, &[]), &mut buffer);
    assert!(wanted && bytes < 1_000, "{bytes}");
    let had = u32::from_be_bytes(buffer[HEADER + 38..][..4].try_into().expect("four")) + 1;
    let request = b"GET /a HTTP/1.1\r\n\r\n";
    let (_, _, bytes) = of_frame(&mut endpoint, &segment(16, 1, had, request), &mut buffer);
    assert!(bytes > LIMIT - 20, "the request was not answered: {bytes}");
    assert!(bytes < 4 * LIMIT, "{bytes}");
    // What acknowledges an answer, or asks for it again, allocates nothing.
    let len = u32::try_from(request.len()).expect("short");
    for had in [had + 1_000, had + 1_460, had + 1_460] {
        let frame = segment(16, 1 + len, had, &[]);
        let (_, allocations, _) = of_frame(&mut endpoint, &frame, &mut buffer);
        assert_eq!(allocations, 0);
    }
}
