//! Drift: live features against a reference, with a promise about false alarms.
//!
//! A [`Profile`] says how features were distributed where a version was trained. The path counts live values into the
//! same bins; everything else happens beside it.
//!
//! Not here: the statistics (`stats`), latency and requests (`monitor`), outcomes (`feedback`).

mod binner;
mod builder;
mod judge;
mod layout;
mod numbers;
mod page;
mod plan;
mod profile;
mod reader;
mod recorder;
mod report;
mod sample;
mod settings;
mod summary;
mod tap;
mod texts;
mod vectors;
mod version;
mod watch;
mod window;
mod words;

pub use builder::{
    Column, Counter, Profiler, ProfilerError, ProfilerSettings, TEXT_COLUMNS_MAX, Values,
};
pub use numbers::learn_numeric;
pub use page::{
    Alarm, DriftReport, FeatureReport, NamedBy, ReferenceKind, ReferenceReport, Status, Tier,
};
pub use profile::{
    Bins, CATEGORIES_KEPT, CATEGORIES_MAX, Derivation, FEATURES_MAX, Feature, Moments, ORDERED_MAX,
    OTHERS_MAX, PROFILE_BYTES_MAX, PROFILE_FILE, Profile, ProfileError, SCHEMA, WORDS_MAX,
    category_key, written,
};
pub use recorder::Recorder;
pub use settings::Settings;
pub use summary::{Summary, norm};
pub use texts::{LearnedTexts, learn_texts};
pub use watch::{Drift, Newcomer, Watching};
pub use words::{WORDS_READ, measure};
