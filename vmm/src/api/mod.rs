//! The API: HTTP/1.1 with JSON bodies over a Unix socket, with Firecracker's endpoints.

pub mod http;
