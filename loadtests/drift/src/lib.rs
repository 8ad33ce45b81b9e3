//! tidegate's room `stats`, compiled by itself: it needs nothing of the rest.

#[expect(clippy::pedantic, reason = "the room is linted where it lives")]
#[path = "../../../src/stats/mod.rs"]
pub mod stats;
