//! Numbers and names of drift in as few columns as they need.

use std::time::Duration;

use unicode_width::UnicodeWidthStr;

use crate::{
    drift::{DriftReport, FeatureReport, Status, Tier},
    model::Moment,
    rollout::words::{self, digits},
};

use super::super::terminal::Style;

/// The population stability index above which a window is conspicuous, beside twice what noise alone would give.
pub(super) const PSI_CONSPICUOUS: f64 = 0.1;

/// A number in at most so many columns, if it can be: with four digits or fewer, with an exponent where it must.
pub(super) fn brief(number: f64, columns: usize) -> String {
    let is_plain = number == 0.0 || (1e-4..1e6).contains(&number.abs());
    let plain = (1..=4).rev().map(|significant| digits(number, significant));
    let plain = plain.filter(|text| is_plain && !text.is_empty());
    let powers = (0..=2).rev().map(|places| format!("{number:.places$e}"));
    let mut texts = plain.chain(powers);
    texts.find(|text| text.len() <= columns).unwrap_or_else(|| format!("{number:.0e}"))
}

/// An index or distance: `0.02`, `2.31`, `12.3`; with a digit more where there is room.
pub(super) fn index(value: Option<f64>, is_wide: bool) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value < 9.995 && is_wide => format!("{value:.3}"),
        Some(value) if value < 9.995 => format!("{value:.2}"),
        Some(value) if value < 99.95 => format!("{value:.1}"),
        Some(value) if value < 9999.5 => format!("{value:.0}"),
        Some(value) => format!("{value:.0e}"),
    }
}

/// A share in at most five columns: `12%`, `0.34%`; `-` for none.
pub(super) fn percent(share: f64) -> String {
    match share {
        share if share <= 0.0 => "-".to_owned(),
        share if share < 0.001 => "<0.1%".to_owned(),
        share => format!("{}%", digits(share * 100.0, if share < 0.9995 { 2 } else { 3 })),
    }
}

/// The reference's mean and the window's: `5.84→6.71`.
pub(super) fn means(feature: &FeatureReport, columns: usize) -> String {
    let room = (columns - 1) / 2;
    let mean = |mean: Option<f64>| mean.map_or_else(|| "?".to_owned(), |mean| brief(mean, room));
    match (feature.reference_mean, feature.mean) {
        (None, None) => "-".to_owned(),
        (reference, live) => format!("{}→{}", mean(reference), mean(live)),
    }
}

/// Evidence as it is shown: the little that a detector begins with is none.
pub(super) fn evidence(log_m: f64) -> f64 {
    log_m.max(0.0)
}

/// A long time, spelled out: `30 days`, `12 hours`, `90 minutes`.
pub(super) fn spelled(seconds: f64) -> String {
    let units = [("day", 86_400.0), ("hour", 3_600.0), ("minute", 60.0), ("second", 1.0)];
    let whole = |(_, unit): &(&str, f64)| {
        let many = seconds / unit;
        (1.0..1_000.0).contains(&many) && many.fract() == 0.0
    };
    match units.into_iter().find(whole) {
        Some((name, unit)) => {
            let many = if seconds > unit { "s" } else { "" };
            format!("{} {name}{many}", digits(seconds / unit, 6))
        }
        None => words::seconds(seconds),
    }
}

/// A time of today without its date and with how long ago it was, in 24 columns or so; of another day with its date.
pub(super) fn since(at: Moment, now: Duration) -> String {
    let (time, today) = (words::time(at), words::time(Moment::at(now)));
    match time.get(11..) {
        Some(clock) if time.get(..10) == today.get(..10) => {
            let ago = words::seconds(now.saturating_sub(at.since_1970()).as_secs_f64());
            // The larger of two units.
            let ago: Vec<&str> = ago.split(' ').take(2).collect();
            format!("{clock} ({} ago)", ago.join(" "))
        }
        _ => time,
    }
}

pub(super) const fn style(status: Status) -> Style {
    match status {
        Status::Off => Style::Faint,
        Status::Learning => Style::Calm,
        Status::Watching => Style::Good,
        Status::Drifting => Style::Bad,
        Status::Unmonitorable => Style::Warn,
    }
}

pub(super) const fn tier(tier: Tier) -> (&'static str, Style) {
    match tier {
        Tier::Page => ("page", Style::Bad),
        Tier::Warn => ("warn", Style::Warn),
    }
}

/// True if a feature's window differs by more than noise would.
pub(super) fn is_conspicuous(feature: &FeatureReport) -> bool {
    let limit = PSI_CONSPICUOUS + 2.0 * feature.psi_noise.unwrap_or(0.0);
    feature.status == Status::Drifting || feature.psi.is_some_and(|psi| psi > limit)
}

/// A name as a shell takes it.
pub(super) fn quoted(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=,".contains(c);
    if !name.is_empty() && name.chars().all(is_bare) && !name.starts_with('-') {
        return name.to_owned();
    }
    format!("'{}'", words::plain(name).replace('\'', "'\\''"))
}

/// A bin of a feature.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bin {
    pub(super) label: String,
    /// Shares of all values, from 0 to 1.
    pub(super) reference: f64,
    pub(super) current: f64,
}

impl Bin {
    /// The bins of a feature that either side has values in.
    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
    pub(super) fn of(feature: &FeatureReport) -> Vec<Self> {
        let share = |counts: &[u64]| counts.iter().sum::<u64>().max(1) as f64;
        let (own, live) = (share(&feature.reference), share(&feature.current));
        let counts = feature.reference.iter().zip(&feature.current);
        let bins = labels(feature).into_iter().zip(counts);
        let used = bins.filter(|(_, (reference, current))| **reference + **current > 0);
        used.map(|(label, (reference, current))| Self {
            label,
            reference: *reference as f64 / own,
            current: *current as f64 / live,
        })
        .collect()
    }

    /// The window's share against the reference's: `2.3 x`, `new`, `gone`.
    pub(super) fn ratio(&self) -> String {
        match (self.reference, self.current) {
            (reference, _) if reference <= 0.0 => "new".to_owned(),
            (_, current) if current <= 0.0 => "gone".to_owned(),
            (reference, current) => format!("{} x", brief(current / reference, 4)),
        }
    }
}

/// Names of bins: edges in as few digits as tell them apart.
fn labels(feature: &FeatureReport) -> Vec<String> {
    let (edges, bins) = (&feature.edges, &feature.bins);
    let is_numeric = !edges.is_empty() && bins.len() == edges.len().max(2) + 3;
    if !is_numeric {
        return bins.iter().map(|bin| words::plain(bin)).collect();
    }
    let texts = |significant: usize| -> Vec<String> {
        edges.iter().map(|edge| edge_name(*edge, significant)).collect()
    };
    let are_told_apart = |texts: &Vec<String>| texts.windows(2).all(|pair| pair[0] != pair[1]);
    let ends = (3..=17).map(texts).find(are_told_apart).unwrap_or_else(|| texts(17));
    let mut labels = vec![format!("below {}", ends[0])];
    match ends.as_slice() {
        [only] => labels.push(only.clone()),
        ends => labels.extend(ends.windows(2).map(|pair| format!("{} to {}", pair[0], pair[1]))),
    }
    labels.push(format!("above {}", ends[ends.len() - 1]));
    labels.extend(["infinite", "missing"].map(str::to_owned));
    labels
}

fn edge_name(edge: f64, significant: usize) -> String {
    if edge == 0.0 || (1e-4..1e7).contains(&edge.abs()) {
        return digits(edge, u32::try_from(significant).unwrap_or(17));
    }
    format!("{edge:.0$e}", significant - 1)
}

/// The index minute by minute, in eight levels that are the same for all features. `columns` at most; of several
/// minutes in one, the worst.
pub(super) fn sparkline(minutes: &[f64], columns: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    const LEVELS: [f64; 7] = [0.01, 0.03, 0.06, PSI_CONSPICUOUS, 0.17, 0.25, 0.5];
    let together = minutes.len().div_ceil(columns.max(1)).max(1);
    let worst = |chunk: &[f64]| chunk.iter().copied().fold(0.0, f64::max);
    let bar = |psi: f64| BARS[LEVELS.iter().filter(|level| psi >= **level).count()];
    minutes.chunks(together).map(|chunk| bar(worst(chunk))).collect()
}

/// Features, the worst first: those that drift, then those with a warning, then by index beyond noise and evidence.
pub(super) fn worst_first(report: &DriftReport) -> Vec<&FeatureReport> {
    let warned = |feature: &FeatureReport| {
        let own = |feature: &str, name: &str| feature == name;
        let mut open = report.alarms.iter().filter(|alarm| alarm.cleared_at.is_none());
        open.any(|alarm| own(&alarm.feature, &feature.name))
    };
    let key = |feature: &FeatureReport| {
        let beyond =
            feature.psi.map_or(-1.0, |psi| (psi - feature.psi_noise.unwrap_or(0.0)).max(0.0));
        let is_drifting = feature.status == Status::Drifting;
        (is_drifting, warned(feature), is_conspicuous(feature), beyond, feature.log_m)
    };
    let mut features: Vec<_> = report.features.iter().map(|own| (key(own), own)).collect();
    features.sort_by(|(a, _), (b, _)| {
        let flags = (b.0, b.1, b.2).cmp(&(a.0, a.1, a.2));
        flags.then(b.3.total_cmp(&a.3)).then(b.4.total_cmp(&a.4))
    });
    features.into_iter().map(|(_, feature)| feature).collect()
}

/// The widest of these texts, within limits.
pub(super) fn widest<'a>(texts: impl Iterator<Item = &'a str>, least: usize, most: usize) -> usize {
    texts.map(UnicodeWidthStr::width).max().unwrap_or(0).min(most).max(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_their_columns() {
        let five = [0.0, 5.843_333, -12.345, 123_456.0, 1_234_567.0, 0.001_234, -0.000_012, 150.0];
        let five = five.map(|number| brief(number, 5));
        assert_eq!(five, ["0", "5.843", "-12.3", "1.2e5", "1.2e6", "0.001", "-1e-5", "150"]);
        assert_eq!(brief(-1.234e-120, 5), "-1e-120", "as short as it can be");
        let shares = [0.0, 0.000_4, 0.0012, 0.123, 0.9994, 1.0].map(percent);
        assert_eq!(shares, ["-", "<0.1%", "0.12%", "12%", "100%", "100%"]);
        let values = [None, Some(0.021), Some(2.314), Some(12.34), Some(345.6), Some(1e6)];
        assert_eq!(
            values.map(|value| index(value, false)),
            ["-", "0.02", "2.31", "12.3", "346", "1e6"]
        );
        let times = [60.0, 5400.0, 86_400.0, 2_592_000.0, 90_061.0].map(spelled);
        assert_eq!(times, ["1 minute", "90 minutes", "1 day", "30 days", "1 d 1 h"]);
    }

    #[test]
    fn sparklines_have_one_scale_and_keep_the_worst_of_what_they_merge() {
        assert_eq!(sparkline(&[0.0, 0.04, 0.1, 9.0], 10), "▁▃▅█");
        let mut hour = [0.0; 60];
        hour[31] = 1.0;
        assert_eq!(sparkline(&hour, 10), "▁▁▁▁▁█▁▁▁▁");
        assert_eq!(sparkline(&[], 10), "");
    }

    #[test]
    fn names_are_quoted_where_a_shell_would_take_them_apart() {
        let names = ["output:label", "input[3]", "it's", "--help", ""].map(quoted);
        assert_eq!(names, ["output:label", "'input[3]'", "'it'\\''s'", "'--help'", "''"]);
    }
}
