//! Tells a lost volume from a wish: what is gone all at once goes on serving.
//!
//! An unmounted volume leaves an empty folder, and to act on that would unload every model. Removing one model, or one
//! version, of several is a wish and is done at once. All models gone at once is not, whatever else lies there: so the
//! wrong volume looks; nor is anything missing below a root that lies on another device than before. Such a look at the
//! repository is refused for `repository.vanished_grace`. After that it is believed, except where the root is empty and
//! not the folder in which models were seen: that is what an unmounted volume looks like, however long. Always true:
//! - While a look is refused, nothing is unloaded and nothing is removed from the content store.
//! - `tidegate models unload` takes a model out of service at any time.
//!
//! Not here: a root that cannot be read at all (`keeper`), which is never believed either.

use std::time::{Duration, Instant};

use crate::{
    model::ModelName,
    registry::Decisions,
    source::{Listing, RootId},
};

use super::keeper::{Keeper, trouble};

/// The outcome of looks at the repository so far.
#[derive(Debug, Default)]
pub(super) struct Sight {
    /// The root in which models were seen last.
    root: Option<RootId>,
    /// Since when looks are refused.
    refused: Option<Instant>,
}

/// A look at the repository.
#[derive(Debug, Clone, Copy)]
struct Look {
    root: RootId,
    /// Nothing lies there.
    empty: bool,
    /// Something that is known is not there.
    lacking: bool,
    /// True if none of the known models is there, but something else is.
    replaced: bool,
}

impl Sight {
    /// True if a look may be acted on.
    fn believes(&mut self, look: Look, now: Instant, grace: Duration) -> bool {
        let same = self.is_in(look.root);
        let elsewhere = self.root.is_some_and(|known| known.device != look.root.device);
        if look.lacking && (look.empty || look.replaced || elsewhere) {
            let since = *self.refused.get_or_insert(now);
            let unmounted = look.empty && !same;
            if unmounted || now.saturating_duration_since(since) < grace {
                return false;
            }
        }
        self.refused = None;
        if !look.empty {
            self.root = Some(look.root);
        }
        true
    }

    /// True if this is the root in which models were seen last.
    fn is_in(&self, root: RootId) -> bool {
        self.root == Some(root)
    }
}

impl Keeper {
    /// Lets a listing pass that may be acted on, else says why not.
    pub(super) fn believe(&mut self, listing: Listing) -> Result<Listing, String> {
        let known = self.known();
        let missing = known.iter().filter(|name| !is_there(&listing, name)).count();
        let uploaded = |name: &ModelName| self.registry.decisions(name).is_some_and(is_uploaded);
        let empty = missing == known.len() && listing.models.keys().all(uploaded);
        let lacking = missing > 0 || self.lacks_version(&listing);
        let (root, now) = (listing.root, self.now());
        let replaced = !empty && missing == known.len() && self.is_no_wish(&known, root);
        let grace = self.folder.settings().vanished_grace;
        if self.state.sight.believes(Look { root, empty, lacking, replaced }, now, grace) {
            return Ok(listing);
        }
        let what = if empty {
            format!("the repository is empty, and {} of its models are known", known.len())
        } else if replaced {
            format!("the repository has other models, and none of the {} known ones", known.len())
        } else {
            format!(
                "the repository lies on another device, and {missing} known models are not there"
            )
        };
        // What has no end needs no hint to wait for it.
        let until = if empty && !self.state.sight.is_in(root) {
            ""
        } else {
            ", or wait until repository.vanished_grace has passed; nothing new is taken until then"
        };
        Err(format!(
            "{what}: taken for a lost volume, what serves goes on; mount it again, or take models out of service with \
             `tidegate models unload`{until}"
        ))
    }

    /// True if it cannot be a wish that all these models are gone from a root in which others lie: several at once, or
    /// one that serves, from another folder than before. What a start finds is a wish, whatever served last.
    fn is_no_wish(&self, gone: &[ModelName], root: RootId) -> bool {
        let kept = |name| self.state.models.get(name);
        let serves = |name| kept(name).is_some_and(|kept| kept.loaded().next().is_some());
        gone.iter().any(|name| kept(name).is_some())
            && (gone.len() > 1 || !self.state.sight.is_in(root) && gone.iter().any(serves))
    }

    /// The models that came from the repository; at the start those that served last.
    fn known(&self) -> Vec<ModelName> {
        if self.state.models.is_empty() && !self.state.complete {
            let served = self.registry.models().filter(|(_, decided)| {
                !decided.served.is_empty() && !decided.unloaded && !is_uploaded(decided)
            });
            return served.map(|(name, _)| name.clone()).collect();
        }
        let own = |name: &&ModelName| !self.registry.decisions(name).is_some_and(is_uploaded);
        self.state.models.keys().filter(own).cloned().collect()
    }

    /// True if a version serves that is not there, of a model that is.
    fn lacks_version(&self, listing: &Listing) -> bool {
        self.state.models.iter().any(|(name, kept)| {
            let Some(listed) = listing.models.get(name) else { return false };
            kept.loaded().any(|(id, _)| {
                !listed.versions.contains_key(&id)
                    && trouble(listing, &format!("{name}/{id}")).is_none()
            })
        })
    }
}

/// True if all that serves of a model was uploaded.
pub(super) fn is_uploaded(decided: &Decisions) -> bool {
    decided.uploaded.as_ref().is_some_and(|uploaded| !uploaded.versions.is_empty())
}

/// True if a model is in the repository, be it that it cannot be read.
fn is_there(listing: &Listing, name: &ModelName) -> bool {
    listing.models.contains_key(name) || trouble(listing, name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_mins(10);
    const HERE: RootId = RootId { device: 1, inode: 10 };
    const BESIDE: RootId = RootId { device: 1, inode: 11 };
    const UNDERNEATH: RootId = RootId { device: 2, inode: 10 };

    const GOOD: Look = Look { root: HERE, empty: false, lacking: false, replaced: false };
    const GONE: Look = Look { root: HERE, empty: true, lacking: true, replaced: false };

    /// True if a look is believed at once, and after the grace period, where models were seen in `HERE`.
    fn believed(root: RootId, [empty, lacking, replaced]: [bool; 3]) -> (bool, bool) {
        let begin = Instant::now();
        let mut sight = Sight::default();
        assert!(sight.believes(GOOD, begin, GRACE));
        let look = Look { root, empty, lacking, replaced };
        let at_once = sight.believes(look, begin, GRACE);
        assert_eq!(at_once, sight.believes(look, begin + GRACE / 2, GRACE));
        (at_once, sight.believes(look, begin + GRACE, GRACE))
    }

    #[test]
    fn what_is_gone_all_at_once_is_no_wish_and_the_rest_is() {
        // What is seen: an empty root; something known is lacking; all of it is, and others are there.
        for (what, root, seen, expected) in [
            ("one of several removed", HERE, [false, true, false], (true, true)),
            ("a new root with some of them", BESIDE, [false, true, false], (true, true)),
            ("mounted again", UNDERNEATH, [false, false, false], (true, true)),
            ("the last one removed", HERE, [true, true, false], (false, true)),
            ("all replaced by others", HERE, [false, true, true], (false, true)),
            ("a wrong folder", BESIDE, [false, true, true], (false, true)),
            ("a wrong volume", UNDERNEATH, [false, true, true], (false, true)),
            ("another device with an old copy", UNDERNEATH, [false, true, false], (false, true)),
            ("unmounted", UNDERNEATH, [true, true, false], (false, false)),
            ("unmounted on the same device", BESIDE, [true, true, false], (false, false)),
            ("empty, and nothing was known", BESIDE, [true, false, false], (true, true)),
        ] {
            assert_eq!(believed(root, seen), expected, "{what}");
        }
    }

    #[test]
    fn the_grace_period_begins_anew_after_a_good_look() {
        let begin = Instant::now();
        let mut sight = Sight::default();
        assert!(sight.believes(GOOD, begin, GRACE));
        assert!(!sight.believes(GONE, begin, GRACE));
        assert!(sight.believes(GOOD, begin + GRACE / 2, GRACE));
        assert!(!sight.believes(GONE, begin + GRACE, GRACE));
        assert!(sight.believes(GONE, begin + GRACE * 2, GRACE));
    }

    #[test]
    fn an_empty_root_at_the_start_is_not_believed_where_models_served_before() {
        let mut sight = Sight::default();
        assert!(!sight.believes(GONE, Instant::now(), Duration::ZERO));
    }
}
