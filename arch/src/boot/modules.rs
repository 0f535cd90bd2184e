//! Where the initrd and multiboot modules go.

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::error::{LoadError, Subject};
use super::image::{Image, Source};
use super::{Module, Protocol};
use crate::layout::PAGE_SIZE;

/// A module in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) start: GuestAddress,
    pub(super) size: u64,
}

/// `value` rounded up to a multiple of `alignment`, a power of two; `None` on overflow.
pub(super) fn align_up(value: u64, alignment: u64) -> Option<u64> {
    Some(value.checked_add(alignment - 1)? & !(alignment - 1))
}

/// Loads the initrd, if there is one, page-aligned and as high as possible in `kernel_end..limit`.
pub(super) fn load_initrd<M: GuestMemoryBackend, F: Image>(
    memory: &M,
    protocol: Protocol,
    modules: Vec<Module<'_, F>>,
    kernel_end: GuestAddress,
    limit: GuestAddress,
) -> Result<Option<Placed>, LoadError> {
    let count = modules.len();
    if count > 1 {
        return Err(LoadError::TooManyModules {
            protocol,
            count,
            max: 1,
        });
    }
    let Some(module) = modules.into_iter().next() else {
        return Ok(None);
    };
    let mut source = Source::new(module.image, Subject::Module(0))?;
    let size = source.size();
    if size == 0 {
        return Err(LoadError::Empty {
            subject: source.subject(),
        });
    }
    let limit = limit.0 & !(PAGE_SIZE - 1);
    let floor = align_up(kernel_end.0, PAGE_SIZE).unwrap_or(u64::MAX);
    let room = limit.saturating_sub(floor);
    if size > room {
        return Err(LoadError::ModuleTooLarge {
            subject: source.subject(),
            size,
            room,
            limit,
        });
    }
    // OK because floor <= limit - size, and floor is a multiple of the page size.
    let start = GuestAddress((limit - size) & !(PAGE_SIZE - 1));
    source.copy(memory, start, 0, size)?;
    Ok(Some(Placed { start, size }))
}

/// Loads multiboot modules one after the other above the kernel, page-aligned (which flag bit 0
/// of a header demands and the others do not mind).
pub(super) fn load_all<M: GuestMemoryBackend, F: Image>(
    memory: &M,
    modules: Vec<Module<'_, F>>,
    kernel_end: GuestAddress,
    limit: GuestAddress,
) -> Result<Vec<Placed>, LoadError> {
    let mut placed = Vec::with_capacity(modules.len());
    let mut end = kernel_end.0;
    for (index, module) in modules.into_iter().enumerate() {
        let mut source = Source::new(module.image, Subject::Module(index))?;
        let size = source.size();
        let start = align_up(end, PAGE_SIZE).unwrap_or(u64::MAX);
        let room = limit.0.saturating_sub(start);
        if size > room {
            let (subject, limit) = (source.subject(), limit.0);
            return Err(LoadError::ModuleTooLarge {
                subject,
                size,
                room,
                limit,
            });
        }
        source.copy(memory, GuestAddress(start), 0, size)?;
        placed.push(Placed {
            start: GuestAddress(start),
            size,
        });
        end = start.saturating_add(size);
    }
    Ok(placed)
}
