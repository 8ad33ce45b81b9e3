//! Tensors as values: datatypes, shapes, and elements in typed buffers or views over shared bytes.
//!
//! A tensor's elements live in the form in which they arrived: numbers that were parsed from text in a
//! typed buffer, binary tensors as a slice of the request's body. Always true:
//! - The element count is the product of the shape, checked without overflow.
//! - Raw bytes are little-endian, row-major, of exactly the length that count and datatype give; raw BOOL
//!   bytes are 0 or 1.
//!
//! Not here: protocols (`wire`), engine values (`engine`).

mod data;
mod datatype;
mod shape;

pub use data::{Data, Element, Strings, Tensor, TensorError};
pub use datatype::DataType;
pub use shape::Shape;
