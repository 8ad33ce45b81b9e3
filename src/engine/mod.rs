//! Engines that run models.

mod settings;

pub use settings::{EngineChoice, Settings};
