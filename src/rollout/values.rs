//! Shares and durations as requests, files and answers write them.
//!
//! Each type reads what people write, refuses the rest with what would be right, and writes itself back in the
//! same form, so that a policy is shown as it was given.
//!
//! Not here: which share or duration a key may have (`policy`).

use std::{fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;

/// A share of traffic, 0 to 1; also read from a percentage such as `"5%"`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Share(pub f64);

/// A length of time, written with its unit: `"200us"`, `"90s"`, `"10m"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Units of time in microseconds, the largest first.
const UNITS: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1000),
    ("us", 1),
];

/// Parts of a weight that assignment can tell apart.
const WEIGHT_PARTS: f64 = 65_536.0;

impl Share {
    /// The nearest share that assignment can realise: a multiple of 1/65536.
    pub fn in_effect(self) -> f64 {
        (self.0 * WEIGHT_PARTS).round() / WEIGHT_PARTS
    }

    fn read(written: &Value) -> Result<Self, String> {
        let share = match written {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text
                .strip_suffix('%')
                .and_then(|percent| percent.trim().parse::<f64>().ok())
                .map(|percent| percent / 100.0),
            _ => None,
        };
        share.filter(|share| (0.0..=1.0).contains(share)).map(Self).ok_or_else(|| {
            "must be a number from 0 to 1, or a percentage such as \"5%\"".to_owned()
        })
    }
}

impl Span {
    fn read(written: &Value) -> Result<Self, String> {
        let advice = || "needs a number and a unit of us, ms, s, m, h or d, for example \"90s\"";
        let text = written.as_str().ok_or_else(|| advice().to_owned())?.trim();
        let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let unit = UNITS.iter().find(|(name, _)| *name == unit.trim());
        let micros = number.parse::<u64>().ok().zip(unit);
        micros
            .and_then(|(number, (_, micros))| number.checked_mul(*micros))
            .map(|micros| Self(Duration::from_micros(micros)))
            .ok_or_else(|| advice().to_owned())
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX);
        if micros == 0 {
            return f.write_str("0s");
        }
        let fits = |(_, unit): &&(&str, u64)| micros.is_multiple_of(*unit);
        let (name, unit) = UNITS.iter().find(fits).expect("every number is a multiple of 1");
        write!(f, "{}{name}", micros / unit)
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(&Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl JsonSchema for Share {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Share".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "number", "minimum": 0, "maximum": 1 },
            { "type": "string", "pattern": "^[0-9.]+%$" },
        ] })
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(&Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Span {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+ ?(us|ms|s|m|h|d)$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_numbers_or_percentages() {
        let read = |text: &str| Share::read(&serde_json::from_str(text).unwrap());
        assert_eq!(read("0.05"), Ok(Share(0.05)));
        assert_eq!(read("\"5%\""), Ok(Share(0.05)));
        assert_eq!(read("1"), Ok(Share(1.0)));
        for wrong in ["1.01", "-0.1", "\"5\"", "\"101%\"", "\"x%\"", "null", "\"nan%\""] {
            assert!(read(wrong).unwrap_err().contains("\"5%\""), "{wrong}");
        }
        assert_eq!(Share(0.01).in_effect().to_bits(), (655.0_f64 / 65_536.0).to_bits());
    }

    #[test]
    fn spans_need_a_unit_and_are_written_with_the_largest_that_fits() {
        for (text, shown) in [
            ("90s", "90s"),
            ("120s", "2m"),
            ("200us", "200us"),
            ("2 m", "2m"),
            ("1500ms", "1500ms"),
            ("0s", "0s"),
            ("48h", "2d"),
        ] {
            assert_eq!(Span::read(&text.into()).unwrap().to_string(), shown, "{text}");
        }
        for wrong in ["90", "s", "", "-1s", "1.5h", "1 week", "99999999999999999999s"] {
            assert!(Span::read(&wrong.into()).unwrap_err().contains("\"90s\""), "{wrong}");
        }
        assert!(Span::read(&Value::from(90)).is_err());
    }
}
