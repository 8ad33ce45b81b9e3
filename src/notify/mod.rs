//! Alerts: events of all rooms sent to webhooks, signed, and requests to train a model anew.
//!
//! An event that a webhook wants is written down before it is sent, and is sent until the receiver has it or its time
//! is over. Always true:
//! - What was queued is delivered at least once, in the order of events for each webhook, or given up; both are
//!   recorded and counted. A receiver tells repeats by the event's id.
//! - A receiver that fails is asked less and less often, and holds up no other.
//! - Nothing is sent to an address that the operator has not named or that is not of the internet, whatever a name
//!   resolves to and wherever a receiver redirects.
//! - Queues, bodies, answers, attempts and ages are bounded.
//!
//! In reading order: `webhook` and `settings` are what is configured, `message` what is sent, `signature` how it is
//! signed, `outbox` when, `journal` what outlives the process, `address` and `client` the way there, `retrain` the rule
//! of retraining, `driver` the thread that does all this, `handle` and `report` what others ask and see.
//!
//! Not here: which events there are (`monitor`), how drift and drops are found.

mod address;
mod client;
mod driver;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod journal;
mod message;
mod outbox;
mod report;
mod retrain;
mod settings;
mod signature;
mod webhook;

pub use address::{Block, HostRule};
pub use driver::{Notifier, Parts, VersionOf};
pub use handle::{Notifications, NotifyError};
pub use report::{NotificationReport, Report, TestReport, WebhookReport};
pub use retrain::{RetrainDraft, RetrainSettings};
pub use settings::Settings;
pub use webhook::{Secret, SecretDraft, Target, Variables, WEBHOOKS_MAX, Webhook, WebhookDraft};
