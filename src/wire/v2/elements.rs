//! The elements of a tensor in JSON: straight into the buffer of their datatype.
//!
//! `data` is flat, or nested as the shape says, and a tensor of one element may be a bare value. Whole numbers are
//! strict (no fraction, no exponent, in range), floats take every number, and NaN, Infinity, -Infinity as Python writes
//! them. Always true:
//! - Room is made for no more elements than the bytes left can hold.
//! - Reading ends at the first element more than the shape has.
//! - Nesting costs something at brackets only, and nothing where `data` is flat.
//!
//! Source: Open Inference Protocol, REST, "Tensor Data". Triton counts elements and ignores the nesting, and so takes
//! rows of different lengths for another tensor than the client meant.

use smallvec::SmallVec;

use crate::{
    tensor::{Data, DataType, Strings},
    wire::json::{Cursor, JsonError, byte, number, skip_space, syntax, text},
};

use super::error::shown;

/// Why `data` cannot be read.
#[derive(Debug)]
pub(super) enum Fault {
    /// Not JSON.
    Json(JsonError),
    /// An element is of the wrong kind or does not fit.
    Element { index: usize, problem: String },
    /// `data` as a whole.
    Data(String),
}

impl From<JsonError> for Fault {
    fn from(error: JsonError) -> Self {
        Self::Json(error)
    }
}

/// Reads the value at the cursor as the elements of a tensor of this shape, which has `count` elements.
///
/// Without a shape any nesting will do.
pub(super) fn read(
    cursor: &mut Cursor<'_>,
    datatype: DataType,
    shape: Option<&[i64]>,
    count: usize,
) -> Result<Data, Fault> {
    let kind = Kind { shape: shape.filter(|_| count > 0), count };
    Ok(match datatype {
        DataType::Bool => Data::Bool(fill(cursor, kind)?),
        DataType::Uint8 => Data::Uint8(fill(cursor, kind)?),
        DataType::Uint16 => Data::Uint16(fill(cursor, kind)?),
        DataType::Uint32 => Data::Uint32(fill(cursor, kind)?),
        DataType::Uint64 => Data::Uint64(fill(cursor, kind)?),
        DataType::Int8 => Data::Int8(fill(cursor, kind)?),
        DataType::Int16 => Data::Int16(fill(cursor, kind)?),
        DataType::Int32 => Data::Int32(fill(cursor, kind)?),
        DataType::Int64 => Data::Int64(fill(cursor, kind)?),
        DataType::Fp32 => Data::Fp32(fill(cursor, kind)?),
        DataType::Fp64 => Data::Fp64(fill(cursor, kind)?),
        DataType::Bytes => Data::Bytes(strings(cursor, kind)?),
        DataType::Fp16 | DataType::Bf16 => {
            return Err(Fault::Data(format!(
                "{datatype} has no JSON form; send it in binary form, with `binary_data_size`"
            )));
        }
    })
}

/// A type whose values JSON writes.
trait JsonElement: Sized {
    /// The usual value at `start`, and the offset behind it.
    fn read(bytes: &[u8], start: usize) -> Option<(Self, usize)>;

    /// Any value at `start`, or what is wrong with it.
    fn read_slow(bytes: &[u8], start: usize) -> Result<(Self, usize), Misfit>;
}

/// Why one element cannot be read.
enum Misfit {
    Json(JsonError),
    Problem(String),
}

impl From<JsonError> for Misfit {
    fn from(error: JsonError) -> Self {
        Self::Json(error)
    }
}

/// Where elements go.
trait Elements {
    fn count(&self) -> usize;

    /// Reads one more element; the offset behind it.
    fn read_one(&mut self, bytes: &[u8], start: usize) -> Result<usize, Misfit>;
}

impl<T: JsonElement> Elements for Vec<T> {
    #[inline]
    fn count(&self) -> usize {
        self.len()
    }

    #[inline]
    fn read_one(&mut self, bytes: &[u8], start: usize) -> Result<usize, Misfit> {
        let (value, end) = match T::read(bytes, start) {
            Some(read) => read,
            None => T::read_slow(bytes, start)?,
        };
        self.push(value);
        Ok(end)
    }
}

impl Elements for Strings {
    fn count(&self) -> usize {
        self.len()
    }

    fn read_one(&mut self, bytes: &[u8], start: usize) -> Result<usize, Misfit> {
        if byte(bytes, start) != b'"' {
            return Err(Misfit::Problem(format!(
                "{} is not a string, as BYTES needs",
                found(bytes, start)?
            )));
        }
        let mut end = start;
        self.push_with(|out| {
            end = text::string_into(bytes, start, out)?;
            Ok::<_, JsonError>(())
        })?;
        Ok(end)
    }
}

/// What is to be read.
#[derive(Debug, Clone, Copy)]
struct Kind<'a> {
    /// Nothing can be out of place where there are no elements: then `None`, too.
    shape: Option<&'a [i64]>,
    count: usize,
}

/// How arrays nest, compared with a shape.
struct Nesting {
    /// How many elements an array holds, on each level: all of them on the outermost.
    sizes: SmallVec<[usize; 8]>,
    open: SmallVec<[Level; 8]>,
    fits: bool,
}

/// An open array.
struct Level {
    /// How many elements came before it.
    start: usize,
    /// How many arrays have been opened directly in it.
    arrays: usize,
}

impl Nesting {
    fn of(kind: Kind<'_>) -> Self {
        let dims = kind.shape.unwrap_or_default();
        let mut sizes = SmallVec::from_elem(1, dims.len());
        let mut size = 1usize;
        for (at, dim) in sizes.iter_mut().zip(dims).rev() {
            // The product of all of them has been found to fit.
            size = size.saturating_mul(usize::try_from(*dim).unwrap_or(usize::MAX));
            *at = size;
        }
        Self { sizes, open: SmallVec::new(), fits: kind.shape.is_some() }
    }

    /// An array begins behind so many elements.
    fn open(&mut self, count: usize) {
        if !self.fits {
            return;
        }
        let size = self.sizes.get(self.open.len()).copied();
        if let Some(outer) = self.open.last_mut() {
            // Elements and arrays do not stand side by side, so that every array begins where the ones before it end.
            self.fits = size.is_some_and(|size| count == outer.start + outer.arrays * size);
            outer.arrays += 1;
        }
        self.open.push(Level { start: count, arrays: 0 });
    }

    /// The innermost array ends behind so many elements.
    fn close(&mut self, count: usize) {
        let Some(level) = self.open.pop().filter(|_| self.fits) else { return };
        let (at, held) = (self.open.len(), count - level.start);
        self.fits = match level.arrays {
            // Flat: how many there are is looked at in the end.
            0 if at == 0 => true,
            // Only the innermost level holds elements.
            0 => at + 1 == self.sizes.len() && held == self.sizes[at],
            arrays => held == self.sizes[at] && held == arrays * self.sizes[at + 1],
        };
    }
}

fn fill<T: JsonElement>(cursor: &mut Cursor<'_>, kind: Kind<'_>) -> Result<Vec<T>, Fault> {
    let mut values = Vec::with_capacity(kind.count.min(room(cursor)));
    collect(cursor, kind, &mut values)?;
    Ok(values)
}

fn strings(cursor: &mut Cursor<'_>, kind: Kind<'_>) -> Result<Strings, Fault> {
    let mut strings = Strings::with_capacity(kind.count.min(room(cursor)), 0);
    collect(cursor, kind, &mut strings)?;
    Ok(strings)
}

/// How many elements the bytes left can hold: each takes a character and a comma.
fn room(cursor: &Cursor<'_>) -> usize {
    (cursor.bytes().len() - cursor.offset()) / 2 + 1
}

/// Reads a value, an array, or arrays of arrays.
///
/// Alternates between what begins a value and what follows one.
fn collect(
    cursor: &mut Cursor<'_>,
    kind: Kind<'_>,
    elements: &mut impl Elements,
) -> Result<(), Fault> {
    let (bytes, count) = (cursor.bytes(), kind.count);
    let mut nesting = Nesting::of(kind);
    let floor = cursor.depth();
    let mut depth = floor;
    let mut at = cursor.offset();
    'value: loop {
        at = skip_space(bytes, at);
        if byte(bytes, at) == b'[' {
            if depth == cursor.depth_max() {
                return Err(JsonError::Depth { offset: at, max: depth }.into());
            }
            depth += 1;
            nesting.open(elements.count());
            at = skip_space(bytes, at + 1);
            if byte(bytes, at) != b']' {
                continue 'value;
            }
        } else {
            if elements.count() == count {
                return Err(surplus(bytes, at, count));
            }
            at = elements
                .read_one(bytes, at)
                .map_err(|misfit| misplaced(misfit, elements.count()))?;
        }
        while depth > floor {
            at = skip_space(bytes, at);
            match byte(bytes, at) {
                b',' => {
                    at += 1;
                    continue 'value;
                }
                b']' => {
                    at += 1;
                    depth -= 1;
                    nesting.close(elements.count());
                }
                _ => return Err(syntax(bytes, at, "expected `,` or `]`").into()),
            }
        }
        cursor.jump(at);
        let actual = elements.count();
        if actual < count {
            return Err(Fault::Data(format!(
                "`data` has {actual} elements, the shape needs {count}"
            )));
        }
        if let Some(shape) = kind.shape.filter(|_| !nesting.fits) {
            return Err(misnested(shape));
        }
        return Ok(());
    }
}

#[cold]
fn misnested(shape: &[i64]) -> Fault {
    let shape = shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    Fault::Data(format!(
        "`data` is not nested as the shape [{shape}] says; nest it so, or write all elements into one array"
    ))
}

#[cold]
fn misplaced(misfit: Misfit, index: usize) -> Fault {
    match misfit {
        Misfit::Json(error) => Fault::Json(error),
        Misfit::Problem(problem) => Fault::Element { index, problem },
    }
}

/// More elements than the shape has, unless what comes is no value at all.
#[cold]
fn surplus(bytes: &[u8], at: usize, count: usize) -> Fault {
    match found(bytes, at) {
        Err(Misfit::Json(error)) => Fault::Json(error),
        _ => Fault::Data(format!("`data` has more elements than the {count} that the shape needs")),
    }
}

/// What stands at `at`, for a message.
#[cold]
fn found(bytes: &[u8], at: usize) -> Result<String, Misfit> {
    let literal = |word: &str| bytes[at..].starts_with(word.as_bytes());
    for word in ["true", "false", "null", "NaN", "Infinity", "-Infinity"] {
        if literal(word) {
            return Ok(word.to_owned());
        }
    }
    Ok(match byte(bytes, at) {
        b'"' => shown(&text::string(bytes, at)?.0),
        b'{' => "an object".to_owned(),
        _ => {
            let end = number::scan_number(bytes, at)?;
            let token = std::str::from_utf8(&bytes[at..end]).expect("a number is ASCII");
            if token.len() <= SHOWN_DIGITS_MAX {
                token.to_owned()
            } else {
                format!("{}…", &token[..SHOWN_DIGITS_MAX])
            }
        }
    })
}

/// Characters of a number in a message.
const SHOWN_DIGITS_MAX: usize = 40;

impl JsonElement for bool {
    #[inline]
    fn read(bytes: &[u8], start: usize) -> Option<(Self, usize)> {
        let rest = bytes.get(start..)?;
        if rest.starts_with(b"true") {
            return Some((true, start + 4));
        }
        rest.starts_with(b"false").then_some((false, start + 5))
    }

    #[cold]
    fn read_slow(bytes: &[u8], start: usize) -> Result<(Self, usize), Misfit> {
        let found = found(bytes, start)?;
        Err(Misfit::Problem(format!("{found} is not a BOOL; only true and false are")))
    }
}

macro_rules! integers {
    ($($rust:ty => $datatype:ident),* $(,)?) => {$(
        impl JsonElement for $rust {
            #[inline]
            fn read(bytes: &[u8], start: usize) -> Option<(Self, usize)> {
                let (value, end) = number::integer(bytes, start)?;
                Some((value.try_into().ok()?, end))
            }

            #[cold]
            fn read_slow(bytes: &[u8], start: usize) -> Result<(Self, usize), Misfit> {
                let (value, end) = integer_slow(
                    bytes,
                    start,
                    DataType::$datatype,
                    <$rust>::MIN.into(),
                    <$rust>::MAX.into(),
                )?;
                Ok((value.try_into().expect("the range was checked"), end))
            }
        }
    )*};
}

integers! {
    u8 => Uint8, u16 => Uint16, u32 => Uint32, u64 => Uint64,
    i8 => Int8, i16 => Int16, i32 => Int32, i64 => Int64,
}

/// A whole number of any length, between `min` and `max`.
#[cold]
fn integer_slow(
    bytes: &[u8],
    start: usize,
    datatype: DataType,
    min: i128,
    max: i128,
) -> Result<(i128, usize), Misfit> {
    let shown = found(bytes, start)?;
    if !matches!(byte(bytes, start), b'-' | b'0'..=b'9') || shown == "-Infinity" {
        return Err(Misfit::Problem(format!("{shown} is not a whole number, as {datatype} needs")));
    }
    let end = number::scan_number(bytes, start)?;
    let token = std::str::from_utf8(&bytes[start..end]).expect("a number is ASCII");
    if token.contains(['.', 'e', 'E']) {
        return Err(Misfit::Problem(format!(
            "{shown} is not a whole number; {datatype} takes no fraction and no exponent"
        )));
    }
    // What does not fit i128 does not fit the datatype either.
    match token.parse::<i128>() {
        Ok(value) if (min..=max).contains(&value) => Ok((value, end)),
        _ => Err(Misfit::Problem(format!("{shown} does not fit {datatype} ({min} to {max})"))),
    }
}

macro_rules! floats {
    ($($rust:ty => $datatype:ident),* $(,)?) => {$(
        impl JsonElement for $rust {
            #[inline]
            fn read(bytes: &[u8], start: usize) -> Option<(Self, usize)> {
                number::float(bytes, start)
            }

            #[cold]
            fn read_slow(bytes: &[u8], start: usize) -> Result<(Self, usize), Misfit> {
                for (word, value) in [
                    ("NaN", <$rust>::NAN),
                    ("Infinity", <$rust>::INFINITY),
                    ("-Infinity", <$rust>::NEG_INFINITY),
                ] {
                    if bytes[start..].starts_with(word.as_bytes()) {
                        return Ok((value, start + word.len()));
                    }
                }
                if !matches!(byte(bytes, start), b'-' | b'0'..=b'9') {
                    let found = found(bytes, start)?;
                    return Err(not_a_number(&found, DataType::$datatype));
                }
                let (value, end) = number::float_slow::<$rust>(bytes, start)?;
                if value.is_finite() {
                    return Ok((value, end));
                }
                let found = found(bytes, start)?;
                Err(too_large(&found, DataType::$datatype, <$rust>::MAX.into()))
            }
        }
    )*};
}

floats! { f32 => Fp32, f64 => Fp64 }

fn not_a_number(found: &str, datatype: DataType) -> Misfit {
    Misfit::Problem(format!("{found} is not a number, as {datatype} needs"))
}

fn too_large(found: &str, datatype: DataType, max: f64) -> Misfit {
    Misfit::Problem(format!(
        "{found} does not fit {datatype} (-{max:e} to {max:e}); write Infinity if that is meant"
    ))
}
