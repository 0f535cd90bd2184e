//! What a vCPU's watch over its clock costs at an exit: the glance alone, and an exit of a guest on this
//! machine's KVM without it and with it.
#![allow(
    missing_docs,
    reason = "the macros of the harness define undocumented items"
)]

use std::hint::black_box;
use std::io::Cursor;

use arch::boot::{self, BootSource};
use arch::memory::{MemorySize, ram_regions};
use criterion::{Criterion, criterion_group, criterion_main};
use hypervisor::host::Rdtscp;
use hypervisor::kvm::{Kvm, KvmVcpu, KvmVm};
use hypervisor::{Direction, Exit, Hypervisor, InterruptControllers, Vcpu, Vm};
use tsc::watch::Exits;
use tsc::{Ticks, VcpuId};
use vm_memory::GuestMemoryMmap;

#[path = "../tests/tsc_contract/guest.rs"]
#[allow(dead_code, reason = "a part of the contract's guest is of use here")]
mod guest;

/// A guest that reads and writes ports for ever. The VM outlives its vCPU.
fn guest() -> Option<(KvmVcpu, KvmVm)> {
    let kvm = Kvm::open().ok()?;
    let size = MemorySize::from_mib(2).expect("in bounds");
    let memory = GuestMemoryMmap::<()>::from_ranges(&ram_regions(size)).expect("2 MiB");
    let source = BootSource {
        kernel: &mut Cursor::new(guest::image()),
        modules: Vec::new(),
        cmdline: "",
    };
    let loaded = boot::load(&memory, source).expect("an image of ours");
    let vm = kvm
        .create_vm(memory, Vec::new(), InterruptControllers::None)
        .expect("a VM");
    let mut vcpu = vm.create_vcpu(VcpuId::new(0)).expect("a vCPU");
    let cpuid = kvm.supported_cpuid().expect("readable");
    vcpu.set_cpuid(&cpuid).expect("supported");
    let current = vcpu.system_registers().expect("readable");
    vcpu.set_system_registers(&loaded.system_registers(current))
        .expect("sane");
    vcpu.set_general_registers(&loaded.registers).expect("sane");
    Some((vcpu, vm))
}

fn leave(vcpu: &mut KvmVcpu) {
    match vcpu.run() {
        Ok(Exit::Port(access)) => {
            if let Direction::In(data) = access.direction {
                data.fill(0);
            }
        }
        other => panic!("{other:?}"),
    }
}

fn glances(c: &mut Criterion) {
    let mut group = c.benchmark_group("glance");
    let Some(rdtscp) = Rdtscp::detect() else {
        return println!("skipped here: this processor has no RDTSCP");
    };
    group.bench_function("rdtscp", |b| b.iter(|| rdtscp.read()));
    // A look is due after a stride; with this one never.
    let (tsc, cpu) = rdtscp.read();
    let mut exits = Exits::begin(tsc, cpu, Ticks::new(u64::MAX >> 1));
    group.bench_function("rdtscp-and-sample", |b| {
        b.iter(|| {
            let (tsc, cpu) = rdtscp.read();
            black_box(exits.sample(tsc, cpu))
        });
    });
    group.finish();
    let Some((mut vcpu, _vm)) = guest() else {
        return println!("skipped here: there is no KVM here");
    };
    let mut group = c.benchmark_group("exit");
    group.bench_function("without-a-glance", |b| b.iter(|| leave(&mut vcpu)));
    group.bench_function("with-a-glance", |b| {
        b.iter(|| {
            leave(&mut vcpu);
            let (tsc, cpu) = rdtscp.read();
            black_box(exits.sample(tsc, cpu))
        });
    });
    group.finish();
}

criterion_group!(benches, glances);
criterion_main!(benches);
