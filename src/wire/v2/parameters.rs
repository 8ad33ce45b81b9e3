//! Parameters: those that the protocol reserves are read, the others passed on.
//!
//! Source: Triton's extensions for scheduling, sequences, binary tensors and parameters. Sequences are not
//! supported: their parameters are refused unless they say that there is none.

use std::time::Duration;

use crate::{
    model::{InferRequest, Parameter},
    wire::json::{Cursor, JsonError},
};

use super::{DecodeError, Limits, error::shown};

/// Why a value is not what a key takes.
pub(super) enum Misfit {
    Json(JsonError),
    /// Completes a sentence that begins with the key.
    Problem(String),
}

impl From<JsonError> for Misfit {
    fn from(error: JsonError) -> Self {
        Self::Json(error)
    }
}

impl Misfit {
    /// The whole error, a problem completed by `wrong`.
    pub(super) fn or(self, wrong: impl FnOnce(String) -> DecodeError) -> DecodeError {
        match self {
            Self::Json(error) => error.into(),
            Self::Problem(problem) => wrong(problem),
        }
    }
}

/// Reads the `parameters` of a request.
pub(super) fn read_request(
    cursor: &mut Cursor<'_>,
    limits: &Limits,
    request: &mut InferRequest,
) -> Result<(), DecodeError> {
    let mut reserved = Vec::new();
    let mut first = true;
    let mut count = 0;
    super::infer::open(cursor, b'{', "`parameters`")?;
    while let Some(key) = cursor.next_key(&mut first)? {
        count_limited(&mut count, limits)?;
        key_limited(&key, limits)?;
        let wrong = |problem| DecodeError::Parameter { name: shown(&key), problem };
        let twice = |name: &str| name == key;
        if reserved.iter().copied().any(twice)
            || request.parameters.iter().any(|(name, _)| twice(name))
        {
            return Err(wrong("is given twice".to_owned()));
        }
        match read_reserved(cursor, &key, request) {
            Ok(Some(name)) => reserved.push(name),
            Ok(None) => {
                let value = passed_on(cursor).map_err(|misfit| misfit.or(wrong))?;
                request.parameters.push((key.into_owned(), value));
            }
            Err(misfit) => return Err(misfit.or(wrong)),
        }
    }
    Ok(())
}

/// Reads the value of a reserved key, and gives the key; `None`, and nothing read, for any other.
fn read_reserved(
    cursor: &mut Cursor<'_>,
    key: &str,
    request: &mut InferRequest,
) -> Result<Option<&'static str>, Misfit> {
    let name = match key {
        "priority" => {
            request.priority = unsigned(cursor)?;
            "priority"
        }
        "timeout" => {
            let microseconds = unsigned(cursor)?;
            request.timeout = (microseconds > 0).then(|| Duration::from_micros(microseconds));
            "timeout"
        }
        "binary_data_output" => {
            request.binary_output = boolean(cursor)?;
            "binary_data_output"
        }
        "sequence_id" => {
            let none = match cursor.peek() {
                b'"' => cursor.string()?.is_empty(),
                _ => unsigned(cursor)? == 0,
            };
            no_sequence(none)?;
            "sequence_id"
        }
        "sequence_start" => {
            no_sequence(!boolean(cursor)?)?;
            "sequence_start"
        }
        "sequence_end" => {
            no_sequence(!boolean(cursor)?)?;
            "sequence_end"
        }
        "headers" => {
            return Err(Misfit::Problem("is reserved; send headers as HTTP headers".to_owned()));
        }
        key if key.starts_with("triton_") => {
            return Err(Misfit::Problem("is reserved; choose a name without `triton_`".to_owned()));
        }
        _ => return Ok(None),
    };
    Ok(Some(name))
}

fn no_sequence(none: bool) -> Result<(), Misfit> {
    if none {
        return Ok(());
    }
    Err(Misfit::Problem(
        "asks for a sequence; sequences are not supported, leave it out".to_owned(),
    ))
}

/// The value of a parameter that means nothing here.
fn passed_on(cursor: &mut Cursor<'_>) -> Result<Parameter, Misfit> {
    match cursor.peek() {
        b'"' => return Ok(Parameter::String(cursor.string()?.into_owned())),
        b't' | b'f' => return Ok(Parameter::Bool(cursor.boolean()?)),
        b'-' | b'0'..=b'9' => (),
        next => return Err(unfit(cursor, next, "a string, a number, true or false")),
    }
    let token = cursor.number()?;
    if let Ok(value) = token.parse() {
        return Ok(Parameter::Int(value));
    }
    if let Ok(value) = token.parse() {
        return Ok(Parameter::Uint(value));
    }
    let value: f64 = token.parse().expect("core takes every number of JSON");
    if value.is_finite() {
        return Ok(Parameter::Double(value));
    }
    Err(Misfit::Problem(format!("is {}, beyond the largest FP64", shown(token))))
}

/// A whole number from 0.
pub(super) fn unsigned(cursor: &mut Cursor<'_>) -> Result<u64, Misfit> {
    const WANTED: &str = "a whole number from 0 to 18446744073709551615";
    match cursor.peek() {
        b'-' | b'0'..=b'9' => (),
        next => return Err(unfit(cursor, next, WANTED)),
    }
    let token = cursor.number()?;
    if token == "-0" {
        return Ok(0);
    }
    let problem = || Misfit::Problem(format!("is {}; it must be {WANTED}", shown(token)));
    token.parse().map_err(|_| problem())
}

/// `true` or `false`.
pub(super) fn boolean(cursor: &mut Cursor<'_>) -> Result<bool, Misfit> {
    match cursor.peek() {
        b't' | b'f' => Ok(cursor.boolean()?),
        next => Err(unfit(cursor, next, "true or false")),
    }
}

/// The problem that a value of another kind begins with `next`; a syntax error where no value does.
fn unfit(cursor: &Cursor<'_>, next: u8, wanted: &str) -> Misfit {
    let kind = match next {
        b'{' => "an object",
        b'[' => "an array",
        b'"' => "a string",
        b'n' => "null",
        b't' | b'f' => "a truth value",
        b'-' | b'0'..=b'9' => "a number",
        _ => return Misfit::Json(cursor.unexpected("expected a value")),
    };
    Misfit::Problem(format!("is {kind}; it must be {wanted}"))
}

/// Counts a key of a `parameters` object.
pub(super) fn count_limited(count: &mut usize, limits: &Limits) -> Result<(), DecodeError> {
    *count += 1;
    if *count > limits.parameters_max {
        return Err(DecodeError::Limit {
            what: "keys of a `parameters` object",
            max: limits.parameters_max,
        });
    }
    Ok(())
}

/// Checks the length of a name.
pub(super) fn key_limited(name: &str, limits: &Limits) -> Result<(), DecodeError> {
    if name.len() > limits.name_bytes_max {
        return Err(DecodeError::Limit { what: "bytes of a name", max: limits.name_bytes_max });
    }
    Ok(())
}
