//! For the tests of checks: good text passes, and with each fault put into it fails.

use anyhow::Result;

/// Each row: what is replaced by what, and a word of what is said then.
pub(super) fn each_fails(
    good: &str,
    rows: &[(&str, &str, &str)],
    check: impl Fn(&str) -> Result<()>,
) {
    check(good).expect("good text");
    for (right, wrong, word) in rows {
        let bad = good.replace(right, wrong);
        assert_ne!(bad, good, "{right}");
        let error = format!("{:#}", check(&bad).expect_err(wrong));
        assert!(error.contains(word), "{wrong}: {error}");
    }
}
