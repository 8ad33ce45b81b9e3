//! gzip and deflate, both ways; costs only who asks for it.
//!
//! Always true of a body that is inflated: it ends at the limit of bodies, it does not grow more often than
//! `inflate_ratio`, and the work follows what comes out: a gzip body has few members, and what is read without anything
//! coming of it is little more than what came out before.

use std::{
    cell::Cell,
    io::{self, BufRead, Read, Write as _},
};

use bytes::Bytes;
use flate2::{
    Compression,
    bufread::{GzDecoder, ZlibDecoder},
    write::{GzEncoder, ZlibEncoder},
};
use http::{HeaderMap, HeaderValue, header::ACCEPT_ENCODING, header::CONTENT_ENCODING};

use crate::monitor::Reason;

use super::{Limits, refusal::Refusal};

/// A compression that both sides know; deflate is the zlib format, as HTTP defines it (RFC 9110, 8.4.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Deflate,
}

impl Encoding {
    /// How a request's body is compressed.
    pub(super) fn of_body(headers: &HeaderMap) -> Result<Self, Refusal> {
        let Some(value) = headers.get(CONTENT_ENCODING) else { return Ok(Self::Identity) };
        if headers.get_all(CONTENT_ENCODING).iter().count() > 1 {
            return Err(Refusal::encoding());
        }
        Self::named(value.as_bytes().trim_ascii()).ok_or_else(Refusal::encoding)
    }

    /// Chooses the encoding of an answer of so many bytes: the highest q, the first of equals; identity if the client
    /// says nothing, or the answer is small.
    pub(super) fn of_answer(headers: &HeaderMap, bytes: usize, limits: &Limits) -> Self {
        if bytes < limits.compress_bytes_min {
            return Self::Identity;
        }
        let mut best = (Self::Identity, 0u32);
        for value in headers.get_all(ACCEPT_ENCODING) {
            for item in value.as_bytes().split(|byte| *byte == b',') {
                let mut parts = item.split(|byte| *byte == b';');
                let name = parts.next().unwrap_or_default().trim_ascii();
                let quality = parts.find_map(quality).unwrap_or(1000);
                if let Some(encoding) = Self::named(name)
                    && quality > best.1
                {
                    best = (encoding, quality);
                }
            }
        }
        best.0
    }

    /// The header that names it; `None` for identity.
    pub(super) fn header(self) -> Option<HeaderValue> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some(HeaderValue::from_static("gzip")),
            Self::Deflate => Some(HeaderValue::from_static("deflate")),
        }
    }

    fn named(name: &[u8]) -> Option<Self> {
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        if is("gzip") || is("x-gzip") {
            Some(Self::Gzip)
        } else if is("deflate") {
            Some(Self::Deflate)
        } else if is("identity") || name.is_empty() {
            Some(Self::Identity)
        } else {
            None
        }
    }

    /// The body as it was before compression, never more than the limits allow.
    pub(super) fn inflate(self, body: Bytes, limits: &Limits) -> Result<Bytes, Refusal> {
        match self {
            Self::Identity => Ok(body),
            Self::Gzip => {
                let made = Cell::new(0);
                inflate(Members::new(Paced::new(&body, &made), limits), &made, body.len(), limits)
            }
            Self::Deflate => {
                let made = Cell::new(0);
                inflate(ZlibDecoder::new(Paced::new(&body, &made)), &made, body.len(), limits)
            }
        }
    }

    /// The body compressed.
    pub(super) fn deflate(self, body: Vec<u8>) -> io::Result<Vec<u8>> {
        let room = || Vec::with_capacity(body.len() / 2 + 64);
        match self {
            Self::Identity => Ok(body),
            Self::Gzip => {
                let mut encoder = GzEncoder::new(room(), Compression::fast());
                encoder.write_all(&body)?;
                encoder.finish()
            }
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(room(), Compression::fast());
                encoder.write_all(&body)?;
                encoder.finish()
            }
        }
    }
}

/// `q=0.5` in thousandths.
fn quality(part: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(part.trim_ascii()).ok()?;
    let value: f64 = text.strip_prefix("q=").or(text.strip_prefix("Q="))?.trim().parse().ok()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped just before"
    )]
    Some((value.clamp(0.0, 1.0) * 1000.0) as u32)
}

/// A compressed body, which is read on only while something comes of it.
struct Paced<'a> {
    rest: &'a [u8],
    read: usize,
    /// The bytes that have come of it.
    made: &'a Cell<usize>,
}

impl<'a> Paced<'a> {
    /// What is looked at between two looks at what came of it.
    const STEP: usize = 16 * 1024;
    /// What may always be read: heads, tables, and what the decoder holds back.
    const FREE: usize = 64 * 1024;

    fn new(body: &'a [u8], made: &'a Cell<usize>) -> Self {
        Self { rest: body, read: 0, made }
    }
}

impl BufRead for Paced<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let made = self.made.get();
        // Compression makes nothing longer by more than a thousandth.
        if self.read > Self::FREE + made + made / 8 {
            let text = format!(
                "only {made} bytes come of its first {} compressed ones; compress it anew, or send it as it is",
                self.read
            );
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
        Ok(&self.rest[..self.rest.len().min(Self::STEP)])
    }

    fn consume(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes..];
        self.read += bytes;
    }
}

impl Read for Paced<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buf)?;
        self.consume(read);
        Ok(read)
    }
}

/// The members of a gzip body, one after the other (RFC 1952, 2.2).
struct Members<'a> {
    member: Option<GzDecoder<Paced<'a>>>,
    /// How many more may follow.
    left: usize,
    most: usize,
}

impl<'a> Members<'a> {
    fn new(body: Paced<'a>, limits: &Limits) -> Self {
        let most = limits.gzip_members_max.max(1);
        Self { member: Some(GzDecoder::new(body)), left: most - 1, most }
    }
}

impl Read for Members<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(member) = &mut self.member else { return Ok(0) };
            let read = member.read(buf)?;
            if read > 0 || buf.is_empty() {
                return Ok(read);
            }
            let body = self.member.take().expect("the member was read from just now").into_inner();
            if body.rest.is_empty() {
                return Ok(0);
            }
            self.left = self.left.checked_sub(1).ok_or_else(|| {
                let text = format!(
                    "it has more than {} gzip members; send fewer, or raise limits.gzip_members",
                    self.most
                );
                io::Error::new(io::ErrorKind::QuotaExceeded, text)
            })?;
            self.member = Some(GzDecoder::new(body));
        }
    }
}

fn inflate(
    decoder: impl Read,
    made: &Cell<usize>,
    compressed: usize,
    limits: &Limits,
) -> Result<Bytes, Refusal> {
    let ratio = limits.inflate_ratio_max.get() as usize;
    // Small bodies may well compress better than the ratio; a bomb needs size.
    let bytes_max = limits.body_bytes_max.min(compressed.saturating_mul(ratio).max(64 * 1024));
    let mut body = Vec::with_capacity(compressed.saturating_mul(3).clamp(256, bytes_max + 1));
    let read = fill(decoder, made, &mut body, bytes_max + 1);
    if body.len() > bytes_max {
        return Err(if bytes_max == limits.body_bytes_max {
            Refusal::too_large(bytes_max)
        } else {
            let text = format!(
                "the body grows to more than {ratio} times its compressed size; send it less compressed"
            );
            Refusal::new(Reason::BodySize, http::StatusCode::PAYLOAD_TOO_LARGE, text)
        });
    }
    read.map_err(|error| match error.kind() {
        io::ErrorKind::QuotaExceeded => {
            Refusal::malformed(format!("the compressed body is refused: {error}"))
        }
        _ => Refusal::malformed(format!("the compressed body is damaged: {error}")),
    })?;
    Ok(body.into())
}

/// Reads to the end, or until there are `bytes_max`, into a buffer that never has room for more.
fn fill(
    mut decoder: impl Read,
    made: &Cell<usize>,
    body: &mut Vec<u8>,
    bytes_max: usize,
) -> io::Result<()> {
    let mut filled = 0;
    loop {
        if filled == body.len() {
            if filled == bytes_max {
                return Ok(());
            }
            if filled == body.capacity() {
                // One step to all that it may become: growing bit by bit would leave copies behind.
                body.reserve_exact(bytes_max - filled);
            }
            // Touched step by step, so that only what is used is taken from the system.
            body.resize(body.capacity().min(filled + 64 * 1024).min(bytes_max), 0);
        }
        match decoder.read(&mut body[filled..]) {
            Ok(0) => {
                body.truncate(filled);
                return Ok(());
            }
            Ok(read) => {
                filled += read;
                made.set(filled);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                body.truncate(filled);
                return Err(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_quality_wins_and_the_first_of_equals() {
        let check = |accept: &str, expected| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, accept.parse().unwrap());
            assert_eq!(
                Encoding::of_answer(&headers, 5000, &Limits::default()),
                expected,
                "{accept}"
            );
        };
        check("gzip, deflate", Encoding::Gzip);
        check("deflate, gzip", Encoding::Deflate);
        check("gzip;q=0.5, deflate;q=0.8", Encoding::Deflate);
        check("gzip;q=0, br", Encoding::Identity);
        check("identity, gzip", Encoding::Identity);
        check("*", Encoding::Identity);
    }

    #[test]
    fn bombs_are_refused_within_the_limit() {
        let limits = Limits { body_bytes_max: 1 << 20, ..Limits::default() };
        let bomb = Encoding::Gzip.deflate(vec![0; 64 << 20]).unwrap();
        let refusal = Encoding::Gzip.inflate(bomb.into(), &limits).unwrap_err();
        assert_eq!(refusal.status, http::StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[test]
    fn bytes_of_which_nothing_comes_are_soon_refused() {
        let limits = Limits::default();
        let gzip = |bytes: &[u8]| Encoding::Gzip.deflate(bytes.to_vec()).unwrap();
        // A last block of the stored kind, before it any number of empty ones (RFC 1951, 3.2.4).
        let mut stored = [&[0x78, 0x01][..], &[0, 0, 0, 0xff, 0xff].repeat(300_000)].concat();
        stored.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 1]);
        for (encoding, bomb, says) in [
            (Encoding::Gzip, gzip(b"").repeat(100_000), "gzip members"),
            (Encoding::Gzip, gzip(b"1").repeat(100_000), "gzip members"),
            (Encoding::Gzip, gzip(&[7; 64]).repeat(100_000), "gzip members"),
            (Encoding::Deflate, stored, "only 0 bytes come of"),
        ] {
            let refusal = encoding.inflate(bomb.into(), &limits).unwrap_err();
            assert_eq!(refusal.status, http::StatusCode::BAD_REQUEST);
            assert!(refusal.text.contains(says), "{}", refusal.text);
        }
    }

    #[test]
    fn members_follow_each_other() {
        let limits = Limits { gzip_members_max: 3, ..Limits::default() };
        let gzip = |bytes: &[u8]| Encoding::Gzip.deflate(bytes.to_vec()).unwrap();
        let [one, two] = [vec![1; 100_000], (0..50_000u16).flat_map(u16::to_le_bytes).collect()];
        let members = [gzip(&one), gzip(b""), gzip(&two)].concat();
        let whole = Encoding::Gzip.inflate(members.clone().into(), &limits).unwrap();
        assert_eq!(whole, [one, two].concat());
        let more = [members.clone(), gzip(b"")].concat();
        assert!(Encoding::Gzip.inflate(more.into(), &limits).is_err());
        let rubbish = [&members[..], b"rubbish"].concat();
        assert!(Encoding::Gzip.inflate(rubbish.into(), &limits).is_err());
        let cut = members[..members.len() - 9].to_vec();
        assert!(Encoding::Gzip.inflate(cut.into(), &limits).is_err());
    }

    #[test]
    fn what_does_not_compress_is_taken() {
        // A generator as small as one can be; its bytes compress to more than they are.
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .take(1 << 20)
        .collect();
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            let compressed = encoding.deflate(noise.clone()).unwrap();
            assert!(compressed.len() > noise.len());
            assert_eq!(encoding.inflate(compressed.into(), &Limits::default()).unwrap(), noise);
        }
    }

    #[test]
    fn what_was_compressed_comes_back() {
        let body: Vec<u8> = (0..10_000u32).flat_map(u32::to_le_bytes).collect();
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            let compressed = encoding.deflate(body.clone()).unwrap();
            let back = encoding.inflate(compressed.into(), &Limits::default()).unwrap();
            assert_eq!(back, body);
        }
    }
}
