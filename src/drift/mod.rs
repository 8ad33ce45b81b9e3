//! Drift: live features against a reference, with a promise about false alarms.
//!
//! A [`Profile`] says how features were distributed where a version was trained. The path counts live values into the
//! same bins; everything else happens beside it.
//!
//! Not here: the statistics (`stats`), latency and requests (`monitor`), outcomes (`feedback`).

mod builder;
mod numbers;
mod profile;
mod summary;
mod texts;
mod words;

pub use builder::{
    Column, Counter, Profiler, ProfilerError, ProfilerSettings, TEXT_COLUMNS_MAX, Values,
};
pub use numbers::learn_numeric;
pub use profile::{
    Bins, CATEGORIES_KEPT, CATEGORIES_MAX, Derivation, FEATURES_MAX, Feature, Moments, ORDERED_MAX,
    OTHERS_MAX, PROFILE_BYTES_MAX, PROFILE_FILE, Profile, ProfileError, SCHEMA, WORDS_MAX,
    category_key, written,
};
pub use summary::{Summary, norm};
pub use texts::{LearnedTexts, learn_texts};
pub use words::{WORDS_READ, measure};
