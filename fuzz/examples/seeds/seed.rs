//! Seeds of the targets with structured input, in the encoding of the `arbitrary` crate: integers in
//! little-endian order, one byte for a truth value, a word for the variant of an enumeration, and
//! one byte before each element of a list.

/// The bytes of an input under construction, field by field in the order of the target's structure.
#[derive(Default)]
pub(crate) struct Seed(Vec<u8>);

impl Seed {
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    pub(crate) fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn i32(self, value: i32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn i64(self, value: i64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn flag(self, value: bool) -> Self {
        self.u8(value.into())
    }

    /// The variant of this rank among `count`.
    pub(crate) fn variant(self, rank: u64, count: u64) -> Self {
        let word = (rank << 32).div_ceil(count);
        self.u32(u32::try_from(word).expect("rank < count"))
    }

    /// The bytes, which are the whole input.
    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn list<const N: usize>(self, elements: [Self; N]) -> Self {
        let listed = elements
            .into_iter()
            .fold(self, |seed, element| seed.flag(true).bytes(&element.0));
        listed.flag(false)
    }
}

pub(crate) fn seed() -> Seed {
    Seed::default()
}
