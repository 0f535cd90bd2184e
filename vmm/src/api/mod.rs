//! The API: HTTP/1.1 with JSON bodies over a Unix socket, with Firecracker's endpoints.
//!
//! ```text
//!  client ──bytes──► http ──Request──► request::parse ──ApiRequest──► mailbox ──► controller
//!                    (thread "api")    (pure, same thread)                        (main thread)
//! ```
//!
//! A request is read and checked on the API's own thread, without any knowledge of the microVM. What
//! is well-formed is handed to the main thread, which applies one request at a time between two rounds
//! of its event loop and answers; nothing of the microVM is shared with the API's thread.
//!
//! Statuses: 204 for what was done, 200 with a body for what was asked, 400 with a `fault_message`
//! for everything else.

pub mod absent;
pub mod balloon;
pub mod body;
pub(crate) mod client;
pub mod drive;
pub mod http;
pub(crate) mod mailbox;
pub mod network;
mod object;
pub mod openapi;
pub mod pmem;
pub mod request;
pub(crate) mod server;
pub mod vsock;

/// The version of Firecracker's API that is spoken here, which clients ask for and compare.
pub const COMPATIBLE_VERSION: &str = "1.16.0";
