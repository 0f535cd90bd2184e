//! Where vCPU threads wait while the microVM is paused.
//!
//! Pausing closes the gate and kicks every vCPU; a vCPU that was kicked finishes the access that it is
//! in, looks at the gate, and waits there while it is closed. The pause is done when all that are
//! still present wait. Resuming opens the gate. The end of the microVM opens it too: a paused microVM
//! can be ended like a running one.
//!
//! A vCPU's clocks and timers are touched on its own thread alone, and while it waits it has time: whoever
//! closed the gate can [ask](Gate::ask) those that wait there to carry out an order, each for itself.
//!
//! Only a vCPU that left the guest because of a kick looks at the gate, so it costs nothing on the
//! path of other exits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::vcpu::Ending;

/// After so long without an answer, vCPUs are kicked once more. A kick is a signal, which also makes a
/// blocking system call return; one that comes just before the call begins is too early for that.
const KICK_AGAIN: Duration = Duration::from_millis(5);

/// Whether vCPUs are awaited at the gate: for one that waits for somebody outside and was kicked, which
/// may as well have been for a look at its clock.
#[derive(Debug, Default)]
pub(crate) struct Awaiting(AtomicBool);

impl Awaiting {
    pub(crate) fn is_so(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct State<O, A> {
    closed: bool,
    /// vCPUs whose threads have not ended.
    present: usize,
    /// Those of them that wait here.
    parked: usize,
    /// The latest order, and how many there have been.
    order: Option<O>,
    orders: u64,
    /// What has been answered to it.
    answers: Vec<A>,
}

/// The gate: see the [module](self). `O` is what those that wait can be asked to do, `A` their answer.
#[derive(Debug)]
pub(crate) struct Gate<O, A> {
    state: Mutex<State<O, A>>,
    awaiting: Arc<Awaiting>,
    changed: Condvar,
}

impl<O: Clone, A> Gate<O, A> {
    /// An open gate for so many vCPUs.
    pub(crate) fn new(vcpus: usize, awaiting: Arc<Awaiting>) -> Self {
        Self {
            awaiting,
            state: Mutex::new(State {
                closed: false,
                present: vcpus,
                parked: 0,
                order: None,
                orders: 0,
                answers: Vec::with_capacity(vcpus),
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<O, A>> {
        // The counts are changed in single steps: a panic elsewhere leaves them right.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the gate, and returns when every vCPU that is present waits at it. `kick` makes them look.
    pub(crate) fn close(&self, kick: impl Fn()) {
        self.lock().closed = true;
        self.awaiting.0.store(true, Ordering::SeqCst);
        self.wait_until(kick, |state| state.parked >= state.present);
    }

    /// Has every vCPU that waits at the closed gate carry out `order`, side by side, and returns their
    /// answers in no certain order. Those that leave meanwhile, because the microVM is ending, may be
    /// missing.
    pub(crate) fn ask(&self, order: O) -> Vec<A> {
        let mut state = self.lock();
        state.order = Some(order);
        state.orders = state.orders.wrapping_add(1);
        state.answers.clear();
        self.changed.notify_all();
        while state.answers.len() < state.parked {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::take(&mut state.answers)
    }

    /// Lets the vCPUs go on.
    pub(crate) fn open(&self) {
        self.lock().closed = false;
        self.awaiting.0.store(false, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Returns when every vCPU's thread has left for good: call it when the microVM is ending.
    pub(crate) fn wait_until_left(&self, kick: impl Fn()) {
        // Those that wait at the gate see that the microVM is ending.
        drop(self.lock());
        self.changed.notify_all();
        self.wait_until(kick, |state| state.present == 0);
    }

    fn wait_until(&self, kick: impl Fn(), done: impl Fn(&State<O, A>) -> bool) {
        kick();
        let mut state = self.lock();
        while !done(&state) {
            let timeout;
            (state, timeout) = self
                .changed
                .wait_timeout(state, KICK_AGAIN)
                .unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() {
                kick();
            }
        }
    }

    /// A vCPU's look at the gate: returns when it is open or the microVM is ending, and whether the vCPU
    /// had to wait. Meanwhile `carry_out` is called for each order.
    pub(crate) fn pass(&self, ending: &Ending, mut carry_out: impl FnMut(O) -> A) -> bool {
        let mut state = self.lock();
        if !state.closed {
            return false;
        }
        let mut seen = state.orders;
        state.parked += 1;
        self.changed.notify_all();
        while state.closed && !ending.is_ending() {
            state = match state.order.clone() {
                Some(order) if state.orders != seen => {
                    seen = state.orders;
                    drop(state);
                    let unwinding = LeaveWhenUnwinding(self);
                    let answer = carry_out(order);
                    std::mem::forget(unwinding);
                    let mut state = self.lock();
                    state.answers.push(answer);
                    self.changed.notify_all();
                    state
                }
                _ => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
        state.parked -= 1;
        self.changed.notify_all();
        true
    }

    /// A vCPU's thread ends.
    pub(crate) fn leave(&self) {
        let mut state = self.lock();
        state.present = state.present.saturating_sub(1);
        drop(state);
        self.changed.notify_all();
    }
}

/// Takes one whose order panics out of those that wait: nobody is to wait for its answer.
struct LeaveWhenUnwinding<'a, O: Clone, A>(&'a Gate<O, A>);

impl<O: Clone, A> Drop for LeaveWhenUnwinding<'_, O, A> {
    fn drop(&mut self) {
        self.0.lock().parked -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;
    use crate::outcome::Outcome;

    /// Threads that look at the gate when they are kicked, as vCPUs do.
    struct Vcpus {
        gate: Arc<Gate<u32, u32>>,
        ending: Arc<Ending>,
        kicked: Vec<Arc<AtomicBool>>,
        waits: Arc<AtomicUsize>,
        threads: Vec<std::thread::JoinHandle<()>>,
    }

    impl Vcpus {
        fn start(count: usize) -> Self {
            let gate = Arc::new(Gate::new(count, Arc::default()));
            let ending = Arc::new(Ending::new().expect("an eventfd"));
            let waits = Arc::new(AtomicUsize::new(0));
            let kicked: Vec<_> = (0..count)
                .map(|_| Arc::new(AtomicBool::new(false)))
                .collect();
            let threads = kicked
                .iter()
                .map(|kicked| {
                    let (gate, ending) = (gate.clone(), ending.clone());
                    let (kicked, waits) = (kicked.clone(), waits.clone());
                    std::thread::spawn(move || {
                        while !ending.is_ending() {
                            if kicked.swap(false, Ordering::SeqCst)
                                && gate.pass(&ending, |order| order + 1)
                            {
                                waits.fetch_add(1, Ordering::SeqCst);
                            }
                            std::thread::yield_now();
                        }
                        gate.leave();
                    })
                })
                .collect();
            Self {
                gate,
                ending,
                kicked,
                waits,
                threads,
            }
        }

        fn kick(&self) {
            for kicked in &self.kicked {
                kicked.store(true, Ordering::SeqCst);
            }
        }

        fn end(self) -> usize {
            self.ending.end(Outcome::PowerOff);
            self.gate.wait_until_left(|| self.kick());
            for thread in self.threads {
                thread.join().expect("no panic");
            }
            self.waits.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn close_returns_when_all_wait_and_open_lets_them_go() {
        let vcpus = Vcpus::start(3);
        for _ in 0..100 {
            vcpus.gate.close(|| vcpus.kick());
            let state = vcpus.gate.lock();
            assert_eq!((state.parked, state.present), (3, 3));
            drop(state);
            vcpus.gate.open();
        }
        assert!(vcpus.end() >= 3);
    }

    #[test]
    fn ask_has_each_that_waits_answer_each_order_once() {
        let vcpus = Vcpus::start(3);
        for order in 0..100 {
            vcpus.gate.close(|| vcpus.kick());
            assert_eq!(vcpus.gate.ask(order), [order + 1; 3]);
            assert_eq!(vcpus.gate.ask(order + 7), [order + 8; 3]);
            vcpus.gate.open();
        }
        vcpus.end();
    }

    #[test]
    fn ask_of_those_that_left_returns() {
        let vcpus = Vcpus::start(2);
        vcpus.gate.close(|| vcpus.kick());
        vcpus.ending.end(Outcome::PowerOff);
        vcpus.gate.wait_until_left(|| vcpus.kick());
        assert!(vcpus.gate.ask(1).is_empty());
        vcpus.end();
    }

    #[test]
    fn ask_does_not_wait_for_one_that_panics() {
        let gate = Arc::new(Gate::<u32, u32>::new(1, Arc::default()));
        let ending = Arc::new(Ending::new().expect("an eventfd"));
        let vcpu = {
            let (gate, ending) = (gate.clone(), ending.clone());
            std::thread::spawn(move || {
                let panics = std::panic::AssertUnwindSafe(|| {
                    while !gate.pass(&ending, |_| std::panic::panic_any("on purpose")) {
                        std::thread::yield_now();
                    }
                });
                let caught = std::panic::catch_unwind(panics);
                gate.leave();
                caught.is_err()
            })
        };
        gate.close(|| {});
        assert!(gate.ask(1).is_empty());
        assert!(vcpu.join().expect("caught"));
    }

    #[test]
    fn end_while_paused_lets_them_go() {
        let vcpus = Vcpus::start(2);
        vcpus.gate.close(|| vcpus.kick());
        assert_eq!(vcpus.end(), 2);
    }

    #[test]
    fn close_does_not_wait_for_those_that_left() {
        let gate = Gate::<u32, u32>::new(2, Arc::default());
        gate.leave();
        gate.leave();
        gate.close(|| {});
        gate.wait_until_left(|| {});
    }

    #[test]
    fn a_kick_that_came_too_early_is_repeated() {
        let vcpus = Vcpus::start(1);
        let kicks = AtomicUsize::new(0);
        // The first kick has no effect.
        vcpus.gate.close(|| {
            if kicks.fetch_add(1, Ordering::SeqCst) > 0 {
                vcpus.kick();
            }
        });
        assert!(kicks.load(Ordering::SeqCst) >= 2);
        vcpus.end();
    }
}
