//! `golden.json`: the inputs and outputs of cases, as requests write their inputs.
//!
//! Read by the decoder of requests, so that it takes what they may hold, `NaN` and `Infinity` included. Strict beside
//! that: no key that is not known, none twice.
//!
//! Not here: what the cases are for (`lifecycle`).

use crate::{model::Input, wire::json::Cursor};

use super::{
    DecodeError, Limits,
    error::shown,
    infer::{open, tensors},
};

/// The cases of a file.
#[derive(Debug, Default)]
pub struct GoldenFile {
    /// The distance that numbers may be apart, relatively and absolutely; `None` where the file does not say it.
    pub tolerance: Option<(f64, f64)>,
    /// The inputs and the outputs of each case.
    pub cases: Vec<(Vec<Input>, Vec<Input>)>,
}

/// Why a file is not one of cases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoldenFileError {
    /// The case at fault, from 0; `None` where it is none of them.
    pub case: Option<usize>,
    /// What is wrong.
    pub source: DecodeError,
}

impl<E: Into<DecodeError>> From<E> for GoldenFileError {
    fn from(error: E) -> Self {
        Self { case: None, source: error.into() }
    }
}

/// Reads a file of cases; what it holds is bounded by its size.
pub fn decode_golden(file: &[u8]) -> Result<GoldenFile, GoldenFileError> {
    let mut golden = GoldenFile::default();
    let cursor = &mut Cursor::new(file, Cursor::DEPTH_MAX);
    let seen = object(cursor, "golden.json", ["tolerance", "cases"], |cursor, key| match key {
        0 => {
            golden.tolerance = Some(tolerance(cursor)?);
            Ok(())
        }
        _ => cases(cursor, &mut golden.cases),
    })?;
    cursor.finish()?;
    if !seen[1] {
        return Err(DecodeError::Request("it has no `cases`".to_owned()).into());
    }
    Ok(golden)
}

fn tolerance(cursor: &mut Cursor<'_>) -> Result<(f64, f64), DecodeError> {
    let keys = ["relative", "absolute"];
    let mut numbers = [0.0; 2];
    let seen = object(cursor, "`tolerance`", keys, |cursor, key| {
        let number: f64 = cursor.number()?.parse().unwrap_or(f64::INFINITY);
        if !number.is_finite() {
            let text = format!("`{}` is not a number of 64 bits", keys[key]);
            return Err(DecodeError::Request(text));
        }
        numbers[key] = number;
        Ok(())
    })?;
    all_given(seen, "`tolerance`", keys)?;
    Ok((numbers[0], numbers[1]))
}

fn cases(
    cursor: &mut Cursor<'_>,
    cases: &mut Vec<(Vec<Input>, Vec<Input>)>,
) -> Result<(), GoldenFileError> {
    open(cursor, b'[', "`cases`")?;
    let mut first = true;
    while cursor.next_item(&mut first)? {
        let of_it = |source| GoldenFileError { case: Some(cases.len()), source };
        let case = case(cursor).map_err(of_it)?;
        cases.push(case);
    }
    Ok(())
}

fn case(cursor: &mut Cursor<'_>) -> Result<(Vec<Input>, Vec<Input>), DecodeError> {
    let keys = ["inputs", "outputs"];
    // A model may have more than requests usually hold.
    let limits = Limits {
        inputs_max: usize::MAX,
        name_bytes_max: usize::MAX,
        rank_max: usize::MAX,
        ..Limits::default()
    };
    let mut both = [Vec::new(), Vec::new()];
    let seen = object(cursor, "a case", keys, |cursor, key| {
        both[key] = tensors(cursor, keys[key], &limits)?;
        Ok::<_, DecodeError>(())
    })?;
    all_given(seen, "a case", keys)?;
    let [inputs, outputs] = both;
    if outputs.is_empty() {
        return Err(DecodeError::Request("a case needs at least one of `outputs`".to_owned()));
    }
    Ok((inputs, outputs))
}

/// Reads an object; `read` gets the index of each key. Tells which of the keys were there.
fn object<E: From<DecodeError>>(
    cursor: &mut Cursor<'_>,
    what: &str,
    keys: [&str; 2],
    mut read: impl FnMut(&mut Cursor<'_>, usize) -> Result<(), E>,
) -> Result<[bool; 2], E> {
    let mut seen = [false; 2];
    open(cursor, b'{', what)?;
    let mut first = true;
    while let Some(key) = cursor.next_key(&mut first).map_err(DecodeError::from)? {
        let Some(index) = keys.iter().position(|known| *known == key) else {
            let [one, other] = keys;
            let text =
                format!("{what} has an unknown key {}; there are `{one}`, `{other}`", shown(&key));
            return Err(DecodeError::Request(text).into());
        };
        if std::mem::replace(&mut seen[index], true) {
            return Err(DecodeError::Request(format!("{what} has two keys `{key}`")).into());
        }
        read(cursor, index)?;
    }
    Ok(seen)
}

fn all_given(seen: [bool; 2], what: &str, keys: [&str; 2]) -> Result<(), DecodeError> {
    match seen.iter().position(|is_given| !is_given) {
        None => Ok(()),
        Some(index) => Err(DecodeError::Request(format!("{what} has no `{}`", keys[index]))),
    }
}
