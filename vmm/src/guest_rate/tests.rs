//! Rates on the model of both vendors' hosts, obedient and not.

use std::cell::Cell;

use hypervisor::model::{Faults, ModelFixture, ModelForm, ModelHost, ModelVm, Obedience};
use tsc::{CpuId, Nanos};

use super::*;
use crate::doctor::OnModel;
use crate::error::one_line;

const HOST: u32 = 2_000_000;

fn khz(khz: u32) -> Khz {
    Khz::new(khz).expect("not 0")
}

fn wish(rate: u32) -> TscRate {
    TscRate {
        khz: Khz::new(rate),
        allow_catch_up: false,
    }
}

fn allowed(rate: u32) -> TscRate {
    TscRate {
        allow_catch_up: true,
        ..wish(rate)
    }
}

fn host(faults: Faults) -> ModelHost {
    ModelHost::uniform(2, khz(HOST), faults)
}

/// A host that pushes where it does not scale, as Linux does when the TSC is not its clock.
fn pushing() -> ModelHost {
    host(Faults {
        catch_up_by_master_clock: false,
        ..Faults::LINUX
    })
    .without_scaling()
}

/// Counts the rates that are tried.
struct Counted<T> {
    inner: T,
    tried: Cell<u32>,
}

impl<T: RateTrials> RateTrials for Counted<T> {
    fn claims(&self) -> Result<RateClaims, String> {
        self.inner.claims()
    }

    fn try_rate(&self, claims: &RateClaims, asked: Khz) -> Result<Trial, String> {
        self.tried.set(self.tried.get() + 1);
        self.inner.try_rate(claims, asked)
    }
}

/// What is settled on both vendors' models, how many rates were tried, and by whose form.
fn settled(host: &ModelHost, wish: TscRate) -> [(Vendor, Result<GuestRate, String>, u32); 2] {
    fn on<F: ModelForm>(
        host: &ModelHost,
        wish: TscRate,
    ) -> (Vendor, Result<GuestRate, String>, u32) {
        let trials = Counted {
            inner: OnModel(ModelFixture::<F>::new(host.clone())),
            tried: Cell::new(0),
        };
        let rate = settle(wish, &trials).map_err(|error| one_line(&error));
        (F::VENDOR, rate, trials.tried.get())
    }
    [on::<Vmx>(host, wish), on::<Svm>(host, wish)]
}

/// Each is refused with a message that has `parts`, after so many trials.
fn refused_for(host: &ModelHost, wish: TscRate, trials: u32, parts: &[&str]) {
    for (_, rate, tried) in settled(host, wish) {
        let message = rate.expect_err("refused");
        assert_eq!(tried, trials, "{message}");
        assert!(!message.contains('\n'), "{message}");
        for part in parts.iter().chain(&["tsc_khz", "leave it out"]) {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
}

/// Nobody is asked for anything.
struct Nobody;

impl RateTrials for Nobody {
    fn claims(&self) -> Result<RateClaims, String> {
        Err("nobody is to be asked".to_owned())
    }

    fn try_rate(&self, _: &RateClaims, _: Khz) -> Result<Trial, String> {
        Err("nobody is to be asked".to_owned())
    }
}

#[test]
fn rate_that_is_not_asked_for_asks_nobody() {
    let rate = settle(TscRate::default(), &Nobody).expect("the host's");
    assert_eq!(rate, GuestRate::Host);
    let message = one_line(&settle(wish(5), &Nobody).expect_err("unknown"));
    assert!(message.contains("could not be found out"), "{message}");
}

#[test]
fn rate_of_the_host_is_had_without_a_trial() {
    for host in [host(Faults::LINUX), pushing()] {
        for (_, rate, tried) in settled(&host, wish(HOST)) {
            assert_eq!((rate, tried), (Ok(GuestRate::Host), 0));
        }
    }
}

#[test]
fn rate_that_hardware_scales_to_is_had_with_its_ratio() {
    for rate in [1_000_000, 3_400_000, 1_999_000] {
        for (vendor, settled, tried) in settled(&host(Faults::LINUX), wish(rate)) {
            let other = settled.expect("scaled").other().expect("not the host's");
            assert_eq!((other.khz, tried), (khz(rate), 1));
            let ratio = VendorRatio::from_rates_floor(vendor, khz(rate), khz(HOST));
            assert_eq!(Ok(other.ratio), ratio);
            assert!(matches!(other.outcome, RateOutcome::Scaled { .. }));
            assert_eq!(other.degradation(), None);
            let measured = other.measured.expect("measured");
            assert!(measured.at_least.get() <= 0 && measured.at_most.get() >= 0);
        }
    }
}

#[test]
fn rate_on_a_host_of_one_cpu_is_measured_across_entries() {
    let one = ModelHost::uniform(1, khz(HOST), Faults::LINUX);
    for (_, settled, _) in settled(&one, wish(1_000_000)) {
        let other = settled.expect("scaled").other().expect("not the host's");
        assert!(matches!(other.outcome, RateOutcome::Scaled { .. }));
    }
}

#[test]
fn rate_within_the_tolerance_is_refused_without_a_trial() {
    for host in [host(Faults::LINUX), pushing()] {
        // 250 ppm of 2 GHz are 500 kHz.
        for rate in [1_999_500, 2_000_500] {
            refused_for(
                &host,
                allowed(rate),
                0,
                &["within 250 ppm", "does not scale"],
            );
        }
    }
}

#[test]
fn rate_beyond_the_format_is_refused_without_a_trial() {
    // 8.32 ends below 256.
    let host = host(Faults::LINUX);
    let [_, (vendor, rate, tried)] = settled(&host, wish(512_000_000));
    let message = rate.expect_err("refused");
    assert_eq!((vendor, tried), (Vendor::Amd, 0));
    assert!(message.contains("out of the host's reach"), "{message}");
}

#[test]
fn rate_below_a_host_that_does_not_scale_is_refused_without_a_trial() {
    let parts = ["1000000 kHz is below", "cannot scale", "--require scaling"];
    refused_for(&pushing(), allowed(1_000_000), 0, &parts);
}

#[test]
fn rate_above_a_host_that_pushes_is_had_where_that_is_allowed() {
    let parts = ["in steps", "allow that with --allow-tsc-catchup"];
    refused_for(&pushing(), wish(3_400_000), 1, &parts);
    for (vendor, settled, tried) in settled(&pushing(), allowed(3_400_000)) {
        let other = settled.expect("allowed").other().expect("not the host's");
        assert_eq!((other.khz, tried), (khz(3_400_000), 1));
        assert_eq!(other.ratio, VendorRatio::one(vendor));
        assert_eq!(other.quantisation(), None);
        let degradation = other.degradation().expect("told");
        assert!(
            degradation.starts_with("degraded: catch-up"),
            "{degradation}"
        );
        let measured = other.measured.expect("measured");
        assert!(measured.at_least.get() > -20_000_000 && measured.at_most.get() < 20_000_000);
    }
}

#[test]
fn rate_above_a_host_that_was_not_seen_to_push_is_refused_whatever_is_allowed() {
    // Linux under its master clock, and a KVM that takes each rate and drops it.
    let linux = host(Faults::LINUX).without_scaling();
    let deaf = host(Faults {
        rate_writes: Obedience::IgnoredAndReadBack,
        ..Faults::LINUX
    })
    .without_scaling();
    for host in [linux, deaf] {
        for wish in [wish(3_400_000), allowed(3_400_000)] {
            refused_for(&host, wish, 1, &["without an effect", "--require scaling"]);
        }
    }
}

#[test]
fn rate_on_a_host_that_only_claims_to_scale_is_refused() {
    let deaf = host(Faults {
        rate_writes: Obedience::IgnoredAndReadBack,
        ..Faults::LINUX
    });
    for (rate, off) in [(1_000_000, " to 1000"), (3_400_000, ", -4117")] {
        let parts = ["ran at another rate, ", off, " ppb off it"];
        refused_for(&deaf, allowed(rate), 1, &parts);
    }
    let pushing = host(Faults {
        catch_up_instead_of_scaling: true,
        catch_up_by_master_clock: false,
        ..Faults::LINUX
    });
    refused_for(&pushing, wish(3_400_000), 1, &["pushed forward"]);
}

fn other<F: ModelForm>(host: &ModelHost, wish: TscRate) -> GuestRate {
    settle(wish, &OnModel(ModelFixture::<F>::new(host.clone()))).expect("settled")
}

#[test]
fn rate_is_given_to_all_vcpus_and_their_clocks_begin_together() {
    fn test<F: ModelForm>(rate: u32) {
        // The host has run for an hour: what is left of that in an offset would show.
        let mut host = host(Faults::LINUX);
        host.pass(Nanos::new(3_600_000_000_000));
        let vm = ModelVm::<F>::new(host.clone());
        let mut vcpus: Vec<_> = (0..3)
            .map(|_| {
                vm.pass(Nanos::new(15_000));
                vm.create_vcpu()
            })
            .collect();
        other::<F>(&host, wish(rate))
            .give(&mut vcpus)
            .expect("obeyed");
        let begin = vm.host(ModelHost::now);
        for vcpu in &vcpus {
            vm.enter(vcpu).expect("sane registers");
            let tsc = vm.rdtsc(vcpu).get();
            // 60 microseconds at most since the first of them was set to 0.
            assert!(tsc <= u64::from(rate) * 60 / 1_000, "{tsc}");
            vm.leave(vcpu);
        }
        let read = |index: usize| {
            vm.enter(&vcpus[index]).expect("sane registers");
            let tsc = vm.rdtsc(&vcpus[index]);
            vm.leave(&vcpus[index]);
            tsc
        };
        assert_eq!(read(0), read(2));
        let before = read(1);
        vm.pass(Nanos::new(1_000_000_000));
        let ticks = read(1).wrapping_elapsed(before).get();
        assert!(ticks.abs_diff(u64::from(rate) * 1_000) <= 1, "{ticks}");
        let offset =
            |vcpu: &hypervisor::model::ModelVcpu<F>| vcpu.offset().expect("readable").claim();
        assert_eq!(offset(&vcpus[0]), offset(&vcpus[1]));
        assert_eq!(offset(&vcpus[0]), offset(&vcpus[2]));
        assert!(begin.get() > 0 && vm.host(|host| host.tsc(CpuId::new(0)).get()) > 0);
    }
    for rate in [1_000_000, 3_400_000] {
        test::<Vmx>(rate);
        test::<Svm>(rate);
    }
}

#[test]
fn rate_that_a_vcpu_does_not_keep_is_found() {
    let good = host(Faults::LINUX);
    let rate = other::<Vmx>(&good, wish(1_000_000));
    let deaf = host(Faults {
        rate_writes: Obedience::Ignored,
        ..Faults::LINUX
    });
    let vm = ModelVm::<Vmx>::new(deaf);
    let error = rate.give(&mut [vm.create_vcpu()]).expect_err("dropped");
    let message = one_line(&error);
    assert!(
        message.contains("took a TSC rate of 1000000 kHz, and has 2000000 kHz"),
        "{message}"
    );
    let refusing = ModelVm::<Vmx>::new(pushing());
    let error = rate.give(&mut [refusing.create_vcpu()]);
    assert!(matches!(error, Err(RateError::Control(_))), "{error:?}");
}

#[test]
fn rate_of_the_host_is_written_nowhere() {
    let vm = ModelVm::<Vmx>::new(host(Faults::LINUX));
    let mut vcpus = [vm.create_vcpu()];
    let offset = |vcpu: &hypervisor::model::ModelVcpu<Vmx>| vcpu.offset().expect("readable");
    let before = offset(&vcpus[0]);
    vm.pass(Nanos::new(1_000_000));
    GuestRate::Host.give(&mut vcpus).expect("nothing to fail");
    assert_eq!(offset(&vcpus[0]), before);
}
