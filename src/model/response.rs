//! The answer to an inference request, before any protocol writes it.

use smallvec::SmallVec;

use crate::tensor::Tensor;

use super::{ModelName, VersionId};

/// What a client gets: borrowed from the prediction, so that nothing is copied before it is written.
#[derive(Debug, Clone)]
pub struct InferResponse<'a> {
    /// The model that answered.
    pub model: &'a ModelName,
    /// The version that answered.
    pub version: VersionId,
    /// The request's id, if it had one.
    pub id: Option<&'a str>,
    /// Response parameters, all text.
    pub parameters: SmallVec<[(&'a str, &'a str); 2]>,
    /// The outputs, in the order asked for.
    pub outputs: SmallVec<[ResponseOutput<'a>; 4]>,
}

/// One output.
#[derive(Debug, Clone)]
pub struct ResponseOutput<'a> {
    /// The model's name for it.
    pub name: &'a str,
    /// The elements.
    pub tensor: &'a Tensor,
    /// Whether the client wants it in binary form.
    pub binary: bool,
}
