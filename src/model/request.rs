//! A request for inference, whatever protocol brought it.

use std::time::Duration;

use crate::tensor::Tensor;

use super::VersionId;

/// Which version of a model a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionSelector<'a> {
    /// Whatever the model's traffic gives.
    Default,
    /// Exactly this one.
    Number(VersionId),
    /// The one with this alias, such as `stable`.
    Alias(&'a str),
}

/// What a client asks of a model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InferRequest {
    /// The client's own name for the request, echoed in the response.
    pub id: Option<String>,
    /// Parameters that the protocol does not reserve, in the order given.
    pub parameters: Parameters,
    /// From the parameter `priority`: 0 is the default, 1 the highest.
    pub priority: u64,
    /// From the parameter `timeout`: how long the request may take; `None` if not given or 0.
    pub timeout: Option<Duration>,
    /// The inputs, in the order given.
    pub inputs: Vec<Input>,
    /// The outputs wanted; empty for all.
    pub outputs: Vec<RequestedOutput>,
    /// Whether outputs are binary that do not say otherwise.
    pub binary_output: bool,
}

/// Named values.
pub type Parameters = Vec<(String, Parameter)>;

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Parameter {
    /// A truth value.
    Bool(bool),
    /// A whole number that fits `i64`.
    Int(i64),
    /// A whole number above `i64::MAX`.
    Uint(u64),
    /// Any other number.
    Double(f64),
    /// Text.
    String(String),
}

/// One input.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// The name in the request.
    pub name: String,
    /// The elements.
    pub tensor: Tensor,
}

/// One output that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedOutput {
    /// The name in the request.
    pub name: String,
    /// Binary or not; `None` follows [`InferRequest::binary_output`].
    pub binary: Option<bool>,
    /// The best classes instead of the values: how many (at least 1).
    pub classification: Option<usize>,
}
