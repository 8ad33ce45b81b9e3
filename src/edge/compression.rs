//! gzip and deflate, both ways; costs only who asks for it.

use std::io::Write as _;

use bytes::Bytes;
use flate2::{
    Compression,
    read::{MultiGzDecoder, ZlibDecoder},
    write::{GzEncoder, ZlibEncoder},
};
use http::{HeaderMap, HeaderValue, header::ACCEPT_ENCODING, header::CONTENT_ENCODING};

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

    /// What the client likes best: the highest q, the first of equals; identity if it says nothing.
    pub(super) fn of_answer(headers: &HeaderMap) -> Self {
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
            Self::Gzip => inflate(MultiGzDecoder::new(&body[..]), body.len(), limits),
            Self::Deflate => inflate(ZlibDecoder::new(&body[..]), body.len(), limits),
        }
    }

    /// The body compressed.
    pub(super) fn deflate(self, body: Vec<u8>) -> std::io::Result<Vec<u8>> {
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

fn inflate(
    decoder: impl std::io::Read,
    compressed: usize,
    limits: &Limits,
) -> Result<Bytes, Refusal> {
    let ratio = limits.inflate_ratio_max.get() as usize;
    // Small bodies may well compress better than the ratio; a bomb needs size.
    let bytes_max = limits.body_bytes_max.min(compressed.saturating_mul(ratio).max(64 * 1024));
    let mut body = Vec::with_capacity(compressed.saturating_mul(3).clamp(256, bytes_max + 1));
    let read = fill(decoder, &mut body, bytes_max + 1);
    if body.len() > bytes_max {
        return Err(if bytes_max == limits.body_bytes_max {
            Refusal::too_large(bytes_max)
        } else {
            let text = format!(
                "the body grows to more than {ratio} times its compressed size; send it less compressed"
            );
            Refusal::new(http::StatusCode::PAYLOAD_TOO_LARGE, text)
        });
    }
    read.map_err(|error| Refusal::bad_request(format!("the compressed body is damaged: {error}")))?;
    Ok(body.into())
}

/// Reads to the end, or until there are `bytes_max`, into a buffer that never has room for more.
fn fill(
    mut decoder: impl std::io::Read,
    body: &mut Vec<u8>,
    bytes_max: usize,
) -> std::io::Result<()> {
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
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
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
            assert_eq!(Encoding::of_answer(&headers), expected, "{accept}");
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
    fn what_was_compressed_comes_back() {
        let body: Vec<u8> = (0..10_000u32).flat_map(u32::to_le_bytes).collect();
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            let compressed = encoding.deflate(body.clone()).unwrap();
            let back = encoding.inflate(compressed.into(), &Limits::default()).unwrap();
            assert_eq!(back, body);
        }
    }
}
