//! Messages between the server and a process of its own: one head in JSON, and raw blobs after it.
//!
//! `TGM` and the version of the format; the head's length (4 bytes), the number of blobs (4), the length of each
//! blob (8); then the head, then the blobs; every number little-endian. Always true:
//! - Nothing is allocated before its length was compared with [`Bounds`].
//! - Encoding copies no blob, and decoding cuts blobs out of the bytes it was given.
//! - A message of another version is refused as such, not read as something else.
//!
//! Open files may follow: each message on the socket that carries some has one byte of its own.
//!
//! Not here: what heads say (`child`), pipes and deadlines (the parent side).

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read},
    mem::MaybeUninit,
    os::{fd::AsFd, unix::net::UnixStream},
};

use bytes::Bytes;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// What every message begins with; the last byte is the format's version.
const MAGIC: [u8; 4] = *b"TGM\x01";

/// Bytes before the lengths of blobs.
const PRELUDE: usize = 12;

/// How much one message may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Bytes of the head.
    pub(crate) head_bytes: usize,
    /// Blobs.
    pub(crate) blobs: usize,
    /// Bytes of all blobs together.
    pub(crate) blob_bytes: u64,
}

/// A whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// JSON.
    pub(crate) head: Bytes,
    /// Raw bytes, in the order that the head gives a meaning to.
    pub(crate) blobs: Vec<Bytes>,
}

impl Message {
    /// Its own length, from its first byte to that of the next one.
    pub(crate) fn encoded_bytes(&self) -> usize {
        let blobs: usize = self.blobs.iter().map(|blob| 8 + blob.len()).sum();
        PRELUDE + self.head.len() + blobs
    }
}

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    /// Another program, or another version of this one.
    #[error("it is not written in this version's format; both sides must be one build")]
    Format,
    /// More than the bounds allow.
    #[error("it has {count} {what}, at most {max} are allowed")]
    Bound {
        /// Of what.
        what: &'static str,
        /// How many.
        count: u64,
        /// How many there may be.
        max: u64,
    },
    /// It ends early, or cannot be read.
    #[error("it cannot be read to its end: {0}")]
    Read(#[from] std::io::Error),
    /// There is no memory for it.
    #[error("there is no memory for its {0} bytes")]
    Memory(u64),
}

/// The lengths of a message's parts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layout {
    head: usize,
    blobs: Vec<usize>,
}

/// Everything that stands before the blobs; those follow as they are.
pub(crate) fn encode(head: &[u8], blobs: &[&[u8]]) -> Result<Vec<u8>, MessageError> {
    let small = |what, count: usize| {
        u32::try_from(count).map_err(|_| MessageError::Bound {
            what,
            count: count as u64,
            max: u32::MAX.into(),
        })
    };
    let mut out = Vec::with_capacity(PRELUDE + 8 * blobs.len() + head.len());
    out.extend(MAGIC);
    out.extend(small("bytes in its head", head.len())?.to_le_bytes());
    out.extend(small("blobs", blobs.len())?.to_le_bytes());
    for blob in blobs {
        out.extend((blob.len() as u64).to_le_bytes());
    }
    out.extend(head);
    Ok(out)
}

/// The message that `bytes` begin with; `None` while more bytes are needed.
pub(crate) fn decode(bytes: &Bytes, bounds: &Bounds) -> Result<Option<Message>, MessageError> {
    let Some(prelude) = bytes.get(..PRELUDE) else {
        return if MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]) {
            Ok(None)
        } else {
            Err(MessageError::Format)
        };
    };
    let (head, count) = Layout::counts(prelude, bounds)?;
    let mut at = PRELUDE + 8 * count;
    let Some(lengths) = bytes.get(PRELUDE..at) else { return Ok(None) };
    let layout = Layout::new(head, lengths, bounds)?;
    if ((bytes.len() - at) as u64) < layout.bytes() {
        return Ok(None);
    }
    let mut cut = |length: usize| {
        at += length;
        bytes.slice(at - length..at)
    };
    let head = cut(layout.head);
    Ok(Some(Message { head, blobs: layout.blobs.iter().map(|length| cut(*length)).collect() }))
}

/// A message whose head was read, and whose blobs were not.
#[derive(Debug)]
pub(crate) struct Opened {
    /// JSON.
    pub(crate) head: Vec<u8>,
    blobs: Vec<usize>,
}

/// Reads a message up to its blobs.
pub(crate) fn open(from: &mut impl Read, bounds: &Bounds) -> Result<Opened, MessageError> {
    let mut prelude = [0; PRELUDE];
    from.read_exact(&mut prelude)?;
    let (head, count) = Layout::counts(&prelude, bounds)?;
    let lengths = read(from, 8 * count)?;
    let layout = Layout::new(head, &lengths, bounds)?;
    Ok(Opened { head: read(from, layout.head)?, blobs: layout.blobs })
}

impl Opened {
    /// Reads the blobs.
    pub(crate) fn blobs(&self, from: &mut impl Read) -> Result<Vec<Bytes>, MessageError> {
        self.blobs.iter().map(|length| read(from, *length).map(Bytes::from)).collect()
    }
}

/// Open files that are handed over at once.
pub(crate) const FILES_AT_ONCE: usize = 8;

/// Hands open files over, at most [`FILES_AT_ONCE`].
pub(crate) fn send_files(to: &UnixStream, files: &[&File]) -> io::Result<()> {
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_AT_ONCE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::Error::other("too many files for one message"));
    }
    rustix::net::sendmsg(to, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Open files that the other side hands over, in its order; a few are received at a time.
#[derive(Debug)]
pub(crate) struct ReceivedFiles<'a> {
    from: &'a File,
    left: usize,
    here: VecDeque<File>,
}

impl<'a> ReceivedFiles<'a> {
    /// So many files from a socket.
    pub(crate) fn new(from: &'a File, count: usize) -> Self {
        Self { from, left: count, here: VecDeque::new() }
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let into = &mut [IoSliceMut::new(&mut byte)];
        let received = rustix::net::recvmsg(self.from, into, &mut control, flags)?;
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::other("not all files could be received"));
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.here.extend(files.map(File::from));
            }
        }
        if self.here.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

impl Iterator for ReceivedFiles<'_> {
    type Item = io::Result<File>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        if self.here.is_empty()
            && let Err(error) = self.receive()
        {
            return Some(Err(error));
        }
        self.here.pop_front().map(Ok)
    }
}

fn read(from: &mut impl Read, length: usize) -> Result<Vec<u8>, MessageError> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).map_err(|_| MessageError::Memory(length as u64))?;
    let read = from.take(length as u64).read_to_end(&mut bytes)?;
    if read < length {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    Ok(bytes)
}

impl Layout {
    /// The length of the head and the number of blobs.
    fn counts(prelude: &[u8], bounds: &Bounds) -> Result<(usize, usize), MessageError> {
        if prelude[..MAGIC.len()] != MAGIC {
            return Err(MessageError::Format);
        }
        let number = |at: usize| {
            u32::from_le_bytes(prelude[at..at + 4].try_into().expect("the slice has 4 bytes"))
        };
        let head = at_most("bytes in its head", number(4).into(), bounds.head_bytes as u64)?;
        Ok((head, at_most("blobs", number(8).into(), bounds.blobs as u64)?))
    }

    fn new(head: usize, lengths: &[u8], bounds: &Bounds) -> Result<Self, MessageError> {
        let (mut blobs, mut total) = (Vec::with_capacity(lengths.len() / 8), 0u64);
        for length in lengths.chunks_exact(8) {
            let length = u64::from_le_bytes(length.try_into().expect("the chunk has 8 bytes"));
            total = total.saturating_add(length);
            at_most("bytes in its blobs", total, bounds.blob_bytes)?;
            blobs.push(at_most("bytes in its blobs", length, bounds.blob_bytes)?);
        }
        Ok(Self { head, blobs })
    }

    fn bytes(&self) -> u64 {
        // The sum of blobs was compared with a bound of 64 bits.
        let blobs: u64 = self.blobs.iter().map(|length| *length as u64).sum();
        blobs.saturating_add(self.head as u64)
    }
}

fn at_most(what: &'static str, count: u64, max: u64) -> Result<usize, MessageError> {
    let fits = usize::try_from(count).ok().filter(|_| count <= max);
    fits.ok_or(MessageError::Bound { what, count, max })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { head_bytes: 64, blobs: 4, blob_bytes: 256 };

    fn whole(head: &[u8], blobs: &[Vec<u8>]) -> Bytes {
        let blobs: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
        let mut bytes = encode(head, &blobs).unwrap();
        bytes.extend(blobs.concat());
        bytes.into()
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            head in proptest::collection::vec(any::<u8>(), 0..64),
            blobs in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = whole(&head, &blobs);
            let message = decode(&bytes, &BOUNDS).unwrap().unwrap();
            prop_assert_eq!(message.encoded_bytes(), bytes.len());
            prop_assert_eq!(&message.head[..], &head[..]);
            prop_assert_eq!(&message.blobs, &blobs);
            let opened = open(&mut &bytes[..], &BOUNDS).unwrap();
            prop_assert_eq!(&opened.head, &head);
            let mut rest = &bytes[bytes.len() - blobs.iter().map(Vec::len).sum::<usize>()..];
            prop_assert_eq!(opened.blobs(&mut rest).unwrap(), blobs);
            let part = bytes.slice(..cut.index(bytes.len()));
            prop_assert_eq!(decode(&part, &BOUNDS).unwrap(), None);
            prop_assert!(open(&mut &part[..], &BOUNDS).and_then(|o| o.blobs(&mut &[][..])).is_err()
                || part.len() >= bytes.len() - message.blobs.iter().map(Bytes::len).sum::<usize>());
        }

        #[test]
        fn no_bytes_make_it_panic_or_allocate_beyond_the_bounds(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..80), magic in any::<bool>(),
        ) {
            if magic {
                bytes.splice(..0, MAGIC);
            }
            if let Ok(Some(message)) = decode(&bytes.clone().into(), &BOUNDS) {
                prop_assert!(message.head.len() <= 64 && message.blobs.len() <= 4);
            }
            if let Ok(opened) = open(&mut &bytes[..], &BOUNDS) {
                prop_assert!(opened.blobs.iter().sum::<usize>() <= 256);
            }
        }
    }

    #[test]
    fn bounds_and_versions_are_kept() {
        let refused = |bytes: &Bytes| decode(bytes, &BOUNDS).unwrap_err().to_string();
        assert!(refused(&whole(&[0; 65], &[])).contains("65 bytes in its head, at most 64"));
        assert!(refused(&whole(b"", &vec![vec![]; 5])).contains("5 blobs, at most 4"));
        assert!(refused(&whole(b"", &[vec![0; 200], vec![0; 57]])).contains("257 bytes"));
        assert!(refused(&Bytes::from_static(b"TGM\x02")).contains("one build"));
        let mut huge = whole(b"", &[vec![], vec![]]).to_vec();
        huge[PRELUDE..].fill(0xff);
        assert!(refused(&huge.into()).contains("18446744073709551615 bytes in its blobs"));
    }
}
