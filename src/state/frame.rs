//! Frames: how one record lies in the log, and which byte of it is wrong.
//!
//! A frame is one line: `LENGTH SUM WEIGHTED HASH CHECK JSON`, numbers in lower-case hexadecimal. `HASH` chains the
//! JSON to everything before it. `CHECK` covers the four fields before it and the previous hash, so that a length is
//! believed only when it is right: a frame whose head holds and whose bytes are fewer than it says was torn, and
//! nothing that a flipped byte does looks like that. The two sums prove nothing; they say *where* a payload was
//! changed: one changed byte moves `SUM` by its difference and `WEIGHTED` by that times its position. What they point
//! at is believed only if the hash holds once it is put right.
//!
//! Not here: files, sequences, groups (`log`).

use sha2::{Digest as _, Sha256};

use super::record::Hash;

/// The largest payload in bytes.
pub(super) const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// What stands before the payload.
pub(super) const HEAD_BYTES: usize = FIELDS_BYTES + 17;

/// `LENGTH SUM WEIGHTED HASH `, with the space behind it.
const FIELDS_BYTES: usize = 9 + 9 + 13 + 65;

/// The head of a frame, as it lies there.
pub(super) type Head = [u8; HEAD_BYTES];

/// What a head says that holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Announced {
    /// The payload's length.
    pub(super) length: usize,
    sum: u64,
    weighted: u64,
    hash: Hash,
}

/// A byte of a frame that is not what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Counted from the start of the frame.
    pub(super) at: usize,
    /// What stands there.
    pub(super) is: u8,
    /// What stood there.
    pub(super) was: u8,
}

/// Appends the frame of a payload of at most [`PAYLOAD_BYTES_MAX`]; gives the chain's new head.
pub(super) fn write(previous: Hash, payload: &[u8], out: &mut Vec<u8>) -> Hash {
    debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX, "the writer refuses larger records");
    let hash = previous.chain(payload);
    let (sum, weighted) = sums(payload);
    let fields = format!("{:08x} {sum:08x} {weighted:012x} {hash} ", payload.len());
    out.extend_from_slice(fields.as_bytes());
    out.extend_from_slice(&check(previous, fields.as_bytes()));
    out.push(b' ');
    out.extend_from_slice(payload);
    out.push(b'\n');
    hash
}

/// Reads a head; the wrong byte, where there is exactly one.
pub(super) fn read_head(previous: Hash, head: &Head) -> Result<Announced, Option<Wrong>> {
    if !holds(previous, head) {
        return Err(find_in_head(previous, head));
    }
    let field = |from: usize, bytes: usize| {
        let text = std::str::from_utf8(&head[from..from + bytes]).ok()?;
        u64::from_str_radix(text, 16).ok()
    };
    let announced = || {
        Some(Announced {
            length: usize::try_from(field(0, 8)?).ok().filter(|&l| l <= PAYLOAD_BYTES_MAX)?,
            sum: field(9, 8)?,
            weighted: field(18, 12)?,
            hash: Hash::parse(std::str::from_utf8(&head[31..95]).ok()?)?,
        })
    };
    announced().ok_or(None)
}

impl Announced {
    /// Compares what follows the head, the last byte being the end of the line, with what was announced; gives the
    /// chain's new head, or the wrong byte, where there is exactly one.
    pub(super) fn compare(&self, previous: Hash, rest: &[u8]) -> Result<Hash, Option<Wrong>> {
        let Some((&end, payload)) = rest.split_last() else { return Err(None) };
        if previous.chain(payload) != self.hash {
            return Err(self.find_in_payload(previous, payload));
        }
        if end != b'\n' {
            let at = HEAD_BYTES + payload.len();
            return Err(Some(Wrong { at, is: end, was: b'\n' }));
        }
        Ok(self.hash)
    }

    fn find_in_payload(&self, previous: Hash, payload: &[u8]) -> Option<Wrong> {
        let (sum, weighted) = sums(payload);
        let difference = sum.checked_signed_diff(self.sum)?;
        let at = weighted.checked_signed_diff(self.weighted)?.checked_div(difference)?;
        let at = usize::try_from(at).ok()?.checked_sub(1)?;
        let is = *payload.get(at)?;
        let was = u8::try_from(i64::from(is).checked_sub(difference)?).ok()?;
        let mut mended = payload.to_vec();
        mended[at] = was;
        let found = previous.chain(&mended) == self.hash;
        found.then_some(Wrong { at: HEAD_BYTES + at, is, was })
    }
}

/// Tries every other byte at every place: a head is short, and this happens once.
fn find_in_head(previous: Hash, head: &Head) -> Option<Wrong> {
    let mut mended = *head;
    for at in 0..HEAD_BYTES {
        let is = head[at];
        for was in *b"0123456789abcdef " {
            mended[at] = was;
            if holds(previous, &mended) {
                return Some(Wrong { at, is, was });
            }
        }
        mended[at] = is;
    }
    None
}

fn holds(previous: Hash, head: &Head) -> bool {
    let (fields, check_and_space) = head.split_at(FIELDS_BYTES);
    check_and_space[16] == b' ' && check_and_space[..16] == check(previous, fields)
}

fn check(previous: Hash, fields: &[u8]) -> [u8; 16] {
    let digest = Sha256::new().chain_update(previous.0).chain_update(fields).finalize();
    let mut text = [0; 16];
    for (pair, byte) in text.chunks_mut(2).zip(digest) {
        pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
        pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
    }
    text
}

/// The sum of all bytes, and that of all bytes times their position from 1; of 1 MiB below 2^28 and 2^48.
fn sums(payload: &[u8]) -> (u64, u64) {
    payload.iter().zip(1..).fold((0, 0), |(sum, weighted), (&byte, position)| {
        (sum + u64::from(byte), weighted + u64::from(byte) * position)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(previous: Hash, frame: &[u8]) -> Result<Hash, Option<Wrong>> {
        let head: &Head = frame[..HEAD_BYTES].try_into().unwrap();
        let announced = read_head(previous, head)?;
        assert_eq!(HEAD_BYTES + announced.length + 1, frame.len());
        announced.compare(previous, &frame[HEAD_BYTES..])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn one_changed_byte_is_found_where_it_is(
            payload in proptest::collection::vec(any::<u8>(), 1..400),
            place in any::<prop::sample::Index>(),
            change in 1..=255_u8,
        ) {
            let previous = Hash::default().chain(b"before");
            let mut frame = Vec::new();
            let hash = write(previous, &payload, &mut frame);
            prop_assert_eq!(read(previous, &frame), Ok(hash));
            let at = place.index(frame.len());
            let was = frame[at];
            frame[at] ^= change;
            let wrong = Wrong { at, is: frame[at], was };
            prop_assert_eq!(read(previous, &frame), Err(Some(wrong)));
        }
    }

    #[test]
    fn the_largest_payload_fits_its_fields() {
        let payload = vec![0xff; PAYLOAD_BYTES_MAX];
        let mut frame = Vec::new();
        let hash = write(Hash::default(), &payload, &mut frame);
        assert_eq!(read(Hash::default(), &frame), Ok(hash));
        frame[HEAD_BYTES + PAYLOAD_BYTES_MAX - 1] = 0;
        let at = HEAD_BYTES + PAYLOAD_BYTES_MAX - 1;
        assert_eq!(read(Hash::default(), &frame), Err(Some(Wrong { at, is: 0, was: 0xff })));
    }
}
