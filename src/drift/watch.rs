//! All versions whose drift is watched, and the thread that looks at them once a second.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
    fs,
    hash::{BuildHasher as _, RandomState},
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    slice,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{
    model::{ModelName, Signature, VersionId},
    monitor::{EventKind, Monitor},
};

use super::{
    activity::{Activity, Place, nanoseconds},
    contract::{TermCounts, Terms},
    judge::{News, Raised, Violation},
    layout::{Hints, Layout},
    page::{DriftReport, FeatureReport, ReferenceKind},
    profile::{Derivation, Feature, PROFILE_BYTES_MAX, Profile, category_key},
    recorder::Recorder,
    report,
    segments::{SegmentId, Segments, Splitter},
    settings::Settings,
    test::{self, TestReport, TestRequest},
    version::{Kept, Origin, Segment, Tracked},
};

/// Time between two times that a version's state is kept.
const KEEP_EVERY: Duration = Duration::from_mins(1);

/// Bytes of the largest state that is read.
const STATE_BYTES_MAX: u64 = 64 << 20;

/// Files of one model's versions and segments that are kept.
const FILES_MAX: usize = 256;

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// A gap in traffic counts as no more than this share of the promised time: silence is no evidence.
const GAP_SHARE: f64 = 0.001;

/// Versions that take part in a model's traffic had rows within this time.
const ACTIVE: Duration = Duration::from_mins(10);

/// Watches drift; clones are handles to the same.
#[derive(Debug, Clone)]
pub struct Drift {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    monitor: Arc<Monitor>,
    workers: usize,
    settings: Settings,
    models: BTreeMap<ModelName, Settings>,
    /// Segments of models that have some, for all their versions.
    segments: BTreeMap<ModelName, Arc<Segments>>,
    /// Where learned references are kept.
    folder: Option<PathBuf>,
    versions: Mutex<Versions>,
    /// Hashes names of models.
    keys: RandomState,
    /// Nanoseconds since 1970: rows that came before then were looked at.
    looked_at: AtomicU64,
}

#[derive(Debug)]
struct Versions {
    /// Oldest first.
    watched: Vec<Watched>,
    activity: Activity,
}

/// A version, and what tells if it is due, beside that of the others.
#[derive(Debug)]
struct Watched {
    place: Place,
    /// Hash of the model's name.
    key: u64,
    entry: Arc<Entry>,
}

#[derive(Debug)]
struct Entry {
    place: Place,
    model: ModelName,
    version: VersionId,
    /// The segment's value; `None`: all rows.
    segment: Option<String>,
    recorder: Weak<Recorder>,
    /// Where segments of its rows are counted, and what they begin with.
    splitting: Option<(Weak<Splitter>, Layout)>,
    /// The file of references that it learned.
    learned: Option<PathBuf>,
    /// Taken by the thread that looks and by whoever asks; never on the path.
    tracked: Mutex<Tracked>,
    /// Held while its state is written.
    keeping: Mutex<()>,
    /// True after a panic of ours.
    is_broken: AtomicBool,
    /// True until alarms that an earlier process raised were told again.
    is_resumed: AtomicBool,
}

/// A version that is about to serve.
#[derive(Debug)]
pub struct Newcomer<'a> {
    /// The model.
    pub model: &'a ModelName,
    /// The version.
    pub version: VersionId,
    /// Inputs and outputs.
    pub signature: &'a Signature,
    /// True if the first dimension counts rows.
    pub is_batched: bool,
    /// Names of the columns of a wide input, where a description gives them.
    pub names: &'a [String],
    /// Identity of its files, for references that were learned.
    pub identity: &'a str,
    /// Its profile, or why that cannot be used.
    pub profile: Option<Result<Profile, String>>,
}

/// Counters of a version.
#[derive(Debug, Default)]
pub struct Given {
    /// Counts its values; `None` where drift is off.
    pub recorder: Option<Arc<Recorder>>,
    /// Checks its inputs, where the operator wrote a contract.
    pub terms: Option<Arc<Terms>>,
    /// Tells its rows apart, where segments are declared.
    pub splitter: Option<Arc<Splitter>>,
    /// Notes for the operator.
    pub notes: Vec<String>,
}

/// Looks once a second, until it is dropped.
#[derive(Debug)]
pub struct Watching {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

/// An input of a model, and the features that a profile has for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The input.
    pub input: String,
    /// Names of its features: columns of the data, or `<input>.<measure>`.
    pub features: Vec<String>,
    /// True if the order of the columns alone says which is which.
    pub by_order: bool,
}

/// Compares a profile with a version's signature as [`Drift::watch`] does.
///
/// # Errors
///
/// Returns why the profile would not be used, with what would be right.
pub fn fit(newcomer: &Newcomer<'_>, settings: &Settings) -> Result<Vec<Bound>, String> {
    let profile = match &newcomer.profile {
        Some(Ok(profile)) => Some(profile),
        Some(Err(wrong)) => return Err(wrong.clone()),
        None => None,
    };
    let (layout, wrong) = Layout::new(newcomer.signature, profile, newcomer.hints(settings));
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    let bound = newcomer.signature.inputs.iter().zip(layout.names()).map(|(spec, names)| {
        let is_own = |(column, name): (usize, &&str)| {
            **name == spec.name
                || **name == format!("{}[{column}]", spec.name)
                || name.strip_prefix(spec.name.as_str()).is_some_and(|rest| rest.starts_with('.'))
        };
        let by_order = names != newcomer.names && !names.iter().enumerate().all(is_own);
        let features = names.into_iter().map(str::to_owned).collect();
        Bound { input: spec.name.clone(), features, by_order }
    });
    Ok(bound.collect())
}

impl<'a> Newcomer<'a> {
    fn hints(&self, settings: &Settings) -> Hints<'a> {
        Hints {
            names: self.names,
            is_batched: self.is_batched,
            features_max: settings.features_max,
        }
    }
}

impl Drift {
    /// Watches nothing yet. `models` has the settings of single models; learned references are kept in `folder`.
    pub fn new(
        monitor: Arc<Monitor>,
        workers: usize,
        settings: Settings,
        models: BTreeMap<ModelName, Settings>,
        folder: Option<PathBuf>,
    ) -> Self {
        let versions = Versions { watched: Vec::new(), activity: Activity::new(workers) };
        let split = |(model, settings): (&ModelName, &Settings)| {
            Some((model.clone(), Arc::new(Segments::new(settings.segments.clone()?))))
        };
        let segments = models.iter().filter_map(split).collect();
        Self {
            inner: Arc::new(Inner {
                monitor,
                workers,
                settings,
                models,
                segments,
                folder,
                versions: Mutex::new(versions),
                keys: RandomState::new(),
                looked_at: AtomicU64::new(0),
            }),
        }
    }

    /// Watches with the defaults, on one worker, and keeps nothing.
    pub fn plain(monitor: &Arc<Monitor>) -> Self {
        Self::new(Arc::clone(monitor), 1, Settings::default(), BTreeMap::new(), None)
    }

    /// The settings of a model.
    pub fn settings(&self, model: &ModelName) -> &Settings {
        self.inner.models.get(model).unwrap_or(&self.inner.settings)
    }

    /// Watches a version as long as somebody holds the recorder that it gives; `None` if drift is off for the model.
    /// The
    /// second value says why a profile is not used.
    ///
    /// What a profile does not say is taken from what was learned before, else, for inputs, from the version before,
    /// else
    /// it is learned from the first rows.
    pub fn watch(&self, newcomer: &Newcomer<'_>) -> Given {
        let settings = self.settings(newcomer.model).clone();
        let mut given = Given::default();
        let segments = self.inner.segments.get(newcomer.model);
        if !settings.enabled && settings.contract.is_none() && segments.is_none() {
            return given;
        }
        let (layout, origin) = self.reference(newcomer, &settings);
        if let Some(segments) = segments {
            let (splitter, note) = Splitter::new(segments, &layout);
            given.splitter = Some(Arc::new(splitter));
            given.notes.extend(note);
        }
        if let Some(contract) = &settings.contract {
            let split = segments.map_or(0, |segments| segments.rule().limit);
            let (terms, unknown) = Terms::new(contract, &layout, (self.inner.workers, split));
            given.terms = Some(Arc::new(terms));
            given.notes.extend(unknown);
        }
        if !settings.enabled {
            return given;
        }
        given
            .notes
            .extend(origin.note.clone().map(|wrong| format!("profile.json is not used: {wrong}")));
        let splitter = given.splitter.as_ref();
        let splitting = splitter.map(|splitter| (Arc::downgrade(splitter), layout.blank()));
        let learned = self.learned_file(newcomer);
        let named = (newcomer.model.clone(), newcomer.version, None);
        let tracked = Tracked::new(named, layout, origin, given.terms.clone(), settings);
        let (recorder, entry) = self.enter(tracked, learned, splitting);
        self.follow_segments(&entry);
        given.recorder = Some(recorder);
        given
    }

    /// Watches something from now on, going on from what an earlier process kept of it.
    fn enter(
        &self,
        mut tracked: Tracked,
        learned: Option<PathBuf>,
        splitting: Option<(Weak<Splitter>, Layout)>,
    ) -> (Arc<Recorder>, Arc<Entry>) {
        let kept = learned.as_deref().and_then(recall_state);
        tracked.kept_at = self.inner.monitor.clock().unix();
        let is_resumed = AtomicBool::new(kept.is_some());
        if let Some(kept) = kept {
            tracked.resume(kept);
        }
        let values_max = tracked.settings.values_max;
        let place = self.versions().activity.place();
        place.looked(tracked.last_rows_at, Duration::ZERO);
        let recorder = Arc::new(Recorder::new(tracked.layout.clone(), place.clone(), values_max));
        let entry = Arc::new(Entry {
            place: place.clone(),
            model: tracked.model.clone(),
            version: tracked.version,
            segment: tracked.segment.as_ref().map(|segment| segment.value.clone()),
            recorder: Arc::downgrade(&recorder),
            splitting,
            learned,
            tracked: Mutex::new(tracked),
            keeping: Mutex::default(),
            is_broken: AtomicBool::new(false),
            is_resumed,
        });
        let key = self.key(&entry.model);
        self.versions().watched.push(Watched { place, key, entry: Arc::clone(&entry) });
        (recorder, entry)
    }

    /// Watches the segments of a version that are known and not watched yet.
    fn follow_segments(&self, entry: &Entry) {
        let Some((splitter, blank)) = &entry.splitting else { return };
        let Some(splitter) = splitter.upgrade() else { return };
        for (index, value) in splitter.segments().names().into_iter().enumerate() {
            let Some(place) = splitter.place(index).filter(|place| place.get().is_none()) else {
                continue;
            };
            let (terms, settings) = {
                let tracked = entry.tracked();
                (tracked.terms.clone(), tracked.settings.clone())
            };
            let learned = entry.learned.as_deref().map(|whole| of_segment(whole, &value));
            let mut layout = blank.clone();
            let kind = ReferenceKind::None;
            let mut origin = Origin { kind, rows: 0, digest: String::new(), note: None };
            if let Some(learned) = learned.as_deref().and_then(recall) {
                layout = layout.recalling(&learned);
                origin.is_else(ReferenceKind::Learned, learned.rows, learned.digest);
            }
            let named = (&entry.model, entry.version, Some(value.as_str()));
            self.inherit(named, &mut layout, &mut origin);
            let by = splitter.segments().rule().by.name().to_owned();
            let limit = splitter.segments().rule().limit;
            let segment = Segment { id: SegmentId::of(index), by, value, limit };
            let named = (entry.model.clone(), entry.version, Some(segment));
            let tracked = Tracked::new(named, layout, origin, terms, settings);
            let (recorder, _) = self.enter(tracked, learned, None);
            // Nobody else fills it.
            let _ = place.set(recorder);
        }
    }

    /// The features of a version, and what they are compared with.
    fn reference(&self, newcomer: &Newcomer<'_>, settings: &Settings) -> (Layout, Origin) {
        let hints = newcomer.hints(settings);
        let (given, note) = match &newcomer.profile {
            Some(Ok(profile)) => (Some(profile), None),
            Some(Err(wrong)) => (None, Some(wrong.clone())),
            None => (None, None),
        };
        let (mut layout, wrong) = Layout::new(newcomer.signature, given, hints);
        let given = given.filter(|_| wrong.is_none());
        let mut origin = Origin {
            kind: given.map_or(ReferenceKind::None, |_| ReferenceKind::Profile),
            rows: given.map_or(0, |profile| profile.rows),
            digest: given.map(|profile| profile.digest.clone()).unwrap_or_default(),
            note: note.or(wrong),
        };
        if let Some(learned) = self.learned_file(newcomer).and_then(|path| recall(&path)) {
            let (rows, digest) = (learned.rows, learned.digest.clone());
            let (recalled, wrong) =
                Layout::new(newcomer.signature, Some(&beside(given, learned)), hints);
            if wrong.is_none() {
                layout = recalled;
                origin.is_else(ReferenceKind::Learned, rows, digest);
            }
        }
        let named = (newcomer.model, newcomer.version, None);
        self.inherit(named, &mut layout, &mut origin);
        (layout, origin)
    }

    /// Takes the references of inputs from the version before, or from the same segment of it, where that has the same
    /// features.
    fn inherit(
        &self,
        (model, version, segment): (&ModelName, VersionId, Option<&str>),
        layout: &mut Layout,
        origin: &mut Origin,
    ) {
        if !layout.lacks_inputs() {
            return;
        }
        let live = self.live();
        let is_other = |entry: &Entry| {
            entry.model == *model && entry.version != version && entry.segment.as_deref() == segment
        };
        let Some((before, _)) = live.iter().find(|(entry, _)| is_other(entry)) else { return };
        let before = before.tracked();
        if layout.adopt_inputs(&before.layout) {
            let Origin { rows, digest, .. } = &before.origin;
            origin.is_else(ReferenceKind::Inherited, *rows, digest.clone());
        }
    }

    fn learned_file(&self, newcomer: &Newcomer<'_>) -> Option<PathBuf> {
        let folder = self.inner.folder.as_ref()?.join(newcomer.model.as_str());
        let identity = newcomer.identity.chars().filter(char::is_ascii_alphanumeric);
        let short: String = identity.take(16).collect();
        Some(folder.join(format!("{}-{short}.json", newcomer.version.number())))
    }

    fn versions(&self) -> MutexGuard<'_, Versions> {
        self.inner.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that serve, newest first.
    fn live(&self) -> Vec<Live> {
        self.live_where(|_| true)
    }

    /// The same of some, of which the others are not touched.
    fn live_where(&self, is_meant: impl Fn(&Place) -> bool) -> Vec<Live> {
        let versions = self.versions();
        let meant = versions.watched.iter().rev().filter(|watched| is_meant(&watched.place));
        let live = |watched: &Watched| {
            Some((Arc::clone(&watched.entry), watched.entry.recorder.upgrade()?))
        };
        meant.filter_map(live).collect()
    }

    /// Hash of a model's name.
    fn key(&self, model: &ModelName) -> u64 {
        self.inner.keys.hash_one(model)
    }

    /// Versions with traffic of the same models as some.
    fn active(&self, some: &[Live], now: Duration) -> Active {
        let mut active = Active::new();
        let keys: HashSet<u64> = some.iter().map(|(entry, _)| self.key(&entry.model)).collect();
        if keys.is_empty() {
            return active;
        }
        for Watched { place, key, entry } in &self.versions().watched {
            let last = place.last_rows_at();
            if !last.is_zero() && last + ACTIVE >= now && keys.contains(key) && !place.is_over() {
                *active.entry(entry.model.clone()).or_default() += 1;
            }
        }
        active
    }

    /// Looks at all versions that counted or do not rest: merges, judges, tells.
    pub fn look(&self) {
        let now = self.inner.monitor.clock().unix();
        let gone = {
            let mut versions = self.versions();
            let Versions { watched, activity } = &mut *versions;
            let gone = watched.extract_if(.., |watched| watched.place.is_over());
            let gone: Vec<_> = gone.map(|Watched { place, entry, .. }| (place, entry)).collect();
            for (place, _) in &gone {
                activity.take_back(place.clone());
            }
            gone
        };
        drop(gone);
        let due = self.live_where(|place| place.is_due(now));
        let active = self.active(&due, now);
        for (entry, recorder) in &due {
            if entry.is_broken.load(Relaxed) {
                continue;
            }
            self.follow_segments(entry);
            let sharing = sharing(&active, &entry.model);
            let look = AssertUnwindSafe(|| self.look_at(entry, recorder, now, sharing));
            // One version's trouble must not leave the others unwatched.
            if catch_unwind(look).is_err() {
                entry.is_broken.store(true, Relaxed);
                tracing::error!(
                    model = %entry.model,
                    version = %entry.version,
                    "the drift of this version is no longer watched: a bug of tidegate; load the version again to go on"
                );
            }
        }
        self.inner.looked_at.store(nanoseconds(now), Release);
    }

    /// Keeps what is known of every version for the next start.
    fn keep_all(&self) {
        let now = self.inner.monitor.clock().unix();
        for (entry, _) in self.live() {
            entry.keep_state(now, Duration::ZERO);
        }
    }

    fn look_at(&self, entry: &Entry, recorder: &Recorder, now: Duration, sharing: usize) {
        let mut tracked = entry.tracked();
        let most = tracked.settings.false_alarm_every.as_secs_f64() * GAP_SHARE;
        let passed = now.saturating_sub(tracked.last_rows_at).as_secs_f64();
        let is_first = tracked.last_rows_at.is_zero();
        let passed = if is_first { PERIOD.as_secs_f64() } else { passed.min(most) };
        if entry.is_resumed.swap(false, Relaxed) {
            for raised in tracked.judge.standing() {
                self.tell_standing(&tracked, now, &raised);
            }
        }
        tracked.rested_until(Duration::from_nanos(self.inner.looked_at.load(Acquire)));
        let looked = tracked.look(recorder, now, passed, sharing);
        entry.place.looked(tracked.last_rows_at, entry.due_at(&tracked, recorder));
        // What was told is kept at once: a process that is killed must not find it anew.
        let every = if looked.news.is_empty() { KEEP_EVERY } else { Duration::ZERO };
        for news in looked.news {
            self.tell(&tracked, now, news);
        }
        drop(tracked);
        if let (Some(learned), Some(path)) = (looked.learned, &entry.learned) {
            keep(path, learned, &entry.model);
        }
        entry.keep_state(now, every);
    }

    fn tell(&self, tracked: &Tracked, now: Duration, news: News) {
        let (kind, raised) = match news {
            News::Detected(raised) => (EventKind::DriftDetected, raised),
            News::Cleared(raised) => (EventKind::DriftCleared, raised),
            News::Violated(broken) => return self.tell_violated(tracked, now, &broken),
        };
        let (mut names, object) = report::event(tracked, &raised);
        let (model, version) = (&tracked.model, tracked.version);
        if let Some(Segment { by, value, .. }) = &tracked.segment {
            let _ = write!(names, ", where {by} is `{value}`");
        }
        let detail = if kind == EventKind::DriftDetected {
            tracing::warn!(%model, %version, "drift: {names}; see `tidegate drift status {model}`");
            format!("drift: {names}")
        } else {
            tracing::info!(%model, %version, "drift is over: {names}");
            format!("drift is over: {names}")
        };
        self.inner.monitor.events().tell_about(
            now,
            (model, Some(version)),
            kind,
            detail,
            Some(object),
        );
    }

    /// Tells again of alarms that were raised together by an earlier process, marked as such.
    fn tell_standing(&self, tracked: &Tracked, now: Duration, raised: &[Raised]) {
        let (names, object) = report::standing(tracked, raised);
        let (model, version) = (&tracked.model, tracked.version);
        tracing::warn!(%model, %version, "drift still stands: {names}; see `tidegate drift status {model}`");
        let (about, kind) = ((model, Some(version)), EventKind::DriftDetected);
        let detail = format!("drift still stands: {names}");
        self.inner.monitor.events().tell_about(now, about, kind, detail, Some(object));
    }

    fn tell_violated(&self, tracked: &Tracked, now: Duration, broken: &[Violation]) {
        let (model, version) = (&tracked.model, tracked.version);
        let (named, object) = report::violated(tracked, broken);
        tracing::warn!(%model, %version, "the contract is broken: {named}; see `tidegate drift status {model}`");
        let detail = format!("the contract is broken: {named}");
        let about = (model, Some(version));
        let events = self.inner.monitor.events();
        events.tell_about(now, about, EventKind::QualityViolated, detail, Some(object));
    }

    /// Gauges of all versions that have counted rows.
    pub fn gauges(&self) -> Vec<Gauges> {
        let now = self.inner.monitor.clock().unix();
        let live = self.live_where(|place| !place.last_rows_at().is_zero());
        let active = self.active(&live, now);
        let own = |(entry, _): &Live| {
            let tracked = entry.tracked();
            // What clients chose names no series.
            let is_shown = entry.segment.as_deref().is_none_or(|value| {
                let segments = self.inner.segments.get(&entry.model);
                segments.is_some_and(|segments| segments.is_declared(value))
            });
            if !is_shown {
                return None;
            }
            let features = match &entry.segment {
                None => report::gauges(&tracked, now),
                Some(_) => Vec::new(),
            };
            Some(Gauges {
                model: entry.model.clone(),
                version: entry.version,
                segment: entry.segment.clone(),
                log_m: report::finite(tracked.judge.log_m()),
                log_m_threshold: tracked.judge.threshold(sharing(&active, &entry.model)),
                is_drifting: tracked.judge.is_drifting(),
                features,
                alarms: tracked.judge.raised.clone(),
                terms: tracked.term_counts(),
            })
        };
        live.iter().filter_map(own).collect()
    }

    /// Tests a version's window against its reference; version and segment as in [`Drift::report`]. `None` if it is not
    /// watched.
    pub fn test(
        &self,
        model: &ModelName,
        (version, segment): (Option<VersionId>, Option<&str>),
        asked: &TestRequest,
    ) -> Option<TestReport> {
        let now = self.inner.monitor.clock().unix();
        let live = self.live();
        let newest = newest(&live, model, (version, segment))?;
        let (entry, recorder) = newest;
        let active = self.active(slice::from_ref(newest), now);
        self.look_at(entry, recorder, now, sharing(&active, model));
        Some(test::test(&entry.tracked(), now, asked))
    }

    /// The segments of a model that rows came of, or that were declared; `None` where none are declared.
    pub fn segments(&self, model: &ModelName) -> Option<Vec<String>> {
        self.inner.segments.get(model).map(|segments| segments.names())
    }

    /// The drift of a version in a window, the settings' own if none is given; of the version that had rows last, if
    /// none is named. With a segment, of its rows alone. `None` if it is not watched.
    pub fn report(
        &self,
        model: &ModelName,
        (version, segment): (Option<VersionId>, Option<&str>),
        window: Option<Duration>,
    ) -> Option<DriftReport> {
        let now = self.inner.monitor.clock().unix();
        let live = self.live();
        let newest = newest(&live, model, (version, segment))?;
        let (entry, recorder) = newest;
        let sharing = sharing(&self.active(slice::from_ref(newest), now), model);
        // What was answered is counted.
        self.look_at(entry, recorder, now, sharing);
        let tracked = entry.tracked();
        let window = window.unwrap_or(tracked.settings.window);
        let mut page = report::page(&tracked, now, window, sharing);
        drop(tracked);
        if segment.is_none() {
            let is_part = |part: &Entry| {
                part.model == entry.model && part.version == entry.version && part.segment.is_some()
            };
            let parts = live.iter().filter(|(part, _)| is_part(part));
            page.segments = parts
                .filter_map(|(part, recorder)| {
                    self.look_at(part, recorder, now, sharing);
                    report::summary(&part.tracked(), now, window)
                })
                .collect();
            page.segments.sort_by(|a, b| a.value.cmp(&b.value));
        }
        Some(page)
    }
}

/// The version of this number, or the one that had rows last; of a segment, or of all rows.
fn newest<'l>(
    live: &'l [Live],
    model: &ModelName,
    (version, segment): (Option<VersionId>, Option<&str>),
) -> Option<&'l Live> {
    let own = |(entry, _): &&Live| {
        entry.model == *model
            && entry.segment.as_deref() == segment
            && version.is_none_or(|version| entry.version == version)
    };
    live.iter().filter(own).max_by_key(|(entry, _)| entry.place.last_rows_at())
}

/// A version's gauges.
#[derive(Debug, Clone, PartialEq)]
pub struct Gauges {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: VersionId,
    /// The segment of its rows, one that the operator declared; `None`: all rows. One has no features here.
    pub segment: Option<String>,
    /// Natural logarithm of the evidence over all features.
    pub log_m: f64,
    /// An alarm is raised at this.
    pub log_m_threshold: f64,
    /// True from an alarm on until it has cleared.
    pub is_drifting: bool,
    /// Those of its features, as on the page.
    pub features: Vec<FeatureReport>,
    /// Alarms of the page tier so far, by kind.
    pub alarms: BTreeMap<&'static str, u64>,
    /// Counts of the contract's rules.
    pub terms: Vec<TermCounts>,
}

/// The file of a segment's references, beside those of all rows.
fn of_segment(whole: &Path, value: &str) -> PathBuf {
    let stem = whole.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let key = category_key(value.as_bytes());
    whole.with_file_name(format!("{stem}-{key:016x}.json"))
}

/// State that an earlier process kept beside the references of a version.
fn recall_state(learned: &Path) -> Option<Kept> {
    let path = learned.with_extension("state");
    let is_small = fs::metadata(&path).is_ok_and(|meta| meta.len() <= STATE_BYTES_MAX);
    serde_json::from_slice(&is_small.then(|| fs::read(&path).ok()).flatten()?).ok()
}

/// Removes the oldest files where a model has more than are kept.
fn prune(folder: &Path) {
    let Ok(files) = fs::read_dir(folder) else { return };
    let aged = files
        .flatten()
        .filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file.path())));
    let mut aged: Vec<_> = aged.collect();
    aged.sort();
    let surplus = aged.len().saturating_sub(FILES_MAX);
    for (_, path) in aged.into_iter().take(surplus) {
        // The next one will find it.
        let _ = fs::remove_file(path);
    }
}

/// A version that serves.
type Live = (Arc<Entry>, Arc<Recorder>);

/// Versions with traffic, by model: they share its promise.
type Active = HashMap<ModelName, usize>;

/// Versions that share a model's promise, at least one.
fn sharing(active: &Active, model: &ModelName) -> usize {
    active.get(model).copied().unwrap_or(0).max(1)
}

/// References that were learned in an earlier life of the process.
fn recall(path: &Path) -> Option<Profile> {
    let is_small = fs::metadata(path).is_ok_and(|meta| meta.len() <= PROFILE_BYTES_MAX);
    let bytes = is_small.then(|| fs::read(path).ok()).flatten()?;
    Profile::read(&bytes).ok()
}

/// A profile with what was learned beside it.
fn beside(given: Option<&Profile>, learned: Profile) -> Profile {
    let Some(given) = given else { return learned };
    let mut all = given.clone();
    let is_new = |feature: &Feature| given.feature(&feature.name).is_none();
    all.features.extend(learned.features.into_iter().filter(is_new));
    let derived = |own: &Derivation| given.derived.iter().any(|one| one.input() == own.input());
    all.derived.extend(learned.derived.into_iter().filter(|own| !derived(own)));
    all
}

/// Keeps references that were learned for the next start, beside those that were before.
fn keep(path: &Path, learned: Profile, model: &ModelName) {
    let all = match recall(path) {
        Some(before) => beside(Some(&learned), before),
        None => learned,
    };
    let write = || -> std::io::Result<()> {
        let folder = path.parent().unwrap_or(path);
        fs::create_dir_all(folder)?;
        let fresh = path.with_extension("new");
        let mut file = fs::File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(&all)?)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        fs::File::open(folder)?.sync_all()
    };
    if let Err(error) = write() {
        tracing::warn!(
            %model,
            "the reference that was learned is not kept, a restart learns anew: {error}; make `{}` writable",
            path.display()
        );
    }
}

impl Watching {
    /// Begins to look.
    pub fn start(drift: &Drift) -> std::io::Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (told, drift) = (Arc::clone(&stop), drift.clone());
        let thread = std::thread::Builder::new().name("drift".to_owned()).spawn(move || {
            let (stopped, changed) = &*told;
            let mut is_over = stopped.lock().unwrap_or_else(PoisonError::into_inner);
            while !*is_over {
                drop(is_over);
                drift.look();
                is_over = stopped.lock().unwrap_or_else(PoisonError::into_inner);
                if !*is_over {
                    let waited = changed.wait_timeout(is_over, PERIOD);
                    is_over = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
            drop(is_over);
            drift.look();
            drift.keep_all();
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let (stopped, changed) = &*self.stop;
        *stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Entry {
    /// Keeps alarms, evidence and windows for the next start, if rows came since they were kept, `every` ago or longer.
    /// Not synced: what is lost with the machine is a minute of windows.
    fn keep_state(&self, now: Duration, every: Duration) {
        let Some(learned) = self.learned.as_deref() else { return };
        let _keeping = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tracked = self.tracked();
        if !tracked.is_unkept || now < tracked.kept_at + every {
            return;
        }
        let kept = tracked.keep(now);
        drop(tracked);
        // Not before: of thousands of versions hardly any has something to keep.
        let path = learned.with_extension("state");
        let write = || -> std::io::Result<()> {
            let folder = path.parent().unwrap_or(&path);
            fs::create_dir_all(folder)?;
            let fresh = path.with_extension("state.new");
            fs::write(&fresh, serde_json::to_vec(&kept)?)?;
            fs::rename(&fresh, &path)?;
            prune(folder);
            Ok(())
        };
        if let Err(error) = write() {
            tracing::debug!(model = %self.model, %error, "the state of drift is not kept");
        }
    }

    /// When it is looked at though it counts nothing.
    fn due_at(&self, tracked: &Tracked, recorder: &Recorder) -> Duration {
        // Segments that rows of another version named are followed before the first row of theirs.
        if self.splitting.is_some() || !tracked.rests(recorder) {
            Duration::ZERO
        } else if self.learned.is_some() && tracked.is_unkept {
            tracked.kept_at + KEEP_EVERY
        } else {
            Duration::MAX
        }
    }

    fn tracked(&self) -> MutexGuard<'_, Tracked> {
        self.tracked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{super::recorder::tests, *};
    use crate::monitor::{Clock, WorkerId};

    /// A clock that is set, in seconds since 1970.
    #[derive(Debug)]
    struct SetClock(AtomicU64);

    impl Clock for SetClock {
        fn now(&self) -> Instant {
            Instant::now()
        }

        fn unix(&self) -> Duration {
            Duration::from_secs(self.0.load(Relaxed))
        }
    }

    #[test]
    fn a_version_is_looked_at_while_it_counts_and_until_it_is_kept() {
        let clock = Arc::new(SetClock(AtomicU64::new(1_796_000_000)));
        let monitor = Arc::new(Monitor::new(1, Arc::<SetClock>::clone(&clock)));
        let folder = tempfile::tempdir().unwrap();
        let path = Some(folder.path().to_owned());
        let drift = Drift::new(monitor, 1, Settings::default(), BTreeMap::new(), path);
        let newcomer = Newcomer {
            model: &ModelName::parse("m").unwrap(),
            version: VersionId::new(1),
            signature: &tests::signature(),
            is_batched: true,
            names: &[],
            identity: "a",
            profile: None,
        };
        let recorder = drift.watch(&newcomer).recorder.unwrap();
        // Without a look that would take the signs away.
        let due_at = || drift.versions().watched[0].place.due_at();
        let look = || {
            drift.look();
            clock.0.fetch_add(1, Relaxed);
        };
        assert_eq!(due_at(), Duration::ZERO, "nobody has looked yet");
        look();
        assert_eq!(due_at(), Duration::MAX);
        recorder.inputs(WorkerId(0), &tests::request(&[(0.5, 0.5, "a")]), 1);
        look();
        assert_eq!(drift.live()[0].0.place.last_rows_at(), Duration::from_secs(1_796_000_001));
        assert_eq!(due_at(), Duration::ZERO, "its last counts may come late");
        look();
        let kept_at = Duration::from_secs(1_796_000_060);
        assert_eq!(due_at(), kept_at);
        clock.0.store(kept_at.as_secs(), Relaxed);
        look();
        assert!(fs::metadata(folder.path().join("m/1-a.state")).unwrap().len() > 0);
        clock.0.store(2 * kept_at.as_secs(), Relaxed);
        look();
        assert_eq!(due_at(), Duration::MAX);
        drop(recorder);
        look();
        assert!(drift.versions().watched.is_empty());
    }
}
