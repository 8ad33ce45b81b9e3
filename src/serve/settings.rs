//! What serving may be told.

use std::{num::NonZeroUsize, time::Duration};

/// Bounds of one prediction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Most rows (first dimension of a batchable input) of one request.
    pub batch_rows_max: NonZeroUsize,
    /// How long a prediction may take, from its head to its answer; a client may ask for less, never for more.
    pub request_timeout: Duration,
    /// Longest time that a run goes on after it was told to end, before its worker is given up and replaced.
    pub stuck_after: Duration,
    /// How long a request may wait for a version that loads on demand; never longer than its own deadline.
    pub demand_timeout: Duration,
    /// Most requests that wait for versions that load on demand.
    pub demand_waiting_max: usize,
    /// Most copies of requests that wait for a shadow, the one that it runs included.
    pub shadow_waiting_max: NonZeroUsize,
    /// Most bytes of inputs and outputs of these copies together.
    pub shadow_bytes_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            batch_rows_max: NonZeroUsize::new(65_536).expect("65536 is not zero"),
            request_timeout: Duration::from_secs(30),
            stuck_after: Duration::from_secs(5),
            demand_timeout: Duration::from_secs(30),
            demand_waiting_max: 1024,
            shadow_waiting_max: NonZeroUsize::new(256).expect("256 is not zero"),
            shadow_bytes_max: 64 << 20,
        }
    }
}
