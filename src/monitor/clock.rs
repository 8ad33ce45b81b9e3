//! The clock as a value: rooms are handed one, so that time can be made in tests and replays.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

/// Tells the time.
pub trait Clock: Debug + Send + Sync {
    /// The monotonic time, for durations and deadlines.
    fn now(&self) -> Instant;

    /// Time since 1970, for people and records.
    fn unix(&self) -> Duration;
}
