//! Why a request is not one; always the client's mistake.

use crate::wire::json::JsonError;

pub use crate::wire::json::Syntax;

/// Why the bytes are not an inference request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, or another kind of JSON value than the protocol has there.
    #[error("invalid JSON at {0}")]
    Syntax(Syntax),
    /// Too many levels of arrays and objects.
    #[error("JSON nests deeper than {max} levels at byte {offset}")]
    Depth {
        /// Where the first level too many opens.
        offset: usize,
        /// The levels allowed.
        max: usize,
    },
    /// The request as a whole, not one part of it.
    #[error("{0}")]
    Request(String),
    /// Too many of something, or something too long.
    #[error("{what} are limited to {max}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// What is allowed.
        max: usize,
    },
    /// A request parameter.
    #[error("parameter {name}: {problem}")]
    Parameter {
        /// Its name in backticks, shortened.
        name: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// An input as a whole.
    #[error("input {input}: {problem}")]
    Input {
        /// Its name in backticks, shortened; its position where the name is not known yet.
        input: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// One element of an input.
    #[error("input {input}, element {index}: {problem}")]
    Element {
        /// The input, as in [`DecodeError::Input`].
        input: String,
        /// The element's index in row-major order.
        index: usize,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The binary data of an input is shorter or longer than it should be.
    #[error("unexpected size for input {input}: {problem}")]
    Size {
        /// The input, as in [`DecodeError::Input`].
        input: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// Bytes are left over behind the last binary input.
    #[error("unexpected additional input data: {0} bytes behind the last binary input")]
    LeftOver(usize),
    /// A requested output.
    #[error("output {output}: {problem}")]
    Output {
        /// Its name in backticks, shortened; its position where the name is not known yet.
        output: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

impl From<JsonError> for DecodeError {
    fn from(error: JsonError) -> Self {
        match error {
            JsonError::Syntax(syntax) => Self::Syntax(syntax),
            JsonError::Depth { offset, max } => Self::Depth { offset, max },
        }
    }
}

/// A client's text as it may stand in a message: cut to 64 characters, escaped, in backticks.
pub(super) fn shown(text: &str) -> String {
    const SHOWN_MAX: usize = 64;
    let mut shown = String::from("`");
    for (position, character) in text.chars().enumerate() {
        if position == SHOWN_MAX {
            shown.push('…');
            break;
        }
        shown.extend(character.escape_debug());
    }
    shown.push('`');
    shown
}
