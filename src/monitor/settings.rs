//! What monitoring may be told.

use std::time::Duration;

/// Bounds of what is exposed about predictions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Most series of `/metrics`; what would exceed it is left out and counted.
    pub series_max: usize,
    /// How long the series of a retired version stay before they fold into the model's totals.
    pub retired_for: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { series_max: 100_000, retired_for: Duration::from_mins(10) }
    }
}
