//! JSON numbers: digits eight at a time, floats rounded once.
//!
//! The fast way takes what nearly every client writes; whatever it does not take - very long, very large, or
//! wrong - goes the slow way, which checks the grammar and leaves the rounding to `core`. Both ways give the
//! same value, and the value is the nearest one (ties to even), as if the text were rounded once.
//!
//! Not here: NaN and the infinities, which JSON lacks (`wire::v2::elements`).

use super::{JsonError, byte, syntax, word};

/// A number that the fast way takes: `mantissa * 10^exponent`, exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::wire) struct Decimal {
    negative: bool,
    mantissa: u64,
    exponent: i32,
}

/// The powers of ten that an `f64` holds exactly.
const POWERS_F64: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];

/// The powers of ten that eight digits can shift by.
const POWERS_U64: [u64; 9] =
    [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

/// A float of JSON text.
pub(in crate::wire) trait Float: Copy + std::str::FromStr {
    /// The nearest float to `decimal`, unless it takes more care to find.
    fn from_decimal(decimal: Decimal) -> Option<Self>;

    /// Whether it is neither infinite nor NaN.
    fn is_finite(self) -> bool;
}

impl Float for f32 {
    /// By way of `f64`, without rounding twice.
    ///
    /// Mantissa and power are off by at most half an ulp each, so `near` is off by at most two ulps of `f64`.
    /// Rounding it to `f32` is right unless the middle between two `f32` lies that close: the middle is
    /// where the 29 bits that are dropped are 1000...0. With these powers no value but 0 comes near the
    /// subnormal numbers, where more bits would be dropped.
    #[inline]
    fn from_decimal(decimal: Decimal) -> Option<Self> {
        const DROPPED: u64 = (1 << 29) - 1;
        const MIDDLE: u64 = 1 << 28;
        const MARGIN: u64 = 4;
        let near = decimal.scaled()?;
        let from_middle = (near.to_bits() & DROPPED).wrapping_sub(MIDDLE - MARGIN);
        if from_middle <= 2 * MARGIN || near > f64::from(Self::MAX) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "rounding is the purpose")]
        let value = near as Self;
        Some(if decimal.negative { -value } else { value })
    }

    fn is_finite(self) -> bool {
        self.is_finite()
    }
}

impl Float for f64 {
    /// Exact operands and one operation round once.
    ///
    /// Source: W. D. Clinger, "How to Read Floating Point Numbers Accurately", 1990, the fast path.
    #[inline]
    fn from_decimal(decimal: Decimal) -> Option<Self> {
        if decimal.mantissa > 1 << Self::MANTISSA_DIGITS {
            return None;
        }
        let value = decimal.scaled()?;
        Some(if decimal.negative { -value } else { value })
    }

    fn is_finite(self) -> bool {
        self.is_finite()
    }
}

impl Decimal {
    /// The magnitude with at most two roundings: of the mantissa (none up to 2^53), and of the scaling by an
    /// exact power.
    #[inline]
    fn scaled(self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "the rounding is accounted for")]
        let mantissa = self.mantissa as f64;
        if self.exponent <= 0 {
            Some(mantissa / POWERS_F64.get(self.exponent.unsigned_abs() as usize)?)
        } else {
            Some(mantissa * POWERS_F64.get(self.exponent.unsigned_abs() as usize)?)
        }
    }
}

/// The float at `start` and the offset behind it; `None` where the fast way ends.
#[inline]
pub(in crate::wire) fn float<F: Float>(bytes: &[u8], start: usize) -> Option<(F, usize)> {
    let (decimal, end) = decimal(bytes, start)?;
    Some((F::from_decimal(decimal)?, end))
}

/// The float at `start`, whatever it takes, and the offset behind it; the value is infinite where the text is
/// beyond the largest finite one.
#[cold]
pub(in crate::wire) fn float_slow<F: Float>(
    bytes: &[u8],
    start: usize,
) -> Result<(F, usize), JsonError> {
    let end = scan_number(bytes, start)?;
    let token = std::str::from_utf8(&bytes[start..end]).expect("a number is ASCII");
    let value = token.parse().ok().expect("core takes every number of JSON");
    Ok((value, end))
}

/// The whole number at `start`, its sign and magnitude, and the offset behind it; `None` for more than 16
/// digits, for fractions, exponents, and what is no number.
#[inline]
pub(in crate::wire) fn integer(bytes: &[u8], start: usize) -> Option<(i64, usize)> {
    let negative = byte(bytes, start) == b'-';
    let (magnitude, end) = whole_part(bytes, start + usize::from(negative))?;
    if matches!(byte(bytes, end), b'.' | b'e' | b'E') {
        return None;
    }
    let value = i64::try_from(magnitude).ok()?;
    Some((if negative { -value } else { value }, end))
}

/// The offset behind the number at `start`.
pub(in crate::wire) fn scan_number(bytes: &[u8], start: usize) -> Result<usize, JsonError> {
    let mut at = start + usize::from(byte(bytes, start) == b'-');
    match byte(bytes, at) {
        b'0' => at += 1,
        b'1'..=b'9' => at = skip_digits(bytes, at),
        _ if at == start => return Err(syntax(bytes, at, "expected a value")),
        _ => return Err(syntax(bytes, at, "expected a digit")),
    }
    if byte(bytes, at) == b'.' {
        at = skip_some_digits(bytes, at + 1)?;
    }
    if matches!(byte(bytes, at), b'e' | b'E') {
        let sign = matches!(byte(bytes, at + 1), b'+' | b'-');
        at = skip_some_digits(bytes, at + 1 + usize::from(sign))?;
    }
    Ok(at)
}

fn skip_some_digits(bytes: &[u8], start: usize) -> Result<usize, JsonError> {
    let end = skip_digits(bytes, start);
    if end > start { Ok(end) } else { Err(syntax(bytes, end, "expected a digit")) }
}

fn skip_digits(bytes: &[u8], mut at: usize) -> usize {
    while byte(bytes, at).is_ascii_digit() {
        at += 1;
    }
    at
}

/// The number at `start` and the offset behind it, if its digits fit 64 bits and its exponent is short.
#[inline]
fn decimal(bytes: &[u8], start: usize) -> Option<(Decimal, usize)> {
    let negative = byte(bytes, start) == b'-';
    let whole = start + usize::from(negative);
    // A single digit before the point is so common that guessing it beats counting.
    let first = byte(bytes, whole).wrapping_sub(b'0');
    let (mut mantissa, mut at) = if first <= 9 && byte(bytes, whole + 1) == b'.' {
        (u64::from(first), whole + 1)
    } else {
        whole_part(bytes, whole)?
    };
    let mut exponent = 0;
    if byte(bytes, at) == b'.' {
        let (eight, mut digits) = leading_digits(word(bytes, at + 1));
        if digits == 0 {
            return None;
        }
        // Up to 16 digits and these 8 may be too many for 64 bits.
        mantissa = mantissa.checked_mul(POWERS_U64[digits])?.checked_add(eight)?;
        while digits % 8 == 0 {
            let (eight, more) = leading_digits(word(bytes, at + 1 + digits));
            if more == 0 {
                break;
            }
            mantissa = mantissa.checked_mul(POWERS_U64[more])?.checked_add(eight)?;
            digits += more;
        }
        at += 1 + digits;
        exponent = -i32::try_from(digits).ok()?;
    }
    if byte(bytes, at) | 0x20 == b'e' {
        let (power, end) = exponent_part(bytes, at)?;
        exponent += power;
        at = end;
    }
    Some((Decimal { negative, mantissa, exponent }, at))
}

/// The digits before the point: 1 to 16, no needless zero in front.
#[inline]
fn whole_part(bytes: &[u8], start: usize) -> Option<(u64, usize)> {
    let (eight, digits) = leading_digits(word(bytes, start));
    if digits == 0 || (digits > 1 && byte(bytes, start) == b'0') {
        return None;
    }
    if digits < 8 {
        return Some((eight, start + digits));
    }
    let (next, more) = leading_digits(word(bytes, start + 8));
    if more == 8 && byte(bytes, start + 16).is_ascii_digit() {
        return None;
    }
    Some((eight * POWERS_U64[more] + next, start + 8 + more))
}

/// `e`, a sign, and one to three digits; longer ones go the slow way.
fn exponent_part(bytes: &[u8], start: usize) -> Option<(i32, usize)> {
    let sign = byte(bytes, start + 1);
    let digits_start = start + 1 + usize::from(matches!(sign, b'+' | b'-'));
    let (value, digits) = leading_digits(word(bytes, digits_start));
    if !(1..=3).contains(&digits) {
        return None;
    }
    let power = i32::try_from(value).ok()?;
    Some((if sign == b'-' { -power } else { power }, digits_start + digits))
}

/// The value and the number of the digits that a word of text begins with (0 to 8), without a branch.
///
/// Digits are moved to the word's upper end, so that zeros stand before them; then neighbours are joined to
/// pairs, pairs to fours, fours to eight.
#[inline]
fn leading_digits(word: u64) -> (u64, usize) {
    const LOW_BYTES: u64 = 0x0000_00ff_0000_00ff;
    let values = word ^ 0x3030_3030_3030_3030;
    // The high bit of every byte above 9. A carry can only reach bytes above the first such byte.
    let others = (values.wrapping_add(0x7676_7676_7676_7676) | values) & 0x8080_8080_8080_8080;
    let digits = others.trailing_zeros() / 8;
    let values = values.checked_shl(64 - 8 * digits).unwrap_or(0);
    let pairs = values.wrapping_mul(10).wrapping_add(values >> 8);
    let upper = (pairs & LOW_BYTES).wrapping_mul(100 + (1_000_000 << 32));
    let lower = ((pairs >> 16) & LOW_BYTES).wrapping_mul(1 + (10_000 << 32));
    (upper.wrapping_add(lower) >> 32, digits as usize)
}

/// Appends a float as the shortest text that reads back as the same value, or as `NaN`, `Infinity`,
/// `-Infinity`, the words that Triton's clients take.
#[inline]
pub(in crate::wire) fn write_float<F: Float + zmij::Float>(out: &mut Vec<u8>, value: F) {
    if value.is_finite() {
        out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
    } else {
        write_non_finite(out, zmij::Buffer::new().format(value));
    }
}

#[cold]
fn write_non_finite(out: &mut Vec<u8>, word: &str) {
    out.extend_from_slice(match word {
        "inf" => b"Infinity",
        "-inf" => b"-Infinity",
        _ => b"NaN",
    });
}

/// Appends a whole number.
#[inline]
pub(in crate::wire) fn write_integer(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}
