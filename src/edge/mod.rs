//! The data plane's sockets: what is accepted, how much of it, and how it drains.

mod settings;

pub use settings::{Limits, Settings};
