//! Rounds: what each round of a `Loop` collects, and whether one round always leads to the next.
//!
//! Of a loop that always goes on, the count of rounds is known before the run, and so is how much it collects: also a
//! row that costs no memory, such as one that is the same each time, costs a handle. Of a loop with a condition nothing
//! is known.
//!
//! Not here: the count of rounds (`growth`).

use std::collections::{HashMap, HashSet};

use super::{
    Limits, OnnxError, ValueType,
    declared::{Dim, declared},
    walk::default_domain,
    wire::Fields,
};

/// The body of a loop.
#[derive(Debug, Default)]
pub(super) struct Body {
    /// Values that go from round to round.
    pub(super) carried: usize,
    /// What is collected, in the order of the outputs.
    pub(super) collected: Vec<Row>,
    /// True if its condition is the one of the round before, or always true.
    pub(super) goes_on: bool,
}

/// What one round adds to an output.
#[derive(Debug, Default)]
pub(super) struct Row {
    /// ONNX's code of its element type; 0 where that is not declared.
    pub(super) element: i32,
    /// Its dimensions; `None` where one is open.
    pub(super) dims: Option<Vec<i64>>,
}

/// Reads the body of a loop.
pub(super) fn body(mut fields: Fields<'_>, limits: &Limits) -> Result<Body, OnnxError> {
    let (mut inputs, mut outputs, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    let (mut same, mut constants) = (HashMap::new(), HashSet::new());
    while let Some(field) = fields.advance()? {
        match field.number {
            1 => {
                if let Some((from, to)) = identity(field.message()?, limits)? {
                    same.insert(to, from);
                }
            }
            5 => {
                if let Some(name) = truth(field.message()?, limits)? {
                    constants.insert(name);
                }
            }
            11 => inputs.push(name(field.message()?, limits)?),
            12 => {
                outputs.push(name(field.message()?, limits)?);
                rows.push(row(field.message()?, limits)?);
            }
            _ => {}
        }
    }
    let [_, condition, carried @ ..] = &inputs[..] else { return Ok(Body::default()) };
    let mut next = outputs.first().copied().unwrap_or("");
    // A chain that is longer than there are links is a circle.
    for _ in 0..same.len() {
        next = same.get(next).copied().unwrap_or(next);
    }
    let goes_on = next == *condition || constants.contains(next);
    let collected = rows.into_iter().skip(1 + carried.len()).collect();
    Ok(Body { carried: carried.len(), collected, goes_on })
}

/// What an `Identity` takes and gives.
fn identity<'a>(
    mut fields: Fields<'a>,
    limits: &Limits,
) -> Result<Option<(&'a str, &'a str)>, OnnxError> {
    let (mut from, mut to, mut operator, mut domain) = ("", "", "", "");
    while let Some(field) = fields.advance()? {
        match field.number {
            1 => from = field.text(limits.name_bytes)?,
            2 => to = field.text(limits.name_bytes)?,
            4 => operator = field.text(limits.name_bytes)?,
            7 => domain = default_domain(field.text(limits.name_bytes)?),
            _ => {}
        }
    }
    Ok((domain.is_empty() && operator == "Identity").then_some((from, to)))
}

/// The name of an initializer that is true.
fn truth<'a>(mut fields: Fields<'a>, limits: &Limits) -> Result<Option<&'a str>, OnnxError> {
    const BOOL: i32 = 9;
    let (mut name, mut element, mut is_true) = ("", 0, false);
    while let Some(field) = fields.advance()? {
        match field.number {
            2 => element = field.int32()?,
            5 => field.integers(|number| is_true = number != 0)?,
            8 => name = field.text(limits.name_bytes)?,
            9 => is_true = matches!(field.bytes()?.0, [1]),
            _ => {}
        }
    }
    Ok(Some(name).filter(|_| is_true && element == BOOL))
}

fn name<'a>(mut fields: Fields<'a>, limits: &Limits) -> Result<&'a str, OnnxError> {
    let mut name = "";
    while let Some(field) = fields.advance()? {
        if field.number == 1 {
            name = field.text(limits.name_bytes)?;
        }
    }
    Ok(name)
}

fn row(fields: Fields<'_>, limits: &Limits) -> Result<Row, OnnxError> {
    let ValueType::Tensor { element, dims } = declared(fields, limits)?.value_type else {
        return Ok(Row::default());
    };
    let fixed = |dim: &Dim| match dim {
        Dim::Fixed(size) => i64::try_from(*size).ok(),
        Dim::Named(_) | Dim::Open => None,
    };
    let dims = dims.and_then(|dims| dims.iter().map(fixed).collect());
    Ok(Row { element: element.0, dims })
}
