//! The verdict on one version's features: pure, fed with counts once a second.
//!
//! Each feature has a Shiryaev-Roberts e-detector; the mean over all features is the version's evidence, and an alarm
//! is raised where it reaches the promised time between false ones, in seconds. So the promise is about the version,
//! however many features it has and however they depend on each other. Which features drifted is said by e-d-BH, with
//! a bound on the expected share of false ones; where that names none, the feature with the most evidence is named.
//! After an alarm all evidence starts anew, behind a cool-down. Warnings are given at a hundredth of the evidence,
//! come without the promise and trigger nothing.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::stats::{
    Alternatives, BinRole, Correction, ShiftKind, ShiryaevRoberts, e_d_bh, jensen_shannon, masses,
    mean_log, population_stability, population_stability_null,
};

use super::{
    contract::{Action, Breach},
    layout::Known,
    page::{NamedBy, Tier},
    profile::{Bins, Feature},
    settings::Settings,
    window::Windows,
};

/// A share of the budget at which a warning is given.
const WARN_SHARE: f64 = 0.01;

/// Alarms of one version that are remembered.
pub(super) const ALARMS_MAX: usize = 64;

/// The population stability index above which a window is conspicuous, beside what noise alone would give.
pub(super) const PSI_CONSPICUOUS: f64 = 0.1;

/// Values that a window must have before it says that an alarm is over.
const CLEAR_ROWS_MIN: u64 = 100;

/// State of one feature.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    pub(super) name: String,
    pub(super) reference: Feature,
    pub(super) roles: Vec<BinRole>,
    /// `None` where the reference has nothing to compare with, or the operator wants nothing compared.
    alternatives: Option<Alternatives>,
    pub(super) evidence: ShiryaevRoberts,
    pub(super) windows: Windows,
    /// Counts since the time at which the likeliest change began, and that time.
    rising: (f64, Vec<u64>),
    /// True from an alarm on until it has cleared.
    pub(super) is_drifting: bool,
    /// Since when each look at its window found nothing conspicuous, while it drifts.
    calm_since: Option<Duration>,
}

/// An alarm, in numbers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Raised {
    /// Counts alarms of the version.
    pub(super) number: u64,
    /// Index of the feature.
    pub(super) feature: usize,
    pub(super) kind: ShiftKind,
    /// The category, where it is about one.
    pub(super) category: Option<String>,
    pub(super) tier: Tier,
    pub(super) named_by: NamedBy,
    /// Since 1970.
    pub(super) at: Duration,
    pub(super) since: Duration,
    pub(super) cleared: Option<Duration>,
    pub(super) psi: f64,
    pub(super) js: f64,
    pub(super) log_m: f64,
}

/// State of a judge that outlives the process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KeptJudge {
    features: Vec<KeptFeature>,
    alarms: Vec<KeptAlarm>,
    number: u64,
    raised: BTreeMap<String, u64>,
    quiet_until: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptFeature {
    name: String,
    /// Counts of the reference: with another one nothing of this holds.
    reference: Vec<u64>,
    evidence: [Vec<f64>; 3],
    windows: Windows,
    is_drifting: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptAlarm {
    number: u64,
    feature: String,
    kind: String,
    category: Option<String>,
    tier: Tier,
    named_by: NamedBy,
    at: Duration,
    since: Duration,
    cleared: Option<Duration>,
    psi: f64,
    js: f64,
    log_m: f64,
}

/// A kind of change by its name.
fn kind_named(name: &str) -> Option<ShiftKind> {
    let all = [
        ShiftKind::Up,
        ShiftKind::Down,
        ShiftKind::Wider,
        ShiftKind::Narrower,
        ShiftKind::Tail,
        ShiftKind::Missing,
        ShiftKind::Unseen,
        ShiftKind::Category,
    ];
    all.into_iter().find(|kind| kind.name() == name)
}

/// Results of a step.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum News {
    /// These alarms were raised together.
    Detected(Vec<Raised>),
    /// These features are back.
    Cleared(Vec<Raised>),
    /// These rules of the contract were broken.
    Violated(Vec<Violation>),
}

/// A rule of the contract that was broken, more often than it allows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Violation {
    pub(super) feature: String,
    pub(super) breach: Breach,
    pub(super) action: Action,
    /// Values checked, and those that broke it, since the last time that it was told.
    pub(super) values: u64,
    pub(super) broken: u64,
}

/// State of one version.
#[derive(Debug)]
pub(super) struct Judge {
    pub(super) features: Vec<Option<Watched>>,
    pub(super) alarms: Vec<Raised>,
    settings: Settings,
    number: u64,
    /// Alarms of the page tier so far, by kind.
    pub(super) raised: BTreeMap<&'static str, u64>,
    /// The end of the cool-down, since 1970.
    quiet_until: Duration,
    /// When clearing was last looked at.
    looked_at: Duration,
    log_m: f64,
}

impl Watched {
    fn new(known: &Known, settings: &Settings) -> Option<Self> {
        let reference = known.reference.clone()?;
        let roles = reference.bins.roles();
        #[expect(clippy::cast_precision_loss, reason = "references have fewer than 2^53 rows")]
        let rows = Some(reference.rows() as f64);
        let correction =
            Correction { kappa: settings.caution, tolerance: settings.tolerance, rows };
        let is_watched = !reference.is_unmonitorable() && !settings.ignored.contains(&known.name);
        let alternatives = is_watched.then(|| {
            let masses = masses(&reference.counts);
            match &reference.bins {
                Bins::Numeric { .. } => Alternatives::numeric(&masses, &roles, correction),
                Bins::Categorical { .. } => Alternatives::categorical(&masses, &roles, correction),
            }
        });
        let evidence = ShiryaevRoberts::new(alternatives.as_ref().map_or(0, Alternatives::len));
        Some(Self {
            name: known.name.clone(),
            reference,
            roles,
            alternatives,
            evidence,
            windows: Windows::default(),
            rising: (0.0, Vec::new()),
            is_drifting: false,
            calm_since: None,
        })
    }

    /// True if there is something to compare.
    pub(super) fn is_monitorable(&self) -> bool {
        self.alternatives.is_some()
    }

    /// The kind of change that most of the evidence is about, the category where it is one, and when it began, in
    /// seconds since 1970.
    pub(super) fn tendency(&self) -> Option<(ShiftKind, Option<String>, f64)> {
        let alternatives = self.alternatives.as_ref()?;
        let (likeliest, _, since) = self.evidence.likeliest();
        let category = alternatives.bin(likeliest).and_then(|bin| match &self.reference.bins {
            Bins::Categorical { categories, .. } => categories.get(bin).cloned(),
            Bins::Numeric { .. } => None,
        });
        Some((alternatives.kind(likeliest), category, since))
    }

    /// Adds counts to those since the likeliest change began.
    fn rise(&mut self, counts: &[u64]) {
        let (_, _, since) = self.evidence.likeliest();
        let (began, sums) = &mut self.rising;
        if began.to_bits() != since.to_bits() || sums.len() != counts.len() {
            (*began, *sums) = (since, vec![0; counts.len()]);
        }
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }

    /// Distances of a window from the reference.
    pub(super) fn distances(&self, counts: &[u64]) -> Distances {
        Distances::of(&self.reference.counts, counts)
    }

    /// Distances of the settings' window.
    fn recent(&self, now: Duration, window: Duration) -> Distances {
        let (_, counts) = self.windows.over(now, window, self.roles.len());
        self.distances(&counts)
    }
}

/// How far a window is from the reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Distances {
    /// Values in the window.
    pub(super) rows: u64,
    pub(super) psi: f64,
    /// Expected index without drift: `(bins - 1)(1/n + 1/m)`.
    pub(super) noise: f64,
    pub(super) js: f64,
}

impl Distances {
    fn of(reference: &[u64], counts: &[u64]) -> Self {
        let (rows, own): (u64, u64) = (counts.iter().sum(), reference.iter().sum());
        let used = reference.iter().zip(counts).filter(|(a, b)| **a + **b > 0).count();
        let (p, q) = (masses(reference), masses(counts));
        Self {
            rows,
            psi: population_stability(&p, &q),
            noise: population_stability_null(used, own, rows),
            js: jensen_shannon(&p, &q),
        }
    }

    /// True if the window differs by more than noise would.
    pub(super) fn is_conspicuous(&self) -> bool {
        self.psi > PSI_CONSPICUOUS + 2.0 * self.noise
    }
}

impl Judge {
    /// Nothing counted yet, for features of a layout.
    pub(super) fn new(features: &[Known], settings: Settings) -> Self {
        Self {
            features: features.iter().map(|known| Watched::new(known, &settings)).collect(),
            alarms: Vec::new(),
            settings,
            number: 0,
            raised: BTreeMap::new(),
            quiet_until: Duration::ZERO,
            looked_at: Duration::ZERO,
            log_m: f64::NEG_INFINITY,
        }
    }

    /// Takes features of another layout: those of the same name and reference keep their state.
    pub(super) fn turn_to(&mut self, features: &[Known]) {
        let mut old: Vec<Watched> =
            std::mem::take(&mut self.features).into_iter().flatten().collect();
        let mut places = Vec::new();
        for (index, known) in features.iter().enumerate() {
            let own = old.iter().position(|watched| {
                watched.name == known.name && Some(&watched.reference) == known.reference.as_ref()
            });
            places.push((index, own.is_some()));
            let kept = own.map(|own| old.swap_remove(own));
            self.features.push(kept.or_else(|| Watched::new(known, &self.settings)));
        }
        // An alarm names its feature by place.
        self.alarms.retain(|alarm| places.get(alarm.feature).is_some_and(|(_, kept)| *kept));
    }

    /// Returns the state that outlives the process.
    pub(super) fn kept(&self) -> KeptJudge {
        let feature = |watched: &Watched| KeptFeature {
            name: watched.name.clone(),
            reference: watched.reference.counts.clone(),
            evidence: watched.evidence.parts().map(<[f64]>::to_vec),
            windows: watched.windows.clone(),
            is_drifting: watched.is_drifting,
        };
        let alarm = |raised: &Raised| {
            let feature = self.features.get(raised.feature)?.as_ref()?;
            Some(KeptAlarm {
                number: raised.number,
                feature: feature.name.clone(),
                kind: raised.kind.name().to_owned(),
                category: raised.category.clone(),
                tier: raised.tier,
                named_by: raised.named_by,
                at: raised.at,
                since: raised.since,
                cleared: raised.cleared,
                psi: raised.psi,
                js: raised.js,
                log_m: raised.log_m,
            })
        };
        KeptJudge {
            features: self.features.iter().flatten().map(feature).collect(),
            alarms: self.alarms.iter().filter_map(alarm).collect(),
            number: self.number,
            raised: self.raised.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
            quiet_until: self.quiet_until,
        }
    }

    /// Goes on from what an earlier process kept, as far as names and references are still the same.
    pub(super) fn resume(&mut self, kept: KeptJudge) {
        for own in kept.features {
            let same = |watched: &&mut Watched| {
                watched.name == own.name && watched.reference.counts == own.reference
            };
            let Some(watched) = self.features.iter_mut().flatten().find(same) else { continue };
            let evidence = ShiryaevRoberts::from_parts(own.evidence);
            let alternatives = watched.alternatives.as_ref().map_or(0, Alternatives::len);
            let fits = |evidence: &ShiryaevRoberts| evidence.parts()[0].len() == alternatives;
            if let Some(evidence) = evidence.filter(fits) {
                watched.evidence = evidence;
            }
            if own.windows.fits(watched.roles.len()) {
                watched.windows = own.windows;
            }
            watched.is_drifting = own.is_drifting;
        }
        for own in kept.alarms.into_iter().take(ALARMS_MAX) {
            let is_own = |watched: &Option<Watched>| {
                watched.as_ref().is_some_and(|watched| watched.name == own.feature)
            };
            let feature = self.features.iter().position(is_own);
            let Some((feature, kind)) = feature.zip(kind_named(&own.kind)) else { continue };
            self.alarms.push(Raised {
                number: own.number,
                feature,
                kind,
                category: own.category,
                tier: own.tier,
                named_by: own.named_by,
                at: own.at,
                since: own.since,
                cleared: own.cleared,
                psi: own.psi,
                js: own.js,
                log_m: own.log_m,
            });
        }
        self.number = kept.number;
        self.quiet_until = kept.quiet_until;
        let known = kept.raised.iter();
        self.raised =
            known.filter_map(|(kind, count)| Some((kind_named(kind)?.name(), *count))).collect();
    }

    /// Natural logarithm of the evidence over all features, as of the last step.
    pub(super) fn log_m(&self) -> f64 {
        self.log_m
    }

    /// Evidence at which an alarm is raised, where `sharing` versions of the model share its promise.
    pub(super) fn threshold(&self, sharing: usize) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "few versions of a model serve")]
        let sharing = sharing.max(1) as f64;
        (self.settings.false_alarm_every.as_secs_f64().max(1.0) * sharing).ln()
    }

    /// True while an alarm of the page tier has not cleared.
    pub(super) fn is_drifting(&self) -> bool {
        self.features.iter().flatten().any(|feature| feature.is_drifting)
    }

    /// Alarms of the page tier that stand, each with all that were raised together with it, oldest first.
    pub(super) fn standing(&self) -> Vec<Vec<Raised>> {
        let mut together: BTreeMap<Duration, Vec<Raised>> = BTreeMap::new();
        for alarm in self.alarms.iter().filter(|alarm| alarm.tier == Tier::Page) {
            together.entry(alarm.at).or_default().push(alarm.clone());
        }
        together.retain(|_, alarms| alarms.iter().any(|alarm| alarm.cleared.is_none()));
        together.into_values().collect()
    }

    /// Takes in the counts of an interval that ended at `now`, since 1970, and took `seconds`: for each feature those
    /// of
    /// its bins; `rows` ran in it.
    pub(super) fn step(
        &mut self,
        now: Duration,
        seconds: f64,
        rows: u64,
        counts: &[Vec<u64>],
        sharing: usize,
    ) -> Vec<News> {
        let is_quiet = now < self.quiet_until;
        for (feature, counts) in self.features.iter_mut().zip(counts) {
            let Some(feature) = feature else { continue };
            feature.windows.add(now, rows, counts);
            if let Some(alternatives) = feature.alternatives.as_ref().filter(|_| !is_quiet) {
                feature.evidence.advance(alternatives, counts, seconds, now.as_secs_f64());
                feature.rise(counts);
            }
        }
        let mut news = Vec::new();
        let evidence = self.evidence();
        let places: Vec<usize> = evidence.iter().map(|(place, _)| *place).collect();
        let evidence: Vec<f64> = evidence.into_iter().map(|(_, log_m)| log_m).collect();
        self.log_m = if evidence.is_empty() { f64::NEG_INFINITY } else { mean_log(&evidence) };
        let threshold = self.threshold(sharing);
        if self.log_m >= threshold {
            news.extend(self.page(now, &places, &evidence, threshold));
        } else if !is_quiet {
            self.warn(now, &places, &evidence, threshold + WARN_SHARE.ln());
        }
        news.extend(self.clear(now));
        news
    }

    /// Place and evidence of each feature that is compared.
    fn evidence(&self) -> Vec<(usize, f64)> {
        let places = self.features.iter().enumerate();
        let own = |(place, feature): (usize, &Option<Watched>)| {
            let feature = feature.as_ref().filter(|feature| feature.is_monitorable())?;
            Some((place, feature.evidence.log_m()))
        };
        places.filter_map(own).collect()
    }

    /// Raises an alarm of the page tier, and starts all evidence anew.
    fn page(
        &mut self,
        now: Duration,
        places: &[usize],
        evidence: &[f64],
        threshold: f64,
    ) -> Option<News> {
        let set = e_d_bh(evidence, threshold);
        let likeliest = || (0..evidence.len()).max_by(|a, b| evidence[*a].total_cmp(&evidence[*b]));
        let (named, named_by) = if set.is_empty() {
            (likeliest().into_iter().collect(), NamedBy::Likeliest)
        } else {
            (set, NamedBy::Set)
        };
        let mut raised = Vec::new();
        for index in named {
            let alarm = self.raise(now, places[index], Tier::Page, named_by);
            let feature = self.features[places[index]].as_mut();
            // One that has not cleared is still the same drift.
            if let (Some(feature), Some(alarm)) = (feature, alarm)
                && !std::mem::replace(&mut feature.is_drifting, true)
            {
                raised.push(alarm);
            }
        }
        for feature in self.features.iter_mut().flatten() {
            feature.evidence.reset();
        }
        self.quiet_until = now + self.settings.cooldown;
        for alarm in &raised {
            *self.raised.entry(alarm.kind.name()).or_default() += 1;
            self.remember(alarm.clone());
        }
        (!raised.is_empty()).then_some(News::Detected(raised))
    }

    /// Raises warnings for the features that reach a hundredth of the evidence, and takes back those that no longer do.
    fn warn(&mut self, now: Duration, places: &[usize], evidence: &[f64], threshold: f64) {
        let named: Vec<usize> =
            e_d_bh(evidence, threshold).into_iter().map(|index| places[index]).collect();
        let is_open = |alarm: &Raised| alarm.tier == Tier::Warn && alarm.cleared.is_none();
        for alarm in self.alarms.iter_mut().filter(|alarm| is_open(alarm)) {
            if !named.contains(&alarm.feature) {
                alarm.cleared = Some(now);
            }
        }
        for place in named {
            let is_known = |alarm: &Raised| is_open(alarm) && alarm.feature == place;
            let is_drifting =
                self.features[place].as_ref().is_some_and(|feature| feature.is_drifting);
            if !is_drifting && !self.alarms.iter().any(is_known) {
                let warning = self.raise(now, place, Tier::Warn, NamedBy::Set);
                if let Some(warning) = warning {
                    self.remember(warning);
                }
            }
        }
    }

    fn raise(
        &mut self,
        now: Duration,
        place: usize,
        tier: Tier,
        named_by: NamedBy,
    ) -> Option<Raised> {
        let feature = self.features[place].as_ref()?;
        let (kind, category, since) = feature.tendency()?;
        let since = Duration::try_from_secs_f64(since).unwrap_or(now).min(now);
        // Over the time of the drift itself: the rest of a window would hide it.
        let recent = feature.distances(&feature.rising.1);
        self.number += 1;
        Some(Raised {
            number: self.number,
            feature: place,
            kind,
            category,
            tier,
            named_by,
            at: now,
            since,
            cleared: None,
            psi: recent.psi,
            js: recent.js,
            log_m: feature.evidence.log_m(),
        })
    }

    fn remember(&mut self, alarm: Raised) {
        if self.alarms.len() >= ALARMS_MAX {
            // The oldest that is over, else the oldest.
            let over = self.alarms.iter().position(|alarm| alarm.cleared.is_some());
            self.alarms.remove(over.unwrap_or(0));
        }
        self.alarms.push(alarm);
    }

    /// Clears alarms whose feature has been inconspicuous for a whole window after the cool-down.
    fn clear(&mut self, now: Duration) -> Option<News> {
        let window = self.settings.window;
        if now < self.looked_at + CLEAR_EVERY || !self.is_drifting() {
            return None;
        }
        self.looked_at = now;
        let mut cleared = Vec::new();
        for (place, feature) in self.features.iter_mut().enumerate() {
            let Some(feature) = feature.as_mut().filter(|feature| feature.is_drifting) else {
                continue;
            };
            let own = |alarm: &&mut Raised| {
                alarm.feature == place && alarm.tier == Tier::Page && alarm.cleared.is_none()
            };
            let Some(alarm) = self.alarms.iter_mut().rev().find(own) else {
                // It was forgotten among many.
                feature.is_drifting = false;
                continue;
            };
            let recent = feature.recent(now, window);
            if recent.is_conspicuous() || now < alarm.at + self.settings.cooldown {
                feature.calm_since = None;
                continue;
            }
            let since = *feature.calm_since.get_or_insert(now);
            if now >= since + window && recent.rows >= CLEAR_ROWS_MIN {
                feature.is_drifting = false;
                feature.calm_since = None;
                alarm.cleared = Some(now);
                cleared.push(alarm.clone());
            }
        }
        (!cleared.is_empty()).then_some(News::Cleared(cleared))
    }
}

/// How often clearing is looked at.
const CLEAR_EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use crate::stats::Random;

    use super::{super::layout::Source, *};

    const BINS: usize = 16;

    /// Features with equal bins, known exactly.
    fn features(count: usize) -> Vec<Known> {
        let edges: Vec<f64> = (0..=u32::try_from(BINS).unwrap()).map(f64::from).collect();
        let mut counts = vec![1_000_000_000; BINS + 4];
        for rare in [0, BINS + 1, BINS + 2, BINS + 3] {
            counts[rare] = 0;
        }
        let known = |index: usize| Known {
            name: format!("f{index}"),
            source: Source::Input,
            is_text: false,
            is_whole: false,
            reference: Some(Feature {
                name: format!("f{index}"),
                bins: Bins::Numeric { edges: edges.clone() },
                counts: counts.clone(),
                moments: None,
                sample: Vec::new(),
            }),
        };
        (0..count).map(known).collect()
    }

    fn settings(seconds: u64) -> Settings {
        Settings {
            false_alarm_every: Duration::from_secs(seconds),
            tolerance: 0.0,
            caution: 0.0,
            cooldown: Duration::from_mins(5),
            window: Duration::from_mins(10),
            ..Settings::default()
        }
    }

    /// Counts of `rows` values of which so many in a thousand fall into the upper half, the others into the lower.
    fn counts(random: &mut Random, rows: u64, upper: usize) -> Vec<u64> {
        let mut counts = vec![0; BINS + 4];
        for _ in 0..rows {
            let half = usize::from(random.below(1000) < upper) * BINS / 2;
            counts[1 + half + random.below(BINS / 2)] += 1;
        }
        counts
    }

    #[test]
    fn false_alarms_are_as_rare_as_promised_whatever_the_number_of_features() {
        for count in [1, 8] {
            let (mut random, mut alarms, mut seconds) = (Random::new(5), 0, 0_u64);
            for _ in 0..20 {
                let mut judge = Judge::new(&features(count), settings(200));
                for second in 1..=1000 {
                    seconds += 1;
                    let all: Vec<_> = (0..count).map(|_| counts(&mut random, 3, 500)).collect();
                    let now = Duration::from_secs(second);
                    if !judge.step(now, 1.0, 3, &all, 1).is_empty() {
                        alarms += 1;
                        break;
                    }
                }
            }
            let every = seconds / alarms.max(1);
            assert!(every >= 200, "{count} features: one in {every} s, {alarms} alarms");
        }
    }

    #[test]
    fn drift_is_named_told_once_and_cleared_when_it_is_over() {
        let mut judge = Judge::new(&features(4), settings(3600));
        let (mut random, mut told) = (Random::new(9), Vec::new());
        for second in 1..=4000 {
            let drifts = (600..1500).contains(&second);
            let all: Vec<_> = (0..4)
                .map(|feature| {
                    counts(&mut random, 10, if drifts && feature == 2 { 900 } else { 500 })
                })
                .collect();
            let news = judge.step(Duration::from_secs(second), 1.0, 10, &all, 1);
            told.extend(news.into_iter().map(|news| (second, news)));
        }
        let [(detected, News::Detected(raised)), (cleared, News::Cleared(back))] = &told[..] else {
            panic!("{told:?}");
        };
        assert!((600..620).contains(detected), "{detected}");
        assert_eq!(raised.len(), 1);
        assert_eq!((raised[0].feature, raised[0].kind), (2, ShiftKind::Up));
        assert!((590..=605).contains(&raised[0].since.as_secs()), "{raised:?}");
        assert!(raised[0].psi > 0.3, "the window is that of the drift: {raised:?}");
        // A whole window without it, and not before the cool-down is over.
        assert!((1500 + 600..1500 + 1200).contains(cleared), "{cleared}");
        assert_eq!(back[0].cleared, Some(Duration::from_secs(*cleared)));
        assert!(!judge.is_drifting());
    }

    #[test]
    fn warnings_come_earlier_and_go_by_themselves() {
        let mut judge = Judge::new(&features(2), settings(100_000_000));
        let mut random = Random::new(2);
        let mut step = |judge: &mut Judge, second, upper| {
            let all = [counts(&mut random, 10, upper), counts(&mut random, 10, 500)];
            judge.step(Duration::from_secs(second), 1.0, 10, &all, 1)
        };
        let mut warned = None;
        for second in 1..=200 {
            assert_eq!(step(&mut judge, second, 900), [], "an alarm before a warning");
            warned = judge.alarms.first().cloned();
            if warned.is_some() {
                break;
            }
        }
        let warned = warned.unwrap();
        assert_eq!((warned.tier, warned.feature), (Tier::Warn, 0));
        for second in 200..=400 {
            assert_eq!(step(&mut judge, second, 500), [], "a warning triggers nothing");
        }
        assert!(judge.alarms[0].cleared.is_some());
    }
}
