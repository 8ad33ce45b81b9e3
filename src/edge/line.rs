//! Entries as lines of JSON.
//!
//! Always true: whatever a terminal or a reader of lines could take for a command is escaped, so that an entry is one
//! line, and no text of a client looks like another.
//!
//! Text that stays the same from line to line is kept: the second, who asks, who was asked and who answered.
//!
//! Not here: what an entry holds (`entry`), where lines are gathered (`batch`).

use std::{io::Write as _, net::IpAddr, time::Duration};

use http::Version;

use crate::{
    model::{Moment, Trace},
    monitor::Sample,
};

use super::entry::Entry;

/// Lines one after the other, and what the next one may have in common with the last.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The last line.
    text: Vec<u8>,
    /// The beginning of the last line, up to the peer's port, and what it is of.
    head: Vec<u8>,
    known_head: Option<KnownHead>,
    /// Where it has the milliseconds of the time.
    millis_at: usize,
    /// Parties of the last entry, and how a line says them.
    known: Known,
    parties: Vec<u8>,
}

/// Parts of a request that the beginning of a line tells.
#[derive(Debug, PartialEq, Eq)]
struct KnownHead {
    /// Since 1970.
    second: u64,
    code: u16,
    address: Option<IpAddr>,
}

/// Parties of a request: the one that was asked, and the one that answered.
#[derive(Debug, Default)]
struct Known {
    protocol: Version,
    method: Vec<u8>,
    path: Vec<u8>,
    arm: Vec<u8>,
    fallback: Vec<u8>,
    version: u64,
}

impl Lines {
    /// The line of an entry, with its end.
    pub(super) fn line(&mut self, entry: &Entry<'_>) -> &[u8] {
        self.text.clear();
        self.head(entry);
        self.parties(entry);
        if entry.sample.rows > 0 {
            self.raw(br#","rows":"#);
            self.number(entry.sample.rows);
        }
        self.raw(br#","bytes_in":"#);
        self.number(entry.bytes_in);
        self.raw(br#","bytes_out":"#);
        self.number(entry.bytes_out);
        self.times(entry);
        if let Some(prediction) = entry.prediction {
            self.raw(br#","prediction_id":""#);
            self.raw(prediction.digits());
            self.raw(b"\"");
        }
        self.field(br#","request_id":""#, entry.request_id);
        if let Some(Trace { id, span, .. }) = entry.trace {
            // Writing to memory does not fail.
            let _ = write!(self.text, r#","trace_id":"{id:032x}","span_id":"{span:016x}""#);
        }
        self.raw(b"}\n");
        &self.text
    }

    /// The last line again.
    pub(super) fn last(&self) -> &[u8] {
        &self.text
    }

    /// Adds a piece; of a length that is known, it is a few stores.
    #[inline]
    fn raw<const BYTES: usize>(&mut self, piece: &[u8; BYTES]) {
        self.text.extend_from_slice(piece);
    }

    fn number(&mut self, number: u64) {
        match number {
            0..10 => self.text.push(digit(number)),
            10..1000 => {
                // From the table itself: what was just stored cannot be loaded in other pieces at once.
                let digits = thousandths(number);
                self.text.extend_from_slice(&digits[usize::from(number < 100)..]);
            }
            1000..1_000_000 => {
                self.number(number / 1000);
                self.raw(thousandths(number % 1000));
            }
            _ => self.text.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
        }
    }

    /// Adds the times by phase, in milliseconds.
    fn times(&mut self, entry: &Entry<'_>) {
        let Sample { decode, queue, run, encode, total, .. } = entry.sample;
        let times = [entry.read, decode, queue, run, encode, total].map(rounded);
        let has_phases = !entry.arm.is_empty();
        if has_phases && times.iter().all(|time| *time < 10_000) {
            let mut piece = *TIMES;
            for (place, micros) in TIMES_AT.into_iter().zip(times) {
                let [a, b, c] = *thousandths(micros % 1000);
                piece[place..place + 5].copy_from_slice(&[digit(micros / 1000), b'.', a, b, c]);
            }
            self.raw(&piece);
            return;
        }
        self.raw(br#","ms":{"#);
        let names = ["read", "decode", "queue", "run", "encode", "total"];
        let shown = names
            .into_iter()
            .zip(times)
            .filter(|(name, _)| has_phases || matches!(*name, "read" | "total"));
        for (place, (name, micros)) in shown.enumerate() {
            let begin: &[u8] = if place == 0 { b"\"" } else { b",\"" };
            self.text.extend_from_slice(begin);
            self.text.extend_from_slice(name.as_bytes());
            self.raw(b"\":");
            self.number(micros / 1000);
            self.raw(b".");
            self.raw(thousandths(micros % 1000));
        }
        self.raw(b"}");
    }

    /// Adds the time, the code, and who asks.
    fn head(&mut self, entry: &Entry<'_>) {
        let (second, address) = (entry.at.as_secs(), entry.peer.map(|peer| peer.ip()));
        let head = KnownHead { second, code: entry.code, address };
        if self.known_head.as_ref() != Some(&head) {
            self.make_head(&head);
            self.known_head = Some(head);
        }
        let millis_at = self.text.len() + self.millis_at;
        self.text.extend_from_slice(&self.head);
        let millis = thousandths(entry.at.subsec_millis().into());
        self.text[millis_at..millis_at + millis.len()].copy_from_slice(millis);
        if let Some(peer) = entry.peer {
            self.number(peer.port().into());
            self.raw(b"\"");
        }
    }

    #[inline(never)]
    fn make_head(&mut self, KnownHead { second, code, address }: &KnownHead) {
        let second = Moment::at(Duration::from_secs(*second)).to_string();
        // What is left ends with the point before the milliseconds.
        let stamp = [r#"{"timestamp":""#, &second[..second.len() - "000Z".len()]].concat();
        self.millis_at = stamp.len();
        let peer = match address {
            Some(IpAddr::V4(address)) => format!(r#","peer":"{address}:"#),
            Some(IpAddr::V6(address)) => format!(r#","peer":"[{address}]:"#),
            None => String::new(),
        };
        self.head = format!(r#"{stamp}000Z","target":"access","code":{code}{peer}"#).into_bytes();
    }

    /// Adds who was asked, by which protocol, and who answered.
    fn parties(&mut self, entry: &Entry<'_>) {
        if self.parties.is_empty() || !self.known.is_of(entry) {
            let begin = self.text.len();
            match entry.protocol {
                Version::HTTP_10 => self.raw(br#","protocol":"HTTP/1.0""#),
                Version::HTTP_2 => self.raw(br#","protocol":"HTTP/2""#),
                _ => self.raw(br#","protocol":"HTTP/1.1""#),
            }
            self.field(br#","method":""#, entry.method);
            self.field(br#","path":""#, entry.path);
            self.field(br#","model":""#, entry.model().unwrap_or_default().as_bytes());
            if !entry.arm.is_empty() {
                self.raw(br#","version":""#);
                self.number(entry.version);
                self.raw(b"\"");
                self.field(br#","arm":""#, entry.arm);
            }
            self.field(br#","fallback":""#, entry.fallback);
            self.parties.clear();
            self.parties.extend_from_slice(&self.text[begin..]);
            self.text.truncate(begin);
            self.known.set(entry);
        }
        self.text.extend_from_slice(&self.parties);
    }

    /// Adds a text behind `begin`, and a quotation mark; nothing if the text is empty.
    fn field<const BYTES: usize>(&mut self, begin: &[u8; BYTES], text: &[u8]) {
        if text.is_empty() {
            return;
        }
        self.raw(begin);
        if text.iter().fold(true, |all, byte| all & is_plain(*byte)) {
            self.text.extend_from_slice(text);
        } else {
            self.escape(text);
        }
        self.raw(b"\"");
    }

    fn escape(&mut self, text: &[u8]) {
        for character in String::from_utf8_lossy(text).chars() {
            match character {
                '"' => self.raw(b"\\\""),
                '\\' => self.raw(b"\\\\"),
                // Controls of terminals, and marks that turn the direction of text: all in the first plane.
                _ if character.is_control() || turns(character) => {
                    let _ = write!(self.text, "\\u{:04x}", u32::from(character));
                }
                _ => self.text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }
}

impl Known {
    fn is_of(&self, entry: &Entry<'_>) -> bool {
        // glibc's `memcmp` for AVX-512 is slow for empty texts: it loads from their addresses, where nothing is.
        let is = |known: &[u8], text: &[u8]| {
            known.len() == text.len() && (known.is_empty() || known == text)
        };
        is(&self.path, entry.path)
            && self.version == entry.version
            && is(&self.arm, entry.arm)
            && is(&self.method, entry.method)
            && self.protocol == entry.protocol
            && is(&self.fallback, entry.fallback)
    }

    fn set(&mut self, entry: &Entry<'_>) {
        (self.protocol, self.version) = (entry.protocol, entry.version);
        let Self { method, path, arm, fallback, .. } = self;
        let texts = [(method, entry.method), (path, entry.path), (arm, entry.arm)];
        for (kept, new) in texts.into_iter().chain([(fallback, entry.fallback)]) {
            kept.clear();
            kept.extend_from_slice(new);
        }
    }
}

/// Times by phase, each shorter than ten milliseconds, and where they stand.
const TIMES: &[u8; 90] =
    br#","ms":{"read":0.000,"decode":0.000,"queue":0.000,"run":0.000,"encode":0.000,"total":0.000}"#;
const TIMES_AT: [usize; 6] = {
    let (mut places, mut found, mut at) = ([0; 6], 0, 0);
    while found < places.len() {
        if TIMES[at] == b':' && TIMES[at + 1] == b'0' {
            places[found] = at + 1;
            found += 1;
        }
        at += 1;
    }
    places
};

/// Microseconds, rounded.
fn rounded(time: Duration) -> u64 {
    let nanos = time.as_secs().saturating_mul(1_000_000_000);
    nanos.saturating_add(u64::from(time.subsec_nanos()) + 500) / 1000
}

/// True for what stands in a text of JSON as it is.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')
}

/// The last digit of a number.
const fn digit(number: u64) -> u8 {
    b'0' + (number % 10) as u8
}

/// The three digits of a number below a thousand.
fn thousandths(number: u64) -> &'static [u8; 3] {
    &DIGITS[(number % 1000) as usize]
}

/// The digits of all numbers below a thousand.
static DIGITS: [[u8; 3]; 1000] = {
    let (mut all, mut number) = ([[b'0'; 3]; 1000], 0);
    while number < all.len() {
        all[number] = [digit(number as u64 / 100), digit(number as u64 / 10), digit(number as u64)];
        number += 1;
    }
    all
};

/// Line and paragraph separators, and what reorders text (Unicode, annex 9).
fn turns(character: char) -> bool {
    matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{edge::entry::tests::ENTRY, model::PredictionId};

    fn line(entry: &Entry<'_>) -> (String, Value) {
        let mut lines = Lines::default();
        let line = lines.line(entry);
        (String::from_utf8(line.to_vec()).unwrap(), serde_json::from_slice(line).unwrap())
    }

    #[test]
    fn a_line_says_what_happened() {
        let peer = Some("[::1]:80".parse().unwrap());
        let prediction = Some(PredictionId::from_bits(1));
        let trace = Trace::begun(1.0, 0xabc, 0xdef);
        let (text, said) = line(&Entry { peer, prediction, trace, ..ENTRY });
        assert_eq!(
            said,
            json!({"timestamp": "2026-11-30T00:53:20.123Z", "target": "access", "code": 200, "protocol": "HTTP/1.1",
                "peer": "[::1]:80", "method": "POST", "path": "/v2/models/m/versions/3/infer", "model": "m",
                "version": "3", "arm": "canary", "rows": 2, "bytes_in": 10, "bytes_out": 20,
                "ms": {"read": 1.5, "decode": 0.001, "queue": 0.0, "run": 2000.0, "encode": 0.007, "total": 2010.0},
                "prediction_id": "00000000000000000000000000000001", "request_id": "mine",
                "trace_id": "00000000000000000000000000000abc", "span_id": "0000000000000def"})
        );
        assert_eq!(text.matches('\n').count(), 1);
        let unread = Entry { method: b"", path: b"", arm: b"", request_id: b"", ..ENTRY };
        let (_, said) = line(&unread);
        assert_eq!(said["ms"], json!({"read": 1.5, "total": 2010.0}));
        assert_eq!(
            (said.get("method"), said.get("model"), said.get("version")),
            (None, None, None)
        );
    }

    #[test]
    fn the_first_line_is_whole_whatever_it_is_of() {
        let unread =
            Entry { method: b"", path: b"", arm: b"", request_id: b"", version: 0, ..ENTRY };
        assert_eq!(line(&unread).1["protocol"], "HTTP/1.1");
    }

    #[test]
    fn numbers_are_told_whatever_their_size() {
        for number in [0, 9, 10, 99, 100, 999, 1_000, 9_099, 10_000, 999_999, 1_000_000, u64::MAX] {
            let (_, said) = line(&Entry { bytes_in: number, ..ENTRY });
            assert_eq!(said["bytes_in"], number);
        }
    }

    #[test]
    fn times_are_told_in_milliseconds_whatever_their_size() {
        let micros = Duration::from_micros;
        let known = [(0, 0.0), (7, 0.007), (4_999, 4.999), (9_999, 9.999), (10_000, 10.0)];
        for (run, told) in known {
            let sample = Sample { run: micros(run), total: micros(run), ..ENTRY.sample };
            let (_, said) = line(&Entry { sample, ..ENTRY });
            let expected = json!({"read": 1.5, "decode": 0.001, "queue": 0.0, "run": told, "encode": 0.007,
                "total": told});
            assert_eq!(said["ms"], expected);
        }
        let sample = Sample { run: Duration::from_nanos(9_999_500), ..ENTRY.sample };
        assert_eq!(line(&Entry { sample, ..ENTRY }).1["ms"]["run"], 10.0, "rounded");
    }

    #[test]
    fn the_beginning_of_a_line_is_of_its_own_request() {
        let (mut lines, first) = (Lines::default(), "10.0.0.1:1".parse().unwrap());
        let other = Entry { peer: Some("10.0.0.2:2".parse().unwrap()), ..ENTRY };
        let all = [
            (Entry { peer: Some(first), ..ENTRY }, "10.0.0.1:1"),
            (Entry { peer: Some("10.0.0.1:65535".parse().unwrap()), ..ENTRY }, "10.0.0.1:65535"),
            (other, "10.0.0.2:2"),
            (Entry { code: 503, at: ENTRY.at + Duration::from_millis(877), ..other }, "10.0.0.2:2"),
            (Entry { at: ENTRY.at + Duration::from_mins(1), ..other }, "10.0.0.2:2"),
        ];
        let times = ["53:20.123Z", "53:20.123Z", "53:20.123Z", "53:21.000Z", "54:20.123Z"];
        for ((entry, peer), time) in all.iter().zip(times) {
            let said: Value = serde_json::from_slice(lines.line(entry)).unwrap();
            assert_eq!((&said["code"], &said["peer"]), (&json!(entry.code), &json!(peer)));
            assert!(said["timestamp"].as_str().unwrap().ends_with(time), "{said}");
        }
    }

    #[test]
    fn a_peer_is_told_by_its_own_address() {
        let said = |peer: &str| {
            let (_, said) = line(&Entry { peer: Some(peer.parse().unwrap()), ..ENTRY });
            said["peer"].as_str().unwrap().to_owned()
        };
        assert_eq!(said("10.200.0.7:65535"), "10.200.0.7:65535");
        assert_eq!(said("[2001:db8::1]:9"), "[2001:db8::1]:9");
    }

    #[test]
    fn no_text_of_a_client_ends_a_line_or_commands_a_terminal() {
        let bad = "a\r\n{\"x\":1}\u{1b}[31m\u{9b}2J\u{202e}\u{2028}\\\"é\u{7f}";
        let given = [bad.as_bytes(), b"\xff\x00"].concat();
        let (text, said) = line(&Entry { request_id: &given, ..ENTRY });
        assert_eq!(said["request_id"], format!("{bad}\u{fffd}\0"));
        let plain = |character: char| !character.is_control() && !turns(character);
        assert!(text.strip_suffix('\n').unwrap().chars().all(plain), "{text:?}");
    }
}
