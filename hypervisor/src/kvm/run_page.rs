//! The page that a vCPU shares with the kernel, mapped once more for what `kvm-ioctls` does not give.
//!
//! `kvm_ioctls::VcpuFd` lends its mapping only through `&mut self`, which the thread inside
//! [`crate::Vcpu::run`] holds. Another thread must be able to set `immediate_exit` meanwhile, and an
//! exit whose data is already lent out still has a width to be read. A mapping of our own serves
//! both, with a lifetime of its own.
#![expect(unsafe_code, reason = "maps memory that the kernel shares")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;

use crate::{FailureDetails, IoctlError, Kick};

/// `struct kvm_run` of one vCPU.
#[derive(Debug)]
pub(super) struct RunPage {
    run: NonNull<kvm_run>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and every access through it is an
// atomic or volatile access of plain integers.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    pub(super) fn map(vcpu: BorrowedFd<'_>) -> Result<Self, IoctlError> {
        // SAFETY: a fresh mapping at an address of the kernel's choice, whose length is that of the
        // structure, which the kernel's mapping (KVM_GET_VCPU_MMAP_SIZE) always covers.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size_of::<kvm_run>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(address) {
            Some(run) if address != libc::MAP_FAILED => Ok(Self { run: run.cast() }),
            _ => Err(IoctlError {
                call: "mmap of a vCPU",
                source: io::Error::last_os_error(),
            }),
        }
    }

    /// Bytes of one access of the port exit that just happened.
    pub(super) fn port_access_width(&self) -> usize {
        // SAFETY: the pointer is valid for our lifetime; the kernel writes this field only inside
        // KVM_RUN, and the caller has returned from it with KVM_EXIT_IO.
        let io = unsafe { ptr::read_volatile(&raw const (*self.run.as_ptr()).__bindgen_anon_1.io) };
        usize::from(io.size).max(1)
    }

    pub(super) fn failure_details(&self) -> FailureDetails {
        // SAFETY: as in `port_access_width`: between two runs only we look at the page.
        let (exit_reason, internal) = unsafe {
            let run = self.run.as_ptr();
            (
                ptr::read_volatile(&raw const (*run).exit_reason),
                ptr::read_volatile(&raw const (*run).__bindgen_anon_1.internal),
            )
        };
        let data_len = usize::try_from(internal.ndata).map_or(16, |len| len.min(16));
        FailureDetails {
            exit_reason,
            suberror: internal.suberror,
            data: internal.data,
            data_len,
        }
    }

    /// Withdraws a request of [`KvmKick`]. Sequentially consistent, as the request is: the withdrawal is
    /// never delayed past what its caller reads next, where it would erase a request that the caller
    /// has not seen.
    pub(super) fn clear_immediate_exit(&self) {
        self.immediate_exit().store(0, Ordering::SeqCst);
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the byte is inside the mapping for our lifetime; the kernel only reads it, and we
        // only access it atomically.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run.as_ptr()).immediate_exit) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: address and length are those of our own mapping; no borrow of it outlives us.
        unsafe { libc::munmap(self.run.as_ptr().cast(), size_of::<kvm_run>()) };
    }
}

/// Interrupts a vCPU through `immediate_exit` of its run page: a KVM_RUN that begins after the request
/// returns at once, so no request falls between the check and the entry.
#[derive(Debug)]
pub struct KvmKick(pub(super) RunPage);

impl Kick for KvmKick {
    fn request_exit(&self) {
        self.0.immediate_exit().store(1, Ordering::SeqCst);
    }
}
