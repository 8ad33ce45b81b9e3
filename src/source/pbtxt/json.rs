//! `inference.ModelConfig` as JSON, written again as the text format: what a load request brings becomes a
//! `config.pbtxt`, and is read, kept and shown as any other.
//!
//! Source: the JSON mapping of Protocol Buffers 3: field names as in the message or in camel case, maps as objects,
//! 64-bit numbers perhaps as text, names of enums as text, null for what is not set. Left out: enums by their number.
//!
//! JSON has one kind of text where the text format has three; which is meant follows from the field's name.

use std::{collections::BTreeSet, fmt, fmt::Write as _};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::source::{describe::DESCRIPTION_BYTES_MAX, error::shown};

/// A configuration in the text format, and where in the JSON its parts stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::source) struct Transcript {
    /// The text format.
    pub(in crate::source) text: String,
    /// Where in the text a field begins, and its path in the JSON.
    places: Vec<(usize, String)>,
}

/// Objects in objects, as deep as the text format allows.
const DEPTH_MAX: usize = 32;
/// Fields and list entries; each costs memory.
const FIELDS_MAX: usize = 65_536;
/// Of a path that is remembered.
const PATH_CHARACTERS_MAX: usize = 200;

/// Fields whose text is the name of an enum's value.
const ENUMS: [&str; 5] = ["data_type", "kind", "format", "timeout_action", "priority"];
/// Fields of 64 bits, whose number may be written as text.
const LONG: [&str; 5] =
    ["dims", "shape", "versions", "max_queue_delay_microseconds", "default_timeout_microseconds"];
/// Fields that are maps.
const MAPS: [&str; 5] =
    ["parameters", "inputs", "metric_tags", "cc_model_filenames", "priority_queue_policy"];

/// Writes a configuration in JSON as the text format. What the fields mean is not looked at.
pub(in crate::source) fn transcribe(json: &str) -> Result<Transcript, String> {
    if json.len() as u64 > DESCRIPTION_BYTES_MAX {
        return Err(format!("it is longer than {DESCRIPTION_BYTES_MAX} bytes"));
    }
    let mut writer = Writer {
        transcript: Transcript { text: String::new(), places: Vec::new() },
        path: String::new(),
        fields_left: FIELDS_MAX,
    };
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let root = Message { writer: &mut writer, depth: 0 };
    let read = root.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    match read {
        Ok(()) => Ok(writer.transcript),
        Err(error) => {
            let at =
                if writer.path.is_empty() { String::new() } else { format!("{}: ", writer.path) };
            Err(format!("{at}{error}"))
        }
    }
}

impl Transcript {
    /// The path in the JSON of what stands at this place of the text.
    pub(super) fn path(&self, at: usize) -> &str {
        let after = self.places.partition_point(|(from, _)| *from <= at);
        after.checked_sub(1).map_or("", |index| &self.places[index].1)
    }
}

struct Writer {
    transcript: Transcript,
    /// Of what is being read, such as `input[0].dims`; shortened.
    path: String,
    fields_left: usize,
}

impl Writer {
    /// Does something one name deeper.
    fn at<T, E>(
        &mut self,
        name: &str,
        inside: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let before = self.path.len();
        if !name.starts_with('[') && before > 0 {
            self.path.push('.');
        }
        self.path.push_str(&shown(name));
        let done = inside(self)?;
        // Where it failed, the path stays: it says where.
        self.path.truncate(before);
        Ok(done)
    }

    fn field<E: Error>(&mut self, name: &str, value: fmt::Arguments<'_>) -> Result<(), E> {
        self.begin()?;
        writeln!(self.transcript.text, "{name}: {value}")
            .expect("writing to a string does not fail");
        Ok(())
    }

    fn begin<E: Error>(&mut self) -> Result<(), E> {
        self.fields_left = self.fields_left.checked_sub(1).ok_or_else(|| {
            E::custom(format!("there are more than {FIELDS_MAX} fields and list entries"))
        })?;
        let path = self.path.chars().take(PATH_CHARACTERS_MAX).collect();
        self.transcript.places.push((self.transcript.text.len(), path));
        Ok(())
    }

    fn text<E: Error>(&mut self, name: &str, value: &str) -> Result<(), E> {
        let word = |value: &str| {
            !value.is_empty()
                && !value.starts_with(|first: char| first.is_ascii_digit())
                && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        let digits = value.strip_prefix('-').unwrap_or(value);
        let number = (1..=20).contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && (digits == "0" || !digits.starts_with('0'));
        if ENUMS.contains(&name) && word(value) || LONG.contains(&name) && number {
            return self.field(name, format_args!("{value}"));
        }
        self.field(name, format_args!("\"{}\"", Quoted(value)))
    }
}

/// Text as it may stand between quotes.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '"' | '\\' => write!(f, "\\{character}"),
            character if character.is_ascii_control() => {
                write!(f, "\\{:03o}", u32::from(character))
            }
            character => f.write_char(character),
        })
    }
}

/// A message: its fields are written one after the other.
struct Message<'w> {
    writer: &'w mut Writer,
    depth: usize,
}

/// The value of a field, or one entry of its list.
struct Value<'w> {
    writer: &'w mut Writer,
    name: &'w str,
    in_list: bool,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Message<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Message<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if self.depth > DEPTH_MAX {
            return Err(A::Error::custom(format!("it is nested deeper than {DEPTH_MAX} levels")));
        }
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            self.writer.at(&key, |writer| {
                let name = snake(&key).ok_or_else(|| A::Error::custom("there is no such field"))?;
                if !seen.insert(name.clone()) {
                    return Err(A::Error::custom("it stands here for the second time; keep one"));
                }
                map.next_value_seed(Value {
                    writer,
                    name: &name,
                    in_list: false,
                    depth: self.depth,
                })
            })?;
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's value")
    }

    /// Not set.
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        if self.in_list { Err(E::custom("it is null; leave it out")) } else { Ok(()) }
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.writer.field(self.name, format_args!("{value}"))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.writer.field(self.name, format_args!("{value}"))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.writer.field(self.name, format_args!("{value}"))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.writer.field(self.name, format_args!("{value:?}"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.writer.text(self.name, value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        if self.in_list {
            return Err(A::Error::custom("it is a list in a list"));
        }
        for index in 0_usize.. {
            let (name, depth) = (self.name, self.depth);
            let entry = self.writer.at(&format!("[{index}]"), |writer| {
                list.next_element_seed(Value { writer, name, in_list: true, depth })
            })?;
            if entry.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { writer, name, in_list, depth } = self;
        if in_list || !MAPS.contains(&name) {
            writer.begin()?;
            writeln!(writer.transcript.text, "{name} {{")
                .expect("writing to a string does not fail");
            Message { writer: &mut *writer, depth: depth + 1 }.visit_map(map)?;
            writer.transcript.text.push_str("}\n");
            return Ok(());
        }
        if depth > DEPTH_MAX {
            return Err(A::Error::custom(format!("it is nested deeper than {DEPTH_MAX} levels")));
        }
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            writer.at(&key, |writer| {
                if !seen.insert(key.clone()) {
                    return Err(A::Error::custom("it stands here for the second time; keep one"));
                }
                writer.begin()?;
                writeln!(writer.transcript.text, "{name} {{\nkey: \"{}\"", Quoted(&key))
                    .expect("writing to a string does not fail");
                let value =
                    Value { writer: &mut *writer, name: "value", in_list: true, depth: depth + 1 };
                map.next_value_seed(value)?;
                writer.transcript.text.push_str("}\n");
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// A field's name as the message has it; `None` for what cannot be one.
fn snake(name: &str) -> Option<String> {
    let mut snake = String::new();
    for character in name.chars() {
        match character {
            'A'..='Z' => {
                snake.push('_');
                snake.push(character.to_ascii_lowercase());
            }
            'a'..='z' | '0'..='9' | '_' => snake.push(character),
            _ => return None,
        }
    }
    let begins = snake.starts_with(|first: char| !first.is_ascii_digit());
    begins.then_some(snake)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::pbtxt::{read, read_json};

    fn same(json: &str, text: &str) {
        let expected = read(text.as_bytes()).unwrap();
        assert_eq!(read_json(json).unwrap().0, expected, "{json}");
    }

    fn refused(json: &str, expected: &str) {
        let error = read_json(json).unwrap_err();
        assert!(error.contains(expected), "{json}: {error}");
    }

    #[test]
    fn a_configuration_in_json_says_what_the_same_in_text_says() {
        same("{}", "");
        same(
            r#"{
                "name": "m", "backend": "onnxruntime", "maxBatchSize": 8, "platform": null,
                "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, "3"]}],
                "output": [{"name": "y\"\\\n", "dataType": "TYPE_INT64", "dims": ["-1"], "reshape": {"shape": []}}],
                "version_policy": {"specific": {"versions": [1, "2"]}},
                "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
                "parameters": {"intra_op_thread_count": {"string_value": "2"}, "k": {"stringValue": "v"}},
                "optimization": {"graph": {"level": 1.5}},
                "model_warmup": [{"name": "w", "batch_size": 1,
                    "inputs": {"x": {"data_type": "TYPE_FP32", "dims": [3], "zero_data": true}}}],
                "metric_tags": {"a": "b"}
            }"#,
            r#"
                name: "m" backend: "onnxruntime" max_batch_size: 8
                input { name: "x" data_type: TYPE_FP32 dims: [-1, 3] }
                output { name: "y\"\\\n" data_type: TYPE_INT64 dims: -1 reshape { } }
                version_policy { specific { versions: [1, 2] } }
                instance_group { count: 2 kind: KIND_CPU }
                parameters { key: "intra_op_thread_count" value { string_value: "2" } }
                parameters { key: "k" value { string_value: "v" } }
                optimization { graph { level: 1.5 } }
                model_warmup { name: "w" batch_size: 1
                    inputs { key: "x" value { data_type: TYPE_FP32 dims: 3 zero_data: true } } }
                metric_tags { key: "a" value: "b" }
            "#,
        );
        same(
            r#"{"version_policy": {"latest": {"numVersions": 2}}}"#,
            "version_policy { latest { num_versions: 2 } }",
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        refused("", "EOF");
        refused("[]", "expected an object");
        refused("{} x", "trailing characters");
        refused(r#"{"a b": 1}"#, "a b: there is no such field");
        refused(
            r#"{"max_batch_sice": 1}"#,
            "max_batch_sice: a model has no field `max_batch_sice`; did you mean",
        );
        refused(
            r#"{"max_batch_size": "8"}"#,
            "max_batch_size: `max_batch_size` must be a whole number",
        );
        refused(
            r#"{"max_batch_size": 1, "maxBatchSize": 1}"#,
            "maxBatchSize: it stands here for the second time",
        );
        refused(
            r#"{"max_batch_size": [1, 2]}"#,
            "max_batch_size[1]: `max_batch_size` stands here for the second",
        );
        refused(
            r#"{"input": [{"name": "a", "data_type": "TYPE_FP32"}, {"name": "x", "data_type": "FP32"}]}"#,
            "input[1].data_type: `FP32` is not a data type",
        );
        refused(r#"{"input": [null]}"#, "input[0]: it is null");
        refused(r#"{"input": [{"dims": [[1]]}]}"#, "input[0].dims[0]: it is a list in a list");
        refused(
            r#"{"ensemble_scheduling": {}}"#,
            "ensemble_scheduling: `ensemble_scheduling` is not supported",
        );
        refused(r#"{"parameters": {"a": {"string_value": 1}}}"#, "parameters.a.string_value");
        refused(&format!("{}1{}", "{\"a\":".repeat(40), "}".repeat(40)), "nested deeper than 32");
        refused(&format!("{{\"dims\":[{}1]}}", "1,".repeat(FIELDS_MAX)), "more than 65536 fields");
        refused(&" ".repeat(2 << 20), "longer than 1048576 bytes");
    }

    proptest! {
        #[test]
        fn any_text_is_transcribed_into_text_or_refused(json in "[{}\\[\\]\",:a-z_0-9\\\\ -]{0,60}") {
            let _ = read_json(&json);
        }

        #[test]
        fn any_text_in_a_configuration_is_kept(value in any::<String>()) {
            let json = serde_json::json!({"parameters": {&value: {"string_value": &value}}});
            let (description, text) = read_json(&json.to_string()).unwrap();
            prop_assert_eq!(&description.parameters[&value], &value);
            prop_assert_eq!(read(text.as_bytes()).unwrap(), description);
        }
    }
}
