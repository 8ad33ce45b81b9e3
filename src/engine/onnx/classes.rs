//! Classes: the order in which a `ZipMap` names the scores of a row.
//!
//! The engine gives a map for each row and none for no rows; only the file says how many classes there are, and in
//! which order.
//!
//! Not here: making a matrix of maps (`onnxruntime`).

use std::{
    collections::{BTreeMap, HashSet},
    hash::Hash,
};

use super::{Limits, OnnxError, at_most, walk::default_domain, wire::Fields};

/// The domain and the name of the operator.
pub(super) const ZIP_MAP: (&str, &str) = ("ai.onnx.ml", "ZipMap");

/// The classes of an output, each once, in the order of their scores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Classes {
    /// Numbers.
    Integers(Vec<i64>),
    /// Names.
    Texts(Vec<String>),
}

impl Classes {
    /// The number of classes.
    #[expect(clippy::len_without_is_empty, reason = "without classes there is none of this")]
    pub fn len(&self) -> usize {
        match self {
            Self::Integers(all) => all.len(),
            Self::Texts(all) => all.len(),
        }
    }
}

/// The classes of each `ZipMap` in the main graph, by the name of its output.
pub(super) fn classes(
    mut graph: Fields<'_>,
    limits: &Limits,
) -> Result<BTreeMap<String, Classes>, OnnxError> {
    let (mut found, mut count) = (BTreeMap::new(), 0);
    while let Some(field) = graph.advance()? {
        if field.number != 1 {
            continue;
        }
        if let Some((output, classes)) = of_node(field.message()?, limits, &mut count)? {
            found.insert(output.to_owned(), classes);
        }
    }
    Ok(found)
}

/// The output and the classes of a node that is a `ZipMap`.
fn of_node<'a>(
    mut node: Fields<'a>,
    limits: &Limits,
    count: &mut usize,
) -> Result<Option<(&'a str, Classes)>, OnnxError> {
    let (mut output, mut operator, mut domain, mut attributes) = ("", "", "", Vec::new());
    while let Some(field) = node.advance()? {
        match field.number {
            2 => output = field.text(limits.name_bytes)?,
            4 => operator = field.text(limits.name_bytes)?,
            5 => attributes.push(field.message()?),
            7 => domain = default_domain(field.text(limits.name_bytes)?),
            _ => {}
        }
    }
    if (domain, operator) != ZIP_MAP {
        return Ok(None);
    }
    let mut classes = None;
    for attribute in attributes {
        classes = of_attribute(attribute, limits, count)?.or(classes);
    }
    Ok(classes.map(|classes| (output, classes)))
}

/// The classes that an attribute lists; `None` if it does not, or not as text.
fn of_attribute(
    mut attribute: Fields<'_>,
    limits: &Limits,
    count: &mut usize,
) -> Result<Option<Classes>, OnnxError> {
    let (mut name, mut integers, mut texts, mut is_text) = ("", Vec::new(), Vec::new(), true);
    while let Some(field) = attribute.advance()? {
        match field.number {
            1 => name = field.text(limits.name_bytes)?,
            8 => field.integers(|class| {
                *count += 1;
                if *count <= limits.classes {
                    integers.push(class);
                }
            })?,
            9 => {
                *count += 1;
                let text = std::str::from_utf8(field.bytes()?.0);
                is_text &= text.is_ok();
                texts.extend(text.ok().filter(|_| *count <= limits.classes).map(str::to_owned));
            }
            _ => {}
        }
        at_most("classes", *count, limits.classes)?;
    }
    Ok(match name {
        "classlabels_int64s" if !integers.is_empty() => Some(Classes::Integers(once(integers))),
        "classlabels_strings" if !texts.is_empty() && is_text => Some(Classes::Texts(once(texts))),
        _ => None,
    })
}

/// Each of them once, where it stands first: a map has it once.
fn once<T: Clone + Eq + Hash>(mut all: Vec<T>) -> Vec<T> {
    let mut seen = HashSet::new();
    all.retain(|one| seen.insert(one.clone()));
    all
}
