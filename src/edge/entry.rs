//! A request as it is told to whoever reads of it: worked out of what was noted on the path.
//!
//! Not here: the way to the reader (`outbox`), the line of an entry (`line`), what is noted of a request (`note`).

use std::{borrow::Cow, net::SocketAddr, time::Duration};

use http::Version;

use crate::{
    model::{PredictionId, Trace},
    monitor::Sample,
};

use super::{
    note::{Note, PATH_MAX, Texts, Times},
    route::Route,
};

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

impl<'a> Entry<'a> {
    /// Works out what was noted.
    #[inline]
    pub(super) fn of(note: &Note, texts: Texts<'a>, trace: Option<Trace>) -> Self {
        let Texts { method, path, request_id, arm, fallback } = texts;
        let Times { read, decode, queue, run, encode, total } = note.times;
        let time = Duration::from_nanos;
        Self {
            at: note.at,
            code: note.code,
            protocol: note.protocol,
            // Where a socket takes both families, clients of version 4 come under addresses of version 6.
            peer: note.peer.map(|peer| SocketAddr::new(peer.ip().to_canonical(), peer.port())),
            method,
            path,
            request_id,
            arm,
            fallback,
            version: note.version,
            prediction: (note.prediction != 0).then(|| PredictionId::from_bits(note.prediction)),
            trace,
            bytes_in: note.bytes_in as u64,
            bytes_out: note.bytes_out as u64,
            read: time(read),
            sample: Sample {
                rows: note.rows,
                decode: time(decode),
                queue: time(queue),
                run: time(run),
                encode: time(encode),
                total: time(total),
                trace: None,
            },
        }
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
    use std::time::Instant;

    use super::*;
    use crate::{
        model::{ArmName, VersionId},
        serve::Receipt,
    };

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
    fn what_was_noted_is_told() {
        let [queue, decode, run, encode] = [1, 20, 300, 4_000].map(Duration::from_micros);
        let total = queue + decode + run + encode;
        let sample = Sample { rows: 2, decode, queue, run, encode, total, trace: None };
        let receipt = Receipt {
            id: PredictionId::from_bits(7),
            version: VersionId::new(3),
            arm: ArmName::CANARY,
            fallback: Some(ArmName::BASELINE),
            at: Instant::now(),
            unix: ENTRY.at,
            sample,
        };
        let mut note = Note {
            code: 200,
            prediction: 7,
            bytes_in: 10,
            bytes_out: 20,
            ..Note::open(Version::HTTP_2, Some("[2001:db8::1]:1".parse().unwrap()))
        };
        note.answered(&receipt, total + Duration::from_secs(5));
        let texts = Texts {
            method: b"POST",
            path: b"/v2",
            request_id: b"mine",
            arm: receipt.arm.as_bytes(),
            fallback: b"baseline",
        };
        let trace = Trace::begun(1.0, 7 << 90, 9);
        let expected = Entry {
            at: ENTRY.at,
            code: 200,
            protocol: Version::HTTP_2,
            peer: note.peer,
            method: b"POST",
            path: b"/v2",
            request_id: b"mine",
            arm: b"canary",
            fallback: b"baseline",
            version: 3,
            prediction: Some(receipt.id),
            trace,
            bytes_in: 10,
            bytes_out: 20,
            read: Duration::from_secs(5),
            sample,
        };
        assert_eq!(Entry::of(&note, texts, trace), expected);
        let mapped = Note { peer: Some("[::ffff:10.0.0.7]:80".parse().unwrap()), ..note };
        let peer = Some("10.0.0.7:80".parse().unwrap());
        assert_eq!(Entry::of(&mapped, texts, trace), Entry { peer, ..expected });
        // The arrival is noted a moment later than the call begins, where the body came with the head.
        note.answered(&receipt, total.saturating_sub(Duration::from_nanos(1)));
        assert_eq!(Entry::of(&note, texts, trace), Entry { read: Duration::ZERO, ..expected });
    }

    #[test]
    fn what_no_arm_answered_has_a_total_alone() {
        let mut note = Note::open(Version::HTTP_11, None);
        note.ended(ENTRY.at, Duration::from_millis(5));
        let entry = Entry::of(&note, Texts::NONE, None);
        let sample = Sample { total: Duration::from_millis(5), ..Sample::default() };
        assert_eq!((entry.at, entry.read, entry.sample), (ENTRY.at, Duration::ZERO, sample));
        assert_eq!((entry.arm.len(), entry.prediction), (0, None));
    }
}
