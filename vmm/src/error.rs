//! How an error is told: one line, the chain of its causes printed once.

use std::error::Error;

/// The error and all that caused it, in one line.
#[must_use]
pub(crate) fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    // File names may hold anything; a message stays one line whatever they hold.
    line.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer\nline")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn one_line_prints_the_chain_once_and_no_line_breaks() {
        let error = Outer(std::io::Error::other("inner"));
        assert_eq!(one_line(&error), "outer line: inner");
    }
}
