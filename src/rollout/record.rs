//! A rollout as the log keeps it: where it stands and its sums, without the parts that only grow.
//!
//! Not here: writing it (`registry`), the parts that grow (`store`).

use serde_json::Value;

use super::{
    ledger::Ledger,
    state::{Head, Rollout},
};

impl Rollout {
    /// Serialises the state that the log keeps at each change.
    pub fn record(&self) -> Value {
        serde_json::to_value(&self.head).expect("a rollout is plain JSON")
    }

    /// The rollout of a record; `None` if it is not one.
    pub fn of(record: &Value) -> Option<Self> {
        let head: Head = serde_json::from_value(record.clone()).ok()?;
        Some(Self::bare(head, Ledger::default()))
    }

    /// Takes over where it stands from a record.
    pub(super) fn lay(&mut self, record: &Value) {
        if let Ok(head) = serde_json::from_value(record.clone()) {
            self.head = head;
            self.explained = std::sync::OnceLock::new();
        }
    }

    /// Reason for its state, for people.
    pub fn reason(&self) -> &str {
        &self.head.reason
    }

    /// Author of the last change: `tidegate` or an operator.
    pub fn actor(&self) -> &str {
        self.head.history.last().map_or("tidegate", |change| &change.by)
    }
}
