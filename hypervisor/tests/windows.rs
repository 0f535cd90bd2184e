//! Memory beside RAM, over the KVM of this host, if there is one.

use std::path::Path;
use std::sync::Arc;

use hypervisor::kvm::Kvm;
use hypervisor::{Direction, Exit, Hypervisor, InterruptControllers, Vcpu, Vm, Window};
use tsc::VcpuId;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MemoryRegionAddress, MmapRegion,
};

/// Where the guest's code is, of 16 bits and in real mode.
const CODE: u16 = 0x100;
const WRITABLE: u16 = 0x2000;
const READ_ONLY: u16 = 0x3000;
const PORT: u8 = 0x10;

/// Code that writes `byte` to the beginning of the paragraph `segment`, and tells what is there then.
fn write_and_tell(segment: u16, byte: u8) -> Vec<u8> {
    let [low, high] = segment.to_le_bytes();
    vec![
        0xb8, low, high, // mov ax, segment
        0x8e, 0xd8, // mov ds, ax
        0xc6, 0x06, 0, 0, byte, // mov byte [0], byte
        0xa0, 0, 0, // mov al, [0]
        0xe6, PORT, // out PORT, al
    ]
}

fn window(segment: u16, writable: bool) -> Window {
    let memory = MmapRegion::new(0x1000).expect("room");
    let place = GuestAddress(u64::from(segment) << 4);
    let memory = GuestRegionMmap::new(memory, place).expect("in the address space");
    Window {
        memory: Arc::new(memory),
        writable,
    }
}

#[test]
fn windows_are_the_guests_memory_and_written_where_they_may_be() {
    let kvm = match Kvm::open() {
        Ok(kvm) => kvm,
        Err(error) if Path::new("/dev/kvm").exists() => return println!("skipped: {error}"),
        Err(error) => return println!("skipped here: {error}"),
    };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).expect("room");
    let code = [write_and_tell(WRITABLE, 7), write_and_tell(READ_ONLY, 9)].concat();
    memory
        .write_slice(&code, GuestAddress(CODE.into()))
        .expect("in memory");
    let windows = vec![window(WRITABLE, true), window(READ_ONLY, false)];
    let behind: Vec<_> = windows.iter().map(|window| window.memory.clone()).collect();
    for memory in &behind {
        memory
            .write_obj(5_u8, MemoryRegionAddress(0))
            .expect("in memory");
    }
    let vm = kvm
        .create_vm(memory, windows, InterruptControllers::None)
        .expect("a VM");
    let mut vcpu = vm.create_vcpu(VcpuId::new(0)).expect("a vCPU");
    let mut system = vcpu.system_registers().expect("registers");
    system.cs.base = 0;
    system.cs.selector = 0;
    vcpu.set_system_registers(&system).expect("registers");
    let mut general = vcpu.general_registers().expect("registers");
    general.rip = CODE.into();
    vcpu.set_general_registers(&general).expect("registers");

    let mut told = Vec::new();
    let mut lost = Vec::new();
    while told.len() < 2 {
        match vcpu.run().expect("runs") {
            Exit::Port(access) => match access.direction {
                Direction::Out(bytes) => told.extend_from_slice(bytes),
                Direction::In(_) => panic!("nobody reads"),
            },
            Exit::MmioWrite { address, data } => lost.push((address, data.to_vec())),
            Exit::Interrupted => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, [7, 5]);
    assert_eq!(lost, [(u64::from(READ_ONLY) << 4, vec![9])]);
    let found = behind.iter().map(|memory| {
        let byte: u8 = memory.read_obj(MemoryRegionAddress(0)).expect("in memory");
        byte
    });
    assert_eq!(found.collect::<Vec<_>>(), [7, 5]);
}
