//! Guests: stock Linux with an initramfs of ours, and small ones that consist of a few instructions.

pub(crate) mod linux;
