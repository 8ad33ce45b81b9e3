//! The Open Inference Protocol v2 over REST, with Triton's binary tensors and classification.
//!
//! [`decode_infer`] and [`decode_raw_infer`] read a request, [`encode_infer`] writes its response, [`classify`]
//! turns scores into the best classes; [`encode_request`] and [`decode_outputs`] are a client's side; [`objects`]
//! holds the bodies of the control plane, which are small and left to serde. Always true:
//! - A request that is decoded has at least one input, unless its model takes none, and each tensor has the elements
//!   that its shape says.
//! - Each input has one source of data: `data` or the bytes behind the JSON.
//!
//! Not here: which inputs a model takes (`model::Signature`); paths, headers, codes (`edge`).

mod classify;
mod elements;
mod encode;
mod error;
mod golden;
mod infer;
mod load;
pub mod objects;
mod parameters;
mod raw;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod reference;

pub use classify::{ClassifyError, classify};
pub use encode::{EncodeError, Encoded, encode_golden, encode_infer, encode_request};
pub use error::{DecodeError, Syntax};
pub use golden::{GoldenFile, GoldenFileError, decode_golden};
pub use infer::{decode_infer, decode_outputs};
pub use load::{LoadRequest, UploadLimits, UploadedFile};
pub use raw::{decode_raw_infer, strings};

use crate::model::Extent;

/// What a request may hold at most. Each bounds memory or time that a client could ask for beyond its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open arrays and objects, counted from the outermost; more than 64 are never allowed.
    pub json_depth_max: usize,
    /// Inputs; at least so many, which is 0 or 1.
    pub inputs_min: usize,
    /// Inputs.
    pub inputs_max: usize,
    /// Requested outputs.
    pub outputs_max: usize,
    /// Keys in one `parameters` object.
    pub parameters_max: usize,
    /// Bytes in the name of an input, an output or a parameter.
    pub name_bytes_max: usize,
    /// Bytes in the request's id.
    pub id_bytes_max: usize,
    /// Dimensions of a tensor.
    pub rank_max: usize,
}

impl Limits {
    /// The same, but never below what requests for a model need.
    #[must_use]
    pub fn fitting(&self, extent: Extent) -> Self {
        Self {
            inputs_min: self.inputs_min.min(extent.inputs_min),
            inputs_max: self.inputs_max.max(extent.inputs_max),
            outputs_max: self.outputs_max.max(extent.outputs),
            name_bytes_max: self.name_bytes_max.max(extent.name_bytes),
            rank_max: self.rank_max.max(extent.rank),
            ..self.clone()
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            json_depth_max: 64,
            inputs_min: 1,
            inputs_max: 256,
            outputs_max: 256,
            parameters_max: 128,
            name_bytes_max: 256,
            id_bytes_max: 1024,
            rank_max: 16,
        }
    }
}

#[cfg(test)]
mod tests;
