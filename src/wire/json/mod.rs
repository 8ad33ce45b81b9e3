//! Strict JSON (RFC 8259) read in place, and its strings and numbers written.
//!
//! A cursor walks over the bytes; whoever holds it says what must come next. Nothing is collected that nobody
//! asked for, and nothing recurses: levels are counted, and counted against a limit. Always true:
//! - What is skipped is checked as strictly as what is read: grammar, UTF-8, escapes, depth.
//! - Every error carries the offset of the byte at fault.
//!
//! Not here: what keys and values mean (`wire::v2`).

pub(super) mod number;
pub(super) mod text;

use std::{borrow::Cow, fmt};

use number::scan_number;

/// Why bytes are not the JSON that was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JsonError {
    /// The grammar is broken.
    Syntax(Syntax),
    /// More levels of arrays and objects than allowed.
    Depth { offset: usize, max: usize },
}

/// A break of the grammar: where, what was due, what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Syntax {
    /// Offset of the byte at fault, from the first byte of the body.
    pub offset: usize,
    problem: &'static str,
    found: Option<u8>,
}

/// Reads JSON from left to right.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    depth_max: usize,
}

impl<'a> Cursor<'a> {
    /// A cursor before the first byte; `depth_max` levels may be open at once, at most
    /// [`Cursor::DEPTH_MAX`].
    pub(super) fn new(bytes: &'a [u8], depth_max: usize) -> Self {
        Self { bytes, at: 0, depth: 0, depth_max: depth_max.min(Self::DEPTH_MAX) }
    }

    /// No cursor goes deeper: the open levels of what is skipped are the bits of one word.
    pub(super) const DEPTH_MAX: usize = 64;

    /// All the bytes.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Offset of the next byte.
    pub(super) fn offset(&self) -> usize {
        self.at
    }

    /// Levels open now.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Levels that may be open.
    pub(super) fn depth_max(&self) -> usize {
        self.depth_max
    }

    /// Moves to an offset that was reached on the same level.
    pub(super) fn jump(&mut self, offset: usize) {
        self.at = offset;
    }

    /// Moves to where another cursor over the same bytes is, on the same level.
    pub(super) fn follow(&mut self, other: &Cursor<'_>) {
        self.jump(other.at);
    }

    /// A cursor at an offset inside the object that was closed last.
    pub(super) fn back_inside(&self, offset: usize) -> Self {
        Self { at: offset, depth: self.depth + 1, ..*self }
    }

    /// The first byte of what comes next, past white space; 0 at the end, which nothing begins with.
    #[inline]
    pub(super) fn peek(&mut self) -> u8 {
        self.at = skip_space(self.bytes, self.at);
        byte(self.bytes, self.at)
    }

    /// Consumes `expected`, an opening bracket or brace.
    pub(super) fn open(&mut self, expected: u8) -> Result<(), JsonError> {
        if self.peek() != expected {
            let problem = if expected == b'{' { "expected an object" } else { "expected an array" };
            return Err(syntax(self.bytes, self.at, problem));
        }
        if self.depth == self.depth_max {
            return Err(JsonError::Depth { offset: self.at, max: self.depth_max });
        }
        self.depth += 1;
        self.at += 1;
        Ok(())
    }

    /// The next key of an open object, its colon consumed; `None` once the object is closed.
    ///
    /// `first` must be true before the first key and is kept from there.
    #[inline]
    pub(super) fn next_key(&mut self, first: &mut bool) -> Result<Option<Cow<'a, str>>, JsonError> {
        let mut next = self.peek();
        if next == b'}' {
            self.at += 1;
            self.depth -= 1;
            return Ok(None);
        }
        if !*first {
            if next != b',' {
                return Err(syntax(self.bytes, self.at, "expected `,` or `}`"));
            }
            self.at += 1;
            next = self.peek();
        }
        *first = false;
        if next != b'"' {
            return Err(syntax(self.bytes, self.at, "expected a key in quotes"));
        }
        let key = self.string()?;
        if self.peek() != b':' {
            return Err(syntax(self.bytes, self.at, "expected `:`"));
        }
        self.at += 1;
        Ok(Some(key))
    }

    /// Whether another item follows in an open array; once there is none, the array is closed.
    #[inline]
    pub(super) fn next_item(&mut self, first: &mut bool) -> Result<bool, JsonError> {
        let next = self.peek();
        if *first {
            *first = false;
            if next != b']' {
                return Ok(true);
            }
        } else if next == b',' {
            self.at += 1;
            return Ok(true);
        } else if next != b']' {
            return Err(syntax(self.bytes, self.at, "expected `,` or `]`"));
        }
        self.at += 1;
        self.depth -= 1;
        Ok(false)
    }

    /// A string.
    pub(super) fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        if self.peek() != b'"' {
            return Err(syntax(self.bytes, self.at, "expected a string"));
        }
        let (string, end) = text::string(self.bytes, self.at)?;
        self.at = end;
        Ok(string)
    }

    /// A number as it is written.
    pub(super) fn number(&mut self) -> Result<&'a str, JsonError> {
        self.peek();
        let end = scan_number(self.bytes, self.at)?;
        let token = &self.bytes[self.at..end];
        self.at = end;
        Ok(std::str::from_utf8(token).expect("the characters of a number are ASCII"))
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self) -> Result<bool, JsonError> {
        let value = self.peek() == b't';
        self.literal(if value { "true" } else { "false" })?;
        Ok(value)
    }

    /// Consumes `null` if it comes next.
    pub(super) fn null(&mut self) -> Result<bool, JsonError> {
        if self.peek() != b'n' {
            return Ok(false);
        }
        self.literal("null")?;
        Ok(true)
    }

    /// Consumes any value and checks it.
    ///
    /// The levels that it opens are bits, 1 for an object, the innermost lowest: no recursion, no allocation.
    pub(super) fn skip_value(&mut self) -> Result<(), JsonError> {
        let floor = self.depth;
        let mut objects = 0u64;
        let mut first = false;
        loop {
            // A value, or the end of a level that was just opened.
            match self.peek() {
                open @ (b'{' | b'[') => {
                    self.open(open)?;
                    objects = objects << 1 | u64::from(open == b'{');
                    first = true;
                }
                b'"' => self.at = text::skip(self.bytes, self.at)?,
                b't' => self.literal("true")?,
                b'f' => self.literal("false")?,
                b'n' => self.literal("null")?,
                _ => self.at = scan_number(self.bytes, self.at)?,
            }
            // To the next value: closes every level that ends here.
            loop {
                if self.depth == floor {
                    return Ok(());
                }
                let more = if objects & 1 == 1 {
                    self.next_key(&mut first)?.is_some()
                } else {
                    self.next_item(&mut first)?
                };
                if more {
                    break;
                }
                objects >>= 1;
                first = false;
            }
        }
    }

    /// Consumes an array without a look at what is in it but brackets and strings: whoever calls this reads
    /// it again, strictly.
    pub(super) fn skip_array_loosely(&mut self) -> Result<(), JsonError> {
        let mut open = 0usize;
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            let Some(found) = memchr::memchr3(b'[', b']', b'"', rest) else {
                return Err(syntax(self.bytes, self.bytes.len(), "expected `,` or `]`"));
            };
            self.at += found;
            match self.bytes[self.at] {
                b'[' => open += 1,
                b']' => open = open.saturating_sub(1),
                _ => {
                    self.at = text::skip(self.bytes, self.at)?;
                    continue;
                }
            }
            self.at += 1;
            if open == 0 {
                return Ok(());
            }
        }
    }

    /// Consumes a word or a number without a look at it: as [`Cursor::skip_array_loosely`], for one element.
    pub(super) fn skip_number_loosely(&mut self) {
        while matches!(byte(self.bytes, self.at), b'+' | b'-' | b'.' | b'0'..=b'9')
            || byte(self.bytes, self.at).is_ascii_alphabetic()
        {
            self.at += 1;
        }
    }

    /// Makes sure that nothing but white space is left.
    pub(super) fn finish(&mut self) -> Result<(), JsonError> {
        self.peek();
        if self.at < self.bytes.len() {
            return Err(syntax(self.bytes, self.at, "expected the end of the JSON"));
        }
        Ok(())
    }

    /// The error that the next byte is not what was due.
    pub(super) fn unexpected(&self, problem: &'static str) -> JsonError {
        syntax(self.bytes, self.at, problem)
    }

    fn literal(&mut self, literal: &'static str) -> Result<(), JsonError> {
        if self.bytes[self.at..].starts_with(literal.as_bytes()) {
            self.at += literal.len();
            return Ok(());
        }
        Err(syntax(self.bytes, self.at, "expected a value"))
    }
}

/// The byte at `at`; 0 behind the end.
#[inline]
pub(super) fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// The offset of the next byte that is not white space.
#[inline]
pub(super) fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    // Nearly always nothing is to skip, which one comparison tells.
    while byte(bytes, at) <= b' ' && matches!(byte(bytes, at), b' ' | b'\n' | b'\r' | b'\t') {
        at += 1;
    }
    at
}

/// Eight bytes as one little-endian word; zeros behind the end.
#[inline]
pub(super) fn word(bytes: &[u8], at: usize) -> u64 {
    let rest = bytes.get(at..).unwrap_or_default();
    if let Some(chunk) = rest.first_chunk() {
        return u64::from_le_bytes(*chunk);
    }
    let mut padded = [0; 8];
    padded[..rest.len()].copy_from_slice(rest);
    u64::from_le_bytes(padded)
}

/// The error of a broken grammar at `offset`.
#[cold]
pub(super) fn syntax(bytes: &[u8], offset: usize, problem: &'static str) -> JsonError {
    JsonError::Syntax(Syntax { offset, problem, found: bytes.get(offset).copied() })
}

impl fmt::Display for Syntax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}, found ", self.offset, self.problem)?;
        match self.found {
            None => f.write_str("the end"),
            Some(byte @ 0x20..=0x7e) => write!(f, "`{}`", char::from(byte)),
            Some(byte) => write!(f, "byte 0x{byte:02x}"),
        }
    }
}

#[cfg(test)]
mod tests;
