//! The engines that run models.

pub mod onnx;

mod settings;

pub use settings::{EngineChoice, Settings};
