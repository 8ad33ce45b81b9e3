//! Settings of notifications, and what can be found wrong with them before anything is sent.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::model::ModelName;

use super::{
    address::{Block, HostRule},
    client::Client,
    retrain::RetrainSettings,
    webhook::{Variables, Webhook},
};

/// Webhooks, their limits, and the rules of retraining.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The attribute `source` of each event: names this server.
    pub source: String,
    /// Receivers.
    pub webhooks: Vec<Webhook>,
    /// Hosts that webhooks may name; empty for those of their own URLs.
    pub hosts: Vec<HostRule>,
    /// Addresses beyond the public internet that deliveries may go to.
    pub private_addresses: Vec<Block>,
    /// Certificates of authorities to trust instead of the machine's.
    pub ca_file: Option<PathBuf>,
    /// Time for which the same news is not sent again.
    pub cooldown: Duration,
    /// Pause after the first failed delivery; doubles with each further one.
    pub backoff: Duration,
    /// The longest such pause, and the pause of an open circuit.
    pub backoff_max: Duration,
    /// Failed deliveries in a row that open the circuit of a webhook.
    pub breaker_failures: u32,
    /// Attempts to deliver one event.
    pub attempts_max: u32,
    /// Age at which an event is given up.
    pub give_up_after: Duration,
    /// Events that wait for one webhook.
    pub queue_max: usize,
    /// The largest body of a delivery in bytes; a larger event is sent without its object.
    pub event_bytes_max: usize,
    /// Rules of retraining, by model.
    pub retrain: BTreeMap<ModelName, RetrainSettings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            source: "/tidegate".to_owned(),
            webhooks: Vec::new(),
            hosts: Vec::new(),
            private_addresses: Vec::new(),
            ca_file: None,
            cooldown: Duration::from_mins(10),
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_mins(1),
            breaker_failures: 5,
            // More than three days of one a minute.
            attempts_max: 5000,
            give_up_after: Duration::from_hours(72),
            queue_max: 1000,
            event_bytes_max: 64 << 10,
            retrain: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// Lists what would keep deliveries from being sent: secrets and certificates that cannot be read.
    pub fn problems(&self, variables: Variables) -> Vec<String> {
        let mut problems = Vec::new();
        if self.webhooks.iter().any(|webhook| webhook.target.tls)
            && let Err(error) = Client::trusting(self.ca_file.as_deref())
        {
            problems.push(error);
        }
        for webhook in &self.webhooks {
            let mut add =
                |what: String| problems.push(format!("webhook `{}`: {what}", webhook.name));
            if let Some(Err(error)) = webhook.secret.as_ref().map(|secret| secret.key(variables)) {
                add(format!("`secret`: {error}"));
            }
            for (name, value) in &webhook.headers {
                if let Err(error) = value.reveal(variables) {
                    add(format!("`headers.{name}`: {error}"));
                }
            }
        }
        problems
    }
}
