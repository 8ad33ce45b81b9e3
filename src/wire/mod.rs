//! Codecs without I/O: bytes to [`InferRequest`](crate::model::InferRequest) and back, for each protocol.
//!
//! A request is decoded in one pass by the datatypes and shapes that it declares itself: numbers go straight
//! into the typed buffer of their tensor, binary tensors stay slices of the body, nothing in between is built.
//! Always true:
//! - No bytes make a decoder panic, recurse without bound or reserve more than a small multiple of their number.
//! - A number is rounded once, to the nearest value of its datatype; one that does not fit is refused, never cut.
//! - What a client wrote stands in a message shortened and escaped.
//!
//! Which requests come from a web page of another site is read here, too, as both planes ask it (`stranger`).
//!
//! Not here: sockets, other headers and status codes (`edge`); whether inputs fit the model (`model`, `serve`).

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod json;
pub mod stranger;
pub mod v2;
