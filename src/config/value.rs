//! Values as a user writes them: whole numbers, durations, sizes, words, switches - each with its bounds.
//!
//! A type says what may be written (its bounds are part of it), reads it, writes it back and describes itself for
//! the JSON Schema, so that the three never disagree. The text of an error is advice: it completes the sentence
//! "this value ...".
//!
//! Not here: which keys there are (`file`), what they mean together (`check`).

use std::{
    borrow::Cow,
    fmt::Display,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use tracing_subscriber::EnvFilter;

use super::{LogFormat, keys::nearest};
use crate::{
    drift,
    edge::{AccessTarget, Endpoint},
    lifecycle::OnNewVersion,
    model::{EngineChoice, ModelName},
    monitor,
    notify::{Block, HostRule, RetrainDraft, Webhook, WebhookDraft},
    rollout::{Policy, PolicyDraft},
    serve::ClassName,
};

pub(super) const KIB: u64 = 1024;
pub(super) const MIB: u64 = 1024 * KIB;
pub(super) const GIB: u64 = 1024 * MIB;
pub(super) const TIB: u64 = 1024 * GIB;
pub(super) const SECOND: u64 = 1000;
pub(super) const MINUTE: u64 = 60 * SECOND;
pub(super) const HOUR: u64 = 60 * MINUTE;
pub(super) const DAY: u64 = 24 * HOUR;

/// Units of time in milliseconds, the smallest first.
const TIME_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", SECOND), ("m", MINUTE), ("h", HOUR), ("d", DAY)];
/// Units of size in bytes, the smallest first.
const SIZE_UNITS: [(&str, u64); 5] =
    [("B", 1), ("KiB", KIB), ("MiB", MIB), ("GiB", GIB), ("TiB", TIB)];
/// The longest text a value may have, in bytes: a path of Linux.
const TEXT_BYTES_MAX: usize = 4096;
/// The most entries of a list of texts.
const TEXTS_MAX: usize = 256;

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Whole<const MIN: u64, const MAX: u64>(pub(super) u64);

/// A number from `MIN` to `MAX`, which may have a fraction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Decimal<const MIN: u32, const MAX: u32>(pub(super) f64);

/// A duration from `MIN` to `MAX` milliseconds, written with its unit: `"500ms"`, `"10s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Time<const MIN: u64, const MAX: u64>(pub(super) Duration);

/// A size from `MIN` to `MAX` bytes, written with its unit: `"1KiB"`, `"16MiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size<const MIN: u64, const MAX: u64>(pub(super) u64);

/// Text with a meaning: an address, a path, one of a few words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Text<T>(pub(super) T);

/// Texts with a meaning: a list, or one text with commas, as an environment variable has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Texts<T>(pub(super) Vec<T>);

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Switch(pub(super) bool);

/// The repository API on, off or automatic, as a user writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RepositoryApi {
    /// Only where the data plane listens on loopback.
    Auto,
    On,
    Off,
}

/// A latency from 1 us to 1 h, written with its unit: `"250us"`, `"10ms"`, `"2s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Objective(pub(super) Duration);

/// A filter of log lines that `tracing` understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogFilter(pub(super) String);

/// A collector of spans, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Collector(pub(super) Option<Endpoint>);

/// An address in an object store to upload to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UploadTo(pub(super) String);

impl UploadTo {
    /// Schemes, and the feature of each.
    const SCHEMES: [(&str, &str, bool); 3] = [
        ("s3", "s3", cfg!(feature = "s3")),
        ("gs", "gcs", cfg!(feature = "gcs")),
        ("az", "azure", cfg!(feature = "azure")),
    ];

    /// The feature that this build lacks.
    pub(super) fn missing_feature(&self) -> Option<&'static str> {
        let (scheme, _) = self.0.split_once("://")?;
        let mut schemes = Self::SCHEMES.into_iter();
        let (_, feature, is_there) = schemes.find(|(name, ..)| *name == scheme)?;
        (!is_there).then_some(feature)
    }
}

/// A value that can stand right of `=`.
trait Value: Sized {
    fn read(written: &toml::Value) -> Result<Self, String>;
    fn written(&self) -> toml::Value;
    fn schema() -> Schema;
}

/// Meanings of a text.
pub(super) trait Meaning: Sized {
    /// All texts there are, where they are few.
    const WORDS: &'static [&'static str] = &[];
    fn from_text(text: &str) -> Result<Self, String>;
    fn to_text(&self) -> String;
}

macro_rules! through_serde {
    ([$($generics:tt)*] $value:ty) => {
        impl<'de, $($generics)*> Deserialize<'de> for $value {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::read(&toml::Value::deserialize(deserializer)?).map_err(D::Error::custom)
            }
        }

        impl<$($generics)*> Serialize for $value {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.written().serialize(serializer)
            }
        }

        impl<$($generics)*> JsonSchema for $value {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                std::any::type_name::<Self>().into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                Self::schema()
            }
        }
    };
}

through_serde!([const MIN: u64, const MAX: u64] Whole<MIN, MAX>);
through_serde!([const MIN: u32, const MAX: u32] Decimal<MIN, MAX>);
through_serde!([const MIN: u64, const MAX: u64] Time<MIN, MAX>);
through_serde!([const MIN: u64, const MAX: u64] Size<MIN, MAX>);
through_serde!([T: Meaning] Text<T>);
through_serde!([T: Meaning] Texts<T>);
through_serde!([] Switch);
through_serde!([] Class);

impl<const MIN: u64, const MAX: u64> Value for Whole<MIN, MAX> {
    fn read(written: &toml::Value) -> Result<Self, String> {
        match written {
            toml::Value::Integer(number) => u64::try_from(*number)
                .ok()
                .filter(|number| (MIN..=MAX).contains(number))
                .map(Self)
                .ok_or_else(|| between(MIN, MAX)),
            toml::Value::String(text) if text.parse::<u64>().is_ok_and(|n| n <= MAX) => {
                Err(format!("must stand without quotes: {text}"))
            }
            // A number beyond 64 bits arrives as its text.
            toml::Value::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                Err(between(MIN, MAX))
            }
            _ => Err(format!("must be a whole number from {MIN} to {MAX}")),
        }
    }

    fn written(&self) -> toml::Value {
        i64::try_from(self.0).map_or_else(|_| self.0.to_string().into(), toml::Value::Integer)
    }

    fn schema() -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

impl<const MIN: u32, const MAX: u32> Value for Decimal<MIN, MAX> {
    fn read(written: &toml::Value) -> Result<Self, String> {
        let number = match written {
            toml::Value::Float(number) => Some(*number),
            toml::Value::Integer(number) => u32::try_from(*number).ok().map(f64::from),
            toml::Value::String(text) if text.parse::<f64>().is_ok() => {
                return Err(format!("must stand without quotes: {text}"));
            }
            _ => None,
        };
        let fits = |number: &f64| (f64::from(MIN)..=f64::from(MAX)).contains(number);
        number.filter(fits).map(Self).ok_or_else(|| format!("must be a number from {MIN} to {MAX}"))
    }

    fn written(&self) -> toml::Value {
        self.0.into()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "number", "minimum": MIN, "maximum": MAX })
    }
}

impl<const MIN: u64, const MAX: u64> Value for Time<MIN, MAX> {
    fn read(written: &toml::Value) -> Result<Self, String> {
        read_measured(written, &TIME_UNITS, MIN, MAX, "10s")
            .map(|ms| Self(Duration::from_millis(ms)))
    }

    fn written(&self) -> toml::Value {
        let ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        measured(ms, &TIME_UNITS).into()
    }

    fn schema() -> Schema {
        json_schema!({
            "type": "string",
            "pattern": pattern(&TIME_UNITS),
            "x-minimum": measured(MIN, &TIME_UNITS),
            "x-maximum": measured(MAX, &TIME_UNITS),
        })
    }
}

impl<const MIN: u64, const MAX: u64> Value for Size<MIN, MAX> {
    fn read(written: &toml::Value) -> Result<Self, String> {
        read_measured(written, &SIZE_UNITS, MIN, MAX, "16MiB").map(Self)
    }

    fn written(&self) -> toml::Value {
        measured(self.0, &SIZE_UNITS).into()
    }

    fn schema() -> Schema {
        json_schema!({
            "type": "string",
            "pattern": pattern(&SIZE_UNITS),
            "x-minimum": measured(MIN, &SIZE_UNITS),
            "x-maximum": measured(MAX, &SIZE_UNITS),
        })
    }
}

impl Value for Switch {
    fn read(written: &toml::Value) -> Result<Self, String> {
        written.as_bool().map(Self).ok_or_else(|| "must be true or false".to_owned())
    }

    fn written(&self) -> toml::Value {
        self.0.into()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "boolean" })
    }
}

impl<T: Meaning> Value for Text<T> {
    fn read(written: &toml::Value) -> Result<Self, String> {
        match written {
            toml::Value::String(text) if text.len() > TEXT_BYTES_MAX => {
                Err(format!("is too long: {} bytes, at most {TEXT_BYTES_MAX}", text.len()))
            }
            toml::Value::String(text) => T::from_text(text).map(Self),
            toml::Value::Table(_) | toml::Value::Array(_) => {
                Err(T::from_text("").err().unwrap_or_else(|| "must be text in quotes".to_owned()))
            }
            // What a wrong text would hear says most; a right one only lacks its quotes.
            other => Err(T::from_text(&other.to_string())
                .err()
                .unwrap_or_else(|| format!("must stand in quotes: \"{other}\""))),
        }
    }

    fn written(&self) -> toml::Value {
        self.0.to_text().into()
    }

    fn schema() -> Schema {
        if T::WORDS.is_empty() {
            json_schema!({ "type": "string" })
        } else {
            json_schema!({ "type": "string", "enum": T::WORDS })
        }
    }
}

impl<T: Meaning> Value for Texts<T> {
    fn read(written: &toml::Value) -> Result<Self, String> {
        let texts = match written {
            toml::Value::String(text) => text
                .split(',')
                .map(|text| text.trim().into())
                .filter(|text| *text != "".into())
                .collect(),
            toml::Value::Array(texts) => texts.clone(),
            _ => return Err("must be a list of texts: [\"...\"]".to_owned()),
        };
        if texts.len() > TEXTS_MAX {
            return Err(format!("may have {TEXTS_MAX} entries"));
        }
        let read = |text| Text::<T>::read(text).map(|Text(meaning)| meaning);
        texts.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    fn written(&self) -> toml::Value {
        self.0.iter().map(Meaning::to_text).collect::<Vec<_>>().into()
    }

    fn schema() -> Schema {
        json_schema!({ "type": "array", "items": { "type": "string" } })
    }
}

impl Meaning for HostRule {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn to_text(&self) -> String {
        self.to_string()
    }
}

impl Meaning for Block {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn to_text(&self) -> String {
        self.to_string()
    }
}

/// The attribute `source` of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EventSource(pub(super) String);

impl Meaning for EventSource {
    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > 256 || text.parse::<http::Uri>().is_err() {
            return Err("must be a path or URL that names this server, for example \"/tidegate\""
                .to_owned());
        }
        Ok(Self(text.to_owned()))
    }

    fn to_text(&self) -> String {
        self.0.clone()
    }
}

impl Meaning for SocketAddr {
    fn from_text(text: &str) -> Result<Self, String> {
        text.trim().parse().map_err(|_| {
            let port = text.rsplit(':').next().and_then(|port| port.trim().parse::<u16>().ok());
            let port = port.unwrap_or(8000);
            format!("must be an IP address and a port, for example \"127.0.0.1:{port}\"")
        })
    }

    fn to_text(&self) -> String {
        self.to_string()
    }
}

/// Where models lie: a folder, or the address of an object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RepositoryRoot(pub(super) PathBuf);

impl Meaning for RepositoryRoot {
    fn from_text(text: &str) -> Result<Self, String> {
        const KINDS: [(&str, &str, bool); 5] = [
            ("s3", "s3", cfg!(feature = "s3")),
            ("gs", "gcs", cfg!(feature = "gcs")),
            ("az", "azure", cfg!(feature = "azure")),
            ("http", "http-store", cfg!(feature = "http-store")),
            ("https", "http-store", cfg!(feature = "http-store")),
        ];
        let Some((scheme, rest)) = text.split_once("://") else {
            return PathBuf::from_text(text).map(Self);
        };
        let kind = KINDS.iter().find(|(known, ..)| *known == scheme);
        let Some((_, feature, built)) = kind else {
            return Err("must be a folder, or begin with s3://, gs://, az://, http:// or https://"
                .to_owned());
        };
        if rest.contains(['@', '?', '#']) {
            return Err("must have no user, query or fragment; credentials come from the \
                        environment, for example AWS_ACCESS_KEY_ID"
                .to_owned());
        }
        if rest.is_empty() || rest.starts_with('/') {
            return Err(format!("must name a bucket or host: {scheme}://NAME/models"));
        }
        if !built {
            return Err(format!(
                "cannot be read by this build; build it with `--features {feature}`, or name a folder"
            ));
        }
        Ok(Self(text.into()))
    }

    fn to_text(&self) -> String {
        self.0.to_text()
    }
}

impl Meaning for PathBuf {
    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains('\0') {
            return Err("must be a path, for example \"./models\"".to_owned());
        }
        Ok(Path::new(text).to_owned())
    }

    fn to_text(&self) -> String {
        self.to_string_lossy().into_owned()
    }
}

impl Meaning for ModelName {
    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|_| model_name_advice())
    }

    fn to_text(&self) -> String {
        self.as_str().to_owned()
    }
}

impl Meaning for EngineChoice {
    const WORDS: &'static [&'static str] = &["auto", "onnxruntime", "tract"];

    fn from_text(text: &str) -> Result<Self, String> {
        choose(text, [Self::Auto, Self::OnnxRuntime, Self::Tract])
    }

    fn to_text(&self) -> String {
        self.as_str().to_owned()
    }
}

impl Meaning for OnNewVersion {
    const WORDS: &'static [&'static str] = &["serve", "hold", "rollout"];

    fn from_text(text: &str) -> Result<Self, String> {
        choose(text, [Self::Serve, Self::Hold, Self::Rollout])
    }

    fn to_text(&self) -> String {
        match self {
            Self::Serve => "serve",
            Self::Hold => "hold",
            Self::Rollout => "rollout",
        }
        .to_owned()
    }
}

/// The policy of a model's rollouts: a table, or the same as JSON in a text, as an environment variable has it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(transparent)]
pub(super) struct RolloutPolicy(pub(super) PolicyDraft);

impl<'de> Deserialize<'de> for RolloutPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut written = serde_json::Value::deserialize(deserializer)?;
        if let Some(text) = written.as_str() {
            written = serde_json::from_str(text)
                .map_err(|error| D::Error::custom(format!("must be a table, or JSON: {error}")))?;
        }
        let draft = PolicyDraft::read(&written).and_then(|draft| {
            Policy::from_drafts(&[&draft])?;
            Ok(draft)
        });
        draft.map(Self).map_err(|wrong| D::Error::custom(wrong.join("; ")))
    }
}

impl JsonSchema for RolloutPolicy {
    fn schema_name() -> Cow<'static, str> {
        PolicyDraft::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        PolicyDraft::json_schema(generator)
    }
}

/// Keys below a key: a table, or the same as JSON in a text, as an environment variable has it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Table<T>(pub(super) T);

impl<'de, T: serde::de::DeserializeOwned> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut written = serde_json::Value::deserialize(deserializer)?;
        if let Some(text) = written.as_str() {
            written = serde_json::from_str(text)
                .map_err(|error| D::Error::custom(format!("must be a table, or JSON: {error}")))?;
        }
        // The path tells which of the keys is meant.
        let Some(keys) = written.as_object() else {
            return Err(D::Error::custom("must be a table"));
        };
        for (key, value) in keys {
            let alone = serde_json::json!({ key: value });
            serde_json::from_value::<T>(alone)
                .map_err(|error| D::Error::custom(format!("{key} = {value}: {error}")))?;
        }
        serde_json::from_value(written).map(Self).map_err(D::Error::custom)
    }
}

impl<T: JsonSchema> JsonSchema for Table<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A class: its number, or its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Class(pub(super) ClassName);

impl Value for Class {
    fn read(written: &toml::Value) -> Result<Self, String> {
        match written {
            toml::Value::Integer(number) => Ok(Self(ClassName::Number(*number))),
            toml::Value::String(text) if !text.is_empty() && text.len() <= TEXT_BYTES_MAX => {
                Ok(Self(ClassName::Text(text.clone())))
            }
            _ => Err("must be a class's number or text, such as 1 or \"fraud\"".to_owned()),
        }
    }

    fn written(&self) -> toml::Value {
        match &self.0 {
            ClassName::Number(number) => (*number).into(),
            ClassName::Text(text) => text.clone().into(),
        }
    }

    fn schema() -> Schema {
        json_schema!({ "type": ["integer", "string"] })
    }
}

/// Webhooks: tables, or the same as JSON in a text, as an environment variable has it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Webhooks(pub(super) Vec<WebhookDraft>);

impl<'de> Deserialize<'de> for Webhooks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = table_or_json(deserializer)?;
        let drafts = Webhook::drafts(written).map_err(D::Error::custom)?;
        Webhook::read(&drafts).map_err(|wrong| D::Error::custom(wrong.join("; ")))?;
        Ok(Self(drafts))
    }
}

impl JsonSchema for Webhooks {
    fn schema_name() -> Cow<'static, str> {
        "Webhooks".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Vec::<WebhookDraft>::json_schema(generator)
    }
}

/// The rule of a model's retraining: a table, or the same as JSON in a text, as an environment variable has it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(transparent)]
pub(super) struct RetrainRule(pub(super) RetrainDraft);

impl<'de> Deserialize<'de> for RetrainRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let draft: RetrainDraft =
            serde_json::from_value(table_or_json(deserializer)?).map_err(D::Error::custom)?;
        draft.read().map_err(|wrong| D::Error::custom(wrong.join("; ")))?;
        Ok(Self(draft))
    }
}

impl JsonSchema for RetrainRule {
    fn schema_name() -> Cow<'static, str> {
        RetrainDraft::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        RetrainDraft::json_schema(generator)
    }
}

/// Rows of a model that are counted apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub(super) struct Segments(pub(super) drift::SegmentDraft);

impl<'de> Deserialize<'de> for Segments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let draft: drift::SegmentDraft =
            serde_json::from_value(table_or_json(deserializer)?).map_err(D::Error::custom)?;
        draft.read().map_err(|wrong| D::Error::custom(wrong.join("; ")))?;
        Ok(Self(draft))
    }
}

impl JsonSchema for Segments {
    fn schema_name() -> Cow<'static, str> {
        drift::SegmentDraft::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        drift::SegmentDraft::json_schema(generator)
    }
}

fn table_or_json<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<serde_json::Value, D::Error> {
    let written = serde_json::Value::deserialize(deserializer)?;
    match written.as_str() {
        // The error has the place, never the text.
        Some(text) => serde_json::from_str(text)
            .map_err(|error| D::Error::custom(format!("must be a table, or JSON: {error}"))),
        None => Ok(written),
    }
}

impl Meaning for drift::Action {
    const WORDS: &'static [&'static str] = &["count", "flag", "refuse"];

    fn from_text(text: &str) -> Result<Self, String> {
        choose(text, Self::ALL)
    }

    fn to_text(&self) -> String {
        self.name().to_owned()
    }
}

impl Meaning for monitor::Compat {
    const WORDS: &'static [&'static str] = &["triton"];

    fn from_text(text: &str) -> Result<Self, String> {
        choose(text, [Self::Triton])
    }

    fn to_text(&self) -> String {
        match self {
            Self::Triton => "triton",
        }
        .to_owned()
    }
}

impl Meaning for Objective {
    fn from_text(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let scale = match unit.trim() {
            "us" => 1,
            "ms" => 1_000,
            "s" => 1_000_000,
            _ => return Err("must be whole numbers with us, ms or s: [\"10ms\"]".to_owned()),
        };
        let microseconds = number.parse().ok().and_then(|number: u64| number.checked_mul(scale));
        microseconds
            .filter(|us| (1..=3_600_000_000).contains(us))
            .map(|us| Self(Duration::from_micros(us)))
            .ok_or_else(|| "must lie between \"1us\" and \"3600s\"".to_owned())
    }

    fn to_text(&self) -> String {
        let us = u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX);
        match us {
            us if us % 1_000_000 == 0 => format!("{}s", us / 1_000_000),
            us if us % 1_000 == 0 => format!("{}ms", us / 1_000),
            us => format!("{us}us"),
        }
    }
}

impl Meaning for RepositoryApi {
    const WORDS: &'static [&'static str] = &["auto", "on", "off"];

    fn from_text(text: &str) -> Result<Self, String> {
        choose(text, [Self::Auto, Self::On, Self::Off])
    }

    fn to_text(&self) -> String {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
        .to_owned()
    }
}

impl Meaning for LogFormat {
    const WORDS: &'static [&'static str] = &["auto", "text", "json"];

    fn from_text(text: &str) -> Result<Self, String> {
        choose(text, [Self::Auto, Self::Text, Self::Json])
    }

    fn to_text(&self) -> String {
        self.as_str().to_owned()
    }
}

impl Meaning for AccessTarget {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "stdout" => Ok(Self::Stdout),
            // One of the words, misspelt, would be a file where nobody looks for it.
            path if path.contains(['/', '.']) => PathBuf::from_text(path).map(Self::File),
            _ => Err("must be \"off\", \"stdout\" or a file such as \"./access.log\"".to_owned()),
        }
    }

    fn to_text(&self) -> String {
        match self {
            Self::Off => "off".to_owned(),
            Self::Stdout => "stdout".to_owned(),
            Self::File(path) => path.to_text(),
        }
    }
}

impl Meaning for Collector {
    fn from_text(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let advice = "must be \"off\" or an address such as \"http://localhost:4318\"; TLS is not spoken, a collector \
                      beside this process can";
        let endpoint = Endpoint::parse(text).ok_or_else(|| advice.to_owned())?;
        if cfg!(feature = "otlp") {
            Ok(Self(Some(endpoint)))
        } else {
            Err("must be \"off\": this build sends no spans; build with the feature `otlp`"
                .to_owned())
        }
    }

    fn to_text(&self) -> String {
        self.0.as_ref().map_or_else(|| "off".to_owned(), ToString::to_string)
    }
}

impl Meaning for UploadTo {
    fn from_text(text: &str) -> Result<Self, String> {
        let advice = "must be an address such as \"s3://bucket/prefix\", \"gs://...\" or \"az://...\", without a user or a \
                      query; credentials come from the environment";
        let parts = text.split_once("://").filter(|(scheme, rest)| {
            Self::SCHEMES.iter().any(|(name, ..)| name == scheme)
                && !rest.is_empty()
                && !rest.starts_with('/')
                && !rest.contains(['@', '?', '#', '\\'])
        });
        parts.map(|_| Self(text.trim_end_matches('/').to_owned())).ok_or_else(|| advice.to_owned())
    }

    fn to_text(&self) -> String {
        self.0.clone()
    }
}

impl Meaning for LogFilter {
    /// A bare word must be a level: `EnvFilter` takes a misspelt one for the name of a module to trace.
    fn from_text(text: &str) -> Result<Self, String> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        // Names of modules are ASCII here, and `EnvFilter` cuts other text in the middle of a character.
        if !text.is_ascii() {
            return Err("must be plain ASCII, such as \"info,tidegate=debug\"".to_owned());
        }
        for directive in text.split(',').map(str::trim) {
            let bare = directive.bytes().all(|byte| byte.is_ascii_alphanumeric());
            if bare && !LEVELS.contains(&directive) {
                let meant = nearest(directive, LEVELS)
                    .map_or_else(String::new, |level| format!("; did you mean \"{level}\"?"));
                return Err(format!("must be {}{meant}", words(&LEVELS)));
            }
        }
        match EnvFilter::builder().parse(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) => Err("must be a level or a list such as \"info,tidegate=debug\"".to_owned()),
        }
    }

    fn to_text(&self) -> String {
        self.0.clone()
    }
}

/// Describes the names that models may have.
pub(super) fn model_name_advice() -> String {
    format!(
        "must be a model name: 1 to {} letters, digits, `.`, `_` or `-`, beginning with a letter or digit, without `..`",
        ModelName::LENGTH_MAX
    )
}

/// Reads a whole number with a unit and gives it in the smallest unit.
fn read_measured(
    written: &toml::Value,
    units: &[(&str, u64)],
    min: u64,
    max: u64,
    example: &str,
) -> Result<u64, String> {
    let text = match written {
        toml::Value::String(text) => text.trim(),
        toml::Value::Integer(number) => &number.to_string(),
        _ => return Err(format!("must be text with a unit, for example \"{example}\"")),
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    if number.is_empty() || unit.starts_with(['.', ',', '_']) {
        return Err(format!("must be a whole number with a unit, for example \"{example}\""));
    }
    let between = || {
        between(format!("\"{}\"", measured(min, units)), format!("\"{}\"", measured(max, units)))
    };
    let number: u64 = number.parse().map_err(|_| between())?;
    let inside = |scale: u64| number.checked_mul(scale).filter(|n| (min..=max).contains(n));
    if unit.is_empty() {
        // Most likely meant: the unit of the example, then the smallest that fits.
        let usual = example.trim_start_matches(|c: char| c.is_ascii_digit());
        let usual = units.iter().filter(|(name, _)| *name == usual);
        let fits = usual.chain(units).find(|(_, scale)| inside(*scale).is_some());
        let example = fits.map_or(example.to_owned(), |(unit, _)| format!("{number}{unit}"));
        return Err(format!("needs a unit, for example \"{example}\""));
    }
    if let Some((_, scale)) = units.iter().find(|(name, _)| *name == unit) {
        return inside(*scale).ok_or_else(between);
    }
    let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
    let meant = meant_unit(unit, &names)
        .map_or_else(String::new, |unit| format!("; did you mean \"{number}{unit}\"?"));
    Err(format!("has an unknown unit; there are {}{meant}", names.join(", ")))
}

/// The unit that was likely meant by `kb`, `MB`, `sec` or `Min`.
fn meant_unit<'a>(written: &str, names: &[&'a str]) -> Option<&'a str> {
    let written = written.to_ascii_lowercase();
    let same = |name: &&&str| name.eq_ignore_ascii_case(&written);
    let alike = |name: &&&str| {
        let name = name.to_ascii_lowercase();
        name != "ms" && name.as_bytes().first() == written.as_bytes().first()
    };
    names.iter().find(same).or_else(|| names.iter().find(alike)).copied()
}

/// Writes a number of the smallest unit in the largest unit that divides it.
fn measured(number: u64, units: &[(&str, u64)]) -> String {
    let divides = |(_, scale): &&(&str, u64)| number.is_multiple_of(*scale);
    match units.iter().rev().find(divides) {
        Some((unit, scale)) if number > 0 => format!("{}{unit}", number / scale),
        // Zero seconds reads better than zero days.
        _ => format!("0{}", if units == TIME_UNITS { "s" } else { "B" }),
    }
}

fn pattern(units: &[(&str, u64)]) -> String {
    let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
    format!("^ *[0-9]+ *({}) *$", names.join("|"))
}

fn between(min: impl Display, max: impl Display) -> String {
    format!("must lie between {min} and {max}")
}

fn choose<T: Meaning, const N: usize>(text: &str, choices: [T; N]) -> Result<T, String> {
    choices.into_iter().find(|choice| choice.to_text() == text).ok_or_else(|| {
        let meant = nearest(text, T::WORDS.iter().copied())
            .map_or_else(String::new, |word| format!("; did you mean \"{word}\"?"));
        format!("must be {}{meant}", words(T::WORDS))
    })
}

/// `"a", "b" or "c"`
fn words(all: &[&str]) -> String {
    let quoted: Vec<String> = all.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type AnyTime = Time<0, { 365 * DAY }>;
    type AnySize = Size<0, { 1024 * TIB }>;

    fn advice<T: Value>(written: impl Into<toml::Value>) -> String {
        T::read(&written.into()).err().unwrap_or_else(|| "is right".to_owned())
    }

    #[test]
    fn durations_say_what_is_wrong() {
        type Timeout = Time<1, HOUR>;
        for (written, expected) in [
            ("10s", "is right"),
            (" 10 s ", "is right"),
            ("5", "needs a unit, for example \"5s\""),
            ("7200", "needs a unit, for example \"7200ms\""),
            ("7200000", "needs a unit, for example \"10s\""),
            ("", "must be a whole number with a unit, for example \"10s\""),
            ("-5s", "must be a whole number with a unit, for example \"10s\""),
            ("1.5s", "must be a whole number with a unit, for example \"10s\""),
            ("10sec", "has an unknown unit; there are ms, s, m, h, d; did you mean \"10s\"?"),
            ("10 µs", "has an unknown unit; there are ms, s, m, h, d"),
            ("0s", "must lie between \"1ms\" and \"1h\""),
            ("2h", "must lie between \"1ms\" and \"1h\""),
            ("99999999999999999999s", "must lie between \"1ms\" and \"1h\""),
            ("18446744073709551615d", "must lie between \"1ms\" and \"1h\""),
        ] {
            assert_eq!(advice::<Timeout>(written), expected, "{written}");
        }
        assert_eq!(advice::<Timeout>(5), "needs a unit, for example \"5s\"");
        assert_eq!(advice::<Timeout>(true), "must be text with a unit, for example \"10s\"");
    }

    #[test]
    fn sizes_say_what_is_wrong() {
        type Body = Size<KIB, GIB>;
        for (written, expected) in [
            ("16MiB", "is right"),
            ("4096B", "is right"),
            ("5", "needs a unit, for example \"5MiB\""),
            (
                "16MB",
                "has an unknown unit; there are B, KiB, MiB, GiB, TiB; did you mean \"16MiB\"?",
            ),
            (
                "16mib",
                "has an unknown unit; there are B, KiB, MiB, GiB, TiB; did you mean \"16MiB\"?",
            ),
            ("1B", "must lie between \"1KiB\" and \"1GiB\""),
            ("2TiB", "must lie between \"1KiB\" and \"1GiB\""),
        ] {
            assert_eq!(advice::<Body>(written), expected, "{written}");
        }
    }

    #[test]
    fn other_values_say_what_is_wrong() {
        type Count = Whole<1, 100>;
        type Address = Text<SocketAddr>;
        assert_eq!(advice::<Count>(100), "is right");
        assert_eq!(advice::<Count>(0), "must lie between 1 and 100");
        assert_eq!(advice::<Count>(-1), "must lie between 1 and 100");
        assert_eq!(advice::<Count>("4"), "must stand without quotes: 4");
        assert_eq!(advice::<Count>("99999999999999999999"), "must lie between 1 and 100");
        assert_eq!(advice::<Count>(1.0), "must be a whole number from 1 to 100");
        assert_eq!(advice::<Switch>("on"), "must be true or false");

        assert_eq!(advice::<Address>("[::1]:0"), "is right");
        for (written, port) in [("localhost:80", 80), (":9000", 9000), ("9000", 9000), ("x", 8000)]
        {
            let expected =
                format!("must be an IP address and a port, for example \"127.0.0.1:{port}\"");
            assert_eq!(advice::<Address>(written), expected);
        }
        let words = "must be \"auto\", \"onnxruntime\" or \"tract\"";
        assert_eq!(
            advice::<Text<EngineChoice>>("onnx-runtime"),
            format!("{words}; did you mean \"onnxruntime\"?")
        );
        assert_eq!(advice::<Text<EngineChoice>>("triton!"), words);
        assert_eq!(advice::<Text<EngineChoice>>(1), words);
        assert_eq!(advice::<Text<PathBuf>>(7), "must stand in quotes: \"7\"");
        assert_eq!(advice::<Text<PathBuf>>(""), "must be a path, for example \"./models\"");
        assert_eq!(
            RepositoryRoot::from_text("./m").map(|root| root.to_text()),
            Ok("./m".to_owned())
        );
        assert_eq!(
            advice::<Text<RepositoryRoot>>("ftp://host/m"),
            "must be a folder, or begin with s3://, gs://, az://, http:// or https://"
        );
        assert!(
            advice::<Text<RepositoryRoot>>("s3://key:secret@b/m").starts_with("must have no user")
        );
        assert_eq!(
            advice::<Text<RepositoryRoot>>("s3:///m"),
            "must name a bucket or host: s3://NAME/models"
        );
        let built = Text::<RepositoryRoot>::read(&"s3://bucket/m".into()).map_err(|advice| {
            assert!(advice.contains("`--features s3`"), "{advice}");
        });
        assert_eq!(built.is_ok(), cfg!(feature = "s3"));
        assert_eq!(
            advice::<Text<PathBuf>>("x".repeat(5000)),
            "is too long: 5000 bytes, at most 4096"
        );
    }

    #[test]
    fn log_filters_tell_levels_from_misspelt_ones() {
        let levels = "must be \"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\"";
        for (written, expected) in [
            ("info", "is right".to_owned()),
            ("info,tidegate::edge=debug", "is right".to_owned()),
            ("tidegate[request{path=x}]=trace", "is right".to_owned()),
            ("inof", format!("{levels}; did you mean \"info\"?")),
            ("", levels.to_owned()),
            (
                "tidegate=loud",
                "must be a level or a list such as \"info,tidegate=debug\"".to_owned(),
            ),
        ] {
            assert_eq!(advice::<Text<LogFilter>>(written), expected, "{written}");
        }
    }

    proptest! {
        #[test]
        fn durations_and_sizes_survive_being_written(number in 0..(365 * DAY)) {
            let time = Time::<0, { 365 * DAY }>(Duration::from_millis(number));
            prop_assert_eq!(AnyTime::read(&time.written()), Ok(time));
            let size = Size::<0, { 1024 * TIB }>(number);
            prop_assert_eq!(AnySize::read(&size.written()), Ok(size));
        }

        #[test]
        fn no_text_makes_a_value_panic(text in any::<String>()) {
            let written = toml::Value::String(text);
            let _ = AnyTime::read(&written);
            let _ = AnySize::read(&written);
            let _ = Whole::<0, 9>::read(&written);
            let _ = Text::<SocketAddr>::read(&written);
            let _ = Text::<LogFilter>::read(&written);
            let _ = Text::<EngineChoice>::read(&written);
        }
    }

    #[test]
    fn objectives_have_a_unit() {
        for (text, shown) in [("250us", "250us"), ("10ms", "10ms"), ("2000 ms", "2s"), ("1s", "1s")]
        {
            assert_eq!(Objective::from_text(text).unwrap().to_text(), shown);
        }
        for wrong in ["", "10", "0ms", "3601s", "1.5ms", "-1ms", "99999999999999999999s", "1h"] {
            assert!(Objective::from_text(wrong).is_err(), "{wrong}");
        }
    }
}
