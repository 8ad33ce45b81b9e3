//! Protobuf's wire format, read in place: fields of a message, one after the other, nothing copied.
//!
//! Stricter than protobuf itself, because two readers of one file must never see two models: groups,
//! overlong varints and known fields of another wire type are refused, where one parser would skip them and
//! another not. Always true:
//! - Reading never leaves the message it was given, and every step consumes at least a byte.
//! - An error names the byte of the file at which it was met.
//!
//! Not here: what the fields mean (`walk`).
//!
//! Source: Protocol Buffers documentation, "Encoding".

use super::OnnxError;

/// The fields of a message that are still to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    offset: usize,
}

/// One field of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'a> {
    /// The field's number in the schema.
    pub(super) number: u32,
    value: Value<'a>,
    offset: usize,
}

#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Varint(u64),
    Fixed,
    Bytes(&'a [u8], usize),
}

impl<'a> Fields<'a> {
    /// The fields of a whole file.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, offset: 0 }
    }

    /// The byte of the file at which the next field starts.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// The next field; `None` at the end of the message.
    pub(super) fn advance(&mut self) -> Result<Option<Field<'a>>, OnnxError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let offset = self.offset;
        let tag = u32::try_from(self.varint()?)
            .map_err(|_| OnnxError::malformed("a field number is too large", offset))?;
        if tag >> 3 == 0 {
            return Err(OnnxError::malformed("a field has the number 0", offset));
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                let start = self.offset;
                // A length that does not even fit `usize` is longer than what is left, too.
                Value::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?, start)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(OnnxError::malformed("a field is of no known wire type", offset)),
        };
        Ok(Some(Field { number: tag >> 3, value, offset }))
    }

    fn varint(&mut self) -> Result<u64, OnnxError> {
        let mut value = 0u64;
        for (index, byte) in self.rest.iter().take(10).enumerate() {
            if index == 9 && *byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.take(index + 1)?;
                return Ok(value);
            }
        }
        let reason = if self.rest.len() < 10 {
            "it ends within a number"
        } else {
            "a number has more than 64 bits"
        };
        Err(OnnxError::malformed(reason, self.offset))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], OnnxError> {
        let Some((taken, rest)) = self.rest.split_at_checked(length) else {
            return Err(OnnxError::malformed("a field ends after its message", self.offset));
        };
        self.rest = rest;
        self.offset += length;
        Ok(taken)
    }
}

impl<'a> Field<'a> {
    /// The field as a message of its own.
    pub(super) fn message(&self) -> Result<Fields<'a>, OnnxError> {
        let (bytes, offset) = self.bytes()?;
        Ok(Fields { rest: bytes, offset })
    }

    /// The field as a message that must not have been met before in its parent.
    ///
    /// Protobuf merges messages given twice; a model split in this way is not one that a writer makes.
    pub(super) fn sole_message(&self, seen: &mut bool) -> Result<Fields<'a>, OnnxError> {
        if std::mem::replace(seen, true) {
            return Err(OnnxError::malformed("a part is given twice", self.offset));
        }
        self.message()
    }

    /// The field as text of at most `bytes_max` bytes.
    pub(super) fn text(&self, bytes_max: usize) -> Result<&'a str, OnnxError> {
        let (bytes, offset) = self.bytes()?;
        super::at_most("bytes in one name", bytes.len(), bytes_max)?;
        std::str::from_utf8(bytes).map_err(|error| {
            OnnxError::malformed("a name is not UTF-8", offset + error.valid_up_to())
        })
    }

    /// The field's bytes and where they start in the file.
    pub(super) fn bytes(&self) -> Result<(&'a [u8], usize), OnnxError> {
        match self.value {
            Value::Bytes(bytes, offset) => Ok((bytes, offset)),
            _ => Err(self.mistyped()),
        }
    }

    /// Whether the field is a plain number.
    pub(super) fn is_number(&self) -> bool {
        matches!(self.value, Value::Varint(_))
    }

    /// The field as a signed integer of 64 bits.
    pub(super) fn int64(&self) -> Result<i64, OnnxError> {
        match self.value {
            Value::Varint(value) => Ok(value.cast_signed()),
            _ => Err(self.mistyped()),
        }
    }

    /// The field as an `int32` or an enum: the low 32 bits, as protobuf reads them.
    pub(super) fn int32(&self) -> Result<i32, OnnxError> {
        #[expect(clippy::cast_possible_truncation, reason = "protobuf's parsers truncate as well")]
        self.int64().map(|value| value as i32)
    }

    /// Checks that the field is a message of whole fields, and no more.
    ///
    /// For parts that nothing here reads: an engine's parser still falls over them.
    pub(super) fn skim(&self) -> Result<(), OnnxError> {
        let mut fields = self.message()?;
        while fields.advance()?.is_some() {}
        Ok(())
    }

    /// Checks that the field holds whole numbers of `width` bytes, packed or not.
    pub(super) fn whole_numbers(&self, width: usize) -> Result<(), OnnxError> {
        match self.value {
            Value::Fixed => Ok(()),
            Value::Bytes(bytes, _) if bytes.len() % width == 0 => Ok(()),
            _ => Err(self.mistyped()),
        }
    }

    /// Hands every element of a repeated integer to `each`, packed or not.
    pub(super) fn integers(&self, mut each: impl FnMut(i64)) -> Result<(), OnnxError> {
        if let Value::Varint(value) = self.value {
            each(value.cast_signed());
            return Ok(());
        }
        let mut packed = self.message()?;
        while !packed.rest.is_empty() {
            each(packed.varint()?.cast_signed());
        }
        Ok(())
    }

    fn mistyped(&self) -> OnnxError {
        OnnxError::malformed("a field is not of its type", self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(bytes: &[u8]) -> Result<Option<Field<'_>>, String> {
        Fields::new(bytes).advance().map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_are_read_as_protobuf_reads_them() {
        let minus_one = [8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1];
        let field = only(&minus_one).unwrap().unwrap();
        assert_eq!((field.number, field.int64().unwrap(), field.int32().unwrap()), (1, -1, -1));
        let wide_enum = [8, 0x81, 0x80, 0x80, 0x80, 0x10];
        let field = only(&wide_enum).unwrap().unwrap();
        assert_eq!((field.int64().unwrap(), field.int32().unwrap()), ((1 << 32) + 1, 1));
    }

    #[test]
    fn repeated_numbers_are_read_packed_or_not() {
        let read = |bytes: &[u8]| {
            let mut fields = Fields::new(bytes);
            let mut all = Vec::new();
            while let Some(field) = fields.advance().unwrap() {
                field.integers(|value| all.push(value)).unwrap();
            }
            all
        };
        assert_eq!(read(&[8, 1, 8, 0x96, 1]), [1, 150]);
        assert_eq!(read(&[10, 3, 1, 0x96, 1, 8, 7]), [1, 150, 7]);
    }

    #[test]
    fn what_protobuf_would_not_write_is_refused() {
        let check = |bytes: &[u8], expected: &str| {
            assert_eq!(only(bytes).unwrap_err(), format!("not an ONNX model: {expected}"));
        };
        check(&[0], "a field has the number 0 at byte 0");
        check(&[8], "it ends within a number at byte 1");
        check(&[8, 0x80], "it ends within a number at byte 1");
        check(
            &[8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2],
            "a number has more than 64 bits at byte 1",
        );
        check(&[0xff, 0xff, 0xff, 0xff, 0x7f], "a field number is too large at byte 0");
        check(&[10, 4, 1, 2, 3], "a field ends after its message at byte 2");
        check(
            &[10, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
            "a field ends after its message at byte 11",
        );
        check(&[13, 1, 2], "a field ends after its message at byte 1");
        check(&[11, 12], "a field is of no known wire type at byte 0");
    }
}
