//! External data: where a tensor says that its bytes lie, and which spellings of that are refused.
//!
//! The first line of defence only. A location that passes is a plain relative path below the model's folder;
//! links on the way, missing files and ends of files are found when it is opened.
//!
//! Not here: opening files (whoever fetches the model).

use super::{ElementType, OnnxError, shown, wire::Fields};

/// What holds a tensor whose bytes lie outside the model file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carrier {
    /// An initializer of the model's main graph.
    Initializer,
    /// An initializer of another graph.
    InnerInitializer,
    /// An attribute of a node, such as the value of a `Constant`.
    Attribute,
    /// The values or indices of a sparse initializer.
    SparseInitializer,
    /// The values or indices of a sparse attribute.
    SparseAttribute,
}

/// A tensor whose bytes lie outside the model file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalTensor {
    /// The tensor's name, or that of the value it belongs to; names repeat between subgraphs.
    pub tensor: String,
    /// The type of its elements.
    pub element: ElementType,
    /// Its dimensions.
    pub dims: Vec<i64>,
    /// What holds it.
    pub carrier: Carrier,
    /// A relative path below the model's folder, as the file spells it.
    pub location: String,
    /// The first byte.
    pub offset: u64,
    /// The number of bytes; `None` for all up to the end. `offset + length` does not overflow.
    pub length: Option<u64>,
    /// The bytes that datatype and dimensions ask for; `None` where the datatype has no fixed size.
    pub bytes_needed: Option<u64>,
}

/// The entries of a tensor's `external_data` that say where its bytes are.
#[derive(Debug, Default)]
pub(super) struct Entries<'a> {
    location: Option<&'a str>,
    offset: Option<&'a str>,
    length: Option<&'a str>,
}

impl<'a> Entries<'a> {
    /// Reads one entry; unknown keys are none of ours.
    pub(super) fn read(
        &mut self,
        mut entry: Fields<'a>,
        name_bytes_max: usize,
    ) -> Result<(), OnnxError> {
        let start = entry.offset();
        let (mut key, mut value) = ("", None);
        while let Some(field) = entry.advance()? {
            match field.number {
                1 => key = field.text(name_bytes_max)?,
                2 => value = Some(field),
                _ => {}
            }
        }
        let slot = match key {
            "location" => &mut self.location,
            "offset" => &mut self.offset,
            "length" => &mut self.length,
            _ => return Ok(()),
        };
        let text = value.map_or(Ok(""), |field| field.text(name_bytes_max))?;
        // Readers differ in which of two they believe.
        match slot.replace(text) {
            None => Ok(()),
            Some(_) => Err(OnnxError::malformed("external data names a key twice", start)),
        }
    }

    /// The external tensor that the entries describe.
    pub(super) fn resolve(
        &self,
        tensor: &str,
        carrier: Carrier,
        (element, dims): (ElementType, Vec<i64>),
        bytes_needed: Option<u64>,
    ) -> Result<ExternalTensor, OnnxError> {
        let location = self.location.unwrap_or("");
        if let Err(problem) = check_location(location) {
            let (tensor, location) = (shown(tensor), shown(location));
            return Err(OnnxError::Location { tensor, location, problem });
        }
        let number = |key: &'static str, text: Option<&str>| {
            text.map(|text| parse_number(text).map_err(|problem| (key, text.to_owned(), problem)))
                .transpose()
        };
        let range = || {
            let offset = number("offset", self.offset)?.unwrap_or(0);
            let length = number("length", self.length)?;
            if length.is_some_and(|length| i64::try_from(offset + length).is_err()) {
                let text = format!("{offset} + {}", length.unwrap_or(0));
                return Err(("offset + length", text, "is beyond what a file can hold"));
            }
            Ok((offset, length))
        };
        let (offset, length) = range().map_err(|(key, value, problem)| OnnxError::Range {
            tensor: shown(tensor),
            key,
            value: shown(&value),
            problem,
        })?;
        let (tensor, location) = (tensor.to_owned(), location.to_owned());
        Ok(ExternalTensor {
            tensor,
            element,
            dims,
            carrier,
            location,
            offset,
            length,
            bytes_needed,
        })
    }
}

/// Whether a location is spelled as a plain relative path; otherwise what is wrong with it.
fn check_location(location: &str) -> Result<(), &'static str> {
    let drive = |text: &str| matches!(text.as_bytes(), [letter, b':'] | [letter, b':', b'/', ..] if letter.is_ascii_alphabetic());
    if location.is_empty() {
        return Err("it is empty");
    }
    if location.contains('\0') {
        return Err("it holds a NUL");
    }
    if location.chars().any(char::is_control) {
        return Err("it holds control characters");
    }
    if location.contains('\\') {
        return Err("it holds a backslash");
    }
    if location.starts_with('/') || drive(location) {
        return Err("it is absolute");
    }
    // ONNX Runtime marks tensors in its own memory by the location `*/_ORT_MEM_ADDR_/*` and takes the
    // offset for an address: in a file, that would read the process' memory.
    if location.split('/').any(|part| part == "*" || part.starts_with("_ORT_")) {
        return Err("it is a name that ONNX Runtime keeps for itself");
    }
    if location.split('/').any(|part| part == "..") {
        return Err("it leaves the model's folder");
    }
    if location.ends_with('/') || location.split('/').next_back() == Some(".") {
        return Err("it is a folder");
    }
    Ok(())
}

/// A number of bytes: decimal digits and nothing else, so that no two readers differ.
fn parse_number(text: &str) -> Result<u64, &'static str> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("is not a number of bytes");
    }
    if digits.len() < text.len() {
        return Err("is negative");
    }
    match digits.parse::<i64>() {
        Ok(number) => Ok(number.unsigned_abs()),
        Err(_) => Err("is beyond what a file can hold"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_relative_paths_pass() {
        for location in ["weights.bin", "a/b.bin", "./w", "a/./b", "..w", "w..", "onnx::MatMul_1"] {
            assert_eq!(check_location(location), Ok(()), "{location}");
        }
        for (location, problem) in [
            ("", "it is empty"),
            ("/etc/hostname", "it is absolute"),
            ("//host/share", "it is absolute"),
            ("C:/windows", "it is absolute"),
            ("c:", "it is absolute"),
            ("..", "it leaves the model's folder"),
            ("../w", "it leaves the model's folder"),
            ("a/../w", "it leaves the model's folder"),
            ("a/..", "it leaves the model's folder"),
            ("..\\w", "it holds a backslash"),
            ("a\\w", "it holds a backslash"),
            ("w\0.bin", "it holds a NUL"),
            ("w\n", "it holds control characters"),
            (".", "it is a folder"),
            ("a/", "it is a folder"),
            ("a/.", "it is a folder"),
            ("*/_ORT_MEM_ADDR_/*", "it is a name that ONNX Runtime keeps for itself"),
        ] {
            assert_eq!(check_location(location), Err(problem), "{location}");
        }
    }

    #[test]
    fn numbers_of_bytes_are_digits() {
        assert_eq!(parse_number("0"), Ok(0));
        assert_eq!(parse_number("9223372036854775807"), Ok(i64::MAX.unsigned_abs()));
        assert_eq!(parse_number("9223372036854775808"), Err("is beyond what a file can hold"));
        assert_eq!(parse_number("-1"), Err("is negative"));
        for text in ["", "-", "+1", " 1", "1 ", "0x10", "1e3", "1.0", "٣"] {
            assert_eq!(parse_number(text), Err("is not a number of bytes"), "{text}");
        }
    }

    #[test]
    fn offset_and_length_together_fit_a_file() {
        let entries = |offset, length| Entries {
            location: Some("w"),
            offset: Some(offset),
            length: Some(length),
        };
        let resolve = |entries: &Entries<'_>| {
            entries
                .resolve("t", Carrier::Initializer, (ElementType(1), vec![]), None)
                .map_err(|error| error.to_string())
        };
        let fine = resolve(&entries("8", "9223372036854775799")).unwrap();
        assert_eq!((fine.offset, fine.length), (8, Some(9_223_372_036_854_775_799)));
        assert_eq!(
            resolve(&entries("8", "9223372036854775800")).unwrap_err(),
            "external data of `t`: offset + length `8 + 9223372036854775800` is beyond what a file can \
             hold; give byte counts within the file"
        );
    }
}
