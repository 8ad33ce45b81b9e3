//! Serving predictions from the live table.

mod settings;

pub use settings::Settings;
