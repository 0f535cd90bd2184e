//! The launcher's configuration file.

use vmm::config::{self, MAX_VCPUS};
use vmm::one_line;

/// Any bytes as a configuration file: a microVM within its bounds, or an error of one line.
///
/// # Panics
/// When a configuration is accepted whose values are out of bounds, or a message has several lines.
pub fn config(data: &[u8]) {
    match config::parse(data) {
        Ok(config) => {
            assert!((1..=MAX_VCPUS).contains(&config.machine.vcpus.get()));
            assert!(config.machine.memory.mib() > 0);
            assert!(config.boot.modules.len() <= 1);
            assert!(!config.machine.debug_exit && !config.machine.boot_timer);
        }
        Err(error) => {
            let line = one_line(&error);
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
    }
}
