//! The API: what any bytes on its socket amount to, and what any body asks for.

use vmm::api::http::{MAX_HEAD, Method, Parser, Step};
use vmm::api::request::{self, ApiRequest};
use vmm::config::{MAX_VCPUS, MachineConfig};

/// The longest message about a request that is refused.
const LONGEST_REFUSAL: usize = 400;

/// Any bytes as a client's stream: the same requests whatever the chunks are in which they come.
///
/// The first byte is the payload limit, the second the size of the chunks; the rest is the stream.
///
/// # Panics
/// When the chunks make a difference, or a request is out of its bounds.
pub fn api_http(data: &[u8]) {
    let [limit, size, stream @ ..] = data else {
        return;
    };
    let payload = usize::from(*limit);
    let whole = requests([stream], payload);
    assert_eq!(
        whole,
        requests(stream.chunks(usize::from(*size).max(1)), payload)
    );
    let (head, tail) = stream.split_at(stream.len().min(usize::from(*size)));
    assert_eq!(whole, requests([head, tail], payload));
}

/// The requests of a stream that comes in `chunks`, and what ends them if something does.
fn requests<'a>(chunks: impl IntoIterator<Item = &'a [u8]>, payload: usize) -> Vec<Step> {
    let mut parser = Parser::new(payload);
    let mut steps = Vec::new();
    let mut waited = false;
    for chunk in chunks {
        parser.push(chunk);
        loop {
            let step = parser.step();
            match &step {
                Step::More => break,
                // Depends on whether the body is there already; not twice for one request.
                Step::Continue => {
                    assert!(!waited);
                    waited = true;
                    continue;
                }
                Step::Request(message) => {
                    let request = &message.request;
                    assert!(request.path.starts_with('/'), "{:?}", request.path);
                    assert!(!request.path.contains('?'), "{:?}", request.path);
                    let query = request.query.as_deref().unwrap_or_default();
                    let accept = request.accept.as_deref().unwrap_or_default();
                    assert!(request.path.len() + query.len() + accept.len() < MAX_HEAD);
                    assert!(request.body.len() <= payload);
                    waited = false;
                }
                Step::Refused(refusal) => {
                    let message = refusal.to_string();
                    assert!(message.len() <= LONGEST_REFUSAL, "{message}");
                    assert!(!parser.has_begun());
                    steps.push(step);
                    return steps;
                }
            }
            steps.push(step);
        }
    }
    steps
}

/// Any bytes as a request's path and body: something that can be asked for, or a fault with a message.
///
/// The first byte is the method, the path follows up to a line feed, the body is the rest.
///
/// # Panics
/// When what is asked for is out of its bounds, or a fault says nothing.
pub fn api_request(data: &[u8]) {
    let [method, rest @ ..] = data else {
        return;
    };
    let method = match method % 4 {
        0 => Method::Get,
        1 => Method::Put,
        2 => Method::Patch,
        _ => Method::Delete,
    };
    let mut parts = rest.splitn(2, |byte| *byte == b'\n');
    let path = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let body = parts.next().unwrap_or_default();
    match request::parse(method, &path, body) {
        Ok(asked) => {
            let reads = matches!(method, Method::Get | Method::Delete);
            assert!(!reads || body.is_empty(), "{asked:?}");
            // Whatever the numbers, a machine within its bounds comes of them, or a fault.
            let patch = match asked {
                ApiRequest::PutMachineConfig(body) => body.into(),
                ApiRequest::PatchMachineConfig(patch) => patch,
                _ => return,
            };
            if let Ok(machine) = patch.apply_to(MachineConfig::default()) {
                assert!((1..=MAX_VCPUS).contains(&machine.vcpus.get()));
                assert!(machine.memory.mib() > 0);
            }
        }
        Err(fault) => assert!(!fault.to_string().is_empty()),
    }
}
