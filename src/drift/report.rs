//! From a version's state to the page that people and programs read.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use crate::{
    model::Moment,
    stats::{BinRole, binned_kolmogorov, binned_wasserstein},
};

use super::{
    contract::TermCounts,
    judge::{Raised, Violation, Watched},
    layout::{Known, Source},
    page::{
        Alarm, DriftReport, FeatureReport, ReferenceKind, ReferenceReport, RuleReport, SegmentName,
        SegmentReport, Status, Tier,
    },
    profile::Bins,
    version::Tracked,
};

/// Evidence below which a feature shows no tendency: natural logarithm.
const TENDENCY_MIN: f64 = 3.0;

/// Minutes of a window that are shown one by one.
const MINUTES_SHOWN: usize = 60;

/// The page of a version.
pub(super) fn page(
    tracked: &Tracked,
    now: Duration,
    window: Duration,
    sharing: usize,
) -> DriftReport {
    let judge = &tracked.judge;
    let (rows, counted) = tracked.rows.over(now, window, 1);
    let features = tracked.layout.features.iter().enumerate();
    let features: Vec<_> = features
        .map(|(index, known)| match &judge.features[index] {
            Some(watched) => feature((tracked, index), known, watched, now, window),
            None => unknown(known),
        })
        .collect();
    let alarms = judge.alarms.iter().rev().map(|raised| alarm(tracked, raised)).collect();
    let (status, detail) = status(tracked);
    DriftReport {
        model: tracked.model.as_str().to_owned(),
        version: tracked.version.number().to_string(),
        segment: tracked
            .segment
            .as_ref()
            .map(|segment| SegmentName { by: segment.by.clone(), value: segment.value.clone() }),
        segments: Vec::new(),
        status,
        detail,
        reference: ReferenceReport {
            kind: tracked.origin.kind,
            rows: tracked.origin.rows,
            digest: tracked.origin.digest.clone(),
            progress: tracked
                .learning
                .as_ref()
                .map_or(1.0, |learning| learning.progress(tracked.inputs())),
        },
        false_alarm_every_seconds: tracked.settings.false_alarm_every.as_secs_f64(),
        log_m: finite(judge.log_m()),
        log_m_threshold: judge.threshold(sharing),
        window_seconds: window.as_secs_f64(),
        rows,
        rows_counted: counted[0],
        alarms,
        features,
        contract: rules(tracked),
    }
}

/// A segment in a few numbers.
pub(super) fn summary(tracked: &Tracked, now: Duration, window: Duration) -> Option<SegmentReport> {
    let segment = tracked.segment.as_ref()?;
    let (rows, _) = tracked.rows.over(now, window, 1);
    let open = tracked.judge.alarms.iter();
    let open = open.filter(|raised| raised.cleared.is_none() && raised.tier == Tier::Page);
    let name =
        |raised: &Raised| tracked.layout.features.get(raised.feature).map(|it| it.name.clone());
    Some(SegmentReport {
        value: segment.value.clone(),
        status: status(tracked).0,
        rows,
        log_m: finite(tracked.judge.log_m()),
        progress: tracked.learning.as_ref().map_or(1.0, |it| it.progress(tracked.inputs())),
        drifting: open.filter_map(name).collect(),
    })
}

fn rules(tracked: &Tracked) -> Vec<RuleReport> {
    let Some(terms) = &tracked.terms else { return Vec::new() };
    let rule = |counts: TermCounts| RuleReport {
        feature: counts.feature,
        action: counts.action,
        dry_run: terms.is_dry_run(),
        values: counts.values,
        broken: counts
            .breaches
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(breach, count)| (breach.name().to_owned(), count))
            .collect(),
    };
    tracked.term_counts().into_iter().map(rule).collect()
}

/// A logarithm as JSON can write it.
pub(super) fn finite(log: f64) -> f64 {
    log.max(crate::stats::LOG_FLOOR)
}

/// The features that have gauges of their own, in the settings' window; without what a gauge cannot show.
pub(super) fn gauges(tracked: &Tracked, now: Duration) -> Vec<FeatureReport> {
    let window = tracked.settings.window;
    let features = tracked.layout.features.iter().zip(&tracked.judge.features);
    let gauge = |(known, watched): (&Known, &Option<Watched>)| {
        let watched = watched.as_ref()?;
        let (_, current) = watched.windows.over(now, window, watched.roles.len());
        Some(measured(known, watched, current))
    };
    features.filter_map(gauge).take(tracked.settings.metric_features_max).collect()
}

fn status(tracked: &Tracked) -> (Status, String) {
    let judge = &tracked.judge;
    let is_known = judge.features.iter().flatten().any(Watched::is_monitorable);
    let mut detail = match tracked.origin.kind {
        ReferenceKind::Profile => {
            format!("compared with profile.json, {} rows", tracked.origin.rows)
        }
        ReferenceKind::Learned => {
            let whose = if tracked.segment.is_some() { "segment" } else { "version" };
            format!("compared with the {whose}'s first {} rows", tracked.origin.rows)
        }
        ReferenceKind::Inherited => "compared with the reference of the version before".to_owned(),
        ReferenceKind::None => "nothing to compare with yet".to_owned(),
    };
    if let Some(learning) = &tracked.learning {
        let whose = if is_known { "outputs" } else { "the reference" };
        let rows = learning.rows[usize::from(is_known)].min(learning.wanted);
        detail
            .push_str(&format!("; learning {whose} from live rows, {rows} of {}", learning.wanted));
        if !is_known && tracked.origin.note.is_none() && tracked.segment.is_none() {
            detail.push_str(
                "; to compare with the training data instead, put a profile.json beside the model (`tidegate profile`)",
            );
        }
    }
    if let Some(note) = &tracked.origin.note {
        detail.push_str(&format!("; profile.json is not used: {note}"));
    }
    let status = if tracked.layout.features.is_empty() {
        "no input or output has values that can be compared".clone_into(&mut detail);
        Status::Unmonitorable
    } else if judge.is_drifting() {
        Status::Drifting
    } else if is_known {
        Status::Watching
    } else if tracked.learning.is_some() {
        Status::Learning
    } else {
        Status::Unmonitorable
    };
    (status, detail)
}

fn source(known: &Known) -> String {
    known.source.name().to_owned()
}

fn unknown(known: &Known) -> FeatureReport {
    FeatureReport {
        name: known.name.clone(),
        source: source(known),
        kind: if known.is_text { "text" } else { "numeric" }.to_owned(),
        status: Status::Learning,
        rows: 0,
        missing: 0.0,
        unseen: 0.0,
        psi: None,
        psi_noise: None,
        js: None,
        ks: None,
        wasserstein: None,
        mean: None,
        reference_mean: None,
        log_m: crate::stats::LOG_FLOOR,
        tendency: None,
        edges: Vec::new(),
        bins: Vec::new(),
        reference: Vec::new(),
        current: Vec::new(),
        psi_minutes: Vec::new(),
    }
}

fn feature(
    (tracked, index): (&Tracked, usize),
    known: &Known,
    watched: &Watched,
    now: Duration,
    window: Duration,
) -> FeatureReport {
    let (_, current) = watched.windows.over(now, window, watched.roles.len());
    let mut report = measured(known, watched, current);
    if !report.edges.is_empty() {
        report.mean = mean(tracked, index, now, window);
    }
    report.psi_minutes = minutes(watched);
    report
}

/// A feature in a window, without what takes raw rows or single minutes.
fn measured(known: &Known, watched: &Watched, current: Vec<u64>) -> FeatureReport {
    let reference = &watched.reference;
    let distances = watched.distances(&current);
    let rows = distances.rows;
    let has_rows = rows > 0;
    let edges = match &reference.bins {
        Bins::Numeric { edges } => edges.clone(),
        Bins::Categorical { .. } => Vec::new(),
    };
    let binned = has_rows && !edges.is_empty();
    let log_m = watched.evidence.log_m();
    let measure = known.name.rsplit_once('.').map(|(_, measure)| measure);
    let is_text = matches!(measure, Some("length" | "known"));
    let status = match () {
        () if watched.is_drifting => Status::Drifting,
        () if watched.is_monitorable() => Status::Watching,
        () => Status::Unmonitorable,
    };
    FeatureReport {
        name: known.name.clone(),
        source: source(known),
        kind: match &reference.bins {
            _ if is_text && known.source == Source::Derived => "text",
            Bins::Numeric { .. } => "numeric",
            Bins::Categorical { .. } => "categorical",
        }
        .to_owned(),
        status,
        rows,
        missing: share(watched, &current, &[BinRole::Missing]),
        unseen: share(
            watched,
            &current,
            &[BinRole::Unseen, BinRole::Below, BinRole::Above, BinRole::NonFinite],
        ),
        psi: has_rows.then_some(distances.psi),
        psi_noise: has_rows.then_some(distances.noise),
        js: has_rows.then_some(distances.js),
        ks: binned.then(|| {
            binned_kolmogorov(&values(watched, &reference.counts), &values(watched, &current))
        }),
        wasserstein: binned.then(|| {
            let (own, live) = (values(watched, &reference.counts), values(watched, &current));
            binned_wasserstein(&own, &live, &closed(&edges))
        }),
        mean: None,
        reference_mean: reference.moments.map(|moments| moments.mean),
        log_m: finite(log_m),
        tendency: watched
            .tendency()
            .filter(|_| log_m > TENDENCY_MIN)
            .map(|(kind, ..)| kind.name().to_owned()),
        bins: names(&reference.bins),
        edges,
        reference: reference.counts.clone(),
        psi_minutes: Vec::new(),
        current,
    }
}

/// Shares of the bins of finite values among these.
#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
fn values(watched: &Watched, counts: &[u64]) -> Vec<f64> {
    let is_value =
        |role: &BinRole| matches!(role, BinRole::Below | BinRole::Ordered | BinRole::Above);
    let own = watched.roles.iter().zip(counts).filter(|(role, _)| is_value(role));
    let counts: Vec<u64> = own.map(|(_, count)| *count).collect();
    let all = counts.iter().sum::<u64>().max(1) as f64;
    counts.into_iter().map(|count| count as f64 / all).collect()
}

/// Edges of all bins of finite values: what lies below the smallest or above the largest is taken to lie there.
fn closed(edges: &[f64]) -> Vec<f64> {
    let (Some(first), Some(last)) = (edges.first(), edges.last()) else { return Vec::new() };
    let inner = if edges.len() == 1 { [*first; 2].to_vec() } else { edges.to_vec() };
    [&[*first], &inner[..], &[*last]].concat()
}

fn minutes(watched: &Watched) -> Vec<f64> {
    let all = watched.windows.minutes().filter_map(|(_, counts)| {
        let counts: Vec<u64> = counts.iter().map(|count| u64::from(*count)).collect();
        let distances = watched.distances(&counts);
        (distances.rows > 0).then(|| (distances.psi - distances.noise).max(0.0))
    });
    let all: Vec<f64> = all.collect();
    all[all.len().saturating_sub(MINUTES_SHOWN)..].to_vec()
}

/// The mean of the sampled finite values; `None` without any.
fn mean(tracked: &Tracked, index: usize, now: Duration, window: Duration) -> Option<f64> {
    let values = tracked.sampled(index, now, window);
    let finite: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    #[expect(clippy::cast_precision_loss, reason = "a sample is small")]
    let count = finite.len() as f64;
    (!finite.is_empty()).then(|| finite.iter().sum::<f64>() / count)
}

#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn share(watched: &Watched, counts: &[u64], wanted: &[BinRole]) -> f64 {
    let rows: u64 = counts.iter().sum();
    let own = watched.roles.iter().zip(counts).filter(|(role, _)| wanted.contains(role));
    own.map(|(_, count)| *count).sum::<u64>() as f64 / rows.max(1) as f64
}

/// Names of bins, for people.
fn names(bins: &Bins) -> Vec<String> {
    let mut names = Vec::new();
    match bins {
        Bins::Numeric { edges } => {
            let first = edges.first().map_or_else(String::new, f64::to_string);
            let last = edges.last().map_or_else(String::new, f64::to_string);
            names.push(format!("below {first}"));
            match edges.len() {
                0 => names.push("any".to_owned()),
                1 => names.push(first),
                _ => {
                    let between = |pair: &[f64]| format!("{} to {}", pair[0], pair[1]);
                    names.extend(edges.windows(2).map(between));
                }
            }
            names.extend([format!("above {last}"), "infinite".to_owned(), "missing".to_owned()]);
        }
        Bins::Categorical { categories, .. } => {
            names.extend(categories.iter().cloned());
            names.extend(["other", "unseen", "missing"].map(str::to_owned));
        }
    }
    names
}

/// An alarm as it is shown.
pub(super) fn alarm(tracked: &Tracked, raised: &Raised) -> Alarm {
    let feature = tracked.layout.features.get(raised.feature);
    // Segments may raise alarms in one look.
    let segment = tracked.segment.as_ref().map_or(0, |segment| u64::from(segment.id.0) << 7);
    let number = (raised.number + segment) & 0xfff;
    Alarm {
        id: format!("d-{:011x}{number:03x}", raised.at.as_millis()),
        feature: feature.map(|known| known.name.clone()).unwrap_or_default(),
        kind: raised.kind.name().to_owned(),
        category: raised.category.clone(),
        tier: raised.tier,
        named_by: raised.named_by,
        raised_at: Moment::at(raised.at),
        since: Moment::at(raised.since),
        cleared_at: raised.cleared.map(Moment::at),
        psi: raised.psi,
        js: raised.js,
        log_m: finite(raised.log_m),
    }
}

/// Broken rules for people, and what an event carries.
pub(super) fn violated(tracked: &Tracked, broken: &[Violation]) -> (String, Value) {
    let name = |one: &Violation| {
        format!("{} ({}, {} of {})", one.feature, one.breach.name(), one.broken, one.values)
    };
    let mut names = broken.iter().take(5).map(name).collect::<Vec<_>>().join(", ");
    if broken.len() > 5 {
        let _ = write!(names, " and {} more", broken.len() - 5);
    }
    let rules: Vec<Value> = broken
        .iter()
        .map(|one| {
            json!({
                "feature": one.feature, "rule": one.breach.name(), "action": one.action,
                "values": one.values, "broken": one.broken,
            })
        })
        .collect();
    let terms = tracked.terms.as_ref();
    let object = json!({
        "rules": rules,
        "owner": terms.map(|terms| terms.owner()),
        "dry_run": terms.is_some_and(|terms| terms.is_dry_run()),
    });
    (names, object)
}

/// Words for the size of an effect, by the Jensen-Shannon distance.
fn severity(js: f64) -> &'static str {
    match js {
        js if js >= 0.3 => "high",
        js if js >= 0.1 => "medium",
        _ => "low",
    }
}

/// Alarms that stand since an earlier process raised them: names of those features for people, and what the event
/// carries. Among `alarms` are those that were raised with them and are over, so that it is known as the same news.
pub(super) fn standing(tracked: &Tracked, raised: &[Raised]) -> (String, Value) {
    let open: Vec<Raised> = raised.iter().filter(|one| one.cleared.is_none()).cloned().collect();
    let (names, mut object) = event(tracked, &open);
    object["standing"] = true.into();
    object["alarms"] = raised.iter().map(|raised| json!(alarm(tracked, raised))).collect();
    (names, object)
}

/// Features and kinds for people, and what an event carries: the first alarm, and all of them.
pub(super) fn event(tracked: &Tracked, raised: &[Raised]) -> (String, Value) {
    let mut alarms: Vec<Alarm> = raised.iter().map(|raised| alarm(tracked, raised)).collect();
    alarms.sort_by(|a, b| b.log_m.total_cmp(&a.log_m));
    let shown = alarms.iter().take(5).map(|alarm| format!("{} ({})", alarm.feature, alarm.kind));
    let mut names = shown.collect::<Vec<_>>().join(", ");
    if alarms.len() > 5 {
        names.push_str(&format!(" and {} more", alarms.len() - 5));
    }
    let largest = alarms.iter().map(|alarm| alarm.js).fold(0.0, f64::max);
    let features: Vec<Value> = alarms
        .iter()
        .map(|alarm| {
            json!({
                "name": alarm.feature, "kind": alarm.kind, "category": alarm.category, "psi": alarm.psi,
                "js": alarm.js, "since": alarm.since, "log_m": alarm.log_m,
            })
        })
        .collect();
    let mut object = alarms.first().map_or_else(|| json!({}), |alarm| json!(alarm));
    object["severity"] = severity(largest).into();
    object["features"] = features.into();
    object["alarms"] = json!(alarms);
    object["reference"] = json!({
        "kind": tracked.origin.kind, "rows": tracked.origin.rows, "digest": tracked.origin.digest,
    });
    object["false_alarm_every_seconds"] = tracked.settings.false_alarm_every.as_secs_f64().into();
    if let Some(segment) = &tracked.segment {
        object["segment"] = segment.by.as_str().into();
        object["segment_value"] = segment.value.as_str().into();
    }
    (names, object)
}
