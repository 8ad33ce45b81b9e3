//! Records: what was decided, by whom, when and why; and their canonical bytes.
//!
//! Canonical is what was written: one line of JSON with its fields in this file's order. The chain hashes those bytes,
//! so nothing ever depends on writing a record a second time in the same way.
//!
//! Not here: what a record's kind and body mean (the rooms that use this one).

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::model::{ModelName, VersionId};

/// What is to be recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRecord {
    /// When, in nanoseconds since 1970, by the caller's clock.
    pub unix_nanos: u64,
    /// Who decided it.
    pub actor: String,
    /// What kind of action it was; names the shape of `body`.
    pub kind: String,
    /// The model it is about.
    pub model: Option<ModelName>,
    /// The version it is about.
    pub version: Option<VersionId>,
    /// Why, for people.
    pub reason: String,
    /// The action itself, in the words of the room that recorded it. Fractions may come back one unit in the last place
    /// off; what must be exact is written as text or whole numbers.
    pub body: Value,
}

/// What is recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its place in the log; the first record has 1.
    pub sequence: u64,
    /// When, in nanoseconds since 1970, by the clock of whoever recorded it.
    pub unix_nanos: u64,
    /// Who decided it.
    pub actor: String,
    /// What kind of action it was; names the shape of `body`.
    pub kind: String,
    /// The model it is about.
    pub model: Option<ModelName>,
    /// The version it is about.
    pub version: Option<VersionId>,
    /// Why, for people.
    pub reason: String,
    /// The action itself, in the words of the room that recorded it.
    pub body: Value,
}

/// Proof that a record is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The record's place in the log.
    pub sequence: u64,
    /// The head of the chain with this record.
    pub hash: Hash,
}

/// A SHA-256 over a record and everything before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Hash(pub(super) [u8; 32]);

/// Which records are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Only records about this model.
    pub model: Option<ModelName>,
    /// Only records of this kind.
    pub kind: Option<String>,
    /// Only records after this sequence number.
    pub after: u64,
    /// Most records; more than [`Filter::LIMIT_MAX`] are never given at once.
    pub limit: usize,
    /// Whether the limit keeps the newest records rather than the oldest. The answer ascends either way.
    pub newest: bool,
}

impl Record {
    /// Gives a new record its place.
    pub(super) fn new(sequence: u64, new: NewRecord) -> Self {
        let NewRecord { unix_nanos, actor, kind, model, version, reason, body } = new;
        Self { sequence, unix_nanos, actor, kind, model, version, reason, body }
    }

    /// The canonical bytes. `more` says that the next record belongs to the same group.
    pub(super) fn written(&self, more: bool) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&self.line(more))
    }

    fn line(&self, more: bool) -> Line<'_> {
        Line {
            sequence: self.sequence,
            unix_nanos: self.unix_nanos,
            actor: &self.actor,
            kind: &self.kind,
            model: self.model.as_deref(),
            version: self.version.map(VersionId::number),
            reason: &self.reason,
            body: &self.body,
            more,
        }
    }

    /// Reads canonical bytes: the record, and whether the next one belongs to the same group.
    pub(super) fn read(bytes: &[u8]) -> Result<(Self, bool), String> {
        let line: ReadLine = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let model = line.model.as_deref().map(ModelName::parse).transpose();
        let record = Self {
            sequence: line.sequence,
            unix_nanos: line.unix_nanos,
            actor: line.actor,
            kind: line.kind,
            model: model.map_err(|error| error.to_string())?,
            version: line.version.map(VersionId::new),
            reason: line.reason,
            body: line.body,
        };
        Ok((record, line.more))
    }
}

/// As the log writes it.
impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.line(false).serialize(serializer)
    }
}

#[derive(Serialize)]
struct Line<'a> {
    sequence: u64,
    unix_nanos: u64,
    actor: &'a str,
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    reason: &'a str,
    body: &'a Value,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadLine {
    sequence: u64,
    unix_nanos: u64,
    actor: String,
    kind: String,
    model: Option<String>,
    version: Option<u64>,
    reason: String,
    body: Value,
    #[serde(default)]
    more: bool,
}

impl Hash {
    /// The hash of a record: over the hash before it and its canonical bytes.
    pub(super) fn chain(self, bytes: &[u8]) -> Self {
        Self(Sha256::new().chain_update(self.0).chain_update(bytes).finalize().into())
    }

    /// Reads what `Display` wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut hash = Self::default();
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (byte, digits) in hash.0.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        (hash.to_string() == text).then_some(hash)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Filter {
    /// The most records that one question gets.
    pub const LIMIT_MAX: usize = 100_000;

    pub(super) fn accepts(&self, record: &Record) -> bool {
        record.sequence > self.after
            && self.model.as_ref().is_none_or(|model| record.model.as_ref() == Some(model))
            && self.kind.as_ref().is_none_or(|kind| record.kind == *kind)
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self { model: None, kind: None, after: 0, limit: Self::LIMIT_MAX, newest: false }
    }
}
