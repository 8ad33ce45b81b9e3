//! A profile for people and scripts: a table, JSON, and the contract that the data keep.

use std::path::Path;

use serde::Serialize;

use super::super::tables::table;
use crate::drift::{Bins, Derivation, Feature, Profile};

/// Rows below which masses of bins say little.
const ROWS_FEW: u64 = 500;

/// Result of the command for machines.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    /// The file that was written.
    profile: String,
    rows: u64,
    digest: &'a str,
    source: &'a str,
    notes: &'a [String],
    features: Vec<Row<'a>>,
}

/// One feature, briefly.
#[derive(Debug, Serialize)]
struct Row<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    bins: usize,
    /// Share of rows without a value.
    missing: f64,
    mean: Option<f64>,
    sd: Option<f64>,
    min: Option<f64>,
    max: Option<f64>,
    categories: Option<usize>,
}

impl<'a> Report<'a> {
    pub(super) fn of(profile: &'a Profile, path: &Path, notes: &'a [String]) -> Self {
        Self {
            profile: path.display().to_string(),
            rows: profile.rows,
            digest: &profile.digest,
            source: &profile.source,
            notes,
            features: profile.features.iter().map(Row::of).collect(),
        }
    }
}

impl<'a> Row<'a> {
    fn of(feature: &'a Feature) -> Self {
        let (kind, edges, categories) = match &feature.bins {
            Bins::Numeric { edges } => ("numeric", edges.as_slice(), None),
            Bins::Categorical { categories, others } => {
                ("categorical", &[][..], Some(categories.len() + others.len()))
            }
        };
        Self {
            name: &feature.name,
            kind,
            bins: feature.bins.len(),
            missing: missing(feature),
            mean: feature.moments.map(|moments| moments.mean),
            sd: feature.moments.map(|moments| moments.sd),
            min: edges.first().copied(),
            max: edges.last().copied(),
            categories,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
fn missing(feature: &Feature) -> f64 {
    let missing = feature.counts.last().copied().unwrap_or(0);
    missing as f64 / feature.rows().max(1) as f64
}

/// Notes on a profile, for people.
pub(super) fn notes(profile: &Profile) -> Vec<String> {
    let mut notes = Vec::new();
    if profile.rows < ROWS_FEW {
        notes.push(format!(
            "{} rows are few: drift is told later than with 10,000, because the reference itself is uncertain",
            profile.rows
        ));
    }
    for derivation in &profile.derived {
        if let Derivation::Text { input, words } = derivation {
            notes.push(format!(
                "`{input}` has too many texts for categories: its length and its share of {} known words are watched",
                words.len()
            ));
        }
    }
    for feature in profile.features.iter().filter(|feature| feature.is_unmonitorable()) {
        notes.push(format!("`{}` has no value in any row and cannot be watched", feature.name));
    }
    notes
}

/// The profile for people.
pub(super) fn shown(profile: &Profile, path: &Path, bytes: usize, notes: &[String]) -> String {
    let mut rows = table(["feature", "kind", "bins", "missing", "mean", "min", "max", "values"]);
    for feature in &profile.features {
        let row = Row::of(feature);
        let number = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), brief);
        let percent = 100.0 * row.missing;
        let missing = if percent > 0.0 { format!("{percent:.2} %") } else { "-".to_owned() };
        rows.add_row(vec![
            shortened(row.name),
            if row.categories.is_some() { "cat" } else { "num" }.to_owned(),
            row.bins.to_string(),
            missing,
            number(row.mean),
            number(row.min),
            number(row.max),
            sparkline(feature),
        ]);
    }
    let mut text = format!("{rows}\n{} rows of {}\n", profile.rows, profile.source);
    for note in notes {
        text += &format!("note: {note}\n");
    }
    text + &format!(
        "written to {} ({} kB); it belongs beside the version's model.onnx\n",
        path.display(),
        bytes.div_ceil(1000)
    )
}

/// A name that leaves room for the rest of a line.
fn shortened(name: &str) -> String {
    const SHOWN_MAX: usize = 14;
    if name.chars().count() <= SHOWN_MAX {
        return name.chars().flat_map(char::escape_debug).collect();
    }
    let (start, end) = (SHOWN_MAX / 2, SHOWN_MAX / 2 - 1);
    let skipped = name.chars().count() - end;
    let (start, end) = (name.chars().take(start), name.chars().skip(skipped));
    start.chain(['~']).chain(end).flat_map(char::escape_debug).collect()
}

/// A number in at most seven characters or so.
fn brief(number: f64) -> String {
    let size = number.abs();
    if number != 0.0 && !(1e-3..1e6).contains(&size) {
        return format!("{number:.1e}");
    }
    let decimals = if size >= 1000.0 {
        0
    } else if size >= 10.0 {
        1
    } else {
        3
    };
    let text = format!("{number:.decimals$}");
    if decimals == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

/// Draws how values lie between the smallest and the largest, or how frequent the categories are.
fn sparkline(feature: &Feature) -> String {
    const WIDTH: usize = 8;
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let masses: Vec<f64> = match &feature.bins {
        Bins::Numeric { edges } => between(edges, &feature.counts, WIDTH),
        Bins::Categorical { categories, .. } => {
            let counts = feature.counts.iter().take(categories.len().min(WIDTH));
            #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
            counts.map(|count| *count as f64).collect()
        }
    };
    let most = masses.iter().copied().fold(0.0, f64::max);
    let bar = |mass: &f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 7")]
        let level = (mass / most * 7.0).round() as usize;
        if *mass > 0.0 { BARS[level.min(7)] } else { ' ' }
    };
    masses.iter().map(bar).collect()
}

/// Masses of parts of equal width, from those of bins: within a bin, values are taken to lie evenly.
#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53, parts are few")]
fn between(edges: &[f64], counts: &[u64], parts: usize) -> Vec<f64> {
    let (Some(min), Some(max)) = (edges.first(), edges.last()) else { return Vec::new() };
    let width = max / parts as f64 - min / parts as f64;
    if edges.len() < 2 || width <= 0.0 {
        return vec![1.0];
    }
    let mut masses = vec![0.0; parts];
    for (bin, count) in edges.windows(2).zip(&counts[1..]) {
        for (part, mass) in masses.iter_mut().enumerate() {
            let (low, high) = (min + width * part as f64, min + width * (part + 1) as f64);
            let shared = (high.min(bin[1]) - low.max(bin[0])).max(0.0);
            *mass += *count as f64 * shared / (bin[1] - bin[0]);
        }
    }
    masses
}

/// The contract that the data keep, as a block of the configuration.
pub(super) fn contract(model: &str, profile: &Profile) -> String {
    let number = |number: f64| toml::Value::Float(number).to_string();
    let model = key(model);
    let mut text = format!(
        "# Learned by `tidegate profile` from {} rows of {}. Widen what good rows may exceed.\n\
         [models.{model}.contract]\nowner = \"\"\naction = \"count\"\n",
        profile.rows, profile.source,
    );
    let is_derived = |name: &str| {
        let mut inputs = profile.derived.iter().map(Derivation::input);
        name.rsplit_once('.').is_some_and(|(input, _)| inputs.any(|own| own == input))
    };
    let plain = |feature: &&Feature| !feature.is_unmonitorable() && !is_derived(&feature.name);
    for feature in profile.features.iter().filter(plain) {
        text += &format!("\n[models.{model}.contract.features.{}]\n", key(&feature.name));
        match &feature.bins {
            Bins::Numeric { edges } => {
                for (key, end) in [("min", edges.first()), ("max", edges.last())] {
                    let line = end.map(|end| format!("{key} = {}\n", number(*end)));
                    text += &line.unwrap_or_default();
                }
            }
            Bins::Categorical { categories, others } if others.is_empty() => {
                let categories: Vec<_> = categories.iter().map(|own| quoted(own)).collect();
                text += &format!("categories = [{}]\n", categories.join(", "));
            }
            // Known by keys only: what is unseen is counted without a list.
            Bins::Categorical { .. } => {}
        }
        text += &format!("missing_max = {}\n", number(missing_max(feature)));
    }
    text
}

/// A key of TOML, in quotes where it needs them.
fn key(text: &str) -> String {
    let is_bare = |letter: char| letter.is_ascii_alphanumeric() || "_-".contains(letter);
    let is_plain = !text.is_empty() && text.chars().all(is_bare);
    if is_plain { text.to_owned() } else { quoted(text) }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A share of missing values that data like these hardly exceed: four standard errors above theirs.
#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
fn missing_max(feature: &Feature) -> f64 {
    let (share, rows) = (missing(feature), feature.rows().max(1) as f64);
    if share == 0.0 {
        return 0.0;
    }
    let most = share + 4.0 * (share * (1.0 - share) / rows).sqrt();
    ((most * 1e4).ceil() / 1e4).min(1.0)
}
