//! Pages, pictures and lines of made-up reports.

use std::time::Duration;

use unicode_width::UnicodeWidthStr as _;

use crate::{
    drift::{
        Action, Alarm, DriftReport, FeatureReport, NamedBy, ReferenceKind, ReferenceReport,
        RuleReport, Status, Tier,
    },
    model::Moment,
};

use super::{
    super::terminal::Line,
    plot, show,
    status::{frame, overview},
    watch,
    words::Bin,
};

pub(super) const NOW: Duration = Duration::from_mins(30_000_005);

fn ago(seconds: u64) -> Moment {
    Moment::at(Duration::from_secs(NOW.as_secs() - seconds))
}

pub(super) fn text(lines: &[Line], columns: usize) -> String {
    lines.iter().map(|line| line.fit(columns, false).trim_end().to_owned() + "\n").collect()
}

pub(super) fn feature(name: &str, psi: f64) -> FeatureReport {
    FeatureReport {
        name: name.to_owned(),
        source: "input".to_owned(),
        kind: "numeric".to_owned(),
        status: Status::Watching,
        rows: 4_211,
        missing: 0.0,
        unseen: 0.0,
        psi: Some(psi),
        psi_noise: Some(0.021),
        js: Some(0.104),
        ks: Some(0.031),
        wasserstein: Some(0.0123),
        mean: Some(5.913),
        reference_mean: Some(5.843_333),
        log_m: 0.74,
        tendency: None,
        edges: vec![0.1, 0.2, 2.5],
        bins: ["below 0.1", "0.1 to 0.2", "0.2 to 2.5", "above 2.5", "infinite", "missing"]
            .map(str::to_owned)
            .to_vec(),
        reference: vec![0, 50, 50, 0, 0, 0],
        current: vec![4, 40, 50, 0, 0, 6],
        psi_minutes: vec![0.0, 0.02, 0.0, 0.04],
    }
}

fn alarm(feature: &str, kind: &str, tier: Tier) -> Alarm {
    Alarm {
        id: format!("d-{feature}"),
        feature: feature.to_owned(),
        kind: kind.to_owned(),
        category: None,
        tier,
        named_by: NamedBy::Set,
        raised_at: ago(120),
        since: ago(180),
        cleared_at: None,
        psi: 2.314,
        js: 0.61,
        log_m: 15.2,
    }
}

/// A version that is watched.
pub(super) fn watching() -> DriftReport {
    DriftReport {
        model: "iris".to_owned(),
        version: "1".to_owned(),
        segment: None,
        segments: Vec::new(),
        status: Status::Watching,
        detail: "compared with profile.json, 105 rows".to_owned(),
        reference: ReferenceReport {
            kind: ReferenceKind::Profile,
            rows: 105,
            digest: "0123456789abcdef".repeat(4),
            progress: 1.0,
        },
        false_alarm_every_seconds: 2_592_000.0,
        log_m: 3.1,
        log_m_threshold: 14.8,
        window_seconds: 3600.0,
        rows: 4_211,
        rows_counted: 4_211,
        alarms: Vec::new(),
        features: vec![feature("sepal_length", 0.02), feature("petal_width", 0.05)],
        contract: Vec::new(),
    }
}

/// One with an alarm, a warning, and a feature of each other kind.
pub(super) fn drifting() -> DriftReport {
    let mut report = watching();
    report.status = Status::Drifting;
    report.log_m = -700.0;
    report.rows_counted = 2_000;
    let long = "customer.last_purchase.amount_in_euros";
    let mut worst = feature(long, 2.314);
    worst.status = Status::Drifting;
    (worst.mean, worst.missing) = (Some(-1_234_567.0), 0.0004);
    worst.psi_minutes = (0..60).map(|minute| if minute < 50 { 0.01 } else { 3.0 }).collect();
    let mut label = feature("output:label", 0.12);
    label.kind = "categorical".to_owned();
    (label.ks, label.mean, label.reference_mean) = (None, None, None);
    label.tendency = Some("category".to_owned());
    label.missing = 0.123;
    let mut learning = feature("output:probabilities[1]", 0.0);
    learning.status = Status::Learning;
    (learning.psi, learning.psi_noise, learning.js, learning.ks) = (None, None, None, None);
    (learning.mean, learning.reference_mean) = (None, None);
    learning.psi_minutes = Vec::new();
    report.features.extend([learning, label, worst]);
    let mut warning = alarm("output:label", "category", Tier::Warn);
    warning.category = Some("vir\x1b[2Jginica".to_owned());
    let mut over = alarm("sepal_length", "down", Tier::Page);
    over.cleared_at = Some(ago(60));
    report.alarms = vec![alarm(long, "up", Tier::Page), warning, over];
    report.contract.push(RuleReport {
        feature: long.to_owned(),
        action: Action::Refuse,
        dry_run: true,
        values: 4_211,
        broken: [("max".to_owned(), 12), ("min".to_owned(), 0)].into(),
    });
    report
}

#[test]
fn a_quiet_version_is_shown_with_its_promise() {
    let shown = text(&frame(&watching(), NOW, 80, 20), 80);
    assert_eq!(
        shown,
        "\
iris  version 1  watching
reference  compared with profile.json, 105 rows (sha256 0123456789ab…)
promise    at most one false alarm in 30 days, on average, over all features
window     1 hour, 4,211 rows
evidence   █████▉······················  3.1 of 14.8

feature      moves    PSI  noise JS   KS   miss. mean        evid. last hour
petal_width  -        0.05 0.02  0.10 0.03 -     5.843→5.913 0.7   ▁▂▁▃
sepal_length -        0.02 0.02  0.10 0.03 -     5.843→5.913 0.7   ▁▂▁▃
noise: PSI to expect without drift; mean: the reference's→the window's

one feature: tidegate drift show iris FEATURE; live: tidegate drift watch iris
"
    );
}

#[test]
fn at_80_columns_every_number_is_there_and_long_names_keep_their_ends() {
    let shown = text(&frame(&drifting(), NOW, 80, 20), 80);
    assert_eq!(
        shown,
        "\
iris  version 1  drifting
reference  compared with profile.json, 105 rows (sha256 0123456789ab…)
promise    at most one false alarm in 30 days, on average, over all features
window     1 hour, 4,211 rows, 2,000 of them counted
evidence   ····························  0.0 of 14.8, anew since the alarm

alarms
 page customer.l…_in_euros up   since 08:02:00 UTC (3 min ago), PSI 2.31 JS 0.61

warnings: a hundredth of the evidence, without a promise; they trigger nothing
 warn output:label `vir […nica` since 08:02:00 UTC (3 min ago), PSI 2.31 JS 0.61

contract, since the version was loaded
 customer.last_…ount_in_euros max broken by 12 of 4,211 values (refuse, dry run)

feature         moves    PSI  noise JS   KS   miss. mean        evid. last hour
custome…n_euros up       2.31 0.02  0.10 0.03 <0.1% 5.843→-1e6  0.7   ▂▂▂▂▂▂▂▂██
output:label    category 0.12 0.02  0.10 -    12%   -           0.7   ▁▂▁▃
petal_width     -        0.05 0.02  0.10 0.03 -     5.843→5.913 0.7   ▁▂▁▃
sepal_length    -        0.02 0.02  0.10 0.03 -     5.843→5.913 0.7   ▁▂▁▃
output:…ties[1] learning -    -     -    -    -     -           -
noise: PSI to expect without drift; mean: the reference's→the window's

which values moved: tidegate drift show iris
customer.last_purchase.amount_in_euros
exact tests of the same rows: tidegate drift test iris
if this is how data are from now on: train anew, and put a profile.json of the
new training data beside the new version (`tidegate profile`)
"
    );
}

#[test]
fn at_120_columns_there_is_room_for_names_and_digits() {
    let shown = text(&frame(&drifting(), NOW, 120, 20), 120);
    assert_eq!(
        shown,
        "\
iris  version 1  drifting
reference  compared with profile.json, 105 rows (sha256 0123456789ab…)
promise    at most one false alarm in 30 days, on average, over all features
window     1 hour, 4,211 rows, 2,000 of them counted
evidence   ················································  0.0 of 14.8, anew since the alarm

alarms
 page customer.last_purchase.amount_in_euros up   since 08:02:00 UTC (3 min ago), PSI 2.31 JS 0.61

warnings: a hundredth of the evidence, without a promise; they trigger nothing
 warn output:label `vir [2Jginica` since 08:02:00 UTC (3 min ago), PSI 2.31 JS 0.61

contract, since the version was loaded
 customer.last_purchase.amount_in_euros max broken by 12 of 4,211 values (refuse, dry run)

feature                        moves     PSI   noise JS    KS    missing mean              evidence PSI, last hour
customer.last_p…mount_in_euros up        2.314 0.021 0.104 0.031 <0.1%   5.843→-1.23e6     0.7      ▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂████
output:label                   category  0.120 0.021 0.104 -     12%     -                 0.7      ▁▂▁▃
petal_width                    -         0.050 0.021 0.104 0.031 -       5.843→5.913       0.7      ▁▂▁▃
sepal_length                   -         0.020 0.021 0.104 0.031 -       5.843→5.913       0.7      ▁▂▁▃
output:probabilities[1]        learning  -     -     -     -     -       -                 -
noise: PSI to expect without drift; mean: the reference's→the window's

which values moved: tidegate drift show iris customer.last_purchase.amount_in_euros
exact tests of the same rows: tidegate drift test iris
if this is how data are from now on: train anew, and put a profile.json of the new training data beside the new version
(`tidegate profile`)
"
    );
}

#[test]
fn no_line_is_cut_or_wider_than_the_terminal() {
    for columns in [80, 100, 110, 120, 200, usize::MAX] {
        let lines = frame(&drifting(), NOW, columns, usize::MAX);
        for line in text(&lines, columns).lines() {
            assert!(line.width() <= columns && !line.ends_with('…'), "{columns}: {line}");
            assert!(!line.contains('\x1b'));
        }
    }
    // Whatever is narrower is cut off, and nothing breaks.
    for columns in [1, 20, 40] {
        let shown = text(&frame(&drifting(), NOW, columns, 3), columns);
        assert!(shown.lines().all(|line| line.width() <= columns), "{shown}");
    }
    let piped = text(&frame(&drifting(), NOW, usize::MAX, 20), usize::MAX);
    assert!(piped.contains("customer.last_purchase.amount_in_euros"), "{piped}");
}

#[test]
fn many_features_are_told_in_one_line() {
    let mut report = watching();
    report.features = (0..40).map(|number| feature(&format!("f{number}"), 0.01)).collect();
    let shown = text(&frame(&report, NOW, 80, 20), 80);
    assert!(shown.contains("\nand 20 more, inconspicuous (--all shows them)\n"), "{shown}");
    let all = text(&frame(&report, NOW, 80, usize::MAX), 80);
    assert!(!all.contains(" more, ") && all.contains("\nf39 "), "{all}");
    for own in &mut report.features {
        own.psi = Some(0.9);
    }
    let shown = text(&frame(&report, NOW, 80, 20), 80);
    assert!(
        shown.contains("\nand 20 more, 20 of them conspicuous (--all shows them)\n"),
        "{shown}"
    );
}

#[test]
fn every_state_says_what_to_do_next() {
    let empty = |status, detail: &str| {
        let report = DriftReport::empty("iris", "1".to_owned(), status, detail);
        text(&frame(&report, NOW, 80, 20), 80)
    };
    let off = empty(Status::Off, "drift is not watched: `drift.enabled = false`");
    assert!(off.contains("remove `enabled = false` from [models.iris.drift]"), "{off}");
    let asleep = empty(Status::Unmonitorable, "no version is loaded");
    assert!(asleep.ends_with("what is loaded: tidegate models show iris\n"), "{asleep}");
    let mut nothing = watching();
    nothing.status = Status::Unmonitorable;
    let nothing = text(&frame(&nothing, NOW, 80, 20), 80);
    assert!(nothing.contains("tidegate profile DATA -o models/iris/1/profile.json"), "{nothing}");
    let mut learning = watching();
    learning.status = Status::Learning;
    learning.reference.progress = 0.25;
    let learning = text(&frame(&learning, NOW, 80, 20), 80);
    assert!(
        learning.contains("learned    ███████·") && learning.contains("  25 %\n"),
        "{learning}"
    );
}

#[test]
fn models_are_a_line_each() {
    let mut reports = vec![watching(), drifting()];
    reports[1].model = "a-model-whose-name-is-longer-than-there-is-room-for".to_owned();
    reports.push(DriftReport::empty("sleepy", String::new(), Status::Unmonitorable, ""));
    let shown = text(&overview(&reports, 80), 80);
    assert_eq!(
        shown,
        "\
model            version status        evidence         worst
iris             1       watching      █▎···· 3.1/14.8  petal_width PSI 0.05
a-model-…oom-for 1       drifting      ······ 0.0/14.8  customer.l…t_in_euros up
sleepy           -       unmonitorable ······ -         -

all about one: tidegate drift status
a-model-whose-name-is-longer-than-there-is-room-for
"
    );
}

#[test]
fn a_feature_is_shown_bin_by_bin() {
    let report = drifting();
    let shown = |name: &str| {
        let feature = show::find(&report, name).unwrap();
        text(&show::frame(&report, feature, NOW, 80), 80)
    };
    assert_eq!(
        shown("output:label"),
        "\
output:label  categorical input of iris, version 1  watching
warn: `vir [2Jginica` since 08:02:00 UTC (3 min ago), without a promise

PSI 0.120 (0.021 to expect without drift), JS 0.104, Wasserstein 0.0123;
evidence 0.7, for category
4,211 values in 1 hour, missing 12.3 %, unseen 0 %

values     reference                     last 1 hour                   ratio
below 0.1  ·····················       - █▋···················     4 % new
0.1 to 0.2 █████████████████████    50 % ████████████████▊····    40 % 0.8 x
0.2 to 2.5 █████████████████████    50 % █████████████████████    50 % 1 x
missing    ·····················       - ██▌··················     6 % new

as a picture: tidegate drift show iris output:label --plot drift.svg
"
    );
    let worst = shown("customer.last_purchase.amount_in_euros");
    let head = "customer.last_purchase.amount_in_euros  numeric input of iris, version 1  drift…\n\
                page: up since 08:02:00 UTC (3 min ago)\n\nPSI 2.314 (0.021 to expect without drift)";
    assert!(worst.starts_with(head), "{worst}");
    for columns in [20, 60, 100, usize::MAX] {
        let lines = show::frame(&report, &report.features[4], NOW, columns);
        assert!(text(&lines, columns).lines().all(|line| line.width() <= columns));
    }
    let wrong = show::find(&report, "petal_widht").unwrap_err().to_string();
    assert!(
        wrong.contains("did you mean `petal_width`? `tidegate drift status iris --all`"),
        "{wrong}"
    );
}

#[test]
fn bins_have_the_fewest_digits_that_tell_them_apart() {
    let mut own = feature("x", 0.0);
    let labels = |own: &FeatureReport| -> Vec<String> {
        Bin::of(own).into_iter().map(|bin| bin.label).collect()
    };
    own.edges = [0.1_f32, 0.100_05, 2.5].map(f64::from).to_vec();
    own.reference = vec![1; 6];
    let numbers =
        ["below 0.1", "0.1 to 0.1001", "0.1001 to 2.5", "above 2.5", "infinite", "missing"];
    assert_eq!(labels(&own), numbers);
    own.edges = vec![-1e12, 0.0, 1e12];
    assert_eq!(labels(&own)[..2], ["below -1.00e12", "-1.00e12 to 0"]);
    // One value that all rows of the reference have.
    own.edges = vec![7.0];
    own.bins = vec![String::new(); 5];
    (own.reference, own.current) = (vec![0, 9, 0, 0, 0], vec![1, 9, 0, 0, 0]);
    assert_eq!(labels(&own), ["below 7", "7"]);
    (own.edges, own.bins) =
        (Vec::new(), ["red\u{1b}[1m", "other", "unseen", "missing"].map(str::to_owned).to_vec());
    (own.reference, own.current) = (vec![9, 0, 0, 0], vec![9, 0, 1, 0]);
    assert_eq!(labels(&own), ["red [1m", "unseen"]);
    assert_eq!(Bin::of(&own).iter().map(Bin::ratio).collect::<Vec<_>>(), ["0.9 x", "new"]);
}

#[test]
fn a_picture_has_a_title_both_histograms_and_the_path() {
    let mut report = drifting();
    report.features[4].name = "<b>&amount".to_owned();
    let drawn = plot::svg(&report, &report.features[4]);
    for part in [
        "class=\"drift drifting\"",
        "role=\"img\"",
        "<title id=\"title\">&lt;b&gt;&amp;amount of iris, version 1: PSI 2.314, JS 0.104</title>",
        "<desc id=\"about\">Shares that changed most. 0.1 to 0.2: 40 % where the reference has 50 %; missing: ",
        "reference, 100 values",
        "last 1 hour, 4,211 values",
        "conspicuous from 0.1",
        "prefers-color-scheme:dark",
    ] {
        assert!(drawn.contains(part), "{part} is not in\n{drawn}");
    }
    assert!(!drawn.contains("NaN") && !drawn.contains("<b>"), "{drawn}");
    // A pair of bars for each of the four bins, two in the legend, the paper.
    assert_eq!(drawn.matches("<rect").count(), 2 * 4 + 2 + 1);
    report.features[4].psi_minutes.clear();
    assert!(plot::svg(&report, &report.features[4]).contains("no values in the last hour"));
}

#[test]
fn every_change_is_told_once() {
    let (before, after, at) = (watching(), drifting(), Moment::at(NOW));
    let told = watch::news(None, &before, at);
    let state =
        "iris version 1: watching, evidence 3.1 of 14.8, compared with profile.json, 105 rows\n";
    assert_eq!(told, format!("{at} {state}"));
    let told = watch::news(Some(&watch::Told::of(&before)), &after, at);
    let kinds: Vec<&str> = told.lines().map(|line| line.split(' ').nth(1).unwrap()).collect();
    assert_eq!(kinds, ["iris", "page:", "warn:", "page:"], "{told}");
    assert!(told.contains(": sepal_length is back (down since "), "{told}");
    assert!(
        told.ends_with("_in_euros up since 2027-01-15T08:02:00.000Z, PSI 2.314, JS 0.610\n"),
        "{told}"
    );
    assert_eq!(watch::news(Some(&watch::Told::of(&after)), &after, at), "");
    // What was over before the view began is no news.
    assert_eq!(watch::news(None, &after, at).lines().count(), 3);
}

#[test]
fn a_low_terminal_shows_fewer_features_and_how_to_leave() {
    let mut report = drifting();
    report.features.extend((0..40).map(|number| feature(&format!("f{number}"), 0.01)));
    for rows in [24, 30, 60] {
        let lines = watch::frame(&report, NOW, 80, rows);
        let shown = text(&lines, 80);
        assert!(lines.len() < rows, "{rows}: {shown}");
        assert!(
            shown.contains(" more, inconspicuous") && shown.contains("\nCtrl-C ends this"),
            "{shown}"
        );
    }
}
