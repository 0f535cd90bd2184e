//! A guest of a few bytes that reads its TSC, as a 64-bit ELF file.
//!
//! It needs no interrupts and no stack, and uses no instruction that a software KVM is known to lack.

/// The port of the readings across entries: IN, then the TSC's low half, then the high half at + 4.
pub(crate) const PORT: u16 = 0x510;

/// Guest physical address of the mailbox for readings within one entry: 32-bit request at 0, 32-bit
/// answer at 8, the TSC at 16.
pub(crate) const MAILBOX: u64 = 0x18_0000;

/// The request that ends the guest's answering.
pub(crate) const STOP: u32 = u32::MAX;

/// Where the image is loaded.
const LOAD: u64 = 0x10_0000;
/// Both ELF headers.
const HEADERS: u64 = 64 + 56;
/// Where the answering loop begins, from the code's start.
const ANSWERING: u64 = 32;

/// Where a vCPU is to start to read across entries.
pub(crate) const READING_ENTRY: u64 = LOAD + HEADERS;
/// Where a vCPU is to start to answer within one entry.
pub(crate) const ANSWERING_ENTRY: u64 = LOAD + HEADERS + ANSWERING;

fn code() -> Vec<u8> {
    let [port_low, port_high] = PORT.to_le_bytes();
    let mut code = vec![
        0xba, port_low, port_high, 0, 0,    // 1: mov edx, PORT
        0xed, // in eax, dx
        0x0f, 0x31, // rdtsc
        0x41, 0x89, 0xd0, // mov r8d, edx
        0xba, port_low, port_high, 0, 0,    // mov edx, PORT
        0xef, // out dx, eax
        0x44, 0x89, 0xc0, // mov eax, r8d
        0x83, 0xc2, 0x04, // add edx, 4
        0xef, // out dx, eax
        0xeb, 0xe6, // jmp 1b
    ];
    assert_eq!(code.len(), 26);
    code.resize(usize::try_from(ANSWERING).expect("small"), 0xf4);
    let mailbox = u32::try_from(MAILBOX).expect("below 4 GiB").to_le_bytes();
    code.push(0xbb); // mov ebx, MAILBOX
    code.extend(mailbox);
    code.extend([
        0x8b, 0x03, // 1: mov eax, [rbx]
        0x83, 0xf8, 0xff, // cmp eax, STOP
        0x74, 0x17, // je 2f
        0x3b, 0x43, 0x08, // cmp eax, [rbx + 8]
        0x74, 0xf4, // je 1b
        0x89, 0xc1, // mov ecx, eax
        0x0f, 0xae, 0xe8, // lfence: the request was seen before the TSC is read
        0x0f, 0x31, // rdtsc
        0x89, 0x43, 0x10, // mov [rbx + 16], eax
        0x89, 0x53, 0x14, // mov [rbx + 20], edx
        0x89, 0x4b, 0x08, // mov [rbx + 8], ecx
        0xeb, 0xe2, // jmp 1b
        0xf4, // 2: hlt
    ]);
    code
}

/// The image: one segment, which is the whole file.
pub(crate) fn image() -> Vec<u8> {
    let code = code();
    let size = HEADERS + u64::try_from(code.len()).expect("small");
    let mut image = Vec::new();
    // Elf64_Ehdr: class 64, little endian, version 1; an executable for x86-64
    image.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let words = |image: &mut Vec<u8>, fields: &[u64]| {
        image.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
    };
    image.extend([2_u16, 62].iter().flat_map(|field| field.to_le_bytes()));
    image.extend(1_u32.to_le_bytes());
    words(&mut image, &[READING_ENTRY, 64, 0]);
    image.extend(0_u32.to_le_bytes());
    let sizes = [64_u16, 56, 1, 64, 0, 0];
    image.extend(sizes.iter().flat_map(|field| field.to_le_bytes()));
    // Elf64_Phdr: PT_LOAD, RWX
    image.extend([1_u32, 7].iter().flat_map(|field| field.to_le_bytes()));
    words(&mut image, &[0, LOAD, LOAD, size, size, 0x1000]);
    image.extend(code);
    image
}
