//! `cargo fuzz run virtio_pmem`; built without cargo-fuzz, it runs the files it is given.
#![allow(unexpected_cfgs, reason = "cargo-fuzz sets `fuzzing`")]
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::virtio_pmem(data));

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    fuzz::reproduce(fuzz::virtio_pmem)
}
