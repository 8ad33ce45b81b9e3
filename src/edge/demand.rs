//! Waiting for a version that loads on demand: bounded in time and number, and never by holding a thread.
//!
//! Always true: whoever has waited looks at the live table again, so that nothing that was published meanwhile is
//! missed.
//!
//! Not here: the wishes themselves (`serve`), what is loaded for them (`lifecycle`).

use std::time::Duration;

use crate::{
    model::VersionSelector,
    monitor::Reason,
    serve::{Lease, RouteError},
};

use super::{refusal::Refusal, worker::Worker};

/// How often a request waits: a version may be evicted again, or another take its place, before it is looked up.
const ROUNDS_MAX: u32 = 8;

/// How much longer a request may wait.
#[derive(Debug)]
pub(super) struct Patience {
    left: Duration,
    rounds: u32,
}

impl Patience {
    /// Waits until a request's time is over, and never longer than the settings say.
    pub(super) fn new(worker: &Worker, left: Duration) -> Self {
        let left = left.min(worker.serving().settings().demand_timeout);
        Self { left, rounds: ROUNDS_MAX }
    }

    /// Waits for a version that the table says is asleep; any other error comes back as it is.
    ///
    /// Look at the table again, and hold the lease until the request is answered: so long the version stays.
    pub(super) async fn wait(
        &mut self,
        worker: &Worker,
        asleep: RouteError,
    ) -> Result<Lease, Refusal> {
        let (model, id) = match &asleep {
            RouteError::Asleep { model, id } if self.rounds > 0 => (model, *id),
            _ => return Err(asleep.into()),
        };
        let begin = worker.clock().now();
        let granted = worker.serving().demand().wait(model, id);
        let granted = tokio::time::timeout(self.left, granted).await;
        self.left = self.left.saturating_sub(worker.clock().now().saturating_duration_since(begin));
        self.rounds -= 1;
        let Ok(granted) = granted else {
            let text = format!(
                "version {id} of model '{model}' is being loaded, which takes longer than this request may wait; try again"
            );
            return Err(Refusal::unavailable(Reason::NotReady, text));
        };
        Ok(granted?)
    }
}

/// Makes sure that a version is loaded whose object is asked for, where it loads on demand.
pub(super) async fn awaken(
    worker: &Worker,
    model: &str,
    selector: VersionSelector<'_>,
) -> Result<Option<Lease>, Refusal> {
    let mut patience = Patience::new(worker, worker.serving().settings().request_timeout);
    let mut lease = None;
    loop {
        let routed = worker.serving().table().route(model, selector).map(|_| ());
        // What else may be wrong is told by whoever answers.
        let Err(asleep @ RouteError::Asleep { .. }) = routed else { return Ok(lease) };
        lease = Some(patience.wait(worker, asleep).await?);
    }
}
