//! Watching a guest's clock while it runs.
//!
//! Four things, from the cheapest to the dearest:
//!
//! - [`Exits`] takes a CPU's counter and number at each exit of a vCPU, and tells in a comparison or two
//!   whether anything is to be looked at: a move, a counter that went backwards, or that it is time to.
//! - [`ClockWatch`] takes a look: the guest's TSC beside a clock of the host's. It tells what the readings *prove*:
//!   that the guest's clock leapt or lagged against that clock since the look before, by how much at least, and within
//!   which bounds it is off its line. Where the host keeps time by the same counter, a fault of the counter is in both.
//! - [`restart`] says from which offset all vCPUs go on when a look found that they cannot go on as they
//!   are. Forward only: none reads less than it can have read.
//! - [`Beats`] tells that nobody ran: the process was stopped, or the host slept.
//!
//! What the looks found is kept for the guest's whole life in a [`History`].
//!
//! Between two looks a guest may move to a CPU with another counter, read it, and come back: nothing in
//! user space prevents that, and nothing here takes back what a guest has read. What prevents it is to
//! keep a guest inside a domain ([`crate::skew::Domains`]).

mod beats;
mod clock;
mod exits;
mod history;
mod restart;

pub use beats::{Beat, Beats, Stop};
pub use clock::{ClockWatch, Departure, ErrorBounds, Finding, Look};
pub use exits::{Exits, Sighting};
pub use history::{History, Stretch};
pub use restart::{Carried, LEAD_LEFT_ALONE, Restart, Standing, restart};
