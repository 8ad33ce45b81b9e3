//! One version's drift beside the path: what the shards counted since the last look, what is learned, what is shown.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    model::{ModelName, VersionId},
    stats::rate_above_log_e,
};

use super::{
    contract::{Breach, TermCounts, Terms},
    judge::{Judge, KeptJudge, News, Violation},
    layout::{Layout, Learned},
    numbers::learn_numeric,
    page::ReferenceKind,
    profile::{Bins, Feature, Profile, SCHEMA},
    recorder::{Recorder, Stage},
    sample::Sample,
    segments::SegmentId,
    settings::Settings,
    tap::Tap,
    texts::{LearnedTexts, learn_texts},
    window::Windows,
};

/// Inputs and outputs: each has a sample of its own.
const SIDES: usize = 2;

/// Values of all features together that are kept while references are learned.
const LEARNED_VALUES_MAX: usize = 4 << 20;

/// Shortest time that says how many rows come.
const PACE_EVERY: Duration = Duration::from_secs(1);

/// Longest time that a worker takes to count a request, once it has found the layout.
const COUNT_MAX: Duration = Duration::from_secs(10);

/// Raw rows that a segment holds at least.
const SAMPLE_ROWS_MIN: usize = 100;

/// Evidence that a share of missing values is above its limit: one in a hundred such alarms would be false, natural
/// logarithm.
const SHARE_EVIDENCE: f64 = 4.605;

/// By rule and kind of breach: values and breaches as of the last time that they were told, and that time.
type Told = BTreeMap<(usize, Breach), (u64, u64, Option<Duration>)>;

/// State of one version, or of a segment of its rows.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) model: ModelName,
    pub(super) version: VersionId,
    /// The segment that it is about; `None`: all rows.
    pub(super) segment: Option<Segment>,
    pub(super) settings: Settings,
    pub(super) terms: Option<Arc<Terms>>,
    /// Counts of the rules when they were last told, and that time.
    told: Told,
    pub(super) origin: Origin,
    pub(super) judge: Judge,
    pub(super) layout: Layout,
    /// Rows that ran, in windows; the only cell counts those whose values were counted.
    pub(super) rows: Windows,
    pub(super) samples: [Sample; SIDES],
    pub(super) learning: Option<Learning>,
    /// When rows last ran, since 1970.
    pub(super) last_rows_at: Duration,
    /// True if something was counted since the state was kept.
    pub(super) is_unkept: bool,
    /// When the state was last kept, since 1970.
    pub(super) kept_at: Duration,
    /// The time at which it was last decided how many rows are counted, since 1970, and work for counting since then.
    paced: (Duration, u64),
    merging: Merging,
    /// Counting by earlier layouts, until their last requests are done.
    earlier: Vec<Earlier>,
    spare: [Tap; SIDES],
}

/// Counting by a layout that another has followed.
#[derive(Debug)]
struct Earlier {
    stage: Arc<Stage>,
    merging: Merging,
    /// The time, since 1970, at which no request counts by it any more.
    until: Duration,
}

/// A segment, as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) id: SegmentId,
    /// The header or feature.
    pub(super) by: String,
    /// The value.
    pub(super) value: String,
    /// Segments that there may be: together they hold no more raw rows than all rows do.
    pub(super) limit: usize,
}

/// State of a version that outlives the process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    judge: KeptJudge,
    rows: Windows,
    last_rows_at: Duration,
}

/// Where the references come from.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) kind: ReferenceKind,
    pub(super) rows: u64,
    pub(super) digest: String,
    /// Why a profile is not used, for people.
    pub(super) note: Option<String>,
}

impl Origin {
    /// Names another origin, where there is none yet.
    pub(super) fn is_else(&mut self, kind: ReferenceKind, rows: u64, digest: String) {
        if self.kind == ReferenceKind::None {
            *self = Self { kind, rows, digest, note: self.note.take() };
        }
    }
}

/// Counts read from the shards so far.
#[derive(Debug, Default)]
struct Merging {
    /// By worker: cells as of the last look.
    cells: Vec<Vec<u32>>,
    /// Rows and work as of the last look.
    rows: [u64; 3],
    /// True if the last look found new rows: their last counts may come after it.
    is_warm: bool,
}

/// Values that references are learned from.
#[derive(Debug)]
pub(super) struct Learning {
    /// By feature.
    columns: BTreeMap<usize, Values>,
    /// Rows so far, of inputs and of outputs.
    pub(super) rows: [u64; SIDES],
    /// Rows that are needed.
    pub(super) wanted: u64,
}

#[derive(Debug)]
enum Values {
    Numbers(Vec<f64>),
    Texts(Vec<Box<[u8]>>),
}

/// Results of a look.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) news: Vec<News>,
    /// References that were learned, to be kept for the next start.
    pub(super) learned: Option<Profile>,
}

impl Tracked {
    pub(super) fn new(
        (model, version, segment): (ModelName, VersionId, Option<Segment>),
        layout: Layout,
        origin: Origin,
        terms: Option<Arc<Terms>>,
        mut settings: Settings,
    ) -> Self {
        let limit = segment.as_ref().map_or(1, |segment| segment.limit);
        settings.sample_rows = (settings.sample_rows / limit).max(SAMPLE_ROWS_MIN);
        let judge = Judge::new(&layout.features, settings.clone());
        Self {
            model,
            version,
            segment,
            terms,
            told: Told::default(),
            origin,
            judge,
            rows: Windows::default(),
            samples: samples(&layout, &settings),
            learning: Learning::of(&layout, &settings, LEARNED_VALUES_MAX / limit),
            last_rows_at: Duration::ZERO,
            is_unkept: false,
            kept_at: Duration::ZERO,
            paced: (Duration::ZERO, 0),
            merging: Merging::default(),
            earlier: Vec::new(),
            spare: Default::default(),
            layout,
            settings,
        }
    }

    /// Returns the state that outlives the process, as kept now.
    pub(super) fn keep(&mut self, now: Duration) -> Kept {
        (self.is_unkept, self.kept_at) = (false, now);
        let (rows, last_rows_at) = (self.rows.clone(), self.last_rows_at);
        Kept { judge: self.judge.kept(), rows, last_rows_at }
    }

    /// True if a look finds nothing to do before more rows come.
    pub(super) fn rests(&self, recorder: &Recorder) -> bool {
        let is_paced = self.paced.1 == 0 && recorder.stage().one_in() == 1;
        is_paced && !self.merging.is_warm && self.earlier.is_empty()
    }

    /// Says that rows that came before some time, since 1970, were looked at.
    pub(super) fn rested_until(&mut self, time: Duration) {
        if self.paced.1 == 0 {
            self.paced.0 = self.paced.0.max(time);
        }
    }

    /// Goes on from what an earlier process kept.
    pub(super) fn resume(&mut self, kept: Kept) {
        self.judge.resume(kept.judge);
        if kept.rows.fits(1) {
            self.rows = kept.rows;
        }
        self.last_rows_at = kept.last_rows_at;
    }

    /// Counts of the contract's rules so far.
    pub(super) fn term_counts(&self) -> Vec<TermCounts> {
        let id = self.segment.as_ref().map(|segment| segment.id).unwrap_or_default();
        self.terms.as_ref().map(|terms| terms.counts(id)).unwrap_or_default()
    }

    /// Features of inputs; those of outputs follow them.
    pub(super) fn inputs(&self) -> usize {
        self.layout.inputs_end()
    }

    /// Sampled values of a feature in the last `window`, missing ones left out.
    pub(super) fn sampled(&self, feature: usize, now: Duration, window: Duration) -> Vec<f64> {
        let inputs = self.inputs();
        match feature.checked_sub(inputs) {
            None => self.samples[0].values(now, window, feature),
            Some(output) => self.samples[1].values(now, window, output),
        }
    }

    /// Merges what was counted since the last look, and judges it. `seconds` is the time that it took to come.
    pub(super) fn look(
        &mut self,
        recorder: &Recorder,
        now: Duration,
        seconds: f64,
        sharing: usize,
    ) -> Looked {
        let stage = recorder.stage();
        let mut new = self.merging.rows(&stage);
        for earlier in &mut self.earlier {
            new.iter_mut().zip(earlier.rows()).for_each(|(sum, late)| *sum += late);
        }
        let [seen, counted, work] = new;
        self.pace(&stage, now, work);
        let is_new = seen > 0 || !self.earlier.is_empty();
        if !is_new && !std::mem::take(&mut self.merging.is_warm) {
            return Looked::default();
        }
        (self.merging.is_warm, self.is_unkept) = (is_new, true);
        let mut counts = self.merging.counts(&stage);
        for earlier in &mut self.earlier {
            earlier.add_counts(&mut counts, &self.layout);
        }
        self.earlier.retain(|earlier| now < earlier.until);
        if seen > 0 {
            // Rows that teach the reference are in no window.
            let inputs = self.inputs();
            if self.learning.as_ref().is_none_or(|learning| learning.is_done(inputs, 0)) {
                self.rows.add(now, seen, &[counted]);
            }
            self.last_rows_at = now;
        }
        self.fetch_samples(&stage, now, seen);
        let mut news = self.judge.step(now, seconds, seen, &counts, sharing);
        news.extend(self.violated(now));
        let learned = self.learn(recorder, now);
        stage.sample_every(self.gap(&stage, seen, seconds));
        Looked { news, learned }
    }

    /// Tells of rules of the contract that are broken more often than they allow, each at most once in a cool-down.
    fn violated(&mut self, now: Duration) -> Option<News> {
        if self.segment.is_some() {
            // All rows together tell of it.
            return None;
        }
        let mut broken = Vec::new();
        for (place, counts) in self.term_counts().into_iter().enumerate() {
            for (breach, count) in &counts.breaches {
                let (values, before, told) = self.told.entry((place, *breach)).or_default();
                let (new_values, new) = (counts.values - *values, count - *before);
                let is_due = told.is_none_or(|told| now >= told + self.settings.cooldown);
                let allowed = match breach {
                    Breach::Missing => counts.missing_max.unwrap_or(0.0),
                    _ => 0.0,
                };
                let is_broken = match allowed {
                    allowed if allowed > 0.0 => {
                        rate_above_log_e(new_values, new, allowed) >= SHARE_EVIDENCE
                    }
                    _ => new > 0,
                };
                if !is_due || !is_broken {
                    continue;
                }
                (*values, *before, *told) = (counts.values, *count, Some(now));
                broken.push(Violation {
                    feature: counts.feature.clone(),
                    breach: *breach,
                    action: counts.action,
                    values: new_values,
                    broken: new,
                });
            }
        }
        (!broken.is_empty()).then_some(News::Violated(broken))
    }

    fn fetch_samples(&mut self, stage: &Stage, now: Duration, seen: u64) {
        let (mut seen, inputs) = ([seen; SIDES], self.inputs());
        for (_, shard) in stage.shards() {
            shard.take(&mut self.spare);
            for (side, tap) in self.spare.iter().enumerate() {
                if let Some(learning) = &mut self.learning {
                    learning.add(&self.layout, side, tap);
                }
                if self.learning.as_ref().is_none_or(|learning| learning.is_done(inputs, side)) {
                    // The rows of the interval are counted once, however many workers ran them.
                    self.samples[side].add(now, std::mem::take(&mut seen[side]), tap);
                }
            }
        }
    }

    /// Decides of how many rows one is counted, so that counting costs no more in a second than it may.
    ///
    /// Each report looks, too: rows that came between two looks say nothing until a second has passed.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate of values"
    )]
    fn pace(&mut self, stage: &Stage, now: Duration, work: u64) {
        self.paced.1 += work;
        let (at, work) = self.paced;
        let since = now.saturating_sub(at);
        if since < PACE_EVERY {
            return;
        }
        self.paced = (now, 0);
        let most = self.settings.rate_max as f64 * since.as_secs_f64();
        // Had every row been counted.
        let all = work as f64 * f64::from(stage.one_in());
        stage.count_one_in((all / most).ceil() as u32);
    }

    /// Rows to pass over between two that are sampled: few while references are learned.
    fn gap(&self, stage: &Stage, seen: u64, seconds: f64) -> u32 {
        if self.learning.is_some() {
            return 0;
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate of rows"
        )]
        let wanted = {
            let per_second = self.settings.sample_rows as f64 / 1800.0;
            let rate = seen as f64 / seconds.max(0.1);
            (rate / per_second.max(0.1)) as u32
        };
        let room = u32::try_from(stage.tap_rows()).unwrap_or(u32::MAX);
        if seen < u64::from(room / 8) { wanted.min(1) } else { wanted }
    }

    /// Makes references of what was learned, once it suffices, and counts by them from now on.
    fn learn(&mut self, recorder: &Recorder, now: Duration) -> Option<Profile> {
        let learning = self.learning.as_mut()?;
        let inputs = self.layout.inputs_end();
        let is_due = |side: &usize| learning.has(inputs, *side) && learning.is_done(inputs, *side);
        let sides: Vec<usize> = (0..SIDES).filter(is_due).collect();
        if sides.is_empty() {
            return None;
        }
        let is_due = |feature: usize| sides.contains(&usize::from(feature >= inputs));
        let due: Vec<usize> = learning.columns.keys().copied().filter(|one| is_due(*one)).collect();
        let rows = sides.iter().map(|side| learning.rows[*side]).max().unwrap_or(0);
        let mut profile = Profile {
            schema: SCHEMA,
            rows,
            digest: String::new(),
            source: String::new(),
            derived: Vec::new(),
            features: Vec::new(),
        };
        let mut references = BTreeMap::new();
        for feature in due {
            let Some(values) = learning.columns.remove(&feature) else { continue };
            let known = &self.layout.features[feature];
            let learned = match (values, self.layout.centres(feature)) {
                (Values::Numbers(numbers), Some(centres)) => {
                    let feature = clusters(&known.name, &numbers, centres);
                    profile.features.push(feature.clone());
                    Learned::Feature(feature)
                }
                (values, _) => values.learn(&known.name, known.is_whole, &mut profile),
            };
            references.insert(feature, learned);
        }
        if learning.columns.is_empty() {
            self.learning = None;
        }
        profile.digest = digest(&profile.features);
        self.origin.is_else(ReferenceKind::Learned, rows, profile.digest.clone());
        self.turn_to(recorder, self.layout.with(references), now);
        Some(profile)
    }

    fn turn_to(&mut self, recorder: &Recorder, layout: Layout, now: Duration) {
        let stage = recorder.turn_to(layout.clone());
        let merging = std::mem::take(&mut self.merging);
        self.earlier.push(Earlier { stage, merging, until: now + COUNT_MAX });
        self.judge.turn_to(&layout.features);
        if layout.features.len() != self.layout.features.len() {
            self.learning =
                self.learning.take().map(|learning| learning.moved(&self.layout, &layout));
            self.samples = samples(&layout, &self.settings);
        }
        self.layout = layout;
    }
}

/// The reference of a feature that names the nearest of some centres, which are its categories.
fn clusters(name: &str, nearest: &[f64], centres: usize) -> Feature {
    let categories: Vec<String> = (0..centres).map(|centre| centre.to_string()).collect();
    // Behind the categories: others, unseen, missing.
    let mut counts = vec![0_u64; centres + 3];
    for value in nearest {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the index of a centre"
        )]
        let index = if value.is_nan() { centres + 2 } else { *value as usize };
        counts[index.min(centres + 2)] += 1;
    }
    let (name, bins) = (name.to_owned(), Bins::Categorical { categories, others: Vec::new() });
    Feature { name, bins, counts, moments: None, sample: Vec::new() }
}

/// SHA-256 of the counts of some features.
fn digest(features: &[Feature]) -> String {
    let mut hash = Sha256::new();
    for feature in features {
        hash.update(feature.name.as_bytes());
        feature.counts.iter().for_each(|count| hash.update(count.to_le_bytes()));
    }
    let mut text = String::new();
    for byte in hash.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn samples(layout: &Layout, settings: &Settings) -> [Sample; SIDES] {
    let inputs = layout.inputs_end();
    let own = |width: usize| Sample::new(width, settings.sample_rows);
    [own(inputs), own(layout.features.len() - inputs)]
}

impl Earlier {
    /// New rows and work, as [`Merging::rows`]; none where rows of inputs taught references, which are in no window.
    fn rows(&mut self) -> [u64; 3] {
        let rows = self.merging.rows(&self.stage);
        let layout = &self.stage.layout;
        let has_taught =
            layout.features[..layout.inputs_end()].iter().any(|it| it.reference.is_none());
        if has_taught { [0; 3] } else { rows }
    }

    /// Adds new counts to those of the features of a later layout that have the same bins.
    fn add_counts(&mut self, counts: &mut [Vec<u64>], layout: &Layout) {
        let late = self.merging.counts(&self.stage);
        for (known, late) in self.stage.layout.features.iter().zip(late) {
            let own = layout.features.iter().position(|own| own.name == known.name);
            let Some(own) = own.and_then(|own| counts.get_mut(own)) else { continue };
            if own.len() == late.len() {
                own.iter_mut().zip(late).for_each(|(sum, count)| *sum += count);
            }
        }
    }
}

impl Merging {
    /// New rows: those that ran, and those whose values were counted; new work for counting.
    fn rows(&mut self, stage: &Stage) -> [u64; 3] {
        let mut sums = [0_u64; 3];
        for (_, shard) in stage.shards() {
            sums.iter_mut().zip(shard.rows()).for_each(|(sum, own)| *sum = sum.wrapping_add(own));
        }
        let before = std::mem::replace(&mut self.rows, sums);
        std::array::from_fn(|at| sums[at].wrapping_sub(before[at]))
    }

    /// New counts, by feature and bin; empty for a feature that is not counted.
    fn counts(&mut self, stage: &Stage) -> Vec<Vec<u64>> {
        let mut sums = vec![0_u64; stage.plan.len];
        for (worker, shard) in stage.shards() {
            if self.cells.len() <= worker {
                self.cells.resize(worker + 1, Vec::new());
            }
            let last = &mut self.cells[worker];
            last.resize(stage.plan.len, 0);
            for ((sum, last), now) in sums.iter_mut().zip(last).zip(shard.counts(&stage.plan)) {
                let new = now.wrapping_sub(*last);
                // Half of the numbers lie behind: rows that waited at the last look are just being counted.
                if new <= u32::MAX / 2 {
                    (*sum, *last) = (*sum + u64::from(new), now);
                }
            }
        }
        let own = |place: &Option<(usize, usize)>| match place {
            Some((first, len)) => sums[*first..first + len].to_vec(),
            None => Vec::new(),
        };
        stage.plan.cells.iter().map(own).collect()
    }
}

impl Learning {
    /// Columns to be learned of a layout; `None` if every feature has a reference.
    fn of(layout: &Layout, settings: &Settings, values_max: usize) -> Option<Self> {
        let unknown = layout.features.iter().enumerate();
        let unknown = unknown.filter(|(_, known)| known.reference.is_none());
        let columns: BTreeMap<usize, Values> = unknown
            .map(|(index, known)| {
                let values = if known.is_text {
                    Values::Texts(Vec::new())
                } else {
                    Values::Numbers(Vec::new())
                };
                (index, values)
            })
            .collect();
        let most = (values_max / columns.len().max(1)) as u64;
        let wanted = settings.learn_rows.min(most).max(1);
        (!columns.is_empty()).then_some(Self { columns, rows: [0; SIDES], wanted })
    }

    fn has(&self, inputs: usize, side: usize) -> bool {
        self.columns.keys().any(|feature| usize::from(*feature >= inputs) == side)
    }

    /// True if nothing is to be learned of a side, or it has as many rows as are needed.
    fn is_done(&self, inputs: usize, side: usize) -> bool {
        self.rows[side] >= self.wanted || !self.has(inputs, side)
    }

    /// Share of what is to be learned that was, from 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    pub(super) fn progress(&self, inputs: usize) -> f64 {
        let sides = (0..SIDES).filter(|side| self.has(inputs, *side));
        let rows = sides.map(|side| self.rows[side].min(self.wanted)).min().unwrap_or(self.wanted);
        rows as f64 / self.wanted as f64
    }

    fn add(&mut self, layout: &Layout, side: usize, tap: &Tap) {
        let inputs = layout.inputs_end();
        let (first, width) = match side {
            0 => (0, inputs),
            _ => (inputs, layout.features.len() - inputs),
        };
        if width == 0 || tap.numbers.len() != tap.rows() * width {
            return;
        }
        for row in tap.numbers.chunks_exact(width) {
            if self.rows[side] >= self.wanted {
                return;
            }
            self.rows[side] += 1;
            for (feature, values) in self.columns.range_mut(first..first + width) {
                values.push(row[feature - first], tap);
            }
        }
    }

    /// The same for a layout in which features have moved.
    fn moved(self, from: &Layout, to: &Layout) -> Self {
        let place = |name: &str| to.features.iter().position(|known| known.name == name);
        let columns = self
            .columns
            .into_iter()
            .filter_map(|(feature, values)| Some((place(&from.features[feature].name)?, values)));
        Self { columns: columns.collect(), ..self }
    }
}

impl Values {
    fn push(&mut self, value: f64, tap: &Tap) {
        match self {
            Self::Numbers(numbers) => numbers.push(value),
            Self::Texts(texts) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "the index of a text in a sample"
                )]
                let index = if value.is_nan() { usize::MAX } else { value as usize };
                let text = tap.texts.get(index).unwrap_or_default();
                texts.push(text.into());
            }
        }
    }

    /// Makes a reference, and adds it to a profile.
    fn learn(self, name: &str, is_whole: bool, profile: &mut Profile) -> Learned {
        match self {
            Self::Numbers(numbers) => {
                let feature = learn_numeric(name, &numbers, is_whole);
                profile.features.push(feature.clone());
                Learned::Feature(feature)
            }
            Self::Texts(texts) => {
                let texts: Vec<&[u8]> = texts.iter().map(|text| &**text).collect();
                match learn_texts(name, &texts) {
                    LearnedTexts::Categories(feature) => {
                        profile.features.push(feature.clone());
                        Learned::Feature(feature)
                    }
                    LearnedTexts::Text(derivation, measures) => {
                        let known = derivation.word_keys();
                        profile.derived.push(derivation);
                        profile.features.extend(measures.iter().cloned());
                        Learned::Words(measures, known)
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            activity::Place,
            recorder::tests::{counting_by, layout, layout_by, request},
        },
        *,
    };
    use crate::monitor::WorkerId;

    fn tracked(settings: Settings) -> Tracked {
        let origin =
            Origin { kind: ReferenceKind::Profile, rows: 60, digest: String::new(), note: None };
        let named = (ModelName::parse("m").unwrap(), VersionId::parse("1").unwrap(), None);
        Tracked::new(named, layout(), origin, None, settings)
    }

    #[test]
    fn counting_costs_no_more_in_a_second_than_it_may_and_all_is_counted_where_little_comes() {
        // Of a row, two numbers and a text are counted: the work of six numbers.
        let settings = Settings { rate_max: 6_000, ..Settings::default() };
        let (mut tracked, recorder) =
            (tracked(settings), Recorder::new(layout(), Place::alone(2), 1 << 20));
        let mut second = Duration::from_secs(1_796_000_000);
        let mut counted_of = |rows: u16, a_request: usize| {
            let row = |row: u16| (f32::from(row % 8 % 4) + 0.5, 0.5, "a");
            let all: Vec<_> = (0..rows).map(row).collect();
            for (request_of, rows) in all.chunks(a_request).enumerate() {
                recorder.inputs(WorkerId(request_of % 2), &request(rows), rows.len());
            }
            second += Duration::from_secs(1);
            tracked.look(&recorder, second, 1.0, 1);
            let (seen, counted) = tracked.rows.over(second, Duration::from_mins(1), 1);
            let watched = tracked.judge.features[0].as_ref().unwrap();
            let (_, bins) = watched.windows.over(second, Duration::from_mins(1), 7);
            (seen, counted[0], bins)
        };
        assert_eq!(counted_of(900, 1).1, 900, "less than may be");
        assert_eq!(counted_of(16_000, 1).1, 16_900, "nobody knew that so much would come");
        let (seen, counted, bins) = counted_of(16_000, 1);
        assert!((850..1150).contains(&(counted - 16_900)), "{counted}");
        // Values come in turn, and are counted by chance: each fourth as often as the others.
        assert!(bins[1..5].iter().all(|bin| (4_100..4_800).contains(bin)), "{bins:?}");
        assert_eq!(seen, 32_900);
        let batches = counted_of(16_000, 100).1 - counted;
        assert!((850..1150).contains(&batches), "{batches}");
        let before = counted + batches;
        let (_, counted, _) = counted_of(0, 1);
        assert_eq!(counted, before);
        assert_eq!(counted_of(500, 1).1, before + 500, "silence came before");
        // Each report looks: a few rows at once are no rate.
        for _ in 0..9 {
            recorder.inputs(WorkerId(0), &request(&[(0.5, 0.5, "a"); 100]), 100);
            second += Duration::from_millis(100);
            tracked.look(&recorder, second, 0.1, 1);
        }
        let (_, counted) = tracked.rows.over(second, Duration::from_mins(1), 1);
        assert_eq!(counted[0], before + 500 + 900);
    }

    #[test]
    fn a_version_rests_once_all_is_counted_and_silence_adds_no_share() {
        let settings = Settings { rate_max: 6_000, ..Settings::default() };
        let (mut tracked, recorder) =
            (tracked(settings), Recorder::new(layout(), Place::alone(1), 1 << 20));
        let mut second = Duration::from_secs(1_796_000_000);
        let mut counted_of = |rows: u16, silence: Duration| {
            second += silence;
            tracked.rested_until(second);
            for row in 0..rows {
                recorder.inputs(WorkerId(0), &request(&[(f32::from(row % 4), 0.5, "a")]), 1);
            }
            second += Duration::from_secs(1);
            tracked.look(&recorder, second, 1.0, 1);
            let (_, counted) = tracked.rows.over(second, Duration::from_mins(1), 1);
            (counted[0], tracked.rests(&recorder))
        };
        let silence = Duration::from_mins(10);
        assert_eq!(counted_of(1, Duration::ZERO), (1, false), "its last counts may come late");
        assert_eq!(counted_of(0, Duration::ZERO), (1, true));
        assert_eq!(counted_of(16_000, silence).0, 16_000, "nobody knew that so much would come");
        let (counted, _) = counted_of(16_000, Duration::ZERO);
        assert!((850..1150).contains(&(counted - 16_000)), "{counted}");
        assert!(!counted_of(1, Duration::ZERO).1);
        assert!(counted_of(0, Duration::ZERO).1, "every row will be counted");
    }

    #[test]
    fn rows_are_counted_that_found_the_layout_before_it_changed() {
        let (mut tracked, recorder) =
            (tracked(Settings::default()), Recorder::new(layout(), Place::alone(2), 64));
        let mut now = Duration::from_secs(1_796_000_000);
        let mut counted = |tracked: &mut Tracked| {
            now += Duration::from_millis(1);
            tracked.look(&recorder, now, 0.001, 1);
            let (seen, counted) = tracked.rows.over(now, Duration::from_mins(1), 1);
            let bins = &tracked.judge.features[0].as_ref().unwrap().windows;
            (seen, counted[0], bins.over(now, Duration::from_mins(1), 7).1.iter().sum())
        };
        let two = request(&[(0.5, 0.5, "a"), (1.5, 0.5, "b")]);
        recorder.inputs(WorkerId(0), &two, 2);
        assert_eq!(counted(&mut tracked), (2, 2, 2));
        // Workers that were interrupted between the two.
        let late = counting_by(recorder.stage());
        tracked.turn_to(&recorder, layout(), Duration::from_secs(1_796_000_000));
        late.inputs(WorkerId(0), &two, 2);
        recorder.inputs(WorkerId(0), &two, 2);
        assert_eq!(counted(&mut tracked), (6, 6, 6));
        late.inputs(WorkerId(1), &two, 2);
        assert_eq!(counted(&mut tracked), (8, 8, 8), "also after a look");
        assert_eq!(counted(&mut tracked), (8, 8, 8));
        assert_eq!(tracked.earlier.len(), 1);
        tracked.look(&recorder, Duration::from_secs(1_796_000_010), 1.0, 1);
        assert!(tracked.earlier.is_empty(), "all are done by now");
    }

    #[test]
    fn rows_that_taught_a_reference_are_in_no_window_however_late_they_come() {
        let (mut tracked, recorder) =
            (tracked(Settings::default()), Recorder::new(layout_by(None), Place::alone(1), 64));
        let now = Duration::from_secs(1_796_000_000);
        let late = counting_by(recorder.stage());
        tracked.turn_to(&recorder, layout(), now);
        let two = request(&[(0.5, 0.5, "a"), (1.5, 0.5, "b")]);
        late.inputs(WorkerId(0), &two, 2);
        recorder.inputs(WorkerId(0), &two, 2);
        tracked.look(&recorder, now, 1.0, 1);
        assert_eq!(tracked.rows.over(now, Duration::from_mins(1), 1).0, 2);
    }

    #[test]
    fn looks_find_each_row_once_while_others_are_counted() {
        const ROWS: u16 = 20_000;
        let recorder = Recorder::new(layout(), Place::alone(1), 1 << 20);
        let stage = recorder.stage();
        let rows: Vec<_> = (0..ROWS).map(|row| (f32::from(row % 5), 0.5, "a")).collect();
        let mut merging = Merging::default();
        let mut sums: Vec<Vec<u64>> = stage.plan.cells.iter().map(|_| Vec::new()).collect();
        let mut look = || {
            for (sum, new) in sums.iter_mut().zip(merging.counts(&stage)) {
                sum.resize(new.len(), 0);
                sum.iter_mut().zip(new).for_each(|(sum, new)| *sum += new);
                assert!(sum.iter().sum::<u64>() <= ROWS.into(), "{sum:?}");
            }
        };
        std::thread::scope(|threads| {
            let worker = threads.spawn(|| {
                for row in &rows {
                    recorder.inputs(WorkerId(0), &request(&[*row]), 1);
                }
            });
            while !worker.is_finished() {
                look();
            }
        });
        look();
        let whole = Recorder::new(layout(), Place::alone(1), 1 << 20);
        whole.inputs(WorkerId(0), &request(&rows), ROWS.into());
        assert_eq!(sums, Merging::default().counts(&whole.stage()));
    }
}
