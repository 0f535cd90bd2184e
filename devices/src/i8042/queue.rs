//! A first-in, first-out queue of at most `N` bytes, without allocation.

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queue<const N: usize> {
    bytes: [u8; N],
    /// How many of `bytes`, from the first on, are in the queue.
    len: usize,
}

impl<const N: usize> Queue<N> {
    pub(super) const fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    /// Appends `byte`; `false`, and no change, if there is no room.
    #[must_use]
    pub(super) fn push(&mut self, byte: u8) -> bool {
        let Some(free) = self.bytes.get_mut(self.len) else {
            return false;
        };
        *free = byte;
        self.len += 1;
        true
    }

    /// Takes the oldest byte.
    pub(super) fn pop(&mut self) -> Option<u8> {
        self.len = self.len.checked_sub(1)?;
        let first = *self.bytes.first()?;
        self.bytes.rotate_left(1);
        Some(first)
    }

    pub(super) const fn room(&self) -> usize {
        N - self.len
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_and_no_more_fit_than_there_is_room() {
        let mut queue = Queue::<3>::new();
        assert_eq!(queue.pop(), None);
        for round in 0..3 {
            assert_eq!(queue.room(), 3);
            assert!(queue.push(round) && queue.push(7));
            assert_eq!(queue.pop(), Some(round));
            assert!(queue.push(8) && queue.push(9));
            assert!(!queue.push(10));
            assert_eq!(queue.room(), 0);
            assert_eq!(
                [queue.pop(), queue.pop(), queue.pop()],
                [Some(7), Some(8), Some(9)]
            );
            assert_eq!(queue.pop(), None);
        }
        assert!(queue.push(1));
        queue.clear();
        assert_eq!(queue.pop(), None);
    }
}
