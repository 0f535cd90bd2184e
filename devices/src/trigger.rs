//! How a device tells the outside that something happened, without knowing who listens.

/// A push button: an interrupt line to pulse, or an event loop to wake.
///
/// Every `Fn() + Send` is one, so that a closure over an eventfd connects a device to an interrupt
/// controller. Pressing must not block and cannot fail as far as the device is concerned: no device
/// could do anything about it, so whoever supplies the closure reports its failures. (Writing to an
/// eventfd fails only when its counter is full, and then the event is pending already.)
pub trait Trigger: Send {
    /// Presses the button.
    fn trigger(&self);
}

impl<F: Fn() + Send> Trigger for F {
    fn trigger(&self) {
        self();
    }
}

/// A button that is wired to nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unconnected;

impl Trigger for Unconnected {
    fn trigger(&self) {}
}
