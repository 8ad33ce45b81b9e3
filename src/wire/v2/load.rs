//! The body of a load: a model's configuration and files, where a request brings them.
//!
//! Files can be as large as the body, so they are read without a document in between: from the body's Base64 straight
//! into the bytes of their file. What is refused, is refused before memory is taken for it.
//!
//! Source: Triton's model repository extension; RFC 4648, section 4, for Base64: padded, without line breaks.
//!
//! Not here: which paths are good, what a configuration means (`source`).

use crate::wire::json::{Cursor, JsonError};

use super::{error::shown, objects::BodyError};

/// `POST /v2/repository/models/{model}/load`; an empty body is the default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadRequest {
    /// A model configuration as JSON text, to be used instead of the repository's.
    pub config: Option<String>,
    /// Files to be used instead of the repository's, each named once.
    pub files: Vec<UploadedFile>,
}

/// A file that a request brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadedFile {
    /// Its path in the model's folder, as the client wrote it.
    pub path: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// What a request may bring at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadLimits {
    /// Bytes of all files together.
    pub bytes_max: usize,
    /// Files.
    pub files_max: usize,
}

/// The longest path of a file, in bytes.
const PATH_BYTES_MAX: usize = 2048;
/// The body, `parameters`, and nothing below.
const DEPTH_MAX: usize = 2;

impl LoadRequest {
    /// Reads the body; without limits it may bring nothing.
    pub fn decode(body: &[u8], limits: Option<&UploadLimits>) -> Result<Self, BodyError> {
        let mut request = Self::default();
        if body.trim_ascii().is_empty() {
            return Ok(request);
        }
        let cursor = &mut Cursor::new(body, DEPTH_MAX);
        cursor.open(b'{')?;
        let (mut first, mut given) = (true, false);
        while let Some(key) = cursor.next_key(&mut first)? {
            if key != "parameters" {
                let problem = format!("unknown field {}; there is `parameters`", shown(&key));
                return Err(BodyError::Json(problem));
            }
            if std::mem::replace(&mut given, true) {
                return Err(BodyError::Twice { name: shown(&key) });
            }
            if !cursor.null()? {
                request.read_parameters(cursor, limits)?;
            }
        }
        cursor.finish()?;
        if request.config.is_none() && !request.files.is_empty() {
            return Err(BodyError::FilesWithoutConfig);
        }
        Ok(request)
    }

    /// Whether it brings anything.
    pub fn is_upload(&self) -> bool {
        self.config.is_some() || !self.files.is_empty()
    }

    fn read_parameters(
        &mut self,
        cursor: &mut Cursor<'_>,
        limits: Option<&UploadLimits>,
    ) -> Result<(), BodyError> {
        let mut bytes_left = limits.map_or(0, |limits| limits.bytes_max);
        let mut paths = std::collections::BTreeSet::new();
        let mut first = true;
        cursor.open(b'{')?;
        while let Some(name) = cursor.next_key(&mut first)? {
            let path = name.strip_prefix("file:");
            if name != "config" && path.is_none() {
                let known = "`config` and `file:<version>/<path>`";
                return Err(BodyError::UnknownParameter { name: shown(&name), known });
            }
            let Some(limits) = limits else { return Err(BodyError::UploadsOff) };
            if cursor.peek() != b'"' {
                return Err(BodyError::Kind { name: shown(&name), wanted: "a string" });
            }
            let twice = || BodyError::Twice { name: shown(&name) };
            let Some(path) = path else {
                if self.config.replace(cursor.string()?.into_owned()).is_some() {
                    return Err(twice());
                }
                continue;
            };
            if path.len() > PATH_BYTES_MAX {
                return Err(limit("bytes of a file's path", PATH_BYTES_MAX));
            }
            if self.files.len() == limits.files_max {
                let what = "files of an upload (repository.upload_files)";
                return Err(limit(what, limits.files_max));
            }
            if !paths.insert(path.to_owned()) {
                return Err(twice());
            }
            let text = cursor.string()?;
            if decoded_bytes(text.as_bytes()) > bytes_left {
                let what = "bytes of an upload's files together (repository.upload_bytes)";
                return Err(limit(what, limits.bytes_max));
            }
            let bytes = base64(text.as_bytes())
                .map_err(|problem| BodyError::Base64 { name: shown(&name), problem })?;
            bytes_left -= bytes.len();
            self.files.push(UploadedFile { path: path.to_owned(), bytes });
        }
        Ok(())
    }
}

impl From<JsonError> for BodyError {
    fn from(error: JsonError) -> Self {
        Self::Json(super::DecodeError::from(error).to_string())
    }
}

fn limit(what: &'static str, max: usize) -> BodyError {
    BodyError::Limit { what, max }
}

/// The value of each letter; [`NONE`] for what is none.
const VALUES: [u8; 256] = {
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut values = [NONE; 256];
    let mut value = 0;
    while value < 64 {
        values[letters[value as usize] as usize] = value;
        value += 1;
    }
    values
};
const NONE: u8 = 0xff;

/// How many bytes a text of this length stands for, if it is Base64.
fn decoded_bytes(text: &[u8]) -> usize {
    let padding = text.iter().rev().take(2).take_while(|letter| **letter == b'=').count();
    (text.len().div_ceil(4) * 3).saturating_sub(padding)
}

/// The bytes that a Base64 text stands for; it has exactly one spelling.
pub(in crate::wire) fn base64(text: &[u8]) -> Result<Vec<u8>, String> {
    if !text.len().is_multiple_of(4) {
        let length = text.len();
        return Err(format!(
            "is {length} characters long, not a multiple of 4; pad it with `=`, leave out line breaks"
        ));
    }
    let mut bytes = Vec::with_capacity(decoded_bytes(text));
    let Some((groups, last)) = text.split_last_chunk::<4>() else { return Ok(bytes) };
    for (index, group) in groups.chunks_exact(4).enumerate() {
        let value = |at: usize| u32::from(VALUES[usize::from(group[at])]);
        let (a, b, c, d) = (value(0), value(1), value(2), value(3));
        // A value that is none is the only one above 63.
        if (a | b | c | d) > 63 {
            return Err(foreign(group, index * 4));
        }
        let [_, high, middle, low] = (a << 18 | b << 12 | c << 6 | d).to_be_bytes();
        bytes.extend_from_slice(&[high, middle, low]);
    }
    let padding = decoded_bytes(last).abs_diff(3);
    let mut bits = 0;
    for letter in &last[..4 - padding] {
        let value = VALUES[usize::from(*letter)];
        if value == NONE {
            return Err(foreign(&last[..4 - padding], groups.len()));
        }
        bits = bits << 6 | u32::from(value);
    }
    let [_, whole @ ..] = (bits << (6 * padding)).to_be_bytes();
    let (kept, spare) = whole.split_at(3 - padding);
    if spare.iter().any(|byte| *byte != 0) {
        return Err("has bits behind its last byte; they must be 0".to_owned());
    }
    bytes.extend_from_slice(kept);
    Ok(bytes)
}

/// What is wrong with a group of letters that begins at `from`.
fn foreign(group: &[u8], from: usize) -> String {
    let wrong = |letter: &u8| VALUES[usize::from(*letter)] == NONE;
    let at = group.iter().position(wrong).unwrap_or_default();
    let found = String::from_utf8_lossy(&group[at..=at]).escape_debug().to_string();
    format!("has `{found}` at character {}, which is no letter of Base64", from + at + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: UploadLimits = UploadLimits { bytes_max: 10, files_max: 3 };

    fn load(body: &str) -> Result<LoadRequest, String> {
        LoadRequest::decode(body.as_bytes(), Some(&LIMITS)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_load_may_bring_a_configuration_and_files() {
        for empty in ["", " ", "{}", r#"{"parameters":null}"#, r#"{"parameters":{}}"#] {
            assert_eq!(load(empty), Ok(LoadRequest::default()), "{empty}");
        }
        let body = r#"{"parameters":{"file:1/model.onnx":"AA==","config":"{\"a\":1}","file:2/x":"\/w=="}}"#;
        let request = load(body).unwrap();
        assert_eq!(request.config.as_deref(), Some(r#"{"a":1}"#));
        let file = |path: &str, bytes: &[u8]| UploadedFile {
            path: path.to_owned(),
            bytes: bytes.to_vec(),
        };
        assert_eq!(request.files, [file("1/model.onnx", &[0]), file("2/x", &[0xff])]);
        assert!(request.is_upload() && !LoadRequest::default().is_upload());
    }

    #[test]
    fn what_is_wrong_with_a_load_is_said() {
        let check = |parameters: &str, expected: &str| {
            let body = format!(r#"{{"parameters":{{{parameters}}}}}"#);
            assert_eq!(load(&body).unwrap_err(), expected);
        };
        check(r#""x":1"#, "unknown parameter `x`; there are `config` and `file:<version>/<path>`");
        check(r#""config":{}"#, "parameter `config` must be a string");
        check(r#""file:a":"""#, "parameters `file:...` need the parameter `config`");
        check(r#""config":"","config":"""#, "parameter `config` is given twice");
        check(r#""config":"","file:a":"","file:\u0061":"""#, "parameter `file:a` is given twice");
        check(
            r#""file:a":"","file:b":"","file:c":"","file:d":"""#,
            "files of an upload (repository.upload_files) are limited to 3",
        );
        check(
            r#""file:a":"AAAAAAAAAAAA","file:b":"AAA=""#,
            "bytes of an upload's files together (repository.upload_bytes) are limited to 10",
        );
        check(
            r#""file:a":"AAA""#,
            "parameter `file:a` is not Base64: it is 3 characters long, not a multiple of 4; pad it with `=`, leave \
             out line breaks",
        );
        let long = format!(r#""file:{}":"""#, "a".repeat(2049));
        check(&long, "bytes of a file's path are limited to 2048");
        assert!(load(r#"{"x":1}"#).unwrap_err().contains("unknown field `x`"));
        assert!(load(r#"{"parameters":{}} x"#).unwrap_err().contains("the end of the JSON"));
        assert!(load(r#"{"parameters":{},"parameters":{}}"#).unwrap_err().contains("twice"));
        assert!(load("[").is_err());
        let off = LoadRequest::decode(br#"{"parameters":{"config":"{}"}}"#, None);
        assert!(matches!(off, Err(BodyError::UploadsOff)));
        assert!(LoadRequest::decode(br#"{"parameters":{}}"#, None).is_ok());
    }

    #[test]
    fn base64_has_one_spelling() {
        // RFC 4648, section 10.
        let known = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (length, text) in known.into_iter().enumerate() {
            assert_eq!(base64(text.as_bytes()).unwrap(), &b"foobar"[..length]);
        }
        for wrong in [
            "Zg",
            "Zg=",
            "Zh==",
            "Zm9=",
            "=",
            "====",
            "Z===",
            "Zg==Zg==",
            "Zm9v\n",
            "Zm_v",
            "Zm 9",
            "\u{e4}aa",
            "Z=g=",
            "Zm9vZg=\n",
        ] {
            assert!(base64(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert_eq!(
            base64(b"AAAAAA*A").unwrap_err(),
            "has `*` at character 7, which is no letter of Base64"
        );
    }

    proptest! {
        #[test]
        fn what_is_base64_reads_as_an_independent_reading_says(text in "[A-D/+=\n]{0,12}") {
            prop_assert_eq!(base64(text.as_bytes()).ok(), slowly(&text));
        }
    }

    /// Bit by bit.
    fn slowly(text: &str) -> Option<Vec<u8>> {
        let letters = text.trim_end_matches('=');
        let padding = text.len() - letters.len();
        let alphabet: Vec<char> =
            ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
        let mut bits = Vec::new();
        for letter in letters.chars() {
            let value = u8::try_from(alphabet.iter().position(|known| *known == letter)?).unwrap();
            bits.extend((0..6).rev().map(|bit| value >> bit & 1));
        }
        let spare = bits.len() % 8;
        let rest = bits.split_off(bits.len() - spare);
        // One letter is no byte, whatever is padded to it.
        let fits = text.len().is_multiple_of(4)
            && padding <= 2
            && spare == 2 * padding
            && rest.iter().all(|bit| *bit == 0);
        let byte = |bits: &[u8]| bits.iter().fold(0, |byte, bit| byte << 1 | *bit);
        fits.then(|| bits.chunks(8).map(byte).collect())
    }
}
