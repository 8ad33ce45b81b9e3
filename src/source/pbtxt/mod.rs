//! Triton's `config.pbtxt`: protocol-buffer text of the message `inference.ModelConfig`, read tolerantly.
//!
//! `text` turns bytes into fields, `schema` knows which fields a message may have, `config` turns fields into
//! a [`ModelDescription`]; `json` writes the same message in JSON as text. What we cannot do is refused by name; what
//! we know and do not need is passed over, with a note where someone may wonder; what Triton does not know either is
//! an error with a suggestion.
//!
//! Source: `protobuf/model_config.proto` of Triton.

mod config;
mod json;
mod schema;
mod text;

use crate::model::ModelDescription;

use text::Fault;

/// The name of the file.
pub(super) const FILENAME: &str = "config.pbtxt";

/// Why a `config.pbtxt` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {what}")]
pub struct PbtxtError {
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    /// What is wrong and what would be right.
    pub what: String,
}

/// Reads a `config.pbtxt`.
pub fn read(bytes: &[u8]) -> Result<ModelDescription, PbtxtError> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let (before, _) = bytes.split_at(error.valid_up_to());
            let fault = Fault::new(before.len(), "this is not UTF-8 text");
            return Err(located(&String::from_utf8_lossy(before), fault));
        }
    };
    text::parse(text)
        .and_then(|fields| config::describe(&fields))
        .map_err(|fault| located(text, fault))
}

/// Reads a configuration in JSON; gives the same in the text format, which says the same when it is read.
pub(super) fn read_json(json: &str) -> Result<(ModelDescription, String), String> {
    let transcript = json::transcribe(json)?;
    let read = text::parse(&transcript.text).and_then(|fields| config::describe(&fields));
    match read {
        Ok(description) => Ok((description, transcript.text)),
        Err(fault) => Err(match transcript.path(fault.at) {
            "" => fault.what,
            path => format!("{path}: {}", fault.what),
        }),
    }
}

/// Reads any bytes and checks what must hold for all of them: the target of the fuzzer.
///
/// # Panics
///
/// Where text, once read, does not read the same again when it is written in its canonical form.
pub fn check_text(bytes: &[u8]) {
    let read_once = read(bytes);
    let Some(fields) = std::str::from_utf8(bytes).ok().and_then(|text| text::parse(text).ok())
    else {
        assert!(read_once.is_err(), "text without fields has no description");
        return;
    };
    let printed = text::print(&fields);
    let again = text::parse(&printed).expect("the canonical form is a text");
    assert_eq!(text::print(&again), printed, "the canonical form is a fixed point");
    match (read_once, read(printed.as_bytes())) {
        (Ok(once), Ok(twice)) => assert_eq!(once, twice, "both forms say the same"),
        (Err(once), Err(twice)) => assert_eq!(once.what, twice.what, "both fail for one reason"),
        (once, twice) => panic!("only one form is right: {once:?} / {twice:?}"),
    }
}

fn located(text: &str, fault: Fault) -> PbtxtError {
    let (line, column) = super::error::line_and_column(text, fault.at);
    PbtxtError { line, column, what: fault.what }
}

#[cfg(test)]
mod tests;
