//! References of texts: few categories, or, where nearly each text is another, their length and their words.
//!
//! What live rows will be compared with has to be what other rows of the same kind show. So each row of the reference
//! is measured against all the *others*: a category that a single row has counts as unseen where it has no bin of its
//! own. Known words are those of at least two rows; one that this row shares with a single other is not known without
//! this row, and does not count as known in it. The share of such rows estimates how often new rows bring something
//! new (Good, Biometrika 40, 1953); without it every rare name would soon look like drift.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    numbers::{Numbers, Tally},
    profile::{Bins, CATEGORIES_KEPT, Derivation, Feature, OTHERS_MAX, WORDS_MAX, category_key},
    words::{characters, keys, measure},
};
use crate::stats::Random;

/// Distinct texts of a feature with categories.
const CATEGORIES_TOTAL_MAX: usize = CATEGORIES_KEPT + OTHERS_MAX;

/// Bytes of a category; a column with a longer one is text.
const CATEGORY_BYTES_MAX: usize = 256;

/// Rows that a word has to stand in to be known: what one row alone has may be a name, and fills the file.
const KNOWN_ROWS: u64 = 2;

/// Bytes that a category takes beside its text.
const CATEGORY_OVERHEAD: usize = 64;

/// Texts whose words are kept to place the bins of the share of known words.
const SAMPLE_TEXTS: usize = 4096;

/// Values of one feature of texts, as far as they are kept.
#[derive(Debug, Clone)]
pub(super) struct Texts {
    missing: u64,
    rows: u64,
    /// Bytes of the categories, about.
    bytes: usize,
    content: Content,
    settings: TextsSettings,
}

/// Bounds of what is kept of a column of texts.
#[derive(Debug, Clone, Copy)]
pub(super) struct TextsSettings {
    /// Words that are counted at a time.
    pub(super) words_max: usize,
    /// Values of the sample that quantiles are taken from.
    pub(super) capacity: usize,
    /// Seed of samples.
    pub(super) seed: u64,
}

#[derive(Debug, Clone)]
enum Content {
    /// Each text and its rows.
    Few(BTreeMap<Box<[u8]>, u64>),
    Many(Box<Words>),
}

/// A column of texts that are all different, or nearly.
#[derive(Debug, Clone)]
struct Words {
    lengths: Numbers,
    vocabulary: Vocabulary,
    /// Words of some texts.
    sample: Vec<Box<[u64]>>,
    rows: u64,
    random: Random,
}

/// Rows that each word stands in: exact as long as there are few words, else lossy counting (Manku & Motwani, VLDB
/// 2002), whose counts are at most as much too high as `floor`.
#[derive(Debug, Clone)]
struct Vocabulary {
    /// By key: rows with the word, and the last of them.
    words: HashMap<u64, (u64, u64)>,
    floor: u64,
    words_max: usize,
}

impl Texts {
    pub(super) fn new(settings: TextsSettings) -> Self {
        Self { missing: 0, rows: 0, bytes: 0, content: Content::Few(BTreeMap::new()), settings }
    }

    /// Takes a text; an empty one is missing.
    pub(super) fn push(&mut self, text: &[u8]) {
        self.rows += 1;
        if text.is_empty() {
            self.missing += 1;
            return;
        }
        match &mut self.content {
            Content::Few(categories) => {
                if let Some(count) = categories.get_mut(text) {
                    *count += 1;
                } else if categories.len() < CATEGORIES_TOTAL_MAX
                    && text.len() <= CATEGORY_BYTES_MAX
                {
                    categories.insert(text.into(), 1);
                    self.bytes += text.len() + CATEGORY_OVERHEAD;
                } else {
                    let mut words = Words::of(categories, self.settings);
                    words.push(text, 1);
                    self.content = Content::Many(Box::new(words));
                }
            }
            Content::Many(words) => words.push(text, 1),
        }
    }

    /// True as long as the distinct texts are few enough to be categories.
    pub(super) fn are_categories(&self) -> bool {
        matches!(self.content, Content::Few(_))
    }

    /// Bytes that distinct texts take, about; 0 once they are no categories.
    pub(super) fn category_bytes(&self) -> usize {
        if self.are_categories() { self.bytes } else { 0 }
    }

    /// The feature with all its counts, or what the second pass has to measure. Texts are no categories if more than
    /// half of the rows have one that no other row has.
    pub(super) fn settle(self, name: &str, is_category: bool, sample_max: usize) -> Settled {
        match self.content {
            Content::Few(categories) => {
                let alone = categories.values().filter(|count| **count == 1).count() as u64;
                if is_category || 2 * alone <= self.rows - self.missing {
                    return Settled::Categories(of_categories(name, categories, self.missing));
                }
                Words::of(&categories, self.settings).settle(name, self.missing, sample_max)
            }
            Content::Many(words) => words.settle(name, self.missing, sample_max),
        }
    }
}

/// Outcome of the first pass over texts.
#[derive(Debug)]
pub(super) enum Settled {
    Categories(Feature),
    Text(Box<TextTally>),
}

fn of_categories(name: &str, categories: BTreeMap<Box<[u8]>, u64>, missing: u64) -> Feature {
    let mut categories: Vec<_> = categories.into_iter().collect();
    // Most frequent first, and in the order of the alphabet among equals. Bins are named by valid UTF-8.
    categories.sort_by(|(a, first), (b, second)| {
        let (a_is_text, b_is_text) =
            (std::str::from_utf8(a).is_ok(), std::str::from_utf8(b).is_ok());
        b_is_text.cmp(&a_is_text).then(second.cmp(first)).then(a.cmp(b))
    });
    let own = categories.iter().take(CATEGORIES_KEPT);
    let own =
        own.filter_map(|(text, count)| Some((String::from_utf8(text.to_vec()).ok()?, *count)));
    let (own, mut counts): (Vec<_>, Vec<_>) = own.unzip();
    let rest = &categories[own.len()..];
    let mut others: Vec<_> =
        rest.iter().map(|(text, _)| format!("{:016x}", category_key(text))).collect();
    others.sort_unstable();
    others.dedup();
    let shared = rest.iter().map(|(_, count)| *count).filter(|count| *count > 1).sum();
    let alone = rest.iter().filter(|(_, count)| *count == 1).count() as u64;
    counts.extend([shared, alone, missing]);
    let bins = Bins::Categorical { categories: own, others };
    Feature { name: name.to_owned(), bins, counts, moments: None, sample: Vec::new() }
}

impl Words {
    /// Takes over from categories.
    fn of(categories: &BTreeMap<Box<[u8]>, u64>, settings: TextsSettings) -> Self {
        let vocabulary =
            Vocabulary { words: HashMap::new(), floor: 0, words_max: settings.words_max };
        let mut words = Self {
            lengths: Numbers::new(settings.capacity, settings.seed),
            vocabulary,
            sample: Vec::new(),
            rows: 0,
            random: Random::new(settings.seed),
        };
        for (text, rows) in categories {
            words.push(text, *rows);
        }
        words
    }

    /// Takes a text of so many rows.
    #[expect(clippy::cast_precision_loss, reason = "texts are shorter than 2^53")]
    fn push(&mut self, text: &[u8], rows: u64) {
        let length = characters(text) as f64;
        let mut own = Vec::new();
        keys(text, |key| own.push(key));
        self.vocabulary.push(&own, self.rows + 1, rows);
        for _ in 0..rows {
            self.rows += 1;
            self.lengths.push(length);
            if self.sample.len() < SAMPLE_TEXTS {
                self.sample.push(own.clone().into());
            } else {
                let place = self.random.below(usize::try_from(self.rows).unwrap_or(usize::MAX));
                if let Some(old) = self.sample.get_mut(place) {
                    *old = own.clone().into();
                }
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "at most 64 words")]
    fn settle(mut self, name: &str, missing: u64, sample_max: usize) -> Settled {
        self.lengths.miss(missing);
        let mut words: Vec<_> =
            self.vocabulary.words.into_iter().map(|(key, (rows, _))| (key, rows)).collect();
        words.sort_unstable_by_key(|(key, rows)| (std::cmp::Reverse(*rows), *key));
        words.retain(|(_, rows)| *rows >= KNOWN_ROWS);
        words.truncate(WORDS_MAX);
        let shared: HashSet<u64> =
            words.iter().filter(|(_, rows)| *rows > KNOWN_ROWS).map(|(key, _)| *key).collect();
        let mut words: Vec<_> = words.iter().map(|(key, _)| format!("{key:016x}")).collect();
        words.sort_unstable();
        let mut known = Numbers::new(SAMPLE_TEXTS, self.random.below(usize::MAX) as u64);
        for own in &self.sample {
            let found = own.iter().filter(|key| shared.contains(key)).count();
            known.push(if own.is_empty() { 1.0 } else { found as f64 / own.len() as f64 });
        }
        let known = known.settle(format!("{name}.known"), sample_max).within(0.0, 1.0);
        Settled::Text(Box::new(TextTally {
            derivation: Derivation::Text { input: name.to_owned(), words },
            shared,
            length: self.lengths.settle(format!("{name}.length"), sample_max),
            known,
        }))
    }
}

impl Vocabulary {
    /// Counts the words of a text once for each of its rows.
    fn push(&mut self, own: &[u64], row: u64, rows: u64) {
        for key in own {
            let (count, last) = self.words.entry(*key).or_insert((self.floor, 0));
            if *last != row {
                (*count, *last) = (*count + rows, row);
            }
        }
        if self.words.len() > self.words_max {
            // Far below the bound, so that this is rare.
            while self.words.len() > self.words_max / 2 {
                self.floor += 1;
                self.words.retain(|_, (count, _)| *count > self.floor);
            }
        }
    }
}

/// A text whose length and words are being counted.
#[derive(Debug)]
pub(super) struct TextTally {
    pub(super) derivation: Derivation,
    /// Words that would be known without the row that is measured.
    shared: HashSet<u64>,
    length: Tally,
    known: Tally,
}

impl TextTally {
    /// Counts a text; an empty one is missing.
    #[expect(clippy::cast_precision_loss, reason = "texts are shorter than 2^53")]
    pub(super) fn count(&mut self, text: &[u8]) {
        let (length, known) = measure(text, |key| self.shared.contains(&key));
        let is_missing = text.is_empty();
        self.length.count(if is_missing { f64::NAN } else { length as f64 });
        self.known.count(if is_missing { f64::NAN } else { known });
    }

    /// The derivation and its features.
    pub(super) fn finish(self) -> (Derivation, [Feature; 2]) {
        (self.derivation, [self.length.finish(), self.known.finish()])
    }
}

/// The reference of a column of texts.
#[derive(Debug, Clone, PartialEq)]
pub enum LearnedTexts {
    /// Few texts, each a category.
    Categories(Feature),
    /// Many texts: how they are measured, and the features of their length and of their known words.
    Text(Derivation, Box<[Feature; 2]>),
}

/// Learns the reference of a feature of texts that are all at hand; an empty one is missing.
pub fn learn_texts(name: &str, values: &[&[u8]]) -> LearnedTexts {
    let settings = TextsSettings { words_max: 4 * WORDS_MAX, capacity: values.len(), seed: 0 };
    let mut texts = Texts::new(settings);
    for text in values {
        texts.push(text);
    }
    match texts.settle(name, false, values.len()) {
        Settled::Categories(feature) => LearnedTexts::Categories(feature),
        Settled::Text(mut tally) => {
            for text in values {
                tally.count(text);
            }
            let (derivation, features) = tally.finish();
            LearnedTexts::Text(derivation, Box::new(features))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learn(values: &[&str]) -> LearnedTexts {
        let values: Vec<&[u8]> = values.iter().map(|text| text.as_bytes()).collect();
        learn_texts("a", &values)
    }

    #[test]
    fn few_texts_are_categories() {
        let LearnedTexts::Categories(feature) = learn(&["b", "a", "", "b", "a", "c", "b"]) else {
            panic!("three texts are categories");
        };
        let categories = ["b", "a", "c"].map(str::to_owned).to_vec();
        assert_eq!(feature.bins, Bins::Categorical { categories, others: Vec::new() });
        assert_eq!(feature.counts, [3, 2, 1, 0, 0, 1]);
    }

    #[test]
    fn rare_categories_share_a_bin_and_lonely_ones_count_as_unseen() {
        let names: Vec<String> = (0..100).map(|i| format!("name {i:02}")).collect();
        // The first 40 stand in two rows.
        let rows: Vec<&str> = names.iter().chain(&names[..40]).map(String::as_str).collect();
        let rows = [rows.as_slice(), &rows[..40]].concat();
        let LearnedTexts::Categories(feature) = learn(&rows) else { panic!("they repeat") };
        let Bins::Categorical { categories, others } = &feature.bins else { panic!("{feature:?}") };
        assert_eq!((categories.len(), others.len(), &*categories[29]), (30, 70, "name 29"));
        assert_eq!(feature.counts[28..], [3, 3, 30, 60, 0]);
        assert_eq!(feature.bins.of_text(b"name 99"), 30, "live rows find it known");
        assert_eq!(feature.rows(), rows.len() as u64);
    }

    #[test]
    fn many_texts_are_measured() {
        let rows: Vec<String> = (0..50).map(|i| format!("same Words, number {i}")).collect();
        let rows: Vec<&str> = rows.iter().map(String::as_str).chain(["", ""]).collect();
        let LearnedTexts::Text(derivation, features) = learn(&rows) else { panic!("all differ") };
        let Derivation::Text { input, words } = derivation else { panic!("{derivation:?}") };
        assert_eq!((input.as_str(), words.len()), ("a", 3));
        let [length, known] = &*features;
        assert_eq!((length.name.as_str(), known.name.as_str()), ("a.length", "a.known"));
        // Each number stands in one row, and no other row would know it.
        assert!((known.moments.unwrap().mean - 0.75).abs() < 1e-12);
        assert_eq!(known.bins, Bins::Numeric { edges: vec![0.0, 0.75, 1.0] });
        assert_eq!(known.counts, [0, 0, 50, 0, 0, 2]);
        assert_eq!(length.counts, [0, 10, 40, 0, 0, 2]);
    }

    #[test]
    fn words_are_bounded_and_the_frequent_ones_stay() {
        let mut vocabulary = Vocabulary { words: HashMap::new(), floor: 0, words_max: 100 };
        for row in 1..=10_000_u64 {
            vocabulary.push(&[row % 10, 1000 + row], row, 1);
            assert!(vocabulary.words.len() <= 100);
        }
        for key in 0..10 {
            let count = vocabulary.words[&key].0;
            assert!((1000..=1000 + vocabulary.floor).contains(&count), "{count}");
        }
    }

    #[test]
    fn whatever_was_categories_first_is_measured_in_full() {
        let mut rows: Vec<String> = (0..5000).map(|i| format!("text {i}")).collect();
        rows.extend(vec!["text 7".to_owned(); 100]);
        rows.sort();
        let rows: Vec<&[u8]> = rows.iter().map(String::as_bytes).collect();
        let LearnedTexts::Text(_, features) = learn_texts("a", &rows) else { panic!("many") };
        assert!(features.iter().all(|feature| feature.rows() == 5100));
        let [length, known] = &*features;
        assert_eq!(length.counts[1..5], [110, 90, 900, 4000], "{length:?}");
        assert!((known.moments.unwrap().mean - (0.5 * 4999.0 + 101.0) / 5100.0).abs() < 1e-9);
    }
}
