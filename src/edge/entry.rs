//! A request as it is told to whoever reads of it, and its numbers and short texts in words.
//!
//! Always true: a text of a client is cut to its maximum before anybody reads it.
//!
//! Not here: the way to the reader (`outbox`), the line of an entry (`line`), what is noted of a request (`visit`).

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http::Version;

use crate::{
    model::{PredictionId, Trace},
    monitor::Sample,
};

use super::route::Route;

/// A request that was answered, or will not be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Entry<'a> {
    /// The time of the answer, since 1970.
    pub(super) at: Duration,
    /// The status of the answer; 499 where nobody waits for it any more.
    pub(super) code: u16,
    /// The version of HTTP.
    pub(super) protocol: Version,
    /// The other end of the connection.
    pub(super) peer: Option<SocketAddr>,
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
    /// The version that answered, where an arm did.
    pub(super) version: u64,
    /// The prediction's name, where one was asked for.
    pub(super) prediction: Option<PredictionId>,
    /// Its place in a trace, where it has one.
    pub(super) trace: Option<Trace>,
    /// Bytes of the body as they came; 0 where it was not read to its end.
    pub(super) bytes_in: u64,
    /// Bytes of the answer's body.
    pub(super) bytes_out: u64,
    /// From the head to the body's last byte.
    pub(super) read: Duration,
    /// The rest, by phase; without a prediction only the total is known.
    pub(super) sample: Sample,
}

/// Longest texts of clients, in bytes.
const METHOD_MAX: usize = 16;
const PATH_MAX: usize = 1024;
const REQUEST_ID_MAX: usize = 128;

/// Words before the texts.
const FIXED: usize = 22;

const HAS_PEER: u64 = 1 << 32;
const HAS_PREDICTION: u64 = 1 << 33;
const HAS_TRACE: u64 = 1 << 34;
const IS_SAMPLED: u64 = 1 << 35;
const IS_RANDOM: u64 = 1 << 36;
const IS_LINE: u64 = 1 << 37;
const HAS_SPANS: u64 = 1 << 38;

/// Uses of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    /// It gets a line in the access log.
    pub(super) is_line: bool,
    /// Its spans are sent.
    pub(super) has_spans: bool,
}

/// An entry in words, the first of several.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    /// Its words.
    pub(super) words: &'a [u64],
    /// Its uses.
    pub(super) wanted: Use,
}

impl<'a> Record<'a> {
    /// Parts the first record from what follows it; `None` if there is none.
    pub(super) fn first(words: &'a [u64]) -> Option<(Self, &'a [u64])> {
        let fixed: &[u64; FIXED] = words.first_chunk()?;
        let (words, rest) = words.split_at_checked(FIXED + words_of_texts(fixed))?;
        let is = |flag: u64| fixed[0] & flag != 0;
        let wanted = Use { is_line: is(IS_LINE), has_spans: is(HAS_SPANS) };
        Some((Self { words, wanted }, rest))
    }
}

/// Words of the texts behind these.
fn words_of_texts(fixed: &[u64; FIXED]) -> usize {
    let lengths = (0..4).map(|at| part(fixed[16], 16 * at)).chain([part(fixed[17], 0)]);
    lengths.map(usize::from).sum::<usize>().div_ceil(size_of::<u64>())
}

/// Sixteen bits of a word.
#[expect(clippy::cast_possible_truncation, reason = "parts of words")]
fn part(word: u64, at: u32) -> u16 {
    (word >> at) as u16
}

impl<'a> Entry<'a> {
    /// Cuts each text to its maximum.
    #[inline]
    pub(super) fn cut(&mut self) {
        let cut = |text: &'a [u8], most: usize| &text[..text.len().min(most)];
        self.method = cut(self.method, METHOD_MAX);
        self.path = cut(self.path, PATH_MAX);
        self.request_id = cut(self.request_id, REQUEST_ID_MAX);
    }

    /// Words that [`Entry::append`] adds.
    #[inline]
    pub(super) fn words(&self) -> usize {
        let bytes: usize = self.texts().iter().map(|text| text.len()).sum();
        FIXED + bytes.div_ceil(size_of::<u64>())
    }

    #[inline]
    fn texts(&self) -> [&'a [u8]; 5] {
        [self.method, self.path, self.request_id, self.arm, self.fallback]
    }

    /// Adds the entry, whose texts are cut, to some words.
    #[inline]
    pub(super) fn append(&self, wanted: Use, words: &mut Vec<u64>) {
        #[expect(clippy::cast_possible_truncation, reason = "nanoseconds until 2554, and halves")]
        let low = |bits: u128| bits as u64;
        let nanos = |time: Duration| {
            time.as_secs().wrapping_mul(1_000_000_000).wrapping_add(time.subsec_nanos().into())
        };
        let protocol = match self.protocol {
            Version::HTTP_10 => 0,
            Version::HTTP_2 => 2,
            _ => 1,
        };
        let port = self.peer.map_or(0, |peer| peer.port());
        let address = self.peer.map_or(0, |peer| match peer.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
            IpAddr::V6(ip) => ip.to_bits(),
        });
        let prediction = self.prediction.map_or(0, |name| name.bits());
        let flag = |set: bool, flag: u64| if set { flag } else { 0 };
        let has = |of: fn(&Trace) -> bool| self.trace.as_ref().is_some_and(of);
        let (trace, span, parent) = self.trace.map_or((0, 0, 0), |trace| {
            // No span has the number 0.
            (trace.id, trace.span, trace.parent.unwrap_or(0))
        });
        let texts = self.texts();
        let lengths = texts.map(|text| text.len() as u64);
        let sample = &self.sample;
        let begin = words.len() + FIXED;
        words.extend_from_slice(&[
            u64::from(self.code)
                | u64::from(port) << 16
                | flag(self.peer.is_some(), HAS_PEER)
                | flag(self.prediction.is_some(), HAS_PREDICTION)
                | flag(self.trace.is_some(), HAS_TRACE)
                | flag(has(|trace| trace.is_sampled), IS_SAMPLED)
                | flag(has(|trace| trace.is_random), IS_RANDOM)
                | flag(wanted.is_line, IS_LINE)
                | flag(wanted.has_spans, HAS_SPANS)
                | protocol << 40,
            low(address >> 64),
            low(address),
            nanos(self.at),
            low(prediction >> 64),
            low(prediction),
            self.version,
            self.bytes_in,
            self.bytes_out,
            sample.rows,
            nanos(self.read),
            nanos(sample.decode),
            nanos(sample.queue),
            nanos(sample.run),
            nanos(sample.encode),
            nanos(sample.total),
            lengths[0] | lengths[1] << 16 | lengths[2] << 32 | lengths[3] << 48,
            lengths[4],
            low(trace >> 64),
            low(trace),
            span,
            parent,
        ]);
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        words.resize(begin + bytes.div_ceil(size_of::<u64>()), 0);
        let mut left: &mut [u8] = bytemuck::cast_slice_mut(&mut words[begin..]);
        // Most have no name of their client's, nor an arm that failed.
        for text in texts.into_iter().filter(|text| !text.is_empty()) {
            let (here, behind) = left.split_at_mut(text.len());
            here.copy_from_slice(text);
            left = behind;
        }
    }

    /// Reads the entry of these words; `None` if they are none.
    pub(super) fn read(words: &'a [u64]) -> Option<Self> {
        let (fixed, texts) = words.split_first_chunk::<FIXED>()?;
        let bits = |at: usize| u128::from(fixed[at]) << 64 | u128::from(fixed[at + 1]);
        let nanos = |at: usize| Duration::from_nanos(fixed[at]);
        let head = fixed[0];
        let is = |flag: u64| head & flag != 0;
        let mut left: &[u8] = bytemuck::cast_slice(texts);
        let mut text = |word: u64, at: u32| {
            let (text, behind) = left.split_at_checked(usize::from(part(word, at)))?;
            left = behind;
            Some(text)
        };
        let (first, second) = (fixed[16], fixed[17]);
        let address = std::net::Ipv6Addr::from_bits(bits(1)).to_canonical();
        Some(Self {
            at: nanos(3),
            code: part(head, 0),
            protocol: match head >> 40 & 0xff {
                0 => Version::HTTP_10,
                2 => Version::HTTP_2,
                _ => Version::HTTP_11,
            },
            peer: is(HAS_PEER).then(|| SocketAddr::new(address, part(head, 16))),
            method: text(first, 0)?,
            path: text(first, 16)?,
            request_id: text(first, 32)?,
            arm: text(first, 48)?,
            fallback: text(second, 0)?,
            version: fixed[6],
            prediction: is(HAS_PREDICTION).then(|| PredictionId::from_bits(bits(4))),
            trace: is(HAS_TRACE).then(|| Trace {
                id: bits(18),
                span: fixed[20],
                parent: Some(fixed[21]).filter(|parent| *parent > 0),
                is_sampled: is(IS_SAMPLED),
                is_random: is(IS_RANDOM),
            }),
            bytes_in: fixed[7],
            bytes_out: fixed[8],
            read: nanos(10),
            sample: Sample {
                rows: fixed[9],
                decode: nanos(11),
                queue: nanos(12),
                run: nanos(13),
                encode: nanos(14),
                total: nanos(15),
                ..Sample::default()
            },
        })
    }

    /// The model that its path names, as the client spelled it.
    pub(super) fn model(&self) -> Option<Cow<'a, str>> {
        // What was cut may name another one.
        let path = std::str::from_utf8(self.path).ok().filter(|path| path.len() < PATH_MAX)?;
        match Route::parse(path).ok()? {
            Route::Model { model, .. } => Some(model),
            _ => None,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An answer of a candidate.
    pub(in crate::edge) const ENTRY: Entry<'static> = Entry {
        at: Duration::from_millis(1_796_000_000_123),
        code: 200,
        protocol: Version::HTTP_11,
        peer: None,
        method: b"POST",
        path: b"/v2/models/m/versions/3/infer",
        request_id: b"mine",
        arm: b"canary",
        fallback: b"",
        version: 3,
        prediction: None,
        trace: None,
        bytes_in: 10,
        bytes_out: 20,
        read: Duration::from_micros(1500),
        sample: Sample {
            rows: 2,
            decode: Duration::from_nanos(1_499),
            queue: Duration::ZERO,
            run: Duration::from_secs(2),
            encode: Duration::from_micros(7),
            total: Duration::from_millis(2010),
            trace: None,
        },
    };

    /// A request for this path.
    pub(in crate::edge) fn of_path(path: &str) -> Entry<'_> {
        Entry { path: path.as_bytes(), ..ENTRY }
    }

    #[test]
    fn entries_are_read_as_they_were_written() {
        let check = |entry: Entry<'_>| {
            let wanted = Use { is_line: entry.trace.is_none(), has_spans: entry.trace.is_some() };
            let mut words = Vec::new();
            entry.append(wanted, &mut words);
            assert_eq!(words.len(), entry.words());
            assert_eq!(Entry::read(&words), Some(entry));
            assert_eq!(Entry::read(&words[..words.len() - 1]), None, "a part is none");
            let one = words.clone();
            ENTRY.append(wanted, &mut words);
            let (first, rest) = Record::first(&words).unwrap();
            assert_eq!((first.words, first.wanted), (&*one, wanted));
            assert_eq!(
                Record::first(rest).map(|(second, _)| Entry::read(second.words)),
                Some(Some(ENTRY))
            );
            assert!(Record::first(&rest[..rest.len() - 1]).is_none());
        };
        check(ENTRY);
        let prediction = Some(PredictionId::from_bits(u128::MAX - 7));
        for peer in ["127.0.0.1:65535", "[2001:db8::1]:1"] {
            let trace = Trace::begun(1.0, 7 << 90, 9);
            check(Entry { trace, ..ENTRY });
            check(Entry { peer: Some(peer.parse().unwrap()), prediction, ..ENTRY });
        }
        for protocol in [Version::HTTP_10, Version::HTTP_2] {
            check(Entry { protocol, fallback: b"baseline", code: 499, ..ENTRY });
        }
    }

    #[test]
    fn texts_of_clients_are_cut() {
        let long = [b'x'; 4096];
        let mut entry = Entry { method: &long, path: &long, request_id: &long, ..ENTRY };
        entry.cut();
        let mut words = Vec::new();
        entry.append(Use { is_line: true, has_spans: true }, &mut words);
        let read = Entry::read(&words).unwrap();
        let lengths = [read.method.len(), read.path.len(), read.request_id.len()];
        assert_eq!(lengths, [METHOD_MAX, PATH_MAX, REQUEST_ID_MAX]);
        assert!(words.len() < 256);
    }
}
