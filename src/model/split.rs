//! Split of a model's requests between arms: 65,536 slots, each with one arm.
//!
//! A request's key is hashed to a slot. Always true:
//! - An arm that grows keeps every slot that it has, so that nobody who met it is moved out of it.
//! - An arm that shrinks gives its highest slots away first: with two arms, the second one's slots always begin at 0.
//! - The baseline has whatever the others have not.

/// Slots of a split.
pub const SLOTS: u32 = 1 << 16;

/// Arms by slot, as runs of slots.
///
/// Arm 0 is the baseline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Ascending; the last ends at [`SLOTS`].
    runs: Vec<Run>,
}

/// Slots that lie side by side and have one arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// The first slot behind them.
    end: u32,
    arm: u8,
}

/// Most runs; a change that would need more gives every arm one run again.
const RUNS_MAX: usize = 1024;

impl Split {
    /// The most arms, the baseline among them.
    pub const ARMS_MAX: usize = 16;

    /// A split in which arm 0 has all.
    pub fn whole() -> Self {
        Self { runs: vec![Run { end: SLOTS, arm: 0 }] }
    }

    /// A split of these slots for arms 1, 2, ...; the baseline has the rest.
    ///
    /// # Panics
    /// If they are more slots than there are, or more arms than there may be.
    pub fn of(slots: &[u32]) -> Self {
        assert!(slots.len() < Self::ARMS_MAX, "a split has at most {} arms", Self::ARMS_MAX);
        let mut runs = Vec::new();
        let mut end = 0;
        for (arm, slots) in (1..).zip(slots) {
            end += slots;
            push(&mut runs, end, arm);
        }
        assert!(end <= SLOTS, "arms have more slots than there are");
        push(&mut runs, SLOTS, 0);
        Self { runs }
    }

    /// The same split with other arms and sizes: `before[n]` is the index that arm `n` had, if it was there, for each
    /// arm with the baseline first; `slots` are the sizes of arms 1, 2, ...
    ///
    /// # Panics
    /// As [`Split::of`] does.
    #[must_use]
    pub fn changed(&self, before: &[Option<usize>], slots: &[u32]) -> Self {
        let moved = |old: u8| before.iter().position(|index| *index == Some(usize::from(old)));
        let index = |arm: usize| u8::try_from(arm).expect("a split has few arms");
        let mut map: Vec<u8> = Vec::with_capacity(SLOTS as usize);
        for run in &self.runs {
            // An arm that is gone leaves its slots to the baseline.
            let arm = index(moved(run.arm).unwrap_or(0));
            map.resize(run.end as usize, arm);
        }
        let mut have = vec![0u32; slots.len() + 1];
        for arm in &map {
            have[usize::from(*arm)] += 1;
        }
        for slot in (0..SLOTS as usize).rev() {
            let arm = usize::from(map[slot]);
            if arm > 0 && have[arm] > slots[arm - 1] {
                map[slot] = 0;
                have[arm] -= 1;
            }
        }
        let mut next = 1;
        for arm in &mut map {
            while next <= slots.len() && have[next] >= slots[next - 1] {
                next += 1;
            }
            if next > slots.len() {
                break;
            }
            if *arm == 0 {
                *arm = index(next);
                have[next] += 1;
            }
        }
        let mut runs = Vec::new();
        for (end, arm) in (1..).zip(map) {
            push(&mut runs, end, arm);
        }
        if runs.len() > RUNS_MAX { Self::of(slots) } else { Self { runs } }
    }

    /// The arm of a slot.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn arm(&self, slot: u32) -> usize {
        let at = self.runs.partition_point(|run| run.end <= slot);
        usize::from(self.runs[at].arm)
    }

    /// Slots of an arm.
    pub fn slots(&self, arm: usize) -> u32 {
        let mut begin = 0;
        let mut slots = 0;
        for run in &self.runs {
            if usize::from(run.arm) == arm {
                slots += run.end - begin;
            }
            begin = run.end;
        }
        slots
    }

    /// The runs: the first slot behind each, and its arm.
    pub fn runs(&self) -> impl Iterator<Item = (u32, u8)> {
        self.runs.iter().map(|run| (run.end, run.arm))
    }

    /// The split of these runs; `None` unless they ascend to [`SLOTS`] and name no other arms than `arms`.
    pub fn from_runs(runs: impl IntoIterator<Item = (u32, u8)>, arms: usize) -> Option<Self> {
        let runs: Vec<_> = runs.into_iter().map(|(end, arm)| Run { end, arm }).collect();
        let ascending = runs.windows(2).all(|pair| pair[0].end < pair[1].end);
        let ends = runs.first()?.end > 0 && runs.last()?.end == SLOTS;
        let known = runs.iter().all(|run| usize::from(run.arm) < arms);
        (ascending && ends && known && runs.len() <= RUNS_MAX).then_some(Self { runs })
    }
}

fn push(runs: &mut Vec<Run>, end: u32, arm: u8) {
    match runs.last_mut() {
        Some(last) if last.arm == arm || last.end == end => last.end = end,
        None if end == 0 => {}
        _ => runs.push(Run { end, arm }),
    }
}

/// Weights in slots: each rounded, and at least one slot where it is above 0.
///
/// # Panics
/// If a weight is not from 0 to 1.
pub fn slots_of(weight: f64) -> u32 {
    assert!((0.0..=1.0).contains(&weight), "a weight is from 0 to 1");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to SLOTS")]
    let slots = (weight * f64::from(SLOTS)).round() as u32;
    if weight > 0.0 { slots.max(1) } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_second_of_two_arms_grows_and_shrinks_at_one_end() {
        let mut split = Split::whole();
        for slots in [655, 6554, 100, 30_000, 0, 655] {
            let before = if split.slots(1) == 0 { [Some(0), None] } else { [Some(0), Some(1)] };
            split = split.changed(&before, &[slots]);
            assert_eq!(split, Split::of(&[slots]), "{slots}");
        }
        assert_eq!((split.arm(0), split.arm(654), split.arm(655), split.arm(65_535)), (1, 1, 0, 0));
    }

    #[test]
    fn weights_are_rounded_to_slots_and_never_to_none() {
        assert_eq!([0.0, 1e-9, 0.01, 0.5, 1.0].map(slots_of), [0, 1, 655, 32_768, 65_536]);
    }

    #[test]
    fn what_was_written_down_is_read_back() {
        let split = Split::of(&[10, 20]).changed(&[Some(0), Some(1), Some(2)], &[15, 20]);
        assert_eq!(Split::from_runs(split.runs(), 3), Some(split));
        for broken in [vec![], vec![(5, 0)], vec![(SLOTS, 3)], vec![(9, 0), (9, 1), (SLOTS, 0)]] {
            assert_eq!(Split::from_runs(broken.clone(), 3), None, "{broken:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]
        #[test]
        fn who_is_in_an_arm_that_grows_stays(
            changes in prop::collection::vec(prop::collection::vec(0u32..20_000, 3), 1..6)
        ) {
            let mut split = Split::whole();
            let mut indexes = [Some(0), None, None, None];
            for slots in changes {
                let after = split.changed(&indexes, &slots);
                for (arm, slots) in (1..).zip(&slots) {
                    prop_assert_eq!(after.slots(arm), *slots);
                    if indexes[arm].is_some() && split.slots(arm) <= *slots {
                        let stays = |slot: &u32| split.arm(*slot) != arm || after.arm(*slot) == arm;
                        prop_assert!((0..SLOTS).all(|slot| stays(&slot)));
                    }
                }
                split = after;
                indexes = [Some(0), Some(1), Some(2), Some(3)];
            }
        }
    }
}
