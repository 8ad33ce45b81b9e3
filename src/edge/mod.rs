//! The data plane's door: sockets, HTTP/1.1 and HTTP/2, limits, and errors as answers.
//!
//! One acceptor hands each socket to the least loaded worker; a worker is a thread with a runtime of its own,
//! and a prediction of microseconds runs on it without any hand-off. A request goes body in one buffer ->
//! `wire` decodes -> `serve` runs -> counted -> `wire` encodes -> written. Always true:
//! - Every request that was read gets exactly one answer, and is counted before the answer can be seen.
//! - Whatever a client sends is bounded in size, number, depth and time, and refused with a 4xx that says
//!   what would be right; only a head that the HTTP parser refuses gets an answer without a body.
//! - A connection whose request was not read to its end is closed after the answer.
//!
//! Not here: codecs (`wire`), choosing and running versions (`serve`), the control plane (`admin`), which is
//! handed in as a service for the repository API.

mod access;
mod batch;
mod body;
mod budget;
mod compression;
mod connection;
mod demand;
mod dispatch;
mod entry;
mod line;
mod listener;
mod load;
mod memory;
mod note;
mod objects;
#[cfg(feature = "otlp")]
mod otlp;
mod outbox;
mod refusal;
mod rolling;
mod route;
mod settings;
mod sticky;
mod v2;
mod visit;
mod worker;

pub use access::{Access, AccessError, AccessLog, AccessSettings, AccessTarget, Endpoint};
pub use listener::{Listener, ListenerError};
pub use memory::share_of_memory;
pub use settings::{Limits, Settings};
pub use worker::{ControlRequest, ControlService, Plane};
