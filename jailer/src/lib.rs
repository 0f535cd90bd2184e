//! Starts a microVM in a jail of its own: a copy of the launcher in an empty file system, with a user, limits
//! and cgroups that are its own, and no way to gain more.
//!
//! The flags, the layout `BASE/EXEC_FILE_NAME/ID/root` and the steps are Firecracker's, so that its clients
//! drive either. `docs/jailer.md` has the steps in order, and what differs.
//!
//! # Whom it does not trust
//!
//! The jailer runs as root in folders that others may write to. It therefore never resolves a path twice and
//! never follows a symbolic link: `folder` opens each component relative to the one before it, and
//! everything that follows is relative to those descriptors. A component that is exchanged meanwhile leads
//! nowhere. What a failed start has made is on a list (`undo`) and is removed in reverse.
//!
//! It trusts the caller's choice of values, and the kernel.

pub mod cli;

mod cgroup;
mod cpus;
mod devices;
mod exec_file;
mod folder;
mod hardening;
mod jail;
mod namespaces;
mod process;
mod settings;
mod tsc_domains;
mod undo;
