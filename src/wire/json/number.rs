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
        Some(Self::from_bits(value.to_bits() | u32::from(decimal.negative) << 31))
    }

    fn is_finite(self) -> bool {
        self.is_finite()
    }
}

impl Float for f64 {
    /// Exact operands and one operation round once; where the mantissa is not exact, in whole numbers.
    ///
    /// Source: W. D. Clinger, "How to Read Floating Point Numbers Accurately", 1990, the fast path.
    #[inline]
    fn from_decimal(decimal: Decimal) -> Option<Self> {
        let value = if decimal.mantissa <= 1 << Self::MANTISSA_DIGITS {
            decimal.scaled()?
        } else {
            decimal.divided()?
        };
        Some(Self::from_bits(value.to_bits() | u64::from(decimal.negative) << 63))
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
        // Signed integers have an instruction of their own.
        let mantissa = i64::try_from(self.mantissa).ok()?;
        #[expect(clippy::cast_precision_loss, reason = "the rounding is accounted for")]
        let mantissa = mantissa as f64;
        let power = *POWERS_F64.get(self.exponent.unsigned_abs() as usize)?;
        Some(if self.exponent <= 0 { mantissa / power } else { mantissa * power })
    }

    /// The magnitude for an exponent from -27 to 0, rounded once.
    ///
    /// The mantissa, shifted until its highest bit is set, times 2^k / 5^n cut to 64 bits: the cut takes less
    /// than 1 from a factor that is multiplied by less than 2^64, so that the truth's upper half of the product
    /// is `upper` or `upper` + 1. Both round alike unless the bits to drop are 1000...0 or one less.
    ///
    /// Source: D. Lemire, "Number Parsing at a Gigabyte per Second", 2021, section 5, with half its table.
    fn divided(self) -> Option<f64> {
        let power = usize::try_from(self.exponent.checked_neg()?).ok()?;
        let (inverse, k) = *INVERSE_POWERS_OF_5.get(power)?;
        let zeros = self.mantissa.leading_zeros();
        let product = u128::from(self.mantissa << zeros) * u128::from(inverse);
        let upper = u64::try_from(product >> 64).ok()?;
        let dropped_bits = 64 - f64::MANTISSA_DIGITS - upper.leading_zeros();
        let dropped = upper & ((1 << dropped_bits) - 1);
        let middle = 1u64 << (dropped_bits - 1);
        if dropped == middle || dropped == middle - 1 {
            return None;
        }
        let rounded = (upper >> dropped_bits) + u64::from(dropped > middle);
        // The value is `rounded` * 2^exponent; 2^-n makes 5^n ten.
        let exponent = i64::from(dropped_bits) + 64 - i64::from(zeros) - i64::from(k)
            + i64::from(self.exponent);
        let biased = u64::try_from(exponent + 52 + 1023).ok()?;
        // Rounding up to the next power of 2 carries into the exponent, as it should.
        Some(f64::from_bits((biased << 52) + (rounded - (1 << 52))))
    }
}

/// 2^k / 5^n, rounded down, with k such that the highest of 64 bits is set; and k.
const INVERSE_POWERS_OF_5: [(u64, u32); 28] = {
    let mut powers = [(1 << 63, 63); 28];
    let mut five = 5u128;
    let mut n = 1;
    while n < powers.len() {
        let k = 63 + 128 - five.leading_zeros();
        #[expect(clippy::cast_possible_truncation, reason = "k is chosen so that 64 bits hold it")]
        let inverse = ((1u128 << k) / five) as u64;
        powers[n] = (inverse, k);
        five *= 5;
        n += 1;
    }
    powers
};

/// The float at `start` and the offset behind it; `None` where the fast way ends.
///
/// A jump for the sign, and not an offset that depends on it: the processor guesses jumps, and begins the next
/// number before this one's sign is known.
#[expect(clippy::inline_always, reason = "a call per number is a third of its time")]
#[inline(always)]
pub(in crate::wire) fn float<F: Float>(bytes: &[u8], start: usize) -> Option<(F, usize)> {
    let (decimal, end) = if byte(bytes, start) == b'-' {
        decimal(bytes, start + 1, true)?
    } else {
        decimal(bytes, start, false)?
    };
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

/// The whole number at `start` and the offset behind it; `None` for more than 16 digits, for fractions,
/// exponents, and what is no number.
#[expect(clippy::inline_always, reason = "a call per number is a third of its time")]
#[inline(always)]
pub(in crate::wire) fn integer(bytes: &[u8], start: usize) -> Option<(i64, usize)> {
    let (value, end) = if byte(bytes, start) == b'-' {
        let (magnitude, end) = whole_part(bytes, start + 1)?;
        (-i64::try_from(magnitude).ok()?, end)
    } else {
        let (magnitude, end) = whole_part(bytes, start)?;
        (i64::try_from(magnitude).ok()?, end)
    };
    if matches!(byte(bytes, end), b'.' | b'e' | b'E') {
        return None;
    }
    Some((value, end))
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

/// The number at `start`, behind the sign, and the offset behind it, if its digits fit 64 bits and its exponent
/// is short.
///
/// Most tensors hold a few digits before the point, most often one, and a few behind it: those have a way of
/// their own.
#[expect(clippy::inline_always, reason = "a call per number is a third of its time")]
#[inline(always)]
fn decimal(bytes: &[u8], start: usize, negative: bool) -> Option<(Decimal, usize)> {
    let first = byte(bytes, start).wrapping_sub(b'0');
    if first <= 9 && byte(bytes, start + 1) == b'.' {
        return with_fraction(bytes, start, negative, u64::from(first), start + 1);
    }
    let (mantissa, end) = whole_part(bytes, start)?;
    match byte(bytes, end) {
        b'.' if mantissa < POWERS_U64[8] => with_fraction(bytes, start, negative, mantissa, end),
        b'.' | b'e' | b'E' => decimal_of_any_length(bytes, start, negative),
        _ => Some((Decimal { negative, mantissa, exponent: 0 }, end)),
    }
}

/// The number at `start` whose digits before the `point` are worth `whole`, less than 10^8. Up to 15 digits
/// behind the point cost no jump that depends on their number.
#[expect(clippy::inline_always, reason = "a call per number is a third of its time")]
#[inline(always)]
fn with_fraction(
    bytes: &[u8],
    start: usize,
    negative: bool,
    whole: u64,
    point: usize,
) -> Option<(Decimal, usize)> {
    let fraction = point + 1;
    let eight = word(bytes, fraction);
    let mut digits = leading_digits(eight);
    let mut mantissa = whole * POWERS_U64[digits] + digits_value(eight, digits);
    if digits == 8 {
        let next = word(bytes, fraction + 8);
        let more = leading_digits(next);
        mantissa = mantissa.checked_mul(POWERS_U64[more])?.checked_add(digits_value(next, more))?;
        digits += more;
        if more == 8 {
            let next = word(bytes, fraction + 16);
            let more = leading_digits(next);
            mantissa =
                mantissa.checked_mul(POWERS_U64[more])?.checked_add(digits_value(next, more))?;
            digits += more;
        }
    }
    let end = fraction + digits;
    if digits == 0 || digits == 24 || byte(bytes, end) | 0x20 == b'e' {
        return decimal_of_any_length(bytes, start, negative);
    }
    let exponent = -i32::try_from(digits).ok()?;
    Some((Decimal { negative, mantissa, exponent }, end))
}

/// [`decimal`] with any number of digits before the point, and with an exponent.
fn decimal_of_any_length(bytes: &[u8], start: usize, negative: bool) -> Option<(Decimal, usize)> {
    let (mut mantissa, mut at) = whole_part(bytes, start)?;
    let mut exponent = 0;
    if byte(bytes, at) == b'.' {
        let fraction = at + 1;
        at = fraction;
        loop {
            let eight = word(bytes, at);
            let digits = leading_digits(eight);
            mantissa = mantissa
                .checked_mul(POWERS_U64[digits])?
                .checked_add(digits_value(eight, digits))?;
            at += digits;
            if digits < 8 {
                break;
            }
        }
        if at == fraction {
            return None;
        }
        exponent = -i32::try_from(at - fraction).ok()?;
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
    let eight = word(bytes, start);
    let digits = leading_digits(eight);
    if digits == 0 || (digits > 1 && byte(bytes, start) == b'0') {
        return None;
    }
    let value = digits_value(eight, digits);
    if digits < 8 {
        return Some((value, start + digits));
    }
    let next = word(bytes, start + 8);
    let more = leading_digits(next);
    if more == 8 && byte(bytes, start + 16).is_ascii_digit() {
        return None;
    }
    Some((value * POWERS_U64[more] + digits_value(next, more), start + 8 + more))
}

/// `e`, a sign, and one to three digits; longer ones go the slow way.
fn exponent_part(bytes: &[u8], start: usize) -> Option<(i32, usize)> {
    let sign = byte(bytes, start + 1);
    let digits_start = start + 1 + usize::from(matches!(sign, b'+' | b'-'));
    let eight = word(bytes, digits_start);
    let digits = leading_digits(eight);
    if !(1..=3).contains(&digits) {
        return None;
    }
    let power = i32::try_from(digits_value(eight, digits)).ok()?;
    Some((if sign == b'-' { -power } else { power }, digits_start + digits))
}

/// How many digits a word of text begins with (0 to 8), without a branch.
#[expect(clippy::inline_always, reason = "a call per number is a third of its time")]
#[inline(always)]
fn leading_digits(word: u64) -> usize {
    let values = word ^ ZEROS;
    // The high bit of every byte above 9. A carry can only reach bytes above the first such byte.
    let others = (values.wrapping_add(0x7676_7676_7676_7676) | values) & 0x8080_8080_8080_8080;
    others.trailing_zeros() as usize / 8
}

/// The value of the first `digits` digits of a word of text, without a branch.
///
/// They are moved to the word's upper end, so that zeros stand before them; then neighbours are joined to
/// pairs, pairs to fours, fours to eight.
#[expect(clippy::inline_always, reason = "a call per number is a third of its time")]
#[inline(always)]
fn digits_value(word: u64, digits: usize) -> u64 {
    // In two steps, as no shift may be as wide as the word.
    let spare = 8 * (8 - digits);
    let values = (word ^ ZEROS) << (spare / 2) << (spare - spare / 2);
    let pairs = values.wrapping_mul(10).wrapping_add(values >> 8);
    let upper = (pairs & LOW_BYTES).wrapping_mul(100 + (1_000_000 << 32));
    let lower = ((pairs >> 16) & LOW_BYTES).wrapping_mul(1 + (10_000 << 32));
    upper.wrapping_add(lower) >> 32
}

/// Eight digits zero.
const ZEROS: u64 = 0x3030_3030_3030_3030;

/// The lowest byte of each half of a word.
const LOW_BYTES: u64 = 0x0000_00ff_0000_00ff;

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
