//! Drift: live features against a reference, with a promise about false alarms.
//!
//! A [`Profile`] says how features were distributed where a version was trained. The path counts live values into the
//! same bins; everything else happens beside it.
//!
//! Not here: the statistics (`stats`), latency and requests (`monitor`), outcomes (`feedback`).

mod activity;
mod binner;
mod builder;
mod contract;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
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
mod segments;
mod settings;
mod summary;
mod tap;
mod test;
mod texts;
mod vectors;
mod version;
mod waiting;
mod watch;
mod window;
mod words;

pub use builder::{
    Column, Counter, Profiler, ProfilerError, ProfilerSettings, TEXT_COLUMNS_MAX, Values,
};
pub use contract::{Action, Breach, Broken, Contract, Rule, TermCounts, Terms};
pub use layout::width;
pub use numbers::learn_numeric;
pub use page::{
    Alarm, DriftReport, FeatureReport, NamedBy, ReferenceKind, ReferenceReport, RuleReport,
    SegmentName, SegmentReport, Status, Tier,
};
pub use profile::{
    Bins, CATEGORIES_KEPT, CATEGORIES_MAX, Derivation, FEATURES_MAX, Feature, Moments, ORDERED_MAX,
    OTHERS_MAX, PROFILE_BYTES_MAX, PROFILE_FILE, Profile, ProfileError, SCHEMA, WORDS_MAX,
    category_key, written,
};
pub use recorder::Recorder;
pub use segments::{
    OTHER, RowSegments, SEGMENT_BYTES_MAX, SEGMENTS_MAX, SegmentBy, SegmentDraft, SegmentId,
    SegmentRule, Splitter,
};
pub use settings::Settings;
pub use summary::{Summary, norm};
pub use test::{Correction, Drifts, Include, Scope, TestData, TestReport, TestRequest};
pub use texts::{LearnedTexts, learn_texts};
pub use watch::{Bound, Drift, Gauges, Given, Newcomer, Watching, fit};
pub use words::{WORDS_READ, measure};
