//! The way of a request from the API's thread to the main thread, and of the answer back.

use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::http::Response;
use super::request::ApiRequest;

/// A request that waits to be applied.
#[derive(Debug)]
pub(crate) struct Letter {
    request: ApiRequest,
    answer: SyncSender<Response>,
}

impl Letter {
    /// Answers with what `apply` makes of the request.
    pub(crate) fn answer(self, apply: impl FnOnce(ApiRequest) -> Response) {
        // A sender that no longer waits has gone with its thread.
        let _ = self.answer.send(apply(self.request));
    }
}

/// The API thread's end.
#[derive(Debug)]
pub(crate) struct Post {
    letters: Sender<Letter>,
    bell: EventFd,
}

/// The main thread's end.
#[derive(Debug)]
pub(crate) struct Mailbox {
    letters: Receiver<Letter>,
}

/// Wakes the event loop when there is a letter.
pub(crate) struct Bell(EventFd);

/// Both ends, and the bell.
///
/// # Errors
/// The kernel's refusal of an eventfd.
pub(crate) fn mailbox() -> io::Result<(Post, Mailbox, Bell)> {
    let (sender, letters) = channel();
    let bell = EventFd::new(EFD_NONBLOCK)?;
    let post = Post {
        letters: sender,
        bell: bell.try_clone()?,
    };
    Ok((post, Mailbox { letters }, Bell(bell)))
}

impl Post {
    /// Hands `request` over and waits for the answer. `None` when the microVM has ended.
    pub(crate) fn ask(&self, request: ApiRequest) -> Option<Response> {
        let (answer, answered) = sync_channel(1);
        self.letters.send(Letter { request, answer }).ok()?;
        // A full counter is as readable as one more.
        let _ = self.bell.write(1);
        answered.recv().ok()
    }
}

impl Mailbox {
    /// The next request, if one waits.
    pub(crate) fn take(&self) -> Option<Letter> {
        self.letters.try_recv().ok()
    }
}

impl MutEventSubscriber for Bell {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.0, EventSet::IN)) {
            tracing::error!("the API cannot wake the event loop: {error:?}");
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        // Silences it. The letters are taken after this round of the loop.
        let _ = self.0.read();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_answered_in_order_and_not_after_the_end() {
        let (post, mailbox, bell) = mailbox().expect("an eventfd");
        let asking = std::thread::spawn(move || {
            let first = post.ask(ApiRequest::GetVersion);
            let second = post.ask(ApiRequest::GetTime);
            (first, second)
        });
        let letter = loop {
            if let Some(letter) = mailbox.take() {
                break letter;
            }
            std::thread::yield_now();
        };
        letter.answer(|request| {
            assert_eq!(request, ApiRequest::GetVersion);
            Response::no_content()
        });
        drop(mailbox);
        let (first, second) = asking.join().expect("no panic");
        assert_eq!(first, Some(Response::no_content()));
        assert_eq!(second, None);
        assert!(bell.0.read().is_ok_and(|count| count >= 1));
    }
}
