//! Kernel files.
//!
//! Whatever the file, loading must not panic, and must write only to RAM at 1 MiB and above and
//! to the areas below it that `arch::layout` gives to boot structures. When it succeeds, the
//! kernel's memory, the modules and the command line must be where the boot structures say, none
//! of them over another.

use std::io::Cursor;
use std::ops::Range;

use arch::boot::{self, BootSource, LoadError, Loaded, Module, Protocol};
use arch::layout;
use arch::regs::SystemRegisters;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const PAGE: u64 = layout::PAGE_SIZE;
/// Low RAM: more than the seeds' kernels need, and little to map.
const RAM_END: u64 = 32 << 20;
/// RAM above the MMIO hole, which nothing is to be written to.
const HIGH_RAM_SIZE: usize = 1 << 20;

/// Where loading may write below 1 MiB.
const BOOT_AREAS: [Range<u64>; 4] = [
    0..0x1000,
    layout::PVH_START_INFO.0..layout::ZERO_PAGE.0 + PAGE,
    layout::PML4.0..layout::PML4.0 + 6 * PAGE,
    layout::MULTIBOOT_INFO.0..layout::CMDLINE.0 + layout::CMDLINE_ROOM as u64,
];

type Memory = GuestMemoryMmap<AtomicBitmap>;

thread_local! {
    /// Made once, since mapping costs more than a run; cleared page by page after each.
    static MEMORY: Memory = GuestMemoryMmap::from_ranges(&[
        (GuestAddress(0), usize::try_from(RAM_END).expect("a 64-bit host")),
        (layout::MMIO_HOLE_END, HIGH_RAM_SIZE),
    ])
    .expect("32 MiB of memory");
}

/// What is loaded beside the kernel under test.
struct Company<'a> {
    modules: Vec<(&'a [u8], &'a str)>,
    cmdline: &'a str,
}

const INITRD: [u8; 5000] = [0xA5; 5000];

impl Company<'_> {
    fn usual() -> Self {
        Self {
            modules: vec![(&INITRD, "first")],
            cmdline: "console=ttyS0",
        }
    }
}

/// Any file, recognised by its contents. The first byte chooses modules and command line.
pub fn boot_any(data: &[u8]) {
    let Some((&choice, kernel)) = data.split_first() else {
        return check(&[], &Company::usual());
    };
    let long = "x".repeat(70_000);
    let sizes = [0, 1, 4096, INITRD.len()];
    let modules = (0..usize::from(choice & 3))
        .map(|i| {
            (
                &INITRD[..sizes[(usize::from(choice >> 2 & 3) + i) % 4]],
                "module",
            )
        })
        .collect();
    let cmdline = &long[..[0, 255, 2047, 2048, 65_535, 65_536, 1, 256][usize::from(choice >> 5)]];
    check(kernel, &Company { modules, cmdline });
}

/// A bzImage: the two magic numbers are put right, so that everything else is tried.
pub fn boot_bzimage(data: &[u8]) {
    let mut kernel = data.to_vec();
    for (offset, magic) in [(0x1FE, &[0x55, 0xAA][..]), (0x202, b"HdrS")] {
        if let Some(field) = kernel.get_mut(offset..offset + magic.len()) {
            field.copy_from_slice(magic);
        }
    }
    check(&kernel, &Company::usual());
}

/// An ELF file: the magic number and the byte order are put right.
pub fn boot_elf(data: &[u8]) {
    let mut kernel = data.to_vec();
    for (offset, magic) in [(0, &b"\x7fELF"[..]), (5, &[1])] {
        if let Some(field) = kernel.get_mut(offset..offset + magic.len()) {
            field.copy_from_slice(magic);
        }
    }
    check(&kernel, &Company::usual());
}

/// A multiboot kernel, ELF or not: the checksum of the header, if there is one, is put right.
pub fn boot_multiboot(data: &[u8]) {
    const MAGIC: u32 = 0x1BAD_B002;
    let mut kernel = data.to_vec();
    if let Some(header) = kernel
        .chunks_exact_mut(4)
        .position(|word| word == MAGIC.to_le_bytes())
        && let Some([_, _, _, _, f0, f1, f2, f3, checksum @ ..]) = kernel
            .get_mut(header * 4..)
            .and_then(|rest| rest.first_chunk_mut::<12>())
    {
        let flags = u32::from_le_bytes([*f0, *f1, *f2, *f3]);
        *checksum = 0_u32.wrapping_sub(MAGIC).wrapping_sub(flags).to_le_bytes();
    }
    let company = Company {
        modules: vec![(&INITRD, "first"), (&INITRD[..10], ""), (&[], "empty")],
        ..Company::usual()
    };
    check(&kernel, &company);
}

/// Loads `kernel` and checks what is left in memory.
fn check(kernel: &[u8], company: &Company<'_>) {
    MEMORY.with(|memory| {
        let result = load(memory, kernel, company);
        let written = written_pages(memory);
        for page in &written {
            let allowed = (layout::HIGH_RAM.0..RAM_END).contains(page)
                || BOOT_AREAS.iter().any(|area| area.contains(page));
            assert!(allowed, "written at {page:#x}");
        }
        match &result {
            Ok(loaded) => check_loaded(memory, company, loaded, &written),
            Err(error) => {
                let message = error.to_string();
                assert!(
                    !message.is_empty() && !message.contains('\n'),
                    "{message:?}"
                );
            }
        }
        let zeros = vec![0; usize::try_from(PAGE).expect("a 64-bit host")];
        for page in written {
            memory
                .write_slice(&zeros, GuestAddress(page))
                .expect("the page is in memory");
        }
        written_pages(memory);
    });
}

fn load(memory: &Memory, kernel: &[u8], company: &Company<'_>) -> Result<Loaded, LoadError> {
    let mut kernel = Cursor::new(kernel);
    let mut files: Vec<_> = company
        .modules
        .iter()
        .map(|(bytes, _)| Cursor::new(*bytes))
        .collect();
    let modules = files
        .iter_mut()
        .zip(&company.modules)
        .map(|(image, (_, command))| Module { image, command })
        .collect();
    boot::load(
        memory,
        BootSource {
            kernel: &mut kernel,
            modules,
            cmdline: company.cmdline,
        },
    )
}

/// The pages written to since the last call.
fn written_pages(memory: &Memory) -> Vec<u64> {
    let mut pages = Vec::new();
    for region in memory.iter() {
        let words = (**region).bitmap().get_and_reset();
        for (index, mut word) in words.into_iter().enumerate().filter(|(_, word)| *word != 0) {
            while word != 0 {
                let page = index as u64 * 64 + u64::from(word.trailing_zeros());
                pages.push(region.start_addr().0 + page * PAGE);
                word &= word - 1;
            }
        }
    }
    pages
}

fn check_loaded(memory: &Memory, company: &Company<'_>, loaded: &Loaded, written: &[u64]) {
    let kernel = layout::HIGH_RAM.0..loaded.kernel_end.0;
    assert!(
        kernel.contains(&loaded.entry.0),
        "entry {:#x}",
        loaded.entry.0
    );
    assert!(kernel.end <= RAM_END);
    assert_eq!(loaded.registers.rip, loaded.entry.0);
    let system = loaded.system_registers(SystemRegisters::default());
    assert_eq!(system.cs.l, loaded.protocol == Protocol::Linux64);

    let (modules, cmdline) = boot_structures(memory, loaded);
    assert_eq!(
        read_string(memory, cmdline, company.cmdline.len()),
        company.cmdline
    );
    assert_eq!(modules.len(), company.modules.len());
    let mut end = kernel.end;
    for (module, (bytes, _)) in modules.iter().zip(&company.modules) {
        // None is over the kernel or the one before.
        assert!(module.start >= end && module.end <= RAM_END && module.start % PAGE == 0);
        end = module.end;
        assert_eq!(read(memory, module.start, bytes.len()), *bytes);
        assert_eq!(module.end - module.start, bytes.len() as u64);
    }
    for page in written.iter().filter(|page| **page >= layout::HIGH_RAM.0) {
        let overlaps = |range: &Range<u64>| *page < range.end && range.start < page + PAGE;
        assert!(
            overlaps(&kernel) || modules.iter().any(overlaps),
            "written at {page:#x}"
        );
    }
}

/// Where the structures that the kernel gets say its modules and its command line are.
fn boot_structures(memory: &Memory, loaded: &Loaded) -> (Vec<Range<u64>>, u64) {
    let word = |address| u64::from(read_word(memory, address));
    let module = |start, size| Vec::from_iter((size > 0).then(|| start..start + size));
    match loaded.protocol {
        Protocol::Linux64 | Protocol::Linux32 => {
            let params = loaded.registers.rsi;
            (
                module(word(params + 0x218), word(params + 0x21C)),
                word(params + 0x228),
            )
        }
        Protocol::Pvh => {
            let info = loaded.registers.rbx;
            let modules = match word(info + 12) {
                0 => vec![],
                _ => module(word(word(info + 16)), word(word(info + 16) + 8)),
            };
            (modules, word(info + 24))
        }
        Protocol::Multiboot1 => {
            let info = loaded.registers.rbx;
            let (count, list) = (word(info + 20), word(info + 24));
            let modules = (0..count)
                .map(|i| word(list + i * 16)..word(list + i * 16 + 4))
                .collect();
            (modules, word(info + 16))
        }
    }
}

fn read(memory: &Memory, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .expect("an address in memory");
    bytes
}

fn read_word(memory: &Memory, address: u64) -> u32 {
    memory
        .read_obj(GuestAddress(address))
        .expect("an address in memory")
}

/// The string of `length` at `address`, which must end there.
fn read_string(memory: &Memory, address: u64, length: usize) -> String {
    let mut bytes = read(memory, address, length + 1);
    assert_eq!(bytes.pop(), Some(0));
    String::from_utf8(bytes).expect("what was a string")
}
