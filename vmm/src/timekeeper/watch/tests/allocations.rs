//! What a vCPU's thread does for its time at an exit allocates nothing.

use super::*;
use crate::counting::ALLOCATIONS;

const EXITS: u32 = 1_000_000;

#[test]
fn exits_and_what_they_lead_to_allocate_nothing() {
    fn test<F: ModelForm>(vm: &ModelVm<F>) {
        watched(vm, false, |threads, watching| {
            let mut allocations = 0;
            let mut seen = [0; 3];
            for exit in 0..EXITS {
                vm.pass(Nanos::new(100_000));
                // From time to time a move, to a counter that is behind and back.
                if exit % 50_000 == 49_999 {
                    threads.go_to(0, if exit % 100_000 < 50_000 { ONE } else { ZERO });
                }
                let thread = &mut threads.threads.borrow_mut()[0];
                let before = ALLOCATIONS.get();
                if let Some(sighting) = thread.time.watch().glance() {
                    let kind = match sighting {
                        Sighting::Due => 0,
                        Sighting::Moved {
                            backwards: None, ..
                        } => 1,
                        Sighting::Moved { .. } | Sighting::Backwards(_) => 2,
                    };
                    seen[kind] += 1;
                    thread.time.watch().attend(sighting, &thread.vcpu);
                    thread.time.watch().look(&thread.vcpu);
                }
                allocations += ALLOCATIONS.get() - before;
            }
            assert!(seen.iter().all(|times| *times >= 5), "{seen:?}");
            assert_eq!(
                allocations, 0,
                "in {EXITS} exits, of which led to more: {seen:?}"
            );
            let before = ALLOCATIONS.get();
            watching.second(false);
            assert!(ALLOCATIONS.get() > before, "nobody counts");
        });
    }
    on_both!(test, apart(-THREE_SECONDS));
}
