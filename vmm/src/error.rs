//! How an error is told: one line, the chain of its causes printed once.

use std::error::Error;

/// The error and all that caused it, in one line.
#[must_use]
pub fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    // File names and keys may hold anything; a message stays one line that commands no terminal.
    line.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer\n\u{1b}[2Jline")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn one_line_prints_the_chain_once_and_no_control_characters() {
        let error = Outer(std::io::Error::other("inner"));
        assert_eq!(one_line(&error), "outer  [2Jline: inner");
    }
}
