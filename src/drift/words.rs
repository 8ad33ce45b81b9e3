//! Texts in two numbers: their length, and how many of their words are known.
//!
//! A word is a run of letters and digits, in lower case; the first 64 of a text are looked at, and the first 64 bytes
//! of a word. References and the path measure texts with the same function, and it does not allocate.

use super::profile::category_key;

/// Words of a text that are looked at.
pub const WORDS_READ: usize = 64;

/// Bytes of a word that count.
const WORD_BYTES: usize = 64;

/// Measures a text: its characters, and the share of its words whose key ([`category_key`]) is known, from 0 to 1;
/// 1 if it has no words.
///
/// Bytes that are no UTF-8 separate words.
#[expect(clippy::cast_precision_loss, reason = "at most 64 words")]
pub fn measure(text: &[u8], knows: impl Fn(u64) -> bool) -> (usize, f64) {
    let (mut all, mut found) = (0_usize, 0_usize);
    keys(text, |key| {
        all += 1;
        found += usize::from(knows(key));
    });
    let share = if all == 0 { 1.0 } else { found as f64 / all as f64 };
    (characters(text), share)
}

/// Characters of a text: its bytes without those that continue a character of UTF-8.
pub(super) fn characters(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

/// Calls for the key of each word, as often as it stands there.
pub(super) fn keys(text: &[u8], mut each: impl FnMut(u64)) {
    let mut word = Word { bytes: [0; WORD_BYTES], len: 0, is_open: false };
    let mut left = WORDS_READ;
    let mut end = |word: &mut Word| {
        if std::mem::take(&mut word.is_open) {
            each(category_key(&word.bytes[..word.len]));
            word.len = 0;
            left -= 1;
        }
        left == 0
    };
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_alphanumeric() {
                word.push(character);
            } else if end(&mut word) {
                return;
            }
        }
        if !chunk.invalid().is_empty() && end(&mut word) {
            return;
        }
    }
    end(&mut word);
}

/// The word that is being read.
struct Word {
    bytes: [u8; WORD_BYTES],
    len: usize,
    is_open: bool,
}

impl Word {
    fn push(&mut self, character: char) {
        self.is_open = true;
        if character.is_ascii() {
            self.append(&[character.to_ascii_lowercase() as u8]);
            return;
        }
        for lower in character.to_lowercase() {
            self.append(lower.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            place.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Vec<u64> {
        let mut all = Vec::new();
        keys(text.as_bytes(), |key| all.push(key));
        all
    }

    #[test]
    fn words_are_runs_of_letters_and_digits_in_lower_case() {
        let own = |words: &[&str]| -> Vec<u64> {
            words.iter().map(|word| category_key(word.as_bytes())).collect()
        };
        assert_eq!(words("A warm, FUNNY film-2."), own(&["a", "warm", "funny", "film", "2"]));
        assert_eq!(words("  Crème\tBRÛLÉE"), own(&["crème", "brûlée"]));
        assert_eq!(words("?!"), own(&[]));
        assert_eq!(words(&"word ".repeat(100)).len(), WORDS_READ);
        let long = "x".repeat(100);
        assert_eq!(words(&long), own(&[&long[..64]]));
        let mut bytes = Vec::new();
        keys(b"ab\xffcd", |key| bytes.push(key));
        assert_eq!(bytes, own(&["ab", "cd"]));
    }

    #[test]
    fn known_words_are_a_share_of_all() {
        let knows = |key| key == category_key(b"good");
        assert_eq!(measure("Good, bad, gööd".as_bytes(), knows), (15, 1.0 / 3.0));
        assert_eq!(measure(b"", knows), (0, 1.0));
        assert_eq!(measure(b"...", knows), (3, 1.0));
    }

    proptest! {
        #[test]
        fn every_text_is_measured(text in prop::collection::vec(any::<u8>(), 0..200), own: String) {
            let (characters, share) = measure(&text, |key| key % 2 == 0);
            prop_assert!(characters <= text.len() && (0.0..=1.0).contains(&share));
            prop_assert_eq!(measure(own.as_bytes(), |_| true), (own.chars().count(), 1.0));
        }
    }
}
