//! Tokens of sessions.
//!
//! A token is a number that nobody can guess, from the host's random source, and it is one as long as it is in the
//! table: so none of another microVM is, nor one from before a restart, and nothing has to be kept secret.

use std::io;

use tsc::Nanos;

/// In bytes; a token's text has twice as many digits.
const LEN: usize = 16;

/// How many tokens there can be at a time. A guest needs one for each of its programs.
pub const MAX_TOKENS: usize = 1024;

/// How long a token may be one, in seconds, as in EC2 and Firecracker: up to six hours.
pub(super) const TTL: std::ops::RangeInclusive<u64> = 1..=21_600;

#[derive(Clone, Copy, Debug)]
struct Token {
    bytes: [u8; LEN],
    ends: Nanos,
}

/// Those that there are, from the oldest to the newest.
#[derive(Debug, Default)]
pub(super) struct Tokens(Vec<Token>);

impl Tokens {
    /// A new one, for `seconds` from `now` on. Where the table is full, the oldest makes room.
    ///
    /// # Errors
    /// The host gives no random bytes.
    pub(super) fn make(
        &mut self,
        now: Nanos,
        seconds: u64,
        random: fn(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<String> {
        let mut bytes = [0; LEN];
        random(&mut bytes)?;
        self.0.retain(|token| token.ends.get() > now.get());
        // Not the one that would end first: where a program asks for long ones all the time, it would be each short one
        // of the others.
        if self.0.len() >= MAX_TOKENS {
            self.0.remove(0);
        }
        let lifetime = seconds.saturating_mul(1_000_000_000);
        let ends = Nanos::new(now.get().saturating_add(lifetime));
        self.0.push(Token { bytes, ends });
        Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Whether `text` is a token at `now`. How long it takes does not tell how much of it is right.
    pub(super) fn are_with(&self, text: &str, now: Nanos) -> bool {
        let Some(given) = parse(text) else {
            return false;
        };
        self.0.iter().fold(false, |found, token| {
            let differs = (token.bytes.iter().zip(given)).fold(0, |all, (one, other)| {
                std::hint::black_box(all | (one ^ other))
            });
            found | ((differs == 0) & (token.ends.get() > now.get()))
        })
    }
}

fn parse(text: &str) -> Option<[u8; LEN]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * LEN {
        return None;
    }
    let mut bytes = [0; LEN];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let [high, low] = *pair else { return None };
        *byte = nibble(high)? << 4 | nibble(low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Bytes that differ from call to call.
    fn counting(bytes: &mut [u8]) -> io::Result<()> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static CALLS: AtomicU64 = AtomicU64::new(1);
        bytes[..8].copy_from_slice(&CALLS.fetch_add(1, Ordering::SeqCst).to_be_bytes());
        bytes[8..].fill(0xa5);
        Ok(())
    }

    #[test]
    fn token_is_one_until_its_time_is_over_and_no_other_text_is() {
        let mut tokens = Tokens::default();
        let begin = Nanos::new(7 * SECOND);
        let token = tokens.make(begin, 2, counting).expect("random");
        assert_eq!(token.len(), 32);
        for (at, is) in [
            (7 * SECOND, true),
            (9 * SECOND - 1, true),
            (9 * SECOND, false),
        ] {
            assert_eq!(tokens.are_with(&token, Nanos::new(at)), is, "{at}");
        }
        // Each digit counts, and so does the number of them.
        for place in 0..token.len() {
            let mut other = token.clone().into_bytes();
            other[place] = if other[place] == b'0' { b'1' } else { b'0' };
            let other = String::from_utf8(other).expect("text");
            assert!(!tokens.are_with(&other, begin), "{other}");
        }
        for other in [
            "",
            &token[1..],
            &token.to_uppercase(),
            &format!("{token}0"),
            "\u{e9}",
        ] {
            assert!(!tokens.are_with(other, begin), "{other:?}");
        }
        // Another microVM's.
        assert!(!Tokens::default().are_with(&token, begin));
    }

    #[test]
    fn full_table_gives_up_the_oldest_token() {
        let mut tokens = Tokens::default();
        let now = Nanos::new(SECOND);
        let oldest = tokens.make(now, 1_000, counting).expect("random");
        let short = tokens.make(now, 10, counting).expect("random");
        for _ in 2..MAX_TOKENS {
            tokens.make(now, 100, counting).expect("random");
        }
        assert!(tokens.are_with(&oldest, now));
        tokens.make(now, 1_000, counting).expect("random");
        assert!(!tokens.are_with(&oldest, now) && tokens.are_with(&short, now));
        assert_eq!(tokens.0.len(), MAX_TOKENS);
        // Those that are over make room by themselves.
        let later = Nanos::new(102 * SECOND);
        tokens.make(later, 1, counting).expect("random");
        assert_eq!(tokens.0.len(), 2);
    }

    #[test]
    fn no_random_bytes_make_no_token() {
        let mut tokens = Tokens::default();
        let none = |_: &mut [u8]| Err(io::ErrorKind::Other.into());
        assert!(tokens.make(Nanos::ZERO, 1, none).is_err());
        assert!(tokens.0.is_empty());
    }
}
