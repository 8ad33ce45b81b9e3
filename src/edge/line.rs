//! Entries as lines of JSON.
//!
//! Always true: whatever a terminal or a reader of lines could take for a command is escaped, so that an entry is one
//! line, and no text of a client looks like another.
//!
//! Written by the worker that answered, in a tenth of a microsecond: what stays the same from line to line, the second
//! and who was asked, is kept as text.
//!
//! Not here: what an entry holds (`entry`), the way of lines to their reader (`outbox`).

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use http::Version;

use crate::{
    model::{Moment, Trace},
    monitor::Sample,
};

use super::entry::Entry;

/// Lines that were written, and what the next one may have in common with the last.
#[derive(Debug, Default)]
pub(super) struct Lines {
    text: Vec<u8>,
    /// The second that `stamp` is of, since 1970.
    second: u64,
    /// The beginning of a line, with the time up to the second.
    stamp: Vec<u8>,
    /// Method and path of the last entry, and how a line says them.
    asked: (Vec<u8>, Vec<u8>),
    target: Vec<u8>,
}

impl Lines {
    /// None, with room for so many bytes of them.
    pub(super) fn with_room(bytes: usize) -> Self {
        Self { text: Vec::with_capacity(bytes), ..Self::default() }
    }

    /// All lines.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Exchanges the lines for other ones, or for an empty room.
    pub(super) fn swap(&mut self, text: &mut Vec<u8>) {
        std::mem::swap(&mut self.text, text);
    }

    /// Takes back what was added behind so many bytes.
    pub(super) fn cut(&mut self, bytes: usize) {
        self.text.truncate(bytes);
    }

    /// Adds an entry.
    pub(super) fn add(&mut self, entry: &Entry<'_>) {
        self.text.reserve(USUAL_BYTES);
        self.time(entry.at);
        self.number(entry.code.into());
        self.raw(match entry.protocol {
            Version::HTTP_10 => r#","protocol":"HTTP/1.0""#,
            Version::HTTP_2 => r#","protocol":"HTTP/2""#,
            _ => r#","protocol":"HTTP/1.1""#,
        });
        if let Some(peer) = entry.peer {
            self.peer(peer);
        }
        self.target(entry);
        let is_answered = !entry.arm.is_empty();
        if is_answered {
            self.raw(r#","version":""#);
            self.number(entry.version);
            self.raw("\"");
            self.field(r#","arm":""#, entry.arm);
        }
        self.field(r#","fallback":""#, entry.fallback);
        let Sample { rows, decode, queue, run, encode, total, .. } = entry.sample;
        if rows > 0 {
            self.raw(r#","rows":"#);
            self.number(rows);
        }
        self.raw(r#","bytes_in":"#);
        self.number(entry.bytes_in);
        self.raw(r#","bytes_out":"#);
        self.number(entry.bytes_out);
        self.milliseconds(r#","ms":{"read":"#, entry.read);
        if is_answered {
            self.milliseconds(r#","decode":"#, decode);
            self.milliseconds(r#","queue":"#, queue);
            self.milliseconds(r#","run":"#, run);
            self.milliseconds(r#","encode":"#, encode);
        }
        self.milliseconds(r#","total":"#, total);
        self.raw("}");
        if let Some(prediction) = entry.prediction {
            self.raw(r#","prediction_id":""#);
            self.raw(prediction.as_str());
            self.raw("\"");
        }
        self.field(r#","request_id":""#, entry.request_id);
        if let Some(Trace { id, span, .. }) = entry.trace {
            // Writing to memory does not fail.
            let _ = write!(self.text, r#","trace_id":"{id:032x}","span_id":"{span:016x}""#);
        }
        self.raw("}\n");
    }

    fn raw(&mut self, text: &str) {
        self.text.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, number: u64) {
        if number < 10 {
            self.text.push(digit(number));
        } else {
            self.raw(itoa::Buffer::new().format(number));
        }
    }

    fn milliseconds(&mut self, name: &str, time: Duration) {
        let time = time + Duration::from_nanos(500);
        self.raw(name);
        let whole = time.as_secs() * 1000 + u64::from(time.subsec_millis());
        self.number(whole);
        let [a, b, c] = thousandths(time.subsec_micros() % 1000);
        self.text.extend_from_slice(&[b'.', a, b, c]);
    }

    fn time(&mut self, at: Duration) {
        if self.second != at.as_secs() || self.stamp.is_empty() {
            self.second = at.as_secs();
            let stamp = Moment::at(Duration::from_secs(self.second)).to_string();
            // What is left ends with the point before the milliseconds.
            let stamp = &stamp[..stamp.len() - "000Z".len()];
            self.stamp = [r#"{"timestamp":""#, stamp].concat().into_bytes();
        }
        self.text.extend_from_slice(&self.stamp);
        self.text.extend_from_slice(&thousandths(at.subsec_millis()));
        self.raw(r#"Z","target":"access","code":"#);
    }

    fn peer(&mut self, peer: SocketAddr) {
        self.raw(r#","peer":""#);
        // Where a socket takes both families, clients of version 4 come under addresses of version 6.
        let address = peer.ip().to_canonical();
        if let IpAddr::V4(address) = address {
            let [a, b, c, d] = address.octets();
            for (part, end) in [(a, "."), (b, "."), (c, "."), (d, ":")] {
                self.number(part.into());
                self.raw(end);
            }
            self.number(peer.port().into());
        } else {
            let _ = write!(self.text, "{}", SocketAddr::new(address, peer.port()));
        }
        self.raw("\"");
    }

    /// Adds who was asked: method, path and model.
    fn target(&mut self, entry: &Entry<'_>) {
        if self.asked.0 != entry.method || self.asked.1 != entry.path {
            let begin = self.text.len();
            self.field(r#","method":""#, entry.method);
            self.field(r#","path":""#, entry.path);
            self.field(r#","model":""#, entry.model().unwrap_or_default().as_bytes());
            self.target.clear();
            self.target.extend_from_slice(&self.text[begin..]);
            self.text.truncate(begin);
            let (method, path) = &mut self.asked;
            for (kept, new) in [(method, entry.method), (path, entry.path)] {
                kept.clear();
                kept.extend_from_slice(new);
            }
        }
        self.text.extend_from_slice(&self.target);
    }

    /// Adds a text behind `begin`, and a quotation mark; nothing if the text is empty.
    fn field(&mut self, begin: &str, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        self.raw(begin);
        if text.iter().fold(true, |all, byte| all & is_plain(*byte)) {
            self.text.extend_from_slice(text);
        } else {
            self.escape(text);
        }
        self.raw("\"");
    }

    fn escape(&mut self, text: &[u8]) {
        for character in String::from_utf8_lossy(text).chars() {
            match character {
                '"' => self.raw("\\\""),
                '\\' => self.raw("\\\\"),
                // Controls of terminals, and marks that turn the direction of text: all in the first plane.
                _ if character.is_control() || turns(character) => {
                    let _ = write!(self.text, "\\u{:04x}", u32::from(character));
                }
                _ => self.raw(character.encode_utf8(&mut [0; 4])),
            }
        }
    }
}

/// Bytes of nearly every line.
const USUAL_BYTES: usize = 1024;

/// True for what stands in a text of JSON as it is.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')
}

/// The last digit of a number.
fn digit(number: u64) -> u8 {
    b'0' + (number % 10) as u8
}

/// Three digits.
fn thousandths(number: u32) -> [u8; 3] {
    [100, 10, 1].map(|place| digit((number / place).into()))
}

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
        lines.add(entry);
        let value: Value = serde_json::from_slice(lines.text()).unwrap();
        (String::from_utf8(lines.text).unwrap(), value)
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
    fn a_peer_is_told_by_its_own_address() {
        let said = |peer: &str| {
            let (_, said) = line(&Entry { peer: Some(peer.parse().unwrap()), ..ENTRY });
            said["peer"].as_str().unwrap().to_owned()
        };
        assert_eq!(said("10.200.0.7:65535"), "10.200.0.7:65535");
        assert_eq!(said("[::ffff:10.0.0.7]:80"), "10.0.0.7:80");
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
