//! The least that a program can do to run a small 64-bit guest on KVM: what `cargo lab bench launch`
//! compares the launcher with. `bare [--irqchip [--pit]] KERNEL` loads an ELF64 kernel into 128 MiB of memory,
//! enters it in long mode, passes on what it writes to port 0x3f8, and ends when it writes 0xfe to port
//! 0x64. Every KVM call here is needed, and they come in the cheapest order: memory before the irqchip,
//! whose presence makes each later change of memory wait for the kernel's readers.

// Memory is mapped and given to KVM by address here, and nowhere else in the laboratory.
#![allow(unsafe_code)]

use std::io::Write;

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::{
    KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit};
use object::{Object, ObjectSegment};

/// The guest's memory in bytes.
const MEMORY: usize = 128 << 20;
/// Page tables: one table of each level; the last maps 1 GiB in pages of 2 MiB.
const PML4: usize = 0x9000;
const PDPT: usize = 0xa000;
const DIRECTORY: usize = 0xb000;
/// Present and writable; and, in a directory, a page of 2 MiB (SDM vol. 3, 4.5).
const ENTRY: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
/// CR0.PE and CR0.PG, CR4.PAE, EFER.LME and EFER.LMA (SDM vol. 3, 2.5 and 2.2.1).
const CR0: u64 = 1 << 31 | 1;
const CR4: u64 = 1 << 5;
const EFER: u64 = 1 << 10 | 1 << 8;

fn main() -> Result<()> {
    let (mut irqchip, mut pit) = (false, false);
    let mut path = None;
    for argument in std::env::args_os().skip(1) {
        if argument == "--irqchip" {
            irqchip = true;
        } else if argument == "--pit" {
            pit = true;
        } else {
            path = Some(argument);
        }
    }
    let kernel = std::fs::read(path.context("usage: bare [--irqchip [--pit]] KERNEL")?)?;

    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let (memory, address) = map_memory()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: u64::try_from(MEMORY)?,
        userspace_addr: address,
    };
    // SAFETY: `address` is the start of a mapping of MEMORY bytes that is never unmapped, and that only
    // the guest writes to from the first KVM_RUN on.
    unsafe { vm.set_user_memory_region(region)? };
    if irqchip {
        vm.create_irq_chip()?;
        if pit {
            vm.create_pit2(kvm_pit_config {
                flags: KVM_PIT_SPEAKER_DUMMY,
                ..Default::default()
            })?;
        }
    }
    let mut vcpu = vm.create_vcpu(0)?;

    let entry = load(memory, &kernel)?;
    write_page_tables(memory)?;
    let mut sregs = vcpu.get_sregs()?;
    let flat = kvm_segment {
        limit: u32::MAX,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    // Type 11: code, readable, accessed; type 3: data, writable, accessed (SDM vol. 3, 3.4.5.1).
    sregs.cs = kvm_segment {
        selector: 8,
        type_: 11,
        l: 1,
        ..flat
    };
    let data = kvm_segment {
        selector: 16,
        type_: 3,
        db: 1,
        ..flat
    };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0, u64::try_from(PML4)?, CR4, EFER);
    vcpu.set_sregs(&sregs)?;
    // Bit 1 of the flags is always set (SDM vol. 1, 3.4.3).
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rflags: 2,
        ..Default::default()
    })?;

    let mut output = std::io::stdout().lock();
    loop {
        match vcpu.run()? {
            // Standard output keeps bytes until a line is complete.
            VcpuExit::IoOut(0x3f8, data) => output.write_all(data)?,
            VcpuExit::IoOut(0x64, [0xfe]) => return Ok(()),
            other => bail!("unexpected exit {other:?}"),
        }
    }
}

/// Anonymous memory for the guest, and its address.
fn map_memory() -> Result<(&'static mut [u8], u64)> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let pointer = unsafe { libc::mmap(std::ptr::null_mut(), MEMORY, protection, flags, -1, 0) };
    ensure!(
        pointer != libc::MAP_FAILED,
        "mmap: {}",
        std::io::Error::last_os_error()
    );
    let address = u64::try_from(pointer.addr())?;
    // SAFETY: `pointer` is the start of MEMORY readable and writable zero bytes, mapped until the
    // process ends, and this is the only reference to them.
    Ok((
        unsafe { std::slice::from_raw_parts_mut(pointer.cast(), MEMORY) },
        address,
    ))
}

/// Copies the kernel's segments to where they belong; returns its entry point.
fn load(memory: &mut [u8], kernel: &[u8]) -> Result<u64> {
    let file = object::File::parse(kernel)?;
    for segment in file.segments() {
        let start = usize::try_from(segment.address())?;
        let data = segment.data()?;
        memory
            .get_mut(start..start.saturating_add(data.len()))
            .context("a segment outside of memory")?
            .copy_from_slice(data);
    }
    Ok(file.entry())
}

fn write_page_tables(memory: &mut [u8]) -> Result<()> {
    let mut write =
        |at: usize, value: u64| memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
    write(PML4, u64::try_from(PDPT)? | ENTRY);
    write(PDPT, u64::try_from(DIRECTORY)? | ENTRY);
    for index in 0..512_usize {
        write(
            DIRECTORY + index * 8,
            (u64::try_from(index)? << 21) | LARGE_PAGE | ENTRY,
        );
    }
    Ok(())
}
