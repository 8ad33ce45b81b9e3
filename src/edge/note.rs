//! Notes of a request, taken while it is answered and handed to whoever reads of it.
//!
//! Short, and of plain values: each request touches this memory, and this code, once, so that their cost is mostly that
//! of cache misses. Always true: a text of a client is cut to its maximum before it is kept.
//!
//! Not here: the way to the reader (`outbox`), what the reader makes of it (`entry`).

use std::{net::SocketAddr, time::Duration};

use http::Version;

use crate::serve::Receipt;

/// A request, but for its texts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Note {
    /// Its uses.
    pub(super) wanted: Use,
    /// True if it has a place in a trace.
    pub(super) has_trace: bool,
    /// The version of HTTP.
    pub(super) protocol: Version,
    /// The status of the answer; 499 where nobody waits for it any more.
    pub(super) code: u16,
    /// Bytes of its texts, as [`Texts::lengths`] tells them.
    pub(super) lengths: [u16; TEXTS],
    /// The other end of the connection.
    pub(super) peer: Option<SocketAddr>,
    /// The prediction's name in bits, where one was asked for; else 0.
    pub(super) prediction: u128,
    /// The time of the answer, since 1970.
    pub(super) at: Duration,
    /// The version that answered, where an arm did.
    pub(super) version: u64,
    /// Rows of the prediction.
    pub(super) rows: u64,
    /// Bytes of the body as they came; 0 where it was not read to its end.
    pub(super) bytes_in: usize,
    /// Bytes of the answer's body.
    pub(super) bytes_out: usize,
    /// Its time by phase.
    pub(super) times: Times,
}

/// The time of a request by phase, in nanoseconds; without a prediction only the total is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Times {
    /// From the head to the body's last byte.
    pub(super) read: u64,
    /// The others, as of a `Sample`.
    pub(super) decode: u64,
    pub(super) queue: u64,
    pub(super) run: u64,
    pub(super) encode: u64,
    pub(super) total: u64,
}

/// Uses of a note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    /// It gets a line in the access log.
    pub(super) is_line: bool,
    /// Its spans are sent.
    pub(super) has_spans: bool,
}

/// Texts of a request: a client's, and the names of arms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Texts<'a> {
    /// The method; empty where the head could not be read.
    pub(super) method: &'a [u8],
    /// The path, without what follows a `?`.
    pub(super) path: &'a [u8],
    /// The client's name of the request, if it gave one.
    pub(super) request_id: &'a [u8],
    /// The arm that answered; empty where none did.
    pub(super) arm: &'a [u8],
    /// The arm that could not answer; empty where none failed.
    pub(super) fallback: &'a [u8],
}

const TEXTS: usize = 5;

/// The longest texts, in bytes.
const METHOD_MAX: usize = 16;
pub(super) const PATH_MAX: usize = 1024;
const REQUEST_ID_MAX: usize = 128;

impl Use {
    /// True if anybody reads of the request.
    pub(super) fn any(self) -> bool {
        self.is_line || self.has_spans
    }
}

impl Note {
    /// A request of this peer that begins, read by nobody.
    pub(super) fn open(protocol: Version, peer: Option<SocketAddr>) -> Self {
        Self {
            wanted: Use { is_line: false, has_spans: false },
            has_trace: false,
            protocol,
            code: 0,
            lengths: [0; TEXTS],
            peer,
            prediction: 0,
            at: Duration::ZERO,
            version: 0,
            rows: 0,
            bytes_in: 0,
            bytes_out: 0,
            times: Times::default(),
        }
    }

    /// Notes an answer that came so long after the head.
    pub(super) fn answered(&mut self, receipt: &Receipt, since: Duration) {
        let sample = &receipt.sample;
        (self.at, self.version, self.rows) = (receipt.unix, receipt.version.number(), sample.rows);
        self.times = Times {
            read: nanos(since.saturating_sub(sample.total)),
            decode: nanos(sample.decode),
            queue: nanos(sample.queue),
            run: nanos(sample.run),
            encode: nanos(sample.encode),
            total: nanos(sample.total),
        };
    }

    /// Notes an end at this time, so long after the head, that no arm has a part in.
    pub(super) fn ended(&mut self, at: Duration, since: Duration) {
        self.at = at;
        self.times.total = nanos(since);
    }
}

/// Nanoseconds of a time; until 2554, where it is since 1970.
fn nanos(time: Duration) -> u64 {
    time.as_secs().wrapping_mul(1_000_000_000).wrapping_add(time.subsec_nanos().into())
}

impl<'a> Texts<'a> {
    /// None.
    pub(super) const NONE: Self =
        Self { method: b"", path: b"", request_id: b"", arm: b"", fallback: b"" };

    /// Cuts each of a client's to its maximum.
    #[inline]
    pub(super) fn cut(self) -> Self {
        let cut = |text: &'a [u8], most: usize| &text[..text.len().min(most)];
        Self {
            method: cut(self.method, METHOD_MAX),
            path: cut(self.path, PATH_MAX),
            request_id: cut(self.request_id, REQUEST_ID_MAX),
            ..self
        }
    }

    /// All, in the order in which they are kept.
    #[inline]
    pub(super) fn all(self) -> [&'a [u8]; TEXTS] {
        [self.method, self.path, self.request_id, self.arm, self.fallback]
    }

    /// Their bytes, once they are cut.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "cut")]
    pub(super) fn lengths(self) -> [u16; TEXTS] {
        self.all().map(|text| text.len() as u16)
    }

    /// Parts texts of these lengths from what follows them; `None` where there are fewer bytes.
    pub(super) fn first(lengths: [u16; TEXTS], bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let mut left = bytes;
        let mut text = |length: u16| {
            let (text, behind) = left.split_at_checked(usize::from(length))?;
            left = behind;
            Some(text)
        };
        let [method, path, request_id, arm, fallback] = lengths;
        let texts = Self {
            method: text(method)?,
            path: text(path)?,
            request_id: text(request_id)?,
            arm: text(arm)?,
            fallback: text(fallback)?,
        };
        Some((texts, left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_clients_are_cut() {
        let long = [b'x'; 4096];
        let texts = Texts { method: &long, path: &long, request_id: &long, ..Texts::NONE }.cut();
        assert_eq!(texts.all().map(<[u8]>::len), [METHOD_MAX, PATH_MAX, REQUEST_ID_MAX, 0, 0]);
        let short = Texts { method: b"GET", path: b"/", arm: b"baseline", ..Texts::NONE };
        assert_eq!(short.cut(), short);
    }

    #[test]
    fn texts_are_parted_from_what_follows() {
        let texts = Texts { method: b"GET", path: b"/a", fallback: b"canary", ..Texts::NONE };
        let first = Texts::first(texts.lengths(), b"GET/acanaryPOST");
        assert_eq!(first, Some((texts, &b"POST"[..])));
        assert_eq!(Texts::first(texts.lengths(), b"GET/acanar"), None);
    }
}
