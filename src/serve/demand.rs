//! Wishes for versions that load on demand, and the requests that wait for them.
//!
//! A request that finds its version known but not loaded leaves a wish here and awaits the answer; no thread is held by
//! it. Always true:
//! - No more requests wait than the settings allow, those included whose client has left.
//! - An answer carries no version: whoever gets one looks at the live table again.
//! - A version is not evicted while somebody holds a [`Lease`] of it.
//!
//! Not here: who loads and who is evicted (`lifecycle`), how long a request waits (`edge`).

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::oneshot;

use crate::model::{ModelName, VersionId};

/// Where wishes are left.
pub struct Demand {
    /// Who grants them; without it nothing loads on demand.
    keeper: OnceLock<Keeper>,
    waiting: Arc<AtomicUsize>,
    waiting_max: usize,
}

type Keeper = Box<dyn Fn(Wish) + Send + Sync>;

/// Somebody waits for a version.
#[derive(Debug)]
pub struct Wish {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub id: VersionId,
    answer: oneshot::Sender<Result<Lease, String>>,
    _place: Place,
}

/// Keeps a version loaded as long as anybody holds it; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Lease(Arc<()>);

/// Why a wish was not granted; worth retrying.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DemandError {
    /// Too many requests wait.
    #[error(
        "version {id} of model '{model}' is not loaded, and {waiting_max} requests wait for models already; try again, or \
         raise repository.demand_waiting"
    )]
    Crowded {
        /// The model.
        model: ModelName,
        /// The version.
        id: VersionId,
        /// How many may wait.
        waiting_max: usize,
    },
    /// It cannot be loaded now.
    #[error("version {id} of model '{model}' is not loaded: {reason}")]
    Refused {
        /// The model.
        model: ModelName,
        /// The version.
        id: VersionId,
        /// Why.
        reason: String,
    },
}

impl Demand {
    /// Nobody waits.
    pub(super) fn new(waiting_max: usize) -> Self {
        Self { keeper: OnceLock::new(), waiting: Arc::default(), waiting_max }
    }

    /// Says who grants wishes; the first to say so does.
    pub fn grant_by(&self, keeper: impl Fn(Wish) + Send + Sync + 'static) {
        // A second keeper would be a second process.
        let _ = self.keeper.set(Box::new(keeper));
    }

    /// Waits until a version was loaded, could not be, or is no longer what the table says; look at the table again.
    ///
    /// # Cancel safety
    /// Dropped while it waits, the version may be loaded all the same.
    pub async fn wait(&self, model: &ModelName, id: VersionId) -> Result<Lease, DemandError> {
        let refused = |reason: String| DemandError::Refused { model: model.clone(), id, reason };
        let gone = || {
            refused("the server is shutting down, or cannot load any more: see /livez".to_owned())
        };
        let place = Place::take(&self.waiting, self.waiting_max).ok_or_else(|| {
            DemandError::Crowded { model: model.clone(), id, waiting_max: self.waiting_max }
        })?;
        let (answer, granted) = oneshot::channel();
        let keeper = self.keeper.get().ok_or_else(gone)?;
        keeper(Wish { model: model.clone(), id, answer, _place: place });
        granted.await.map_err(|_| gone())?.map_err(refused)
    }

    /// Requests that wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }
}

impl std::fmt::Debug for Demand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Demand").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Wish {
    /// The table has an answer; the lease keeps it there until the one who waited has been answered.
    pub fn grant(self, lease: Lease) {
        // Whoever waited may have left.
        let _ = self.answer.send(Ok(lease));
    }

    /// It cannot be loaded now.
    pub fn refuse(self, reason: &str) {
        let _ = self.answer.send(Err(reason.to_owned()));
    }

    /// Whether nobody waits any more.
    pub fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }
}

impl Lease {
    /// Whether anybody holds it but the one who asks.
    pub fn is_held(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// One of the places for requests that wait.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(waiting: &Arc<AtomicUsize>, waiting_max: usize) -> Option<Self> {
        let place = Self(Arc::clone(waiting));
        (waiting.fetch_add(1, Relaxed) < waiting_max).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{Mutex, PoisonError},
        task::{Context, Poll, Waker},
    };

    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        let (demand, wishes) = (Demand::new(2), Arc::new(Mutex::new(Vec::new())));
        let kept = Arc::clone(&wishes);
        demand.grant_by(move |wish| {
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(wish);
        });
        let (model, id) = (ModelName::parse("m").unwrap(), VersionId::new(1));
        let mut cx = Context::from_waker(Waker::noop());
        let (mut one, mut two) = (pin!(demand.wait(&model, id)), pin!(demand.wait(&model, id)));
        assert!(one.as_mut().poll(&mut cx).is_pending() && two.as_mut().poll(&mut cx).is_pending());
        let crowded = pin!(demand.wait(&model, id)).poll(&mut cx);
        assert!(matches!(crowded, Poll::Ready(Err(DemandError::Crowded { .. }))), "{crowded:?}");
        assert_eq!(demand.waiting(), 2);
        let own = Lease::default();
        wishes.lock().unwrap().remove(0).grant(own.clone());
        let Poll::Ready(Ok(lease)) = one.as_mut().poll(&mut cx) else { panic!("granted") };
        assert!(own.is_held() && demand.waiting() == 1);
        drop(lease);
        assert!(!own.is_held());
        wishes.lock().unwrap().clear();
        let gone = two.as_mut().poll(&mut cx);
        assert!(matches!(gone, Poll::Ready(Err(DemandError::Refused { .. }))), "{gone:?}");
        assert_eq!(demand.waiting(), 0);
    }
}
