//! What KVM makes of the registers: arch/x86/kvm/x86.c of Linux 6.8, decision by decision.
//!
//! The names of the kernel's functions and fields are given where their decisions are modelled.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tsc::{CpuId, GuestTsc, Khz, Nanos, Ticks, Transform, TscOffset, TscRatio, ticks_exact_floor};

use super::registers::{ModelForm, TscRegisters};
use super::{ModelHost, Obedience, Synchronisation};
use crate::IoctlError;

/// A VM on a modelled host.
#[derive(Debug)]
pub struct ModelVm<F: ModelForm> {
    pub(super) world: Arc<Mutex<World<F>>>,
}

/// A vCPU of such a VM. Its control calls are made from the thread that runs it, on the CPU to which
/// [`ModelVm::pin`] has brought it.
#[derive(Debug)]
pub struct ModelVcpu<F: ModelForm> {
    pub(super) world: Arc<Mutex<World<F>>>,
    pub(super) index: usize,
}

#[derive(Debug)]
pub(super) struct World<F: ModelForm> {
    pub(super) host: ModelHost,
    pub(super) vm: VmState,
    pub(super) vcpus: Vec<VcpuState<F>>,
}

/// `struct kvm_arch`, as far as it concerns TSCs.
#[derive(Debug)]
pub(super) struct VmState {
    pub(super) default_rate: Khz,
    generation: u64,
    cur_at: Nanos,
    cur_write: GuestTsc,
    cur_offset: TscOffset,
    matched: usize,
    last_at: Nanos,
    last_write: GuestTsc,
    last_rate: Option<Khz>,
    last_offset: TscOffset,
    user_set: bool,
    /// `master_cycle_now` and `master_kernel_ns`.
    master: Option<(tsc::HostTsc, Nanos)>,
}

/// `struct kvm_vcpu_arch`, as far as it concerns TSCs.
#[derive(Debug)]
pub(super) struct VcpuState<F: ModelForm> {
    pub(super) registers: F::Registers,
    /// `l1_tsc_offset` and `l1_tsc_scaling_ratio`.
    pub(super) l1: Transform<F>,
    /// What the offset is said to be, where that is a lie.
    pub(super) claimed_offset: Option<TscOffset>,
    /// `virtual_tsc_khz`.
    pub(super) rate: Khz,
    catch_up: bool,
    always_catch_up: bool,
    update_requested: bool,
    generation: Option<u64>,
    this_at: Nanos,
    this_write: GuestTsc,
    last_cpu: Option<CpuId>,
    last_host_tsc: Option<tsc::HostTsc>,
    last_guest_tsc: GuestTsc,
    thread: CpuId,
}

pub(super) fn invalid(call: &'static str) -> IoctlError {
    IoctlError {
        call,
        source: io::Error::from_raw_os_error(libc::EINVAL),
    }
}

impl<F: ModelForm> ModelVm<F> {
    /// A VM without vCPUs.
    #[must_use]
    pub fn new(host: ModelHost) -> Self {
        let vm = VmState {
            default_rate: host.calibrated,
            generation: 0,
            cur_at: host.now,
            cur_write: GuestTsc::default(),
            cur_offset: TscOffset::ZERO,
            matched: 0,
            last_at: host.now,
            last_write: GuestTsc::default(),
            last_rate: None,
            last_offset: TscOffset::ZERO,
            user_set: false,
            master: None,
        };
        Self {
            world: Arc::new(Mutex::new(World {
                host,
                vm,
                vcpus: Vec::new(),
            })),
        }
    }

    fn world(&self) -> MutexGuard<'_, World<F>> {
        lock(&self.world)
    }

    /// Creates the next vCPU, on CPU 0. The rate is the VM's, and whether it can be had is not said
    /// (`kvm_arch_vcpu_create` drops the result of `kvm_set_tsc_khz`).
    #[must_use]
    pub fn create_vcpu(&self) -> ModelVcpu<F> {
        let mut world = self.world();
        let (now, calibrated, default_rate) =
            (world.host.now, world.host.calibrated, world.vm.default_rate);
        let index = world.vcpus.len();
        world.vcpus.push(VcpuState {
            registers: F::Registers::default(),
            l1: Transform::IDENTITY,
            claimed_offset: None,
            rate: calibrated,
            catch_up: false,
            always_catch_up: false,
            update_requested: false,
            generation: None,
            this_at: now,
            this_write: GuestTsc::default(),
            last_cpu: None,
            last_host_tsc: None,
            last_guest_tsc: GuestTsc::default(),
            thread: CpuId::new(0),
        });
        let _ = world.set_rate(index, default_rate);
        world.load(index);
        world.synchronise(index, None);
        world.put(index);
        ModelVcpu {
            world: Arc::clone(&self.world),
            index,
        }
    }

    /// A look at the host.
    pub fn host<R>(&self, look: impl FnOnce(&ModelHost) -> R) -> R {
        look(&self.world().host)
    }

    /// Lets time pass.
    pub fn pass(&self, time: Nanos) {
        self.world().host.pass(time);
    }

    /// Moves the thread that runs `vcpu` to `cpu`: the vCPU follows when it is loaded next.
    pub fn pin(&self, vcpu: &ModelVcpu<F>, cpu: CpuId) {
        self.world().vcpus[vcpu.index].thread = cpu;
    }

    /// `KVM_RUN` up to the guest's first instruction.
    ///
    /// # Errors
    /// When the processor refuses what the registers hold.
    pub fn enter(&self, vcpu: &ModelVcpu<F>) -> Result<(), IoctlError> {
        let mut world = self.world();
        world.load(vcpu.index);
        world.enter(vcpu.index)
    }

    /// RDTSC in the guest, now, on the CPU it was loaded on.
    #[must_use]
    pub fn rdtsc(&self, vcpu: &ModelVcpu<F>) -> GuestTsc {
        self.world().rdtsc(vcpu.index)
    }

    /// What RDTSC in the guest gives when the host's counter is at `host`, with the registers as they
    /// were at the last entry.
    #[must_use]
    pub fn rdtsc_at(&self, vcpu: &ModelVcpu<F>, host: tsc::HostTsc) -> GuestTsc {
        self.world().vcpus[vcpu.index].registers.rdtsc(host)
    }

    /// The guest exits, and `KVM_RUN` returns.
    pub fn leave(&self, vcpu: &ModelVcpu<F>) {
        let mut world = self.world();
        world.exit(vcpu.index);
        world.put(vcpu.index);
    }

    /// Whether guests may read their fast clock without asking the kernel: all vCPUs have matching
    /// offsets, and the host's TSC is trusted (`pvclock_update_vm_gtod_copy`).
    #[must_use]
    pub fn master_clock(&self) -> bool {
        self.world().master_clock()
    }
}

pub(super) fn lock<F: ModelForm>(world: &Mutex<World<F>>) -> MutexGuard<'_, World<F>> {
    // A test that failed while it held the lock has said so itself.
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<F: ModelForm> World<F> {
    /// `pvclock_update_vm_gtod_copy`.
    fn master_clock(&self) -> bool {
        self.vm.matched + 1 == self.vcpus.len() && !self.host.unstable && !self.host.backwards_seen
    }

    pub(super) fn host_tsc(&self, index: usize) -> tsc::HostTsc {
        self.host.tsc(self.vcpus[index].thread)
    }

    /// `kvm_vcpu_write_tsc_offset`, `kvm_vcpu_write_tsc_multiplier`. A composition that the format
    /// cannot hold leaves the registers as they are.
    fn write(&mut self, index: usize, l1: Transform<F>) {
        let faults = self.host.faults;
        let vcpu = &mut self.vcpus[index];
        if vcpu.registers.write(l1, faults).is_ok() {
            vcpu.l1 = l1;
        }
    }

    /// `kvm_arch_vcpu_load`.
    pub(super) fn load(&mut self, index: usize) {
        let host_tsc = self.host_tsc(index);
        let faults = self.host.faults;
        let vcpu = &mut self.vcpus[index];
        let moved = vcpu.last_cpu != Some(vcpu.thread);
        if moved {
            vcpu.registers.moved();
        }
        let backwards = vcpu
            .last_host_tsc
            .is_some_and(|last| host_tsc.is_before(last));
        vcpu.last_cpu = Some(vcpu.thread);
        if !faults.compensation || !(moved || self.host.unstable) {
            return;
        }
        if backwards {
            self.host.unstable = true;
            self.host.backwards_seen = true;
        }
        if self.host.unstable {
            let (ratio, last) = (vcpu.l1.ratio, vcpu.last_guest_tsc);
            vcpu.catch_up = true;
            vcpu.update_requested = true;
            self.write(index, Transform::through(ratio, host_tsc, last));
        }
    }

    /// `kvm_arch_vcpu_put`.
    pub(super) fn put(&mut self, index: usize) {
        let host_tsc = self.host_tsc(index);
        self.vcpus[index].last_host_tsc = Some(host_tsc);
    }

    /// `vcpu_enter_guest`.
    fn enter(&mut self, index: usize) -> Result<(), IoctlError> {
        let vcpu = &self.vcpus[index];
        if vcpu.always_catch_up || vcpu.update_requested {
            self.update_guest_time(index);
        }
        self.vcpus[index]
            .registers
            .enter()
            .map_err(|_| invalid("KVM_RUN"))
    }

    /// `kvm_guest_time_update`: forward to the line through the last write, never back.
    fn update_guest_time(&mut self, index: usize) {
        let (host_tsc, now) = match self.vm.master {
            Some(master) if self.host.faults.catch_up_by_master_clock && self.master_clock() => {
                master
            }
            _ => (self.host_tsc(index), self.host.now),
        };
        let vcpu = &mut self.vcpus[index];
        vcpu.update_requested = false;
        if !vcpu.catch_up {
            return;
        }
        let elapsed = now.saturating_sub(vcpu.this_at);
        let Some(ticks) = ticks_exact_floor(elapsed, vcpu.rate) else {
            return;
        };
        let (target, present) = (
            vcpu.this_write.wrapping_advance(ticks),
            vcpu.l1.guest_at(host_tsc),
        );
        if present.is_before(target) {
            let l1 = vcpu.l1.adjusted(target.wrapping_since(present));
            vcpu.last_guest_tsc = target;
            self.write(index, l1);
        }
    }

    fn rdtsc(&self, index: usize) -> GuestTsc {
        self.vcpus[index].registers.rdtsc(self.host_tsc(index))
    }

    /// After the guest's exit: `last_guest_tsc = kvm_read_l1_tsc(vcpu, rdtsc())`.
    fn exit(&mut self, index: usize) {
        let host_tsc = self.host_tsc(index);
        let vcpu = &mut self.vcpus[index];
        vcpu.last_guest_tsc = vcpu.l1.guest_at(host_tsc);
    }

    /// `kvm_synchronize_tsc`, with `None` for the write at a vCPU's creation.
    pub(super) fn synchronise(&mut self, index: usize, value: Option<GuestTsc>) {
        let (host_tsc, now, faults) = (self.host_tsc(index), self.host.now, self.host.faults);
        let (rate, ratio) = (self.vcpus[index].rate, self.vcpus[index].l1.ratio);
        let mut data = value.unwrap_or_default();
        let elapsed =
            ticks_exact_floor(now.saturating_sub(self.vm.last_at), rate).unwrap_or(Ticks::ZERO);
        let synchronising = if data == GuestTsc::default() {
            true
        } else if match faults.synchronisation {
            Synchronisation::Never => false,
            Synchronisation::AfterTheFirst => self.vm.user_set,
            Synchronisation::Always => true,
        } {
            let expected = self.vm.last_write.wrapping_advance(elapsed).get();
            let (data, second) = (data.get(), rate.hz().get());
            // Compared as numbers, as the kernel does, and not around the circle: a value that was
            // moved back beyond 0 is far away.
            data < expected.wrapping_add(second) && data.wrapping_add(second) > expected
        } else {
            false
        };
        self.vm.user_set |= value.is_some();
        let mut offset = Transform::through(ratio, host_tsc, data).offset;
        let matched = synchronising && self.vm.last_rate == Some(rate);
        if matched {
            if self.host.unstable {
                data = data.wrapping_advance(elapsed);
                offset = Transform::through(ratio, host_tsc, data).offset;
            } else {
                offset = self.vm.cur_offset;
            }
        }
        self.note_write(index, offset, data, matched);
    }

    /// `__kvm_synchronize_tsc`.
    fn note_write(&mut self, index: usize, offset: TscOffset, tsc: GuestTsc, matched: bool) {
        let (host_tsc, now) = (self.host_tsc(index), self.host.now);
        let (rate, ratio) = (self.vcpus[index].rate, self.vcpus[index].l1.ratio);
        self.write(index, Transform { ratio, offset });
        let (vm, vcpu) = (&mut self.vm, &mut self.vcpus[index]);
        vm.last_at = now;
        vm.last_write = tsc;
        vm.last_rate = Some(rate);
        vm.last_offset = offset;
        vcpu.last_guest_tsc = tsc;
        if !matched {
            vm.generation += 1;
            vm.cur_at = now;
            vm.cur_write = tsc;
            vm.cur_offset = offset;
            vm.matched = 0;
        } else if vcpu.generation != Some(vm.generation) {
            vm.matched += 1;
        }
        vm.master = Some((host_tsc, now));
        vcpu.generation = Some(vm.generation);
        vcpu.this_at = vm.cur_at;
        vcpu.this_write = vm.cur_write;
    }

    /// `KVM_VCPU_TSC_OFFSET` (`kvm_arch_tsc_set_attr`).
    pub(super) fn set_offset(&mut self, index: usize, offset: TscOffset) {
        match self.host.faults.offset_writes {
            Obedience::Obeyed => {}
            Obedience::Ignored => return,
            Obedience::IgnoredAndReadBack => {
                self.vcpus[index].claimed_offset = Some(offset);
                return;
            }
        }
        let host_tsc = self.host_tsc(index);
        let vcpu = &self.vcpus[index];
        let (rate, ratio) = (vcpu.rate, vcpu.l1.ratio);
        let matched = self.vm.last_rate == Some(rate) && self.vm.last_offset == offset;
        let tsc = Transform { ratio, offset }.guest_at(host_tsc);
        self.vm.user_set = true;
        self.note_write(index, offset, tsc, matched);
    }

    /// The rates that `kvm_set_tsc_khz` calls the host's own (`adjust_tsc_khz`, twice).
    fn tolerated(&self, rate: Khz) -> bool {
        let (host, ppm) = (
            u64::from(self.host.calibrated.get()),
            u64::from(self.host.faults.tolerance.get()),
        );
        let low = host * (1_000_000 - ppm) / 1_000_000;
        let high = host * (1_000_000 + ppm) / 1_000_000;
        (low..=high).contains(&u64::from(rate.get()))
    }

    /// The limit of `KVM_SET_TSC_KHZ` (`max_guest_tsc_khz`): below it, and below 2^31 - 1.
    pub(super) fn within_limit(&self, rate: Khz) -> bool {
        if !self.host.scaling {
            return true;
        }
        let max = TscRatio::<F>::from_bits(TscRatio::<F>::MAX_BITS)
            .ok()
            .and_then(|ratio| {
                ratio.scale_ticks_floor(Ticks::new(self.host.calibrated.get().into()))
            })
            .map_or(u64::MAX, Ticks::get);
        u64::from(rate.get()) < max.min(0x7FFF_FFFF)
    }

    /// `kvm_set_tsc_khz` and `set_tsc_khz`.
    pub(super) fn set_rate(&mut self, index: usize, rate: Khz) -> Result<(), IoctlError> {
        let faults = self.host.faults;
        let calibrated = self.host.calibrated;
        let refused = || invalid("KVM_SET_TSC_KHZ");
        let above = rate > calibrated;
        let catch_up = above && (!self.host.scaling || faults.catch_up_instead_of_scaling);
        let ratio = if self.tolerated(rate) {
            Ok(Some(TscRatio::ONE))
        } else if catch_up {
            Ok(None)
        } else if !self.host.scaling {
            Err(refused())
        } else {
            TscRatio::from_rates_floor(rate, calibrated)
                .map(Some)
                .map_err(|_| refused())
        };
        let vcpu = &mut self.vcpus[index];
        if faults.rate_writes == Obedience::Ignored && ratio.is_ok() {
            return Ok(());
        }
        if ratio.is_ok() || faults.refused_rates_read_back {
            vcpu.rate = rate;
        }
        let ratio = ratio?;
        if faults.rate_writes == Obedience::IgnoredAndReadBack {
            return Ok(());
        }
        match ratio {
            None => {
                vcpu.catch_up = true;
                vcpu.always_catch_up = true;
            }
            Some(ratio) => {
                let l1 = Transform {
                    ratio,
                    offset: vcpu.l1.offset,
                };
                self.write(index, l1);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
