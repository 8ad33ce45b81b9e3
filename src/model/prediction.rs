//! Names of predictions: unique in the fleet, and recognised by who holds the key.
//!
//! 128 bits, written as 32 hexadecimal digits: 32 of the second since 1970, 20 of the process, 12 of the worker, 32 of
//! the worker's count, and 32 check bits. The check is the low half of SipHash-1-3 (Aumasson and Bernstein, 2012) of
//! the other 96 under a secret key: of names that somebody makes up, one in 2^32 passes.

use std::{hash::Hasher as _, time::Duration};

use siphasher::sip::SipHasher13;

/// The name of a prediction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PredictionId {
    bits: u128,
    text: [u8; Self::DIGITS],
}

/// The secret by which names of predictions are told from made-up ones.
#[derive(Clone, Copy)]
pub struct PredictionKey([u64; 2]);

impl PredictionId {
    /// Digits of a name.
    pub const DIGITS: usize = 32;

    /// Stands for the name of a prediction that nobody knows any more.
    pub const UNKNOWN: Self = Self { bits: 0, text: [b'0'; Self::DIGITS] };

    /// The name of these bits.
    #[must_use]
    pub fn from_bits(bits: u128) -> Self {
        let mut text = [0; Self::DIGITS];
        for (digits, part) in text.as_chunks_mut().0.iter_mut().zip([96, 64, 32, 0]) {
            #[expect(clippy::cast_possible_truncation, reason = "32 bits at a time")]
            let part = (bits >> part) as u32;
            *digits = hexadecimal(part);
        }
        Self { bits, text }
    }

    /// Reads a name; `None` if the text is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_name =
            text.len() == Self::DIGITS && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        is_name.then(|| u128::from_str_radix(text, 16).ok().map(Self::from_bits)).flatten()
    }

    /// Its bits.
    #[must_use]
    pub fn bits(&self) -> u128 {
        self.bits
    }

    /// Its digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text).expect("hexadecimal digits are text")
    }

    /// Its digits as bytes.
    #[must_use]
    pub fn digits(&self) -> &[u8; Self::DIGITS] {
        &self.text
    }

    /// The process and worker that made it, in one number.
    #[must_use]
    pub fn origin(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "a part of the name")]
        let origin = (self.bits >> 64) as u32;
        origin
    }

    /// The worker's count, which wraps around.
    #[must_use]
    pub fn count(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "a part of the name")]
        let count = (self.bits >> 32) as u32;
        count
    }

    /// The time of the prediction since 1970, to the second.
    #[must_use]
    pub fn made_at(&self) -> Duration {
        Duration::from_secs((self.bits >> 96) as u64)
    }
}

impl std::fmt::Debug for PredictionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PredictionKey {
    /// The key of these bits.
    #[must_use]
    pub const fn new(bits: [u64; 2]) -> Self {
        Self(bits)
    }

    /// Names a prediction: its second since 1970, its process and worker in one number, the worker's count.
    #[inline]
    #[must_use]
    pub fn name(&self, second: u32, origin: u32, count: u32) -> PredictionId {
        let head = u64::from(second) << 32 | u64::from(origin);
        let check = self.check(head, count);
        PredictionId::from_bits(
            u128::from(head) << 64 | u128::from(count) << 32 | u128::from(check),
        )
    }

    /// True if a name was made with this key.
    #[must_use]
    pub fn knows(&self, name: PredictionId) -> bool {
        #[expect(clippy::cast_possible_truncation, reason = "the parts of a name")]
        let (head, count, check) =
            ((name.bits >> 64) as u64, (name.bits >> 32) as u32, name.bits as u32);
        self.check(head, count) == check
    }

    #[inline]
    fn check(&self, head: u64, count: u32) -> u32 {
        let mut hasher = SipHasher13::new_with_keys(self.0[0], self.0[1]);
        hasher.write_u64(head);
        hasher.write_u32(count);
        #[expect(clippy::cast_possible_truncation, reason = "the low half")]
        let check = hasher.finish() as u32;
        check
    }
}

impl std::fmt::Debug for PredictionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PredictionKey")
    }
}

/// Eight digits at once: the nibbles are spread over the bytes of a word, and each is moved to its digit.
#[inline]
fn hexadecimal(value: u32) -> [u8; 8] {
    let mut spread = u64::from(value);
    spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
    spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
    spread = (spread | spread << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    // 1 where a nibble is above 9, which lies 39 further on.
    let letters = (spread + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
    (spread + 0x3030_3030_3030_3030 + letters * 39).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_their_digits() {
        for bits in [0, 1, u128::MAX, 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210, 0xa0 << 96] {
            let name = PredictionId::from_bits(bits);
            assert_eq!(name.as_str(), format!("{bits:032x}"));
            assert_eq!(PredictionId::parse(name.as_str()), Some(name));
        }
        assert_eq!(PredictionId::parse("+0000000000000000000000000000001"), None);
        assert_eq!(PredictionId::parse(&"0".repeat(31)), None);
        assert_eq!(PredictionId::UNKNOWN, PredictionId::from_bits(0));
    }

    #[test]
    fn a_name_is_known_by_its_key_alone() {
        let key = PredictionKey::new([1, 2]);
        let name = key.name(1_800_000_000, 0xdead_b001, 7);
        assert!(name.as_str().starts_with("6b49d200deadb00100000007"), "{name:?}");
        assert_eq!((name.origin(), name.count()), (0xdead_b001, 7));
        assert_eq!(name.made_at(), Duration::from_hours(500_000));
        assert!(key.knows(name));
        assert!(!PredictionKey::new([1, 3]).knows(name));
        let changed = (0..128).map(|bit| PredictionId::from_bits(name.bits() ^ 1 << bit));
        assert_eq!(changed.filter(|name| key.knows(*name)).count(), 0, "every bit is checked");
    }
}
