//! A tap interface of the host: the other end of a guest's network card.
//!
//! Frames go both ways with their virtio header before them (`IFF_VNET_HDR`), so that checksums and large segments
//! are left to whoever has the hardware for them. What a guest may send is checked by the host's kernel
//! (`tun_get_user`), the header included (Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h).
#![allow(
    unsafe_code,
    reason = "the interface's ioctls, and writing from guest memory without a copy"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use devices::virtio::Buffers;
use devices::virtio::net::{HEADER, Link, Offloads};
use rustix::io::{Errno, read};
use thiserror::Error;
use vmm_sys_util::ioctl::{ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::ioctl_iow_nr;

use crate::api::network::{MAX_NAME, is_name};

/// Where the kernel gives out tap interfaces.
const DEVICE: &str = "/dev/net/tun";

/// The most pieces of memory that one frame lies in: what a queue has descriptors.
const MAX_PIECES: usize = 256;

ioctl_iow_nr!(TUNSETIFF, 0x54, 202, libc::c_int);
ioctl_iow_nr!(TUNSETOFFLOAD, 0x54, 208, libc::c_uint);
ioctl_iow_nr!(TUNSETVNETHDRSZ, 0x54, 216, libc::c_int);

/// `TUN_F_*`: what a guest takes unfinished.
const TUN_F_CSUM: u64 = 0x01;
const TUN_F_TSO4: u64 = 0x02;
const TUN_F_TSO6: u64 = 0x04;
const TUN_F_TSO_ECN: u64 = 0x08;

/// A tap interface that cannot be had.
#[derive(Debug, Error)]
pub(crate) enum TapError {
    /// A name that no interface has.
    #[error(
        "host_dev_name {name:?}: an interface's name has 1 to {MAX_NAME} bytes without \"/\" and spaces"
    )]
    Name {
        /// What was asked for.
        name: String,
    },
    /// The host gives out no tap interfaces, or not to us.
    #[error(
        "cannot open {DEVICE}; load the kernel's module tun (modprobe tun), and let this user read and write it"
    )]
    Device(#[source] io::Error),
    /// Another process has it.
    #[error("the tap interface {name:?} is in use; end the program that has it, or give another")]
    Busy {
        /// Which one.
        name: String,
    },
    /// It may not be had by us, or there is none and we may not create it.
    #[error(
        "the tap interface {name:?} may not be had; create it for this user: ip tuntap add dev {name} mode tap user \
         {user} vnet_hdr"
    )]
    Forbidden {
        /// Which one.
        name: String,
        /// Who runs this process.
        user: u32,
    },
    /// Something else has this name.
    #[error(
        "the interface {name:?} is not a tap that one program can have; create one: ip tuntap add dev {name} mode tap"
    )]
    NotATap {
        /// Which one.
        name: String,
    },
    /// The kernel refused it for another reason.
    #[error("cannot {what} of the tap interface {name:?}")]
    Refused {
        /// What was to be done.
        what: &'static str,
        /// Which one.
        name: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// An interface that is ours as long as this lives.
#[derive(Debug)]
pub(super) struct Tap(File);

impl Tap {
    /// Takes the tap interface `name`, or creates it where there is none and we may. One that we created
    /// goes with us.
    ///
    /// # Errors
    /// What is in the way.
    pub(super) fn open(name: &str) -> Result<Self, TapError> {
        let owned = || name.to_owned();
        if !is_name(name) {
            return Err(TapError::Name { name: owned() });
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(TapError::Device)?;
        // SAFETY: plain data, for which all zeros are a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        // OK because they are all in the low 16 bits.
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(0);
        // SAFETY: the kernel reads and writes one `ifreq`, which this is.
        if unsafe { ioctl_with_ref(&file, TUNSETIFF(), &request) } < 0 {
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::EBUSY) => TapError::Busy { name: owned() },
                Some(libc::EPERM | libc::EACCES) => TapError::Forbidden {
                    name: owned(),
                    user: rustix::process::geteuid().as_raw(),
                },
                Some(libc::EINVAL | libc::EEXIST) => TapError::NotATap { name: owned() },
                _ => TapError::Refused {
                    what: "take hold",
                    name: owned(),
                    source: error,
                },
            });
        }
        let tap = Self(file);
        // OK because it is 12.
        let header = libc::c_int::try_from(HEADER).unwrap_or(0);
        // SAFETY: the kernel reads one int, which this is.
        if unsafe { ioctl_with_ref(&tap.0, TUNSETVNETHDRSZ(), &header) } < 0 {
            return Err(TapError::Refused {
                what: "set the header's length",
                name: owned(),
                source: io::Error::last_os_error(),
            });
        }
        Ok(tap)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Link for Tap {
    fn offload(&mut self, offloads: Offloads) -> io::Result<()> {
        let flags = [
            (offloads.checksum, TUN_F_CSUM),
            (offloads.tso4, TUN_F_TSO4),
            (offloads.tso6, TUN_F_TSO6),
            (
                offloads.ecn && (offloads.tso4 || offloads.tso6),
                TUN_F_TSO_ECN,
            ),
        ];
        let taken = flags.iter().filter(|(is, _)| *is);
        let flags = taken.fold(0, |all, (_, flag)| all | flag);
        // SAFETY: its argument is a number.
        if unsafe { ioctl_with_val(&self.0, TUNSETOFFLOAD(), flags) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn send(&mut self, frame: &Buffers<'_>) -> io::Result<()> {
        let mut pieces = [const { MaybeUninit::<libc::iovec>::uninit() }; MAX_PIECES];
        let mut count = 0;
        frame.try_for_each(io::Error::other, |slice| {
            let piece = pieces
                .get_mut(count)
                .ok_or(io::ErrorKind::ArgumentListTooLong)?;
            piece.write(libc::iovec {
                // The memory is mapped as it is for as long as the frame is borrowed, so no guard is needed later.
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
            count += 1;
            Ok::<(), io::Error>(())
        })?;
        // OK because it is at most MAX_PIECES.
        let length = libc::c_int::try_from(count).unwrap_or(0);
        loop {
            // SAFETY: `count` pieces are set, each within guest memory that is mapped while `frame` is borrowed. The
            // kernel reads it, and what the guest writes to it meanwhile is its own frame.
            let sent = unsafe { libc::writev(self.0.as_raw_fd(), pieces.as_ptr().cast(), length) };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match read(&self.0, &mut *into) {
                Ok(len) => return Ok(Some(len)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
