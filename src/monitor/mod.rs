//! Recorders on the path of a prediction and what is told about them.

mod settings;

pub use settings::Settings;
