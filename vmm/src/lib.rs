//! The Keeptime microVM launcher as a library.
