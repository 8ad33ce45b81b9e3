//! Profiles from data that are too large to keep: two passes over columns of values, batch by batch.
//!
//! The first pass ([`Profiler`]) finds where the bins lie, the second ([`Counter`]) counts exactly what falls into
//! them. Always true: memory depends on the number of columns and not of rows, the order and the size of batches change
//! nothing, and the same values with the same seed give the same profile.
//!
//! Not here: files and the kinds of their columns (the caller's), what becomes of one column (`numbers`, `texts`).

use std::borrow::Cow;

use super::{
    numbers::{Numbers, Tally},
    profile::{Derivation, FEATURES_MAX, Feature, Profile, ProfileError, SCHEMA, WORDS_MAX},
    summary::Summary,
    texts::{Settled, TextTally, Texts, TextsSettings},
    vectors::{VectorTally, Vectors},
};
use crate::stats::Random;

/// Columns whose texts are all different, or nearly: each needs room for its words.
pub const TEXT_COLUMNS_MAX: usize = 32;

/// Bytes of the distinct texts of all columns together.
const CATEGORY_BYTES_MAX: usize = 64 << 20;

/// Numbers of all the samples that quantiles are taken from: 64 MiB.
const SAMPLED_MAX: usize = 8 << 20;

/// Numbers of the largest sample that quantiles are taken from: they are off by 0.2 % of the rows, one standard error.
const SAMPLED_OF_COLUMN_MAX: usize = 1 << 16;

/// Numbers of all the samples that a profile holds.
const KEPT_MAX: usize = 2 << 20;

/// Words that are counted at a time, of all columns together.
const WORDS_COUNTED_MAX: usize = 2 << 20;

/// A column of the data, or several that belong together, and what is to be made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Column {
    /// Numbers: one feature.
    Number {
        /// The feature's name.
        name: String,
    },
    /// Texts: categories if they are few, else their length and their words.
    Texts {
        /// The name of the feature, or of the input that features are derived from.
        name: String,
        /// True if they are categories however many there are, up to 4,126.
        is_category: bool,
    },
    /// Rows of an embedding: the cell of the nearest of up to 32 centres, which are fitted to it, and its length.
    Embedding {
        /// The name of the input that features are derived from.
        name: String,
        /// Numbers of a row.
        values: usize,
    },
    /// Rows of many numbers: five features, see [`Summary`].
    Wide {
        /// The name of the input that features are derived from.
        name: String,
        /// Numbers of a row.
        values: usize,
    },
}

/// Values of one column and some rows.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// Numbers, row by row where a row has several; NaN is a missing one.
    Numbers(&'a [f64]),
    /// Texts; an empty one is missing.
    Texts(&'a [Cow<'a, [u8]>]),
}

/// Choices of whoever makes a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProfilerSettings {
    /// Values of each numeric feature that the profile holds for exact tests; fewer if features are many.
    pub sample_rows: usize,
    /// Seed of the samples.
    pub seed: u64,
}

/// Errors of making a profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfilerError {
    /// No rows.
    #[error("the data have no rows; a profile needs some hundreds, better 10,000")]
    Empty,
    /// More columns than a profile may have features.
    #[error(
        "{0} columns make more than {FEATURES_MAX} features; leave some out, or take them together as wide inputs"
    )]
    Columns(usize),
    /// More distinct texts than may be categories.
    #[error(
        "column `{0}` has more than 4126 categories; leave it out, or let it be measured as text"
    )]
    Categories(String),
    /// More distinct texts than memory is given for.
    #[error(
        "the categories of all columns have more than 64 MiB; leave out columns of texts, such as `{0}`"
    )]
    CategoryBytes(String),
    /// More columns of long texts than memory is given for.
    #[error(
        "{0} columns are texts that nearly all differ, more than {TEXT_COLUMNS_MAX}; leave some out"
    )]
    TextColumns(usize),
    /// The second pass found other rows than the first.
    #[error(
        "the data changed while they were read: column `{0}` had other rows before; try again once they are written"
    )]
    Changed(String),
    /// The outcome contradicts itself.
    #[error("no profile can be made of these columns")]
    Profile(#[source] ProfileError),
}

/// The first pass: finds where the bins lie.
#[derive(Debug)]
pub struct Profiler {
    columns: Vec<(String, Looked)>,
    sample_max: usize,
    rows: u64,
    /// Bytes of distinct texts.
    bytes: usize,
}

#[derive(Debug)]
enum Looked {
    Number(Numbers),
    Texts(Box<Texts>, bool),
    Wide(usize, Box<[Numbers; 5]>),
    Embedding(usize, Box<Vectors>),
}

impl Profiler {
    /// Begins with these columns.
    pub fn new(columns: Vec<Column>, settings: ProfilerSettings) -> Result<Self, ProfilerError> {
        let features = |column: &Column| match column {
            Column::Number { .. } => 1,
            Column::Texts { .. } | Column::Embedding { .. } => 2,
            Column::Wide { .. } => 5,
        };
        let all: usize = columns.iter().map(features).sum();
        let texts = columns.iter().filter(|column| matches!(column, Column::Texts { .. })).count();
        if all - texts > FEATURES_MAX {
            return Err(ProfilerError::Columns(columns.len()));
        }
        let capacity = (SAMPLED_MAX / all.max(1)).min(SAMPLED_OF_COLUMN_MAX);
        let words_max = (WORDS_COUNTED_MAX / texts.clamp(1, TEXT_COLUMNS_MAX)).min(4 * WORDS_MAX);
        let mut random = Random::new(settings.seed);
        let mut seed = || random.below(usize::MAX) as u64;
        let looked = |column| match column {
            Column::Number { name } => (name, Looked::Number(Numbers::new(capacity, seed()))),
            Column::Texts { name, is_category } => {
                let settings = TextsSettings { words_max, capacity, seed: seed() };
                (name, Looked::Texts(Box::new(Texts::new(settings)), is_category))
            }
            Column::Wide { name, values } => {
                let numbers = std::array::from_fn(|_| Numbers::new(capacity, seed()));
                (name, Looked::Wide(values, Box::new(numbers)))
            }
            Column::Embedding { name, values } => {
                let vectors = Vectors::new(values, capacity, seed());
                (name, Looked::Embedding(values, Box::new(vectors)))
            }
        };
        let columns = columns.into_iter().map(looked).collect();
        let sample_max = settings.sample_rows.min(KEPT_MAX / all.max(1)).min(capacity);
        Ok(Self { columns, sample_max, rows: 0, bytes: 0 })
    }

    /// Values of each numeric feature that the profile will hold at most.
    pub fn sample_rows(&self) -> usize {
        self.sample_max
    }

    /// Takes the next rows of a column. Columns of one batch may come in any order.
    ///
    /// # Panics
    /// If there is no such column, or if its values are of the other kind.
    pub fn push(&mut self, column: usize, values: Values<'_>) -> Result<(), ProfilerError> {
        let (name, looked) = &mut self.columns[column];
        let rows = match (looked, values) {
            (Looked::Number(numbers), Values::Numbers(values)) => {
                for value in values {
                    numbers.push(*value);
                }
                values.len()
            }
            (Looked::Wide(width, numbers), Values::Numbers(values)) => {
                for row in values.chunks_exact(*width) {
                    let measured = Summary::of(row.iter().copied()).values();
                    numbers.iter_mut().zip(measured).for_each(|(own, value)| own.push(value));
                }
                values.len() / *width
            }
            (Looked::Embedding(width, vectors), Values::Numbers(values)) => {
                for row in values.chunks_exact(*width) {
                    vectors.push(row);
                }
                values.len() / *width
            }
            (Looked::Texts(texts, is_category), Values::Texts(values)) => {
                let before = texts.category_bytes();
                for text in values {
                    texts.push(text);
                }
                if *is_category && !texts.are_categories() {
                    return Err(ProfilerError::Categories(name.clone()));
                }
                self.bytes = self.bytes - before + texts.category_bytes();
                if self.bytes > CATEGORY_BYTES_MAX {
                    return Err(ProfilerError::CategoryBytes(name.clone()));
                }
                values.len()
            }
            _ => unreachable!("columns of numbers get numbers, columns of texts get texts"),
        };
        self.rows += if column == 0 { rows as u64 } else { 0 };
        Ok(())
    }

    /// Ends the first pass.
    pub fn settle(self) -> Result<Counter, ProfilerError> {
        if self.rows == 0 {
            return Err(ProfilerError::Empty);
        }
        let sample_max = self.sample_max;
        let settled = |(name, looked): (String, Looked)| match looked {
            Looked::Number(numbers) => Counted::Number(Box::new(numbers.settle(name, sample_max))),
            Looked::Texts(texts, is_category) => {
                match texts.settle(&name, is_category, sample_max) {
                    Settled::Categories(feature) => Counted::Categories(feature),
                    Settled::Text(tally) => Counted::Texts(tally),
                }
            }
            Looked::Wide(values, numbers) => {
                let mut names = Summary::NAMES.iter().map(|measure| format!("{name}.{measure}"));
                let tally =
                    |numbers: Numbers| numbers.settle(names.next().unwrap_or_default(), sample_max);
                Counted::Wide(values, Box::new(numbers.map(tally)))
            }
            Looked::Embedding(values, vectors) => {
                Counted::Embedding(values, Box::new(vectors.settle(&name, sample_max)))
            }
        };
        let columns: Vec<_> = self.columns.into_iter().map(settled).collect();
        let texts = columns.iter().filter(|column| matches!(column, Counted::Texts(_))).count();
        if texts > TEXT_COLUMNS_MAX {
            return Err(ProfilerError::TextColumns(texts));
        }
        Ok(Counter { columns, rows: self.rows })
    }
}

/// The second pass: counts what falls into the bins.
#[derive(Debug)]
pub struct Counter {
    columns: Vec<Counted>,
    rows: u64,
}

#[derive(Debug)]
enum Counted {
    Number(Box<Tally>),
    Categories(Feature),
    Texts(Box<TextTally>),
    Wide(usize, Box<[Tally; 5]>),
    Embedding(usize, Box<VectorTally>),
}

impl Counter {
    /// Rows of the first pass.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// True if a column has to be gone through again; else the first pass has counted.
    pub fn needs(&self, column: usize) -> bool {
        match &self.columns[column] {
            Counted::Number(tally) => tally.needs_counting(),
            Counted::Categories(_) => false,
            Counted::Texts(_) | Counted::Embedding(..) => true,
            Counted::Wide(_, tallies) => tallies.iter().any(Tally::needs_counting),
        }
    }

    /// Takes the next rows of a column that needs it.
    pub fn push(&mut self, column: usize, values: Values<'_>) {
        match (&mut self.columns[column], values) {
            (Counted::Number(tally), Values::Numbers(values)) => {
                for value in values {
                    tally.count(*value);
                }
            }
            (Counted::Wide(width, tallies), Values::Numbers(values)) => {
                for row in values.chunks_exact(*width) {
                    let measured = Summary::of(row.iter().copied()).values();
                    tallies.iter_mut().zip(measured).for_each(|(own, value)| own.count(value));
                }
            }
            (Counted::Embedding(width, tally), Values::Numbers(values)) => {
                for row in values.chunks_exact(*width) {
                    tally.count(row);
                }
            }
            (Counted::Texts(tally), Values::Texts(values)) => {
                for text in values {
                    tally.count(text);
                }
            }
            _ => {}
        }
    }

    /// Makes the profile of data with this digest, from this file.
    pub fn finish(self, digest: String, source: String) -> Result<Profile, ProfilerError> {
        let (mut derived, mut features): (Vec<Derivation>, Vec<Feature>) = (Vec::new(), Vec::new());
        for column in self.columns {
            match column {
                Counted::Number(tally) => features.push(tally.finish()),
                Counted::Categories(feature) => features.push(feature),
                Counted::Texts(tally) => {
                    let (derivation, own) = tally.finish();
                    derived.push(derivation);
                    features.extend(own);
                }
                Counted::Embedding(_, tally) => {
                    let (derivation, own) = tally.finish();
                    derived.extend(derivation);
                    features.extend(own);
                }
                Counted::Wide(_, tallies) => features.extend(tallies.map(Tally::finish)),
            }
        }
        if let Some(other) = features.iter().find(|feature| feature.rows() != self.rows) {
            return Err(ProfilerError::Changed(other.name.clone()));
        }
        let profile =
            Profile { schema: SCHEMA, rows: self.rows, digest, source, derived, features };
        profile.check().map_err(ProfilerError::Profile)?;
        Ok(profile)
    }
}

impl Profile {
    /// The profile as its file has it: JSON with a line for each feature.
    ///
    /// # Panics
    /// Never: nothing in it cannot be written as JSON.
    pub fn to_json(&self) -> String {
        let json = |value: Result<String, serde_json::Error>| value.expect("plain values");
        let head = Self { derived: Vec::new(), features: Vec::new(), ..self.clone() };
        let head = json(serde_json::to_string(&head));
        let mut text = head.strip_suffix("\"features\":[]}").unwrap_or(&head).to_owned();
        let mut list = |name: &str, lines: Vec<String>, end: &str| {
            text += &format!("\n\"{name}\":[\n{}\n]{end}", lines.join(",\n"));
        };
        if !self.derived.is_empty() {
            let derived = self.derived.iter();
            list("derived", derived.map(|own| json(serde_json::to_string(own))).collect(), ",");
        }
        let features = self.features.iter();
        list("features", features.map(|own| json(serde_json::to_string(own))).collect(), "}\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COLUMNS: usize = 4;

    fn columns() -> Vec<Column> {
        let name = |name: &str| name.to_owned();
        vec![
            Column::Number { name: name("a") },
            Column::Texts { name: name("t"), is_category: false },
            Column::Wide { name: name("w"), values: 2 },
            Column::Embedding { name: name("e"), values: 2 },
        ]
    }

    /// Makes a profile of rows of a number and a text, in batches that end at these rows.
    fn profile(rows: &[(f64, String)], cuts: &[usize]) -> Result<Profile, ProfilerError> {
        let settings = ProfilerSettings { sample_rows: 20, seed: 3 };
        let mut profiler = Profiler::new(columns(), settings)?;
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (rows.len() + 1)).collect();
        cuts.extend([0, rows.len()]);
        cuts.sort_unstable();
        let batches: Vec<_> = cuts.windows(2).map(|cut| &rows[cut[0]..cut[1]]).collect();
        let values = |batch: &[(f64, String)]| {
            let numbers: Vec<f64> = batch.iter().map(|row| row.0).collect();
            let pairs: Vec<f64> = numbers.iter().flat_map(|value| [*value, 1.0]).collect();
            let texts: Vec<_> =
                batch.iter().map(|row| Cow::Owned(row.1.clone().into_bytes())).collect();
            (numbers, pairs, texts)
        };
        for batch in &batches {
            let (numbers, pairs, texts) = values(batch);
            profiler.push(0, Values::Numbers(&numbers))?;
            profiler.push(1, Values::Texts(&texts))?;
            profiler.push(2, Values::Numbers(&pairs))?;
            profiler.push(3, Values::Numbers(&pairs))?;
        }
        let mut counter = profiler.settle()?;
        let needed: Vec<bool> = (0..COLUMNS).map(|column| counter.needs(column)).collect();
        for batch in &batches {
            let (numbers, pairs, texts) = values(batch);
            let all = [
                Values::Numbers(&numbers),
                Values::Texts(&texts),
                Values::Numbers(&pairs),
                Values::Numbers(&pairs),
            ];
            for (column, values) in all.into_iter().enumerate().filter(|own| needed[own.0]) {
                counter.push(column, values);
            }
        }
        counter.finish("digest".to_owned(), "source".to_owned())
    }

    fn row() -> impl Strategy<Value = (f64, String)> {
        let number = prop_oneof![
            4 => (-50..50_i32).prop_map(f64::from),
            4 => -1e3..1e3_f64,
            1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(f64::MAX)],
        ];
        (number, prop_oneof!["[abc]?", "[a-f]{2,3} [xyz]"])
    }

    proptest! {
        #[test]
        fn any_split_into_batches_gives_the_same_profile(
            rows in prop::collection::vec(row(), 1..120),
            cuts in prop::collection::vec(any::<usize>(), 0..5),
        ) {
            let whole = profile(&rows, &[]).unwrap();
            prop_assert_eq!(&profile(&rows, &cuts).unwrap(), &whole);
            prop_assert!(whole.features.iter().all(|own| own.rows() == rows.len() as u64));
            let back = Profile::read(whole.to_json().as_bytes()).unwrap();
            prop_assert_eq!(back, whole);
        }

        #[test]
        fn counts_are_those_of_the_bins(rows in prop::collection::vec(row(), 1..120)) {
            let profile = profile(&rows, &[]).unwrap();
            let own = profile.feature("a").unwrap();
            let mut counts = vec![0; own.bins.len()];
            for row in &rows {
                counts[own.bins.of_number(row.0)] += 1;
            }
            prop_assert_eq!(&counts, &own.counts);
            prop_assert_eq!((counts[0], counts[own.bins.len() - 3]), (0, 0), "below and above");
        }
    }

    #[test]
    fn what_cannot_be_a_profile_is_told() {
        let settings = ProfilerSettings { sample_rows: 0, seed: 0 };
        let many = (0..5000).map(|i| Column::Number { name: i.to_string() }).collect();
        assert!(matches!(Profiler::new(many, settings), Err(ProfilerError::Columns(5000))));
        let number = |name: &str| Column::Number { name: name.to_owned() };
        let empty = Profiler::new(vec![number("a")], settings).unwrap();
        assert!(matches!(empty.settle(), Err(ProfilerError::Empty)));
        let mut twice = Profiler::new(vec![number("a"), number("a")], settings).unwrap();
        twice.push(0, Values::Numbers(&[1.0])).unwrap();
        twice.push(1, Values::Numbers(&[1.0])).unwrap();
        let twice = twice.settle().unwrap().finish(String::new(), String::new());
        assert!(matches!(twice, Err(ProfilerError::Profile(_))));
        // The second pass finds other rows than the first.
        let mut profiler = Profiler::new(vec![number("a")], settings).unwrap();
        let values: Vec<f64> = (0..100).map(f64::from).collect();
        profiler.push(0, Values::Numbers(&values)).unwrap();
        let mut counter = profiler.settle().unwrap();
        counter.push(0, Values::Numbers(&values[1..]));
        let changed = counter.finish(String::new(), String::new());
        assert!(matches!(changed, Err(ProfilerError::Changed(name)) if name == "a"));
    }
}
