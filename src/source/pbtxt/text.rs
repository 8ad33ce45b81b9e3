//! Protocol-buffer text format: bytes to fields, whatever message they belong to.
//!
//! Source: the Text Format Language Specification of Protocol Buffers. Left out: extension and `Any` names
//! in brackets. One thing more than it: `name [...]` without a colon also before lists of scalars.

use std::fmt::Write as _;

/// One field, as often as it is written: `dims: [1, 2]` are two.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Field<'t> {
    pub(super) name: &'t str,
    /// Where the name stands, in bytes.
    pub(super) at: usize,
    pub(super) value: Value<'t>,
    /// Where the value stands, in bytes.
    pub(super) value_at: usize,
}

/// A field's value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'t> {
    /// `TYPE_FP32`, `true`, `inf`; with its sign.
    Word { negative: bool, word: &'t str },
    /// Any number, as written, with its sign.
    Number { negative: bool, digits: &'t str },
    /// The bytes of a string, joined and without escapes.
    Text(Vec<u8>),
    /// A message.
    Block(Vec<Field<'t>>),
}

/// What is wrong, and where in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) what: String,
}

impl Fault {
    pub(super) fn new(at: usize, what: impl Into<String>) -> Self {
        Self { at, what: what.into() }
    }
}

/// Messages in messages; real configurations have five.
const DEPTH_MAX: usize = 32;
/// Fields and list entries in one text; each costs memory.
const FIELDS_MAX: usize = 65_536;

/// Reads a whole text.
pub(super) fn parse(text: &str) -> Result<Vec<Field<'_>>, Fault> {
    let mut reader = Reader { text, at: 0, fields_left: FIELDS_MAX };
    reader.fields(None, 0)
}

/// Writes fields in one canonical form, which reads back as the same fields.
pub(super) fn print(fields: &[Field<'_>]) -> String {
    let mut text = String::new();
    for field in fields {
        text.push_str(field.name);
        match &field.value {
            Value::Word { negative, word: token } | Value::Number { negative, digits: token } => {
                let sign = if *negative { "-" } else { "" };
                writeln!(text, ": {sign}{token}").expect("writing to a string does not fail");
            }
            Value::Text(bytes) => {
                text.push_str(": \"");
                for byte in bytes {
                    write!(text, "\\{byte:03o}").expect("writing to a string does not fail");
                }
                text.push_str("\"\n");
            }
            Value::Block(fields) => {
                text.push_str(" {\n");
                text.push_str(&print(fields));
                text.push_str("}\n");
            }
        }
    }
    text
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
    fields_left: usize,
}

impl<'t> Reader<'t> {
    /// Reads fields up to `end`, or to the end of the text.
    fn fields(&mut self, end: Option<(u8, usize)>, depth: usize) -> Result<Vec<Field<'t>>, Fault> {
        let mut fields = Vec::new();
        loop {
            self.skip();
            match (self.peek(), end) {
                (Some(byte), Some((close, _))) if byte == close => {
                    self.at += 1;
                    return Ok(fields);
                }
                (None, None) => return Ok(fields),
                (None, Some((close, opened_at))) => {
                    let close = char::from(close);
                    return Err(Fault::new(
                        opened_at,
                        format!("this is never closed by `{close}`"),
                    ));
                }
                (Some(_), _) => self.field(&mut fields, depth)?,
            }
        }
    }

    /// Reads one field with everything that belongs to it.
    fn field(&mut self, fields: &mut Vec<Field<'t>>, depth: usize) -> Result<(), Fault> {
        let at = self.at;
        let name = self.word().ok_or_else(|| match self.peek() {
            Some(b'[') => Fault::new(at, "names in brackets (extensions) are not known here"),
            _ => Fault::new(at, format!("expected the name of a field, found {}", self.found())),
        })?;
        self.skip();
        let colon = self.take(b':');
        self.skip();
        match self.peek() {
            Some(b'[') => self.list(name, at, fields, depth)?,
            Some(b'{' | b'<') => self.entry(name, at, fields, depth)?,
            _ if colon => self.entry(name, at, fields, depth)?,
            _ => {
                let found = self.found();
                return Err(Fault::new(
                    self.at,
                    format!("expected `:`, `{{` or `[` after `{}`, found {found}", shown(name)),
                ));
            }
        }
        self.skip();
        if !self.take(b',') {
            self.take(b';');
        }
        Ok(())
    }

    fn list(
        &mut self,
        name: &'t str,
        at: usize,
        fields: &mut Vec<Field<'t>>,
        depth: usize,
    ) -> Result<(), Fault> {
        let opened_at = self.at;
        self.at += 1;
        self.skip();
        if self.take(b']') {
            return Ok(());
        }
        loop {
            self.skip();
            self.entry(name, at, fields, depth)?;
            self.skip();
            if self.take(b']') {
                return Ok(());
            }
            if self.peek().is_none() {
                return Err(Fault::new(opened_at, "this is never closed by `]`"));
            }
            if !self.take(b',') {
                let found = self.found();
                return Err(Fault::new(self.at, format!("expected `,` or `]`, found {found}")));
            }
        }
    }

    /// Reads one value and keeps it as a field.
    fn entry(
        &mut self,
        name: &'t str,
        at: usize,
        fields: &mut Vec<Field<'t>>,
        depth: usize,
    ) -> Result<(), Fault> {
        let too_many = || Fault::new(at, format!("there are more than {FIELDS_MAX} values"));
        self.fields_left = self.fields_left.checked_sub(1).ok_or_else(too_many)?;
        let value_at = self.at;
        let value = self.value(depth)?;
        fields.push(Field { name, at, value, value_at });
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<Value<'t>, Fault> {
        let at = self.at;
        match self.peek() {
            Some(open @ (b'{' | b'<')) => {
                if depth >= DEPTH_MAX {
                    return Err(Fault::new(at, format!("nested deeper than {DEPTH_MAX} levels")));
                }
                self.at += 1;
                let close = if open == b'{' { b'}' } else { b'>' };
                Ok(Value::Block(self.fields(Some((close, at)), depth + 1)?))
            }
            Some(b'"' | b'\'') => self.strings().map(Value::Text),
            _ => {
                let negative = self.take(b'-');
                if negative {
                    self.skip();
                }
                if let Some(word) = self.word() {
                    return Ok(Value::Word { negative, word });
                }
                match self.peek() {
                    Some(b'0'..=b'9' | b'.') => {
                        Ok(Value::Number { negative, digits: self.number()? })
                    }
                    _ => Err(Fault::new(
                        self.at,
                        format!("expected a value, found {}", self.found()),
                    )),
                }
            }
        }
    }

    fn number(&mut self) -> Result<&'t str, Fault> {
        let at = self.at;
        let bytes = self.text.as_bytes();
        let hexadecimal = matches!(bytes[at..], [b'0', b'x' | b'X', ..]);
        while let Some(byte) = self.peek() {
            let sign_of_exponent = matches!(byte, b'+' | b'-')
                && !hexadecimal
                && matches!(bytes[self.at - 1], b'e' | b'E')
                && self.at > at;
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_') || sign_of_exponent) {
                break;
            }
            self.at += 1;
        }
        let digits = &self.text[at..self.at];
        let plain = digits.strip_suffix(['f', 'F']).unwrap_or(digits);
        // A leading 0 makes an octal number, unless it is a fraction or has an exponent.
        let octal = plain.starts_with('0') && plain.len() > 1 && !plain.contains(['.', 'e', 'E']);
        let decimal = !octal && plain.parse::<f64>().is_ok();
        if integer(digits).is_some() || decimal {
            return Ok(digits);
        }
        Err(Fault::new(at, format!("`{}` is not a number", shown(digits))))
    }

    /// Reads strings up to the next token that is none: neighbours are one.
    fn strings(&mut self) -> Result<Vec<u8>, Fault> {
        let mut joined = Vec::new();
        while let Some(quote @ (b'"' | b'\'')) = self.peek() {
            self.string(quote, &mut joined)?;
            self.skip();
        }
        Ok(joined)
    }

    fn string(&mut self, quote: u8, joined: &mut Vec<u8>) -> Result<(), Fault> {
        let opened_at = self.at;
        self.at += 1;
        loop {
            match self.peek() {
                None | Some(b'\n') => {
                    let what = "this string does not end on its line; write a new line as `\\n`";
                    return Err(Fault::new(opened_at, what));
                }
                Some(byte) if byte == quote => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape(joined)?,
                Some(byte) => {
                    joined.push(byte);
                    self.at += 1;
                }
            }
        }
    }

    fn escape(&mut self, joined: &mut Vec<u8>) -> Result<(), Fault> {
        let at = self.at;
        let unknown = || {
            let what = "this escape is not known; write a backslash itself as `\\\\`";
            Fault::new(at, what)
        };
        self.at += 1;
        let letter = self.peek().ok_or_else(unknown)?;
        self.at += 1;
        let byte = match letter {
            b'a' => 0x07,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 0x0b,
            b'?' | b'\\' | b'\'' | b'"' => letter,
            b'0'..=b'7' => {
                self.at -= 1;
                let code = self.digits(8, 1, 3).ok_or_else(unknown)?;
                u8::try_from(code).map_err(|_| unknown())?
            }
            b'x' | b'X' => {
                let code = self.digits(16, 1, 2).ok_or_else(unknown)?;
                u8::try_from(code).map_err(|_| unknown())?
            }
            b'u' | b'U' => {
                let count = if letter == b'u' { 4 } else { 8 };
                let code = self.digits(16, count, count).ok_or_else(unknown)?;
                let character = char::from_u32(code).ok_or_else(unknown)?;
                joined.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(unknown()),
        };
        joined.push(byte);
        Ok(())
    }

    fn digits(&mut self, radix: u32, count_min: usize, count_max: usize) -> Option<u32> {
        let rest = &self.text.as_bytes()[self.at..];
        let is_digit = |byte: &&u8| char::from(**byte).is_digit(radix);
        let count = rest.iter().take(count_max).take_while(is_digit).count();
        if count < count_min {
            return None;
        }
        let digits = &self.text[self.at..self.at + count];
        self.at += count;
        u32::from_str_radix(digits, radix).ok()
    }

    fn word(&mut self) -> Option<&'t str> {
        let rest = &self.text.as_bytes()[self.at..];
        if !rest.first().is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_') {
            return None;
        }
        let of_word = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'_';
        let length = rest.iter().take_while(of_word).count();
        let word = &self.text[self.at..self.at + length];
        self.at += length;
        Some(word)
    }

    /// Passes white space and comments.
    fn skip(&mut self) {
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => self.at += 1,
                b'#' => {
                    let rest = &self.text.as_bytes()[self.at..];
                    self.at += memchr::memchr(b'\n', rest).unwrap_or(rest.len());
                }
                _ => break,
            }
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let taken = self.peek() == Some(byte);
        self.at += usize::from(taken);
        taken
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// What stands here, for a message.
    fn found(&self) -> String {
        match self.text[self.at..].chars().next() {
            Some(character) => format!("`{}`", character.escape_debug()),
            None => "the end of the file".to_owned(),
        }
    }
}

/// A whole number: decimal, `0x` hexadecimal, or octal with a leading 0.
pub(super) fn integer(digits: &str) -> Option<i128> {
    let (digits, radix) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&digits[2..], 16),
        [b'0', _, ..] => (&digits[1..], 8),
        _ => (digits, 10),
    };
    // `from_str_radix` takes a sign, the text format does not.
    let plain = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if plain { i128::from_str_radix(digits, radix).ok() } else { None }
}

fn shown(text: &str) -> String {
    crate::source::error::shown(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(text: &str) -> String {
        print(&parse(text).unwrap_or_else(|fault| panic!("{text}: {fault:?}")))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn refused(text: &str) -> (usize, String) {
        let fault = parse(text).expect_err(text);
        (fault.at, fault.what)
    }

    #[test]
    fn every_spelling_gives_the_same_fields() {
        let expected = "a { b: 1 b: 2 } a { b: 3 }";
        for text in [
            "a { b: 1 b: 2 } a { b: 3 }",
            "a: { b: 1, b: 2 }, a: { b: 3 };",
            "a [ { b: [1, 2] }, { b: [3] } ]",
            "a: [ < b [ 1 , 2 ] > , { b: 3; } ]",
            "a<b:1;b:2,>a:<b:3>",
            "# head\na { # one\n b:1 b # two\n :2 } a\n{\tb:3\r\n} # end",
        ] {
            assert_eq!(printed(text), expected, "{text}");
        }
        assert_eq!(printed(""), "");
        assert_eq!(printed("a: [] b []"), "");
    }

    #[test]
    fn scalars_are_kept_as_written() {
        assert_eq!(printed("a: -1 b: - 0x1F c: 017"), "a: -1 b: -0x1F c: 017");
        assert_eq!(printed("a: 1.5e-3f b: .5 c: 1. d: 2F"), "a: 1.5e-3f b: .5 c: 1. d: 2F");
        assert_eq!(printed("a: TYPE_FP32 b: -inf c: nan"), "a: TYPE_FP32 b: -inf c: nan");
    }

    #[test]
    fn strings_are_joined_and_unescaped() {
        let text = |written: &str| match &parse(written).unwrap()[..] {
            [Field { value: Value::Text(bytes), .. }] => bytes.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(text(r#"a: "x" 'y' # c"#), b"xy");
        assert_eq!(text("a: 'it''s' \"\\\"\""), b"its\"");
        assert_eq!(text(r#"a: "\a\b\f\n\r\t\v\?\\\'\"""#), b"\x07\x08\x0c\n\r\t\x0b?\\'\"");
        assert_eq!(text(r#"a: "\1\018\377\x4\x41B""#), b"\x01\x018\xff\x04AB");
        assert_eq!(text(r#"a: "\u00e4\U0001F600ö""#), "ä😀ö".as_bytes());
    }

    #[test]
    fn faults_say_where_and_what() {
        let check = |text: &str, at: usize, what: &str| {
            let (found_at, found) = refused(text);
            assert!(found_at == at && found.contains(what), "{text}: {found_at}: {found}");
        };
        check("a 1", 2, "expected `:`, `{` or `[` after `a`, found `1`");
        check("a: ", 3, "expected a value, found the end of the file");
        check("a: }", 3, "expected a value, found `}`");
        check("a {", 2, "never closed by `}`");
        check("a { b: 1 >", 9, "expected the name of a field, found `>`");
        check("a: [1, 2", 3, "never closed by `]`");
        check("a: [1 2]", 6, "expected `,` or `]`");
        check("a: [1,]", 6, "expected a value, found `]`");
        check("a: [[1]]", 4, "expected a value, found `[`");
        check("}", 0, "expected the name of a field");
        check("[a.b]: 1", 0, "in brackets");
        check("a: 12abc", 3, "`12abc` is not a number");
        check("a: 09", 3, "`09` is not a number");
        check("a: 1_000", 3, "`1_000` is not a number");
        check("a: 0x", 3, "`0x` is not a number");
        check("a: \"x\ny\"", 3, "does not end on its line");
        check("a: \"x", 3, "does not end on its line");
        check(r#"a: "\q""#, 4, "escape is not known");
        check(r#"a: "\400""#, 4, "escape is not known");
        check(r#"a: "\ud800""#, 4, "escape is not known");
        check("ä: 1", 0, "found `ä`");
        check("a: ä", 3, "found `ä`");
        check("a: \"\\ä\"", 4, "escape is not known");
    }

    #[test]
    fn depth_and_count_are_bounded() {
        let nested = |depth: usize| "a {".repeat(depth) + &"}".repeat(depth);
        assert!(parse(&nested(DEPTH_MAX)).is_ok());
        assert!(refused(&nested(DEPTH_MAX + 1)).1.contains("nested deeper"));
        assert!(refused(&"a{".repeat(1 << 18)).1.contains("nested deeper"));
        assert!(refused(&"a:1 ".repeat(FIELDS_MAX + 1)).1.contains("more than"));
    }
}
