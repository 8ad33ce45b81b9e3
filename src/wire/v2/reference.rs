//! A second decoder of inference requests, slow and plain, to compare the real one with.
//!
//! It parses the JSON into a tree with `serde_json`, keeping the text of numbers, and reads the tree by the
//! rules of the protocol; `core` reads the numbers. The words that JSON lacks are put in quotes first, with a
//! mark that no client writes. Only what both accept, and that the values agree, is compared: not the messages.

use std::{fmt, time::Duration};

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::{
    model::{InferRequest, Input, Parameter, RequestedOutput},
    tensor::{Data, DataType, Shape, Strings, Tensor},
};

use super::Limits;

/// What [`decode_infer`](super::decode_infer) should give; `None` if it should refuse.
pub(crate) fn decode_infer(
    body: &Bytes,
    json_bytes: Option<usize>,
    limits: &Limits,
) -> Option<InferRequest> {
    if json_bytes == Some(0) {
        return None;
    }
    let json = body.get(..json_bytes.unwrap_or(body.len()))?;
    let quoted = quote_words(json);
    let raw = serde_json::from_slice::<Box<RawValue>>(&quoted).ok()?;
    let tree = Tree::parse(&raw, limits.json_depth_max.min(64))?;
    let mut binary = Binary { bytes: &body[json.len()..], announced: json_bytes.is_some() };
    let request = request(&tree, &mut binary, limits)?;
    binary.bytes.is_empty().then_some(request)
}

/// Whether two requests are the same, NaN included.
pub(crate) fn same(one: &InferRequest, other: &InferRequest) -> bool {
    let envelope = |request: &InferRequest| InferRequest { inputs: vec![], ..request.clone() };
    envelope(one) == envelope(other)
        && one.inputs.len() == other.inputs.len()
        && one
            .inputs
            .iter()
            .zip(&other.inputs)
            .all(|(one, other)| one.name == other.name && same_tensor(&one.tensor, &other.tensor))
}

/// Whether two tensors are the same, bit for bit.
pub(crate) fn same_tensor(one: &Tensor, other: &Tensor) -> bool {
    let raw = |tensor: &Tensor| {
        let mut raw = Vec::new();
        tensor.write_raw(&mut raw);
        raw
    };
    one.datatype() == other.datatype() && one.shape() == other.shape() && raw(one) == raw(other)
}

/// A JSON value.
enum Tree {
    Null,
    Bool(bool),
    Number(String),
    String(String),
    /// NaN or an infinity.
    Word(f64),
    Array(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

const MARK: &str = "\u{10fffe}reference:";

const WORDS: [(&str, f64); 3] =
    [("-Infinity", f64::NEG_INFINITY), ("Infinity", f64::INFINITY), ("NaN", f64::NAN)];

/// Puts the words that JSON lacks into quotes, with a mark.
fn quote_words(json: &[u8]) -> Vec<u8> {
    let mut quoted = Vec::with_capacity(json.len());
    let (mut at, mut in_string) = (0, false);
    while at < json.len() {
        let rest = &json[at..];
        let word = WORDS.iter().find(|(word, _)| !in_string && rest.starts_with(word.as_bytes()));
        if let Some((word, _)) = word {
            quoted.extend_from_slice(format!("\"{MARK}{word}\"").as_bytes());
            at += word.len();
        } else if in_string && rest[0] == b'\\' {
            quoted.extend_from_slice(&rest[..rest.len().min(2)]);
            at += 2;
        } else {
            in_string ^= rest[0] == b'"';
            quoted.push(rest[0]);
            at += 1;
        }
    }
    quoted
}

/// An object with its keys in order, and all of them.
struct Entries(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

impl Tree {
    /// Reads a value that opens at most `levels` levels.
    fn parse(raw: &RawValue, levels: usize) -> Option<Self> {
        let text = raw.get().trim_ascii();
        Some(match text.as_bytes().first()? {
            b'n' => Self::Null,
            b't' => Self::Bool(true),
            b'f' => Self::Bool(false),
            b'"' => {
                let string: String = serde_json::from_str(text).ok()?;
                match string.strip_prefix(MARK) {
                    None => Self::String(string),
                    Some(word) => Self::Word(WORDS.iter().find(|(name, _)| *name == word)?.1),
                }
            }
            b'[' => {
                let levels = levels.checked_sub(1)?;
                let items: Vec<Box<RawValue>> = serde_json::from_str(text).ok()?;
                Self::Array(
                    items.iter().map(|item| Self::parse(item, levels)).collect::<Option<_>>()?,
                )
            }
            b'{' => {
                let levels = levels.checked_sub(1)?;
                let Entries(entries) = serde_json::from_str(text).ok()?;
                let entry = |(key, value): (String, Box<RawValue>)| {
                    (!key.starts_with(MARK)).then_some((key, Self::parse(&value, levels)?))
                };
                Self::Object(entries.into_iter().map(entry).collect::<Option<_>>()?)
            }
            _ => Self::Number(text.to_owned()),
        })
    }

    fn entries(&self) -> Option<&[(String, Tree)]> {
        if let Self::Object(entries) = self { Some(entries) } else { None }
    }

    fn items(&self) -> Option<&[Tree]> {
        if let Self::Array(items) = self { Some(items) } else { None }
    }

    fn text(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    fn unsigned(&self) -> Option<u64> {
        match self {
            Self::Number(text) if text == "-0" => Some(0),
            Self::Number(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn truth(&self) -> Option<bool> {
        if let Self::Bool(truth) = self { Some(*truth) } else { None }
    }

    /// Whether a word that JSON lacks is anywhere inside.
    fn has_word(&self) -> bool {
        match self {
            Self::Word(_) => true,
            Self::Array(items) => items.iter().any(Self::has_word),
            Self::Object(entries) => entries.iter().any(|(_, value)| value.has_word()),
            _ => false,
        }
    }

    /// True if this is one element, or an array of elements.
    fn is_flat(&self) -> bool {
        self.items().is_none_or(|items| items.iter().all(|item| item.items().is_none()))
    }

    /// True if arrays nest as these dimensions say.
    fn nests_as(&self, dims: &[i64]) -> bool {
        match (self.items(), dims) {
            (None, []) => true,
            (Some(items), [dim, inner @ ..]) => {
                i64::try_from(items.len()) == Ok(*dim)
                    && items.iter().all(|item| item.nests_as(inner))
            }
            _ => false,
        }
    }

    /// The elements of nested arrays in order.
    fn leaves<'a>(&'a self, leaves: &mut Vec<&'a Self>) {
        match self {
            Self::Array(items) => items.iter().for_each(|item| item.leaves(leaves)),
            leaf => leaves.push(leaf),
        }
    }
}

/// The only value of a key; the outer `None` if the key is there twice, the inner if it is not there.
#[expect(clippy::option_option, reason = "wrong and absent are different things")]
fn only<'a>(entries: &'a [(String, Tree)], key: &str) -> Option<Option<&'a Tree>> {
    let mut found = entries.iter().filter(|(name, _)| name == key).map(|(_, value)| value);
    let first = found.next();
    if found.next().is_some() { None } else { Some(first) }
}

/// As [`only`], null taken for absent.
#[expect(clippy::option_option, reason = "wrong and absent are different things")]
fn optional<'a>(entries: &'a [(String, Tree)], key: &str) -> Option<Option<&'a Tree>> {
    Some(only(entries, key)?.filter(|value| !matches!(value, Tree::Null)))
}

struct Binary<'a> {
    bytes: &'a [u8],
    announced: bool,
}

fn request(tree: &Tree, binary: &mut Binary<'_>, limits: &Limits) -> Option<InferRequest> {
    let entries = tree.entries()?;
    let known = ["id", "parameters", "inputs", "outputs"];
    if entries.iter().any(|(key, value)| !known.contains(&key.as_str()) && value.has_word()) {
        return None;
    }
    let mut request = InferRequest::default();
    if let Some(id) = optional(entries, "id")? {
        let id = id.text().filter(|id| id.len() <= limits.id_bytes_max)?;
        request.id = Some(id.to_owned());
    }
    if let Some(parameters) = optional(entries, "parameters")? {
        request_parameters(parameters.entries()?, &mut request, limits)?;
    }
    let inputs = only(entries, "inputs")??.items()?;
    for tree in inputs {
        request.inputs.push(input(tree.entries()?, binary, limits)?);
    }
    if let Some(outputs) = optional(entries, "outputs")? {
        for tree in outputs.items()? {
            let output = output(tree.entries()?, limits)?;
            if request.outputs.iter().any(|before| before.name == output.name) {
                return None;
            }
            request.outputs.push(output);
        }
    }
    let few = request.inputs.len() <= limits.inputs_max
        && request.outputs.len() <= limits.outputs_max
        && !request.inputs.is_empty();
    few.then_some(request)
}

fn request_parameters(
    entries: &[(String, Tree)],
    request: &mut InferRequest,
    limits: &Limits,
) -> Option<()> {
    if entries.len() > limits.parameters_max {
        return None;
    }
    for (key, value) in entries {
        only(entries, key)?;
        if key.len() > limits.name_bytes_max || key.starts_with("triton_") {
            return None;
        }
        match key.as_str() {
            "headers" => return None,
            "priority" => request.priority = value.unsigned()?,
            "timeout" => {
                let timeout = Duration::from_micros(value.unsigned()?);
                request.timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
            }
            "binary_data_output" => request.binary_output = value.truth()?,
            "sequence_start" | "sequence_end" => {
                if value.truth()? {
                    return None;
                }
            }
            "sequence_id" => {
                if value.text() != Some("") && value.unsigned() != Some(0) {
                    return None;
                }
            }
            _ => request.parameters.push((key.clone(), parameter(value)?)),
        }
    }
    Some(())
}

fn parameter(value: &Tree) -> Option<Parameter> {
    Some(match value {
        Tree::Bool(truth) => Parameter::Bool(*truth),
        Tree::String(text) => Parameter::String(text.clone()),
        Tree::Number(text) => match (text.parse(), text.parse(), text.parse::<f64>()) {
            (Ok(int), _, _) => Parameter::Int(int),
            (_, Ok(uint), _) => Parameter::Uint(uint),
            (_, _, Ok(double)) if double.is_finite() => Parameter::Double(double),
            _ => return None,
        },
        _ => return None,
    })
}

fn name(entries: &[(String, Tree)], limits: &Limits) -> Option<String> {
    let name = only(entries, "name")??.text()?;
    (name.len() <= limits.name_bytes_max).then(|| name.to_owned())
}

fn input(entries: &[(String, Tree)], binary: &mut Binary<'_>, limits: &Limits) -> Option<Input> {
    if entries.iter().any(|(key, value)| key != "data" && value.has_word()) {
        return None;
    }
    let name = name(entries, limits)?;
    let datatype = DataType::parse(only(entries, "datatype")??.text()?)?;
    let dims = only(entries, "shape")??.items()?.iter().map(|dim| match dim {
        Tree::Number(text) => text.parse().ok(),
        _ => None,
    });
    let dims: Vec<i64> = dims.collect::<Option<_>>()?;
    let shape = Shape::new(&dims).filter(|shape| shape.len() <= limits.rank_max)?;
    let count = shape.element_count()?;
    let mut size = None;
    if let Some(parameters) = optional(entries, "parameters")? {
        let parameters = parameters.entries()?;
        let shared = parameters.iter().any(|(key, _)| key.starts_with("shared_memory_"));
        if shared || parameters.len() > limits.parameters_max {
            return None;
        }
        if let Some(value) = only(parameters, "binary_data_size")? {
            size = Some(usize::try_from(value.unsigned()?).ok()?);
        }
    }
    let tensor = match (optional(entries, "data")?, size) {
        (Some(data), None) => {
            let mut leaves = Vec::new();
            data.leaves(&mut leaves);
            if leaves.len() != count || count > 0 && !data.is_flat() && !data.nests_as(&dims) {
                return None;
            }
            Tensor::new(shape, elements(datatype, &leaves)?).ok()?
        }
        (None, Some(size)) => {
            if size > 0 && !binary.announced {
                return None;
            }
            let (raw, behind) = binary.bytes.split_at_checked(size)?;
            binary.bytes = behind;
            binary_tensor(datatype, shape, raw)?
        }
        (None, None) if count == 0 => binary_tensor(datatype, shape, &[])?,
        _ => return None,
    };
    Some(Input { name, tensor })
}

fn binary_tensor(datatype: DataType, shape: Shape, mut raw: &[u8]) -> Option<Tensor> {
    if datatype != DataType::Bytes {
        return Tensor::from_raw(datatype, shape, Bytes::copy_from_slice(raw)).ok();
    }
    let mut strings = Strings::default();
    while let Some((length, behind)) = raw.split_first_chunk() {
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (string, behind) = behind.split_at_checked(length)?;
        strings.push(string);
        raw = behind;
    }
    if !raw.is_empty() {
        return None;
    }
    Tensor::new(shape, Data::Bytes(strings)).ok()
}

fn elements(datatype: DataType, leaves: &[&Tree]) -> Option<Data> {
    fn whole<T: TryFrom<i128>>(leaves: &[&Tree]) -> Option<Vec<T>> {
        let value = |leaf: &&Tree| match leaf {
            Tree::Number(text) => T::try_from(text.parse::<i128>().ok()?).ok(),
            _ => None,
        };
        leaves.iter().map(value).collect()
    }
    Some(match datatype {
        DataType::Bool => {
            Data::Bool(leaves.iter().map(|leaf| leaf.truth()).collect::<Option<_>>()?)
        }
        DataType::Uint8 => Data::Uint8(whole(leaves)?),
        DataType::Uint16 => Data::Uint16(whole(leaves)?),
        DataType::Uint32 => Data::Uint32(whole(leaves)?),
        DataType::Uint64 => Data::Uint64(whole(leaves)?),
        DataType::Int8 => Data::Int8(whole(leaves)?),
        DataType::Int16 => Data::Int16(whole(leaves)?),
        DataType::Int32 => Data::Int32(whole(leaves)?),
        DataType::Int64 => Data::Int64(whole(leaves)?),
        DataType::Fp32 => {
            let value = |leaf: &&Tree| match leaf {
                #[expect(clippy::cast_possible_truncation, reason = "words have no digits")]
                Tree::Word(word) => Some(*word as f32),
                Tree::Number(text) => text.parse().ok().filter(|value: &f32| value.is_finite()),
                _ => None,
            };
            Data::Fp32(leaves.iter().map(value).collect::<Option<_>>()?)
        }
        DataType::Fp64 => {
            let value = |leaf: &&Tree| match leaf {
                Tree::Word(word) => Some(*word),
                Tree::Number(text) => text.parse().ok().filter(|value: &f64| value.is_finite()),
                _ => None,
            };
            Data::Fp64(leaves.iter().map(value).collect::<Option<_>>()?)
        }
        DataType::Bytes => {
            let texts: Vec<&str> = leaves.iter().map(|leaf| leaf.text()).collect::<Option<_>>()?;
            Data::Bytes(texts.into_iter().collect())
        }
        DataType::Fp16 | DataType::Bf16 => return None,
    })
}

fn output(entries: &[(String, Tree)], limits: &Limits) -> Option<RequestedOutput> {
    if entries.iter().any(|(_, value)| value.has_word()) {
        return None;
    }
    let name = name(entries, limits)?;
    let (mut binary, mut classification) = (None, None);
    if let Some(parameters) = optional(entries, "parameters")? {
        let parameters = parameters.entries()?;
        let shared = parameters.iter().any(|(key, _)| key.starts_with("shared_memory_"));
        if shared || parameters.len() > limits.parameters_max {
            return None;
        }
        if let Some(value) = only(parameters, "binary_data")? {
            binary = Some(value.truth()?);
        }
        if let Some(value) = only(parameters, "classification")? {
            classification = Some(usize::try_from(value.unsigned()?).ok().filter(|k| *k > 0)?);
        }
    }
    Some(RequestedOutput { name, binary, classification })
}
