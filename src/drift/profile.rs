//! A version's reference: how its features were distributed where it was trained.
//!
//! `profile.json` lies beside `model.onnx`. It names features, the bins that their values fall into and how many
//! values of the reference fell into each; the path counts live values into the same bins. Nothing in it is trusted:
//! it is read within limits and checked before use.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::stats::BinRole;

/// The name of the file beside a version's model.
pub const PROFILE_FILE: &str = "profile.json";

/// The newest form of the file that is read.
pub const SCHEMA: u32 = 1;

/// Bytes of the largest file that is read.
pub const PROFILE_BYTES_MAX: u64 = 64 << 20;

/// Features of one profile.
pub const FEATURES_MAX: usize = 4096;

/// Ordered bins of a numeric feature.
pub const ORDERED_MAX: usize = 16;

/// Categories that have a bin of their own where a reference is made.
pub const CATEGORIES_KEPT: usize = 30;

/// Categories, or centres of clusters, that may have a bin of their own.
pub const CATEGORIES_MAX: usize = 64;

/// Categories that are known and share one bin.
pub const OTHERS_MAX: usize = 4096;

/// Words that a text's vocabulary knows.
pub const WORDS_MAX: usize = 65_536;

/// Bytes of a feature's name.
const NAME_BYTES_MAX: usize = 256;

/// The reference of a model's features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// The form of the file: 1.
    pub schema: u32,
    /// Rows of the reference.
    pub rows: u64,
    /// SHA-256 of the data, in hexadecimal; of the counts where the reference was learned.
    pub digest: String,
    /// The file that it was made from, for people; empty where it was learned.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Features that are worked out from a whole input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub derived: Vec<Derivation>,
    /// One entry a feature, in the order of the data's columns.
    pub features: Vec<Feature>,
}

/// The reference of one feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    /// Its name: a column, an input, or `<input>.<measure>` of a derivation.
    pub name: String,
    /// Its bins.
    #[serde(flatten)]
    pub bins: Bins,
    /// Values of the reference by bin, in the order of [`Bins::roles`].
    pub counts: Vec<u64>,
    /// Moments of the finite values; `None` for categories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moments: Option<Moments>,
    /// Finite values of some rows of the reference, for exact tests; empty for categories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sample: Vec<f64>,
}

/// Mean and spread of a numeric feature.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Moments {
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    pub sd: f64,
}

/// Bins of a feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Bins {
    /// Numbers: bins below, between and above edges, then one for infinities and one for missing values.
    Numeric {
        /// The smallest value of the reference, edges between, the largest; ascending. One edge where all values are
        /// equal, none where all are missing.
        edges: Vec<f64>,
    },
    /// Categories: a bin for each, then one for those that the reference has beside them, one for those that it has
    /// not, and one for missing values.
    Categorical {
        /// Texts of the most frequent ones. Numbers are written as JSON writes them.
        categories: Vec<String>,
        /// Keys ([`category_key`]) of the others, in hexadecimal.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        others: Vec<String>,
    },
}

/// Features that are worked out from a whole input, row by row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Derivation {
    /// Text that is not one of few categories: `<input>.length` in characters and `<input>.known`, the share of its
    /// words that the reference has.
    Text {
        /// The input.
        input: String,
        /// Keys ([`category_key`]) of the words, in lower case, in hexadecimal.
        words: Vec<String>,
    },
    /// An embedding: `<input>.cluster`, the nearest of some centres, and `<input>.norm`, its length.
    Clusters {
        /// The input.
        input: String,
        /// The centres, each with as many numbers as a row.
        centres: Vec<Vec<f32>>,
    },
}

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It is not JSON of the right form.
    #[error(
        "it is not a profile: {}; make it anew with `tidegate profile DATA -o profile.json`",
        shown(&.0.to_string())
    )]
    Malformed(#[from] serde_json::Error),
    /// A newer tidegate made it.
    #[error(
        "its schema is {0}, and this tidegate reads {SCHEMA}; make it anew with this one's `tidegate profile`"
    )]
    Schema(u32),
    /// It has nothing to compare with, or too much.
    #[error("it has {0} features; 1 to {FEATURES_MAX} are right")]
    Features(usize),
    /// Two features have one name.
    #[error("feature `{}` is there twice", shown(.0))]
    Twice(String),
    /// A feature contradicts itself.
    #[error("feature `{}`: {wrong}", shown(name))]
    Feature {
        /// The feature's name.
        name: String,
        /// The contradiction.
        wrong: String,
    },
}

/// The key of a category or word: FNV-1a, 64 bits, finished as in `SplitMix64`, so that few bits suffice for a table.
///
/// Not a secret: who sends colliding texts hides one category behind another, and harms nothing else.
pub fn category_key(text: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let mut hash = text.iter().fold(0xcbf2_9ce4_8422_2325, fold);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// A text from a file, short and printable.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_debug).collect()
}

impl Profile {
    /// Reads a profile and checks it.
    pub fn read(bytes: &[u8]) -> Result<Self, ProfileError> {
        let profile: Self = serde_json::from_slice(bytes)?;
        profile.check()?;
        Ok(profile)
    }

    /// Checks that nothing in it contradicts itself and that everything is within limits.
    pub fn check(&self) -> Result<(), ProfileError> {
        if self.schema != SCHEMA {
            return Err(ProfileError::Schema(self.schema));
        }
        if self.features.is_empty() || self.features.len() > FEATURES_MAX {
            return Err(ProfileError::Features(self.features.len()));
        }
        let mut names = HashSet::new();
        for feature in &self.features {
            feature
                .check()
                .map_err(|wrong| ProfileError::Feature { name: feature.name.clone(), wrong })?;
            if !names.insert(feature.name.as_str()) {
                return Err(ProfileError::Twice(feature.name.clone()));
            }
        }
        for derivation in &self.derived {
            let checked = derivation.check().and_then(|()| self.check_measures(derivation));
            checked.map_err(|wrong| ProfileError::Feature {
                name: derivation.input().to_owned(),
                wrong,
            })?;
        }
        Ok(())
    }

    /// Checks that the features of a derivation are there, with the bins that the path counts into.
    fn check_measures(&self, derivation: &Derivation) -> Result<(), String> {
        let (input, name) = (derivation.input(), shown(derivation.input()));
        let (cells, measures) = match derivation {
            Derivation::Text { .. } => (None, ["length", "known"].as_slice()),
            Derivation::Clusters { centres, .. } => (Some(centres.len()), ["norm"].as_slice()),
        };
        for measure in measures {
            let feature = self.feature(&format!("{input}.{measure}"));
            if !feature.is_some_and(|feature| matches!(feature.bins, Bins::Numeric { .. })) {
                return Err(format!("it needs a numeric feature `{name}.{measure}`"));
            }
        }
        let Some(cells) = cells else { return Ok(()) };
        let is_right = |feature: &Feature| match &feature.bins {
            Bins::Categorical { categories, .. } => categories.len() == cells,
            Bins::Numeric { .. } => false,
        };
        if self.feature(&format!("{input}.cluster")).is_some_and(is_right) {
            return Ok(());
        }
        Err(format!(
            "it needs a feature `{name}.cluster` with a category for each of {cells} centres"
        ))
    }

    /// The feature of this name.
    pub fn feature(&self, name: &str) -> Option<&Feature> {
        self.features.iter().find(|feature| feature.name == name)
    }
}

impl Feature {
    /// Values of the reference.
    pub fn rows(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// True if the reference has nothing to compare with: no value, or only missing ones.
    pub fn is_unmonitorable(&self) -> bool {
        let missing = self.bins.roles().iter().position(|role| *role == BinRole::Missing);
        let missing = missing.map_or(0, |missing| self.counts[missing]);
        self.rows() == missing
    }

    fn check(&self) -> Result<(), String> {
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX {
            return Err(format!("its name must have 1 to {NAME_BYTES_MAX} bytes"));
        }
        self.bins.check()?;
        let bins = self.bins.len();
        if self.counts.len() != bins {
            return Err(format!("it has {} counts for {bins} bins", self.counts.len()));
        }
        let sum = self.counts.iter().try_fold(0_u64, |sum, count| sum.checked_add(*count));
        if sum.is_none_or(|sum| sum > 1 << 53) {
            return Err("its counts are too large".to_owned());
        }
        let moments = self.moments.iter().flat_map(|moments| [moments.mean, moments.sd]);
        if !moments.chain(self.sample.iter().copied()).all(f64::is_finite) {
            return Err("its moments and its sample must be finite numbers".to_owned());
        }
        Ok(())
    }
}

impl Bins {
    /// The number of bins.
    pub fn len(&self) -> usize {
        match self {
            Self::Numeric { edges } => ordered(edges) + 4,
            Self::Categorical { categories, .. } => categories.len() + 3,
        }
    }

    /// True if there are none; never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Roles of the bins, in their order. Numbers: below the smallest, between edges (each closed below, the last one
    /// above too), above the largest, infinite, missing. Categories: each, others, unseen, missing.
    pub fn roles(&self) -> Vec<BinRole> {
        match self {
            Self::Numeric { edges } => {
                let mut roles = vec![BinRole::Below];
                roles.resize(ordered(edges) + 1, BinRole::Ordered);
                roles.extend([BinRole::Above, BinRole::NonFinite, BinRole::Missing]);
                roles
            }
            Self::Categorical { categories, .. } => {
                let mut roles = vec![BinRole::Category; categories.len()];
                roles.extend([BinRole::Other, BinRole::Unseen, BinRole::Missing]);
                roles
            }
        }
    }

    /// The bin of a number; a category's if there is one that is written so.
    pub fn of_number(&self, value: f64) -> usize {
        let len = self.len();
        match self {
            _ if value.is_nan() => len - 1,
            Self::Numeric { .. } if value.is_infinite() => len - 2,
            Self::Numeric { edges } => {
                let Some((last, lower)) = edges.split_last() else { return 1 };
                let lower = if lower.is_empty() { edges.as_slice() } else { lower };
                lower.iter().filter(|edge| value >= **edge).count() + usize::from(value > *last)
            }
            Self::Categorical { .. } => self.of_text(written(value).as_bytes()),
        }
    }

    /// The bin of a text; that of missing values if it is empty.
    pub fn of_text(&self, text: &[u8]) -> usize {
        let len = self.len();
        let Self::Categorical { categories, others } = self else { return len - 1 };
        if text.is_empty() {
            return len - 1;
        }
        let own = categories.iter().position(|category| category.as_bytes() == text);
        own.unwrap_or_else(|| {
            let key = format!("{:016x}", category_key(text));
            if others.contains(&key) { len - 3 } else { len - 2 }
        })
    }

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Numeric { edges } => {
                let is_ascending = edges.windows(2).all(|pair| pair[0] < pair[1]);
                if !is_ascending || !edges.iter().all(|edge| edge.is_finite()) {
                    return Err("its edges must be finite and ascending".to_owned());
                }
                if edges.len() > ORDERED_MAX + 1 {
                    return Err(format!(
                        "it has {} edges; at most {}",
                        edges.len(),
                        ORDERED_MAX + 1
                    ));
                }
            }
            Self::Categorical { categories, others } => {
                if categories.len() > CATEGORIES_MAX || others.len() > OTHERS_MAX {
                    return Err(format!(
                        "it has {} categories and {} others; at most {CATEGORIES_MAX} and {OTHERS_MAX}",
                        categories.len(),
                        others.len()
                    ));
                }
                let mut seen = HashSet::new();
                if categories.iter().any(|category| category.is_empty() || !seen.insert(category)) {
                    return Err("a category is empty or there twice".to_owned());
                }
            }
        }
        Ok(())
    }
}

/// Ordered bins between these edges.
fn ordered(edges: &[f64]) -> usize {
    edges.len().saturating_sub(1).max(1)
}

/// A number as a category's text: whole ones without a fraction.
pub fn written(value: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "whole numbers below 2^53 only")]
    if value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0 {
        return (value as i64).to_string();
    }
    value.to_string()
}

impl Profile {
    /// Keys of the words that are known of a text.
    pub(super) fn words(&self, input: &str) -> Option<Vec<u64>> {
        self.derived.iter().find_map(|derivation| match derivation {
            Derivation::Text { input: own, .. } if own == input => Some(derivation.word_keys()),
            _ => None,
        })
    }
}

impl Derivation {
    /// Keys of the words that it knows; none of an embedding.
    pub(super) fn word_keys(&self) -> Vec<u64> {
        match self {
            Self::Text { words, .. } => {
                words.iter().filter_map(|word| u64::from_str_radix(word, 16).ok()).collect()
            }
            Self::Clusters { .. } => Vec::new(),
        }
    }

    /// The input that it works on.
    pub fn input(&self) -> &str {
        match self {
            Self::Text { input, .. } | Self::Clusters { input, .. } => input,
        }
    }

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Text { words, .. } if words.len() > WORDS_MAX => {
                Err(format!("it has {} words; at most {WORDS_MAX}", words.len()))
            }
            Self::Clusters { centres, .. } => {
                let dims = centres.first().map_or(0, Vec::len);
                let is_even = centres.iter().all(|centre| centre.len() == dims);
                if centres.is_empty() || centres.len() > CATEGORIES_MAX || !is_even || dims == 0 {
                    return Err("it must have 1 to 64 centres, all of one length".to_owned());
                }
                if !centres.iter().flatten().all(|number| number.is_finite()) {
                    return Err("its centres must be finite numbers".to_owned());
                }
                Ok(())
            }
            Self::Text { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numeric(edges: &[f64]) -> Bins {
        Bins::Numeric { edges: edges.to_vec() }
    }

    #[test]
    fn derivations_need_the_features_that_they_count_into() {
        let feature = |name: &str, bins: Bins| Feature {
            name: name.to_owned(),
            counts: vec![1; bins.len()],
            bins,
            moments: None,
            sample: Vec::new(),
        };
        let cells = |count: usize| Bins::Categorical {
            categories: (0..count).map(|cell| cell.to_string()).collect(),
            others: Vec::new(),
        };
        let check = |bins: Bins, other: &str| {
            let profile = Profile {
                schema: SCHEMA,
                rows: 5,
                digest: String::new(),
                source: String::new(),
                derived: vec![Derivation::Clusters {
                    input: "e".to_owned(),
                    centres: vec![vec![0.0], vec![1.0]],
                }],
                features: vec![feature("e.cluster", bins), feature(other, numeric(&[0.0, 1.0]))],
            };
            profile.check().map_err(|wrong| wrong.to_string())
        };
        assert_eq!(check(cells(2), "e.norm"), Ok(()));
        let wrong = check(cells(1), "e.norm").unwrap_err();
        assert!(wrong.contains("`e.cluster` with a category for each of 2 centres"), "{wrong}");
        assert!(check(numeric(&[0.0]), "e.norm").is_err());
        assert!(check(cells(2), "norm").unwrap_err().contains("`e.norm`"));
    }

    #[test]
    fn numbers_fall_between_edges_that_are_closed_below() {
        let bins = numeric(&[0.0, 1.0, 2.0]);
        assert_eq!(bins.len(), 6);
        let of = |value| bins.of_number(value);
        assert_eq!([-0.1, 0.0, 0.9, 1.0, 2.0, 2.1].map(of), [0, 1, 1, 2, 2, 3]);
        assert_eq!([f64::INFINITY, f64::NEG_INFINITY, f64::NAN].map(of), [4, 4, 5]);
        assert_eq!(bins.roles()[4..], [BinRole::NonFinite, BinRole::Missing]);
    }

    #[test]
    fn a_constant_has_bins_for_less_equal_and_more() {
        let bins = numeric(&[3.0]);
        assert_eq!([2.9, 3.0, 3.1, f64::NAN].map(|value| bins.of_number(value)), [0, 1, 2, 4]);
    }

    #[test]
    fn categories_tell_others_from_unseen_ones() {
        let others = vec![format!("{:016x}", category_key(b"c"))];
        let bins = Bins::Categorical { categories: vec!["a".into(), "7".into()], others };
        let of = |text: &str| bins.of_text(text.as_bytes());
        assert_eq!(["a", "7", "c", "d", ""].map(of), [0, 1, 2, 3, 4]);
        assert_eq!(bins.of_number(7.0), 1);
        assert_eq!(bins.of_number(f64::NAN), 4);
    }

    #[test]
    fn contradictions_are_named() {
        let refused = |text: &str, wrong: &str| {
            let error = Profile::read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        };
        refused("{", "tidegate profile");
        refused(r#"{"schema": 2, "rows": 1, "digest": "", "features": []}"#, "schema is 2");
        refused(r#"{"schema": 1, "rows": 1, "digest": "", "features": []}"#, "0 features");
        let one = |feature: &str| {
            format!(r#"{{"schema": 1, "rows": 1, "digest": "", "features": [{feature}]}}"#)
        };
        let feature =
            r#"{"name": "a", "type": "numeric", "edges": [1, 1], "counts": [0, 1, 0, 0, 0]}"#;
        refused(&one(feature), "feature `a`: its edges must be finite and ascending");
        let feature = r#"{"name": "a", "type": "numeric", "edges": [1], "counts": [1]}"#;
        refused(&one(feature), "1 counts for 5 bins");
        let feature =
            r#"{"name": "a", "type": "numeric", "edges": [1], "counts": [0, 1, 0, 0, 0]}"#;
        assert!(Profile::read(one(feature).as_bytes()).is_ok());
        refused(&one(&format!("{feature}, {feature}")), "`a` is there twice");
    }
}
