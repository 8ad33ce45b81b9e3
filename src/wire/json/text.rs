//! JSON strings: found eight bytes at a time, borrowed where they hold no escape.

use std::{borrow::Cow, str};

use super::{JsonError, byte, syntax, word};

/// The string whose opening quote is at `start`, and the offset behind its closing quote.
#[inline]
pub(in crate::wire) fn string(
    bytes: &[u8],
    start: usize,
) -> Result<(Cow<'_, str>, usize), JsonError> {
    let end = plain_end(bytes, start + 1);
    if byte(bytes, end) == b'"' {
        return Ok((Cow::Borrowed(utf8(bytes, start + 1, end)?), end + 1));
    }
    let mut string = String::new();
    let end = pieces(bytes, start, |piece| string.push_str(piece))?;
    Ok((Cow::Owned(string), end))
}

/// Appends the string whose opening quote is at `start` to `out`; the offset behind its closing quote.
pub(in crate::wire) fn string_into(
    bytes: &[u8],
    start: usize,
    out: &mut Vec<u8>,
) -> Result<usize, JsonError> {
    pieces(bytes, start, |piece| out.extend_from_slice(piece.as_bytes()))
}

/// Checks the string whose opening quote is at `start`; the offset behind its closing quote.
pub(in crate::wire) fn skip(bytes: &[u8], start: usize) -> Result<usize, JsonError> {
    pieces(bytes, start, |_| ())
}

/// Appends `string` in quotes, escaped where JSON demands it.
pub(in crate::wire) fn write_string(out: &mut Vec<u8>, string: &str) {
    let bytes = string.as_bytes();
    out.push(b'"');
    let mut done = 0;
    loop {
        let end = plain_end(bytes, done);
        out.extend_from_slice(&bytes[done..end]);
        let Some(special) = bytes.get(end) else { break };
        write_escape(out, *special);
        done = end + 1;
    }
    out.push(b'"');
}

fn write_escape(out: &mut Vec<u8>, special: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match special {
        b'"' | b'\\' => special,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        _ => {
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(special >> 4)]);
            out.push(HEX[usize::from(special & 15)]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// The offset of the first byte from `at` on that cannot stand in a string as it is: a quote, a backslash or
/// a control character; the length if there is none.
#[inline]
fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    // Marks the bytes that are zero. A borrow may mark a byte too many, but only above one that is right,
    // and the lowest mark is the first byte.
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word;
    while at < bytes.len() {
        let word = word(bytes, at);
        let quote = zeros(word ^ (ONES * u64::from(b'"')));
        let backslash = zeros(word ^ (ONES * u64::from(b'\\')));
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let marks = (quote | backslash | control) & HIGHS;
        if marks != 0 {
            // The zeros behind the end look like control characters: just where the end is.
            return at + marks.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    bytes.len()
}

/// Hands over the text of a string piece by piece; the offset behind its closing quote.
fn pieces(bytes: &[u8], start: usize, mut piece: impl FnMut(&str)) -> Result<usize, JsonError> {
    let mut at = start + 1;
    loop {
        let end = plain_end(bytes, at);
        if end > at {
            // No character crosses a backslash or a quote: they are ASCII, so pieces are whole.
            piece(utf8(bytes, at, end)?);
        }
        match byte(bytes, end) {
            b'"' => return Ok(end + 1),
            b'\\' => {
                let (character, behind) = escape(bytes, end)?;
                piece(character.encode_utf8(&mut [0; 4]));
                at = behind;
            }
            _ if end >= bytes.len() => {
                return Err(syntax(bytes, end, "expected the closing quote"));
            }
            _ => return Err(syntax(bytes, end, "expected control characters in strings escaped")),
        }
    }
}

fn utf8(bytes: &[u8], start: usize, end: usize) -> Result<&str, JsonError> {
    str::from_utf8(&bytes[start..end])
        .map_err(|error| syntax(bytes, start + error.valid_up_to(), "expected UTF-8 in a string"))
}

/// The character that the escape at `start` (its backslash) stands for, and the offset behind it.
fn escape(bytes: &[u8], start: usize) -> Result<(char, usize), JsonError> {
    let character = match byte(bytes, start + 1) {
        plain @ (b'"' | b'\\' | b'/') => char::from(plain),
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => return unicode_escape(bytes, start),
        _ => {
            return Err(syntax(bytes, start + 1, "expected one of \" \\ / b f n r t u after `\\`"));
        }
    };
    Ok((character, start + 2))
}

/// `\uXXXX`, two of them for a character beyond the first plane.
fn unicode_escape(bytes: &[u8], start: usize) -> Result<(char, usize), JsonError> {
    let lone = || syntax(bytes, start, "expected a surrogate pair, not half of one");
    let high = hex4(bytes, start + 2)?;
    if let Some(character) = char::from_u32(high) {
        return Ok((character, start + 6));
    }
    if byte(bytes, start + 6) != b'\\' || byte(bytes, start + 7) != b'u' {
        return Err(lone());
    }
    let low = hex4(bytes, start + 8)?;
    if !(0xd800..0xdc00).contains(&high) || !(0xdc00..0xe000).contains(&low) {
        return Err(lone());
    }
    let code = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
    Ok((char::from_u32(code).expect("a surrogate pair makes a character"), start + 12))
}

fn hex4(bytes: &[u8], start: usize) -> Result<u32, JsonError> {
    (start..start + 4).try_fold(0, |code, at| {
        let digit = char::from(byte(bytes, at)).to_digit(16);
        let digit = digit.ok_or_else(|| syntax(bytes, at, "expected four hexadecimal digits"))?;
        Ok(code << 4 | digit)
    })
}
