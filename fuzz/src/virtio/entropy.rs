//! The source of entropy.

use arbitrary::Arbitrary;
use devices::rate_limiter::RateLimiter;
use devices::virtio::entropy::{Entropy, MAX_REQUEST};

use super::{Driver, EVENT_INDEX, INDIRECT, Request};
use crate::input::decode;

#[derive(Arbitrary, Debug)]
struct Input {
    event_index: bool,
    requests: Vec<(Request, bool)>,
}

/// Requests of any shape: buffers are filled in order from a source that counts, or the device wants a reset.
///
/// # Panics
/// When something else is in the guest's memory.
pub fn virtio_entropy(data: &[u8]) {
    let Some(input) = decode::<Input>(data) else {
        return;
    };
    let mut random = (0..=u8::MAX).cycle();
    let mut expected = random.clone();
    let device = Entropy::new(
        Box::new(move |bytes| {
            bytes.fill_with(|| random.next().expect("no end"));
            Ok(())
        }),
        RateLimiter::unlimited(),
        Box::new(|_| {}),
    );
    let events = if input.event_index { EVENT_INDEX } else { 0 };
    let (mut driver, _) = Driver::ready(device, INDIRECT | events);
    for (request, run) in input.requests.iter().take(64) {
        driver.ask(0, request);
        if !run {
            continue;
        }
        driver.engine.run();
        let mut lawful = true;
        while let Some(chain) = driver.queues[0].waiting.pop_front() {
            lawful = chain.is_lawful();
            if !lawful {
                break;
            }
            let wanted = chain.room().min(MAX_REQUEST);
            let len = usize::try_from(wanted).expect("bounded");
            let bytes: Vec<u8> = expected.by_ref().take(len).collect();
            driver.model.write(&chain, 0, &bytes);
            driver.expect_used(0, chain.head, wanted);
        }
        driver.expect_nothing_else();
        assert_eq!(driver.needs_reset(), !lawful);
        if !lawful {
            return;
        }
    }
}
