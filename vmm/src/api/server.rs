//! The API's thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::http::{Request, Response, Server};
use super::mailbox::Post;
use super::request::{self, Fault};
use crate::code;
use crate::error::one_line;
use crate::metrics::{Metrics, Sample};
use crate::outcome::Outcome;
use crate::seccomp::{Filters, Role};
use crate::vcpu::Ending;

/// The running thread. Dropped, it is stopped and the socket is removed.
#[derive(Debug)]
pub(crate) struct ApiThread {
    handle: Option<JoinHandle<()>>,
    stop: EventFd,
}

impl ApiThread {
    /// Serves clients of `server` from now on. Well-formed requests go to `post`.
    ///
    /// # Errors
    /// The host's refusal of an eventfd or a thread.
    pub(crate) fn start(
        server: Server,
        post: Post,
        metrics: Arc<Metrics>,
        ending: Arc<Ending>,
        filters: Filters,
    ) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let counts = server.counts();
        metrics.add_source(Box::new(move |samples| {
            let numbers = [
                ("accepted", &counts.accepted),
                ("answered", &counts.answered),
                ("refused", &counts.refused),
                ("evicted", &counts.evicted),
                ("expired", &counts.expired),
            ];
            for (name, number) in numbers {
                let value = number.load(Ordering::Relaxed);
                samples.push(Sample::counter("keeptime_api", name, value));
            }
        }));
        let handle = std::thread::Builder::new()
            .name("api".to_owned())
            .spawn(move || {
                if let Err(error) = filters.enter(Role::Api) {
                    // Nobody could control the guest, or configure one.
                    return ending.end(Outcome::Failure(one_line(&error)));
                }
                ending.unless_it_panics("api", || {
                    let handler = |request: Request| handle(&request, &post, &metrics);
                    if let Err(error) = server.run(handler, &stopped) {
                        ending.end(Outcome::Failure(one_line(&error)));
                    }
                });
            })?;
        Ok(Self {
            handle: Some(handle),
            stop,
        })
    }
}

impl Drop for ApiThread {
    fn drop(&mut self) {
        // A full counter is as readable as one more.
        let _ = self.stop.write(1);
        if let Some(handle) = self.handle.take() {
            // It has nothing left to tell.
            let _ = handle.join();
        }
    }
}

fn handle(request: &Request, post: &Post, metrics: &Metrics) -> Response {
    code::note_use();
    let Some(found) = request::find(request.method, &request.path) else {
        return fault(&request::unknown(request.method, &request.path));
    };
    let answer = match found.read(&request.body) {
        Ok(asked) => post
            .ask(asked)
            .unwrap_or_else(|| fault(&Fault::new("the microVM has ended"))),
        Err(error) => fault(&error),
    };
    metrics.requests.count(found.index, answer.is_fault());
    tracing::debug!(
        "{} {}: {:?}",
        request.method.name(),
        request.path,
        answer.status
    );
    answer
}

/// The answer to a request that is refused.
pub(crate) fn fault(fault: &Fault) -> Response {
    let message = fault.to_string();
    if fault.is_too_large() {
        Response::too_large(&message)
    } else {
        Response::fault(&message)
    }
}
