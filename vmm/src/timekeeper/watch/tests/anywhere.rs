//! Guests whose threads may go to any CPU.

use super::*;

#[test]
fn guest_whose_threads_may_go_anywhere_goes_on_together_on_two_cpus() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, false, |threads, watching| {
            SKEW.set(THREE_SECONDS);
            threads.run(100, MILLISECOND, 0);
            for (vcpu, restarts) in [(0, 1), (1, 2)] {
                threads.go_to(vcpu, ONE);
                threads.run(1, MILLISECOND, 0);
                watching.second(false);
                let events = watching.events();
                assert_eq!(events.len(), 1 + restarts, "{events:?}");
                let Some(Event::Restart {
                    cause: RestartCause::Skew,
                    forward_ticks,
                    ..
                }) = events.last()
                else {
                    panic!("{events:?}");
                };
                // The one that went had read it; the other one follows.
                let near = THREE_SECONDS - 10_000_000..=THREE_SECONDS + 10_000_000;
                assert_eq!(forward_ticks[vcpu], 0, "{forward_ticks:?}");
                assert!(near.contains(&forward_ticks[1 - vcpu]), "{forward_ticks:?}");
                threads.run(1, MILLISECOND, 0);
                assert_together(threads);
            }
            assert_eq!(threads.confined.take(), None);
            // The same counter, and the same offset.
            let vcpus = &watching.watch.vcpus;
            threads.run(600, MILLISECOND, 0);
            assert!(one_offset(vcpus, TscOffset::ZERO).is_some());
        });
    }
    on_both!(test, apart(THREE_SECONDS));
}

/// A thread is moved after it was asked where it stands.
#[test]
fn vcpus_whose_threads_are_moved_meanwhile_go_on_together_all_the_same() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        for (strays_to, beats) in [(vec![ZERO], 1), (vec![ZERO, ONE, ZERO], 2)] {
            watched(vm, false, |threads, watching| {
                go_apart(threads);
                *threads.strays_to.borrow_mut() = strays_to;
                for _ in 0..beats {
                    watching.second(false);
                }
                let events = watching.events();
                let failed = |event: &&Event| matches!(event, Event::RestartFailed { .. });
                assert_eq!(events.iter().filter(failed).count(), beats - 1);
                assert!(
                    matches!(events.last(), Some(Event::Restart { .. })),
                    "{events:?}"
                );
                threads.run(1, MILLISECOND, 0);
                assert_together(threads);
            });
        }
    }
    on_both!(test, apart(THREE_SECONDS));
}

#[test]
fn skew_that_vcpus_go_by_is_measured_again_and_told_when_it_changed() {
    let vm = ModelVm::<Vmx>::new(apart(1_000));
    for (may_confine, expected) in [(true, [1, 1, 1]), (false, [1, 2, 2])] {
        watched(&vm, may_confine, |threads, watching| {
            let told = [1_000, 3_000, 3_050].map(|skew| {
                SKEW.set(skew);
                for cpu in [ZERO, ONE] {
                    threads.go_to(1, cpu);
                    threads.run(300, MILLISECOND, 0);
                }
                watching.second(false);
                let events = watching.events();
                let skews = |event: &&Event| matches!(event, Event::Skew { .. });
                events.iter().filter(skews).count()
            });
            assert_eq!(told, expected);
        });
    }
}

#[test]
fn guest_whose_threads_go_to_and_fro_is_taken_no_further_than_by_the_skew_for_each_vcpu() {
    // Half a millisecond, which passes before a vCPU is entered elsewhere: KVM sees no step back.
    const SMALL: u64 = MILLISECOND;
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, false, |threads, watching| {
            SKEW.set(SMALL.cast_signed());
            threads.run(10, MILLISECOND, MILLISECOND);
            let home = watching.watch.home.offset.get();
            let ahead = || {
                let now = vm.host(|host| host.tsc(ZERO)).get().wrapping_add(home);
                let latest = threads.read().into_iter().max().expect("vCPUs");
                latest.wrapping_sub(now).cast_signed()
            };
            let before = ahead();
            for turn in 0..20 {
                vm.pass(Nanos::new(MILLISECOND));
                threads.go_to(0, if turn % 2 == 0 { ONE } else { ZERO });
                threads.run(2, MILLISECOND, MILLISECOND);
                watching.second(true);
            }
            let events = watching.events();
            let left = |event: &&Event| matches!(event, Event::LeftApart { .. });
            assert_eq!(events.iter().filter(left).count(), 1, "{events:?}");
            assert_eq!(threads.confined.take(), None);
            let ahead = (ahead() - before).unsigned_abs();
            // For each of two vCPUs, and that of the CPU that it is on.
            assert!(ahead <= 3 * SMALL + 1_000, "{ahead}");
        });
    }
    on_both!(test, apart(SMALL.cast_signed()));
}

#[test]
fn vcpu_that_comes_back_after_a_while_is_together_with_the_other_again() {
    // 100 us
    const SMALL: i64 = 200_000;
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, false, |threads, watching| {
            SKEW.set(SMALL);
            let together = |watching: &Watching<&Threads<'_, F>>| {
                one_offset(&watching.watch.vcpus, TscOffset::ZERO).is_some()
            };
            let go_to = |cpu| {
                vm.pass(Nanos::new(MILLISECOND));
                threads.go_to(0, cpu);
                threads.run(2, MILLISECOND, MILLISECOND);
            };
            threads.run(10, MILLISECOND, MILLISECOND);
            go_to(ONE);
            watching.second(false);
            assert!(!together(watching), "each has the offset for its CPU");
            // Something else is looked into meanwhile.
            threads.run(2, MILLISECOND, MILLISECOND);
            watching.watch.vcpus[1].want_attention();
            watching.second(false);
            go_to(ZERO);
            watching.second(false);
            assert!(together(watching), "{:?}", watching.events());
        });
    }
    on_both!(test, apart(SMALL));
}

#[test]
fn skew_within_the_bound_is_told_with_its_sign_and_nobody_is_taken_forward() {
    // Half a microsecond, which passes before a vCPU is entered elsewhere.
    const NEAR: i64 = 1_000;
    fn test<F: ModelForm>(skew: i64, vm: &ModelVm<F>) {
        watched(vm, false, |threads, watching| {
            SKEW.set(skew);
            threads.run(10, MILLISECOND, MILLISECOND);
            for turn in 0..8 {
                vm.pass(Nanos::new(MILLISECOND));
                threads.go_to(turn % 2, if turn % 4 < 2 { ONE } else { ZERO });
                threads.run(2, MILLISECOND, MILLISECOND);
                watching.second(false);
            }
            let events = watching.events();
            let [
                Event::Skew {
                    cpu: 1,
                    home_cpu: 0,
                    at_least_ticks,
                    at_most_ticks,
                },
            ] = events[..]
            else {
                panic!("{events:?}");
            };
            assert_eq!((at_least_ticks, at_most_ticks), (skew - 100, skew + 100));
            assert_eq!(threads.writes(), 0);
            assert!(vm.master_clock());
        });
    }
    for skew in [NEAR, -NEAR] {
        test(skew, &ModelVm::<Vmx>::new(apart(skew)));
        test(skew, &ModelVm::<Svm>::new(apart(skew)));
    }
}
