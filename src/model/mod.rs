//! What is served and what is asked: names, versions, signatures, requests and responses, as values.
//!
//! Values without behaviour that every room understands. Whoever holds a `ModelName` or a `VersionId` holds
//! one that keeps its rule; the inside never asks again.
//!
//! Not here: how values are written on the wire (`wire`), where models lie (`source`), which are served
//! (`serve`).

mod arm;
mod described;
mod description;
mod growth;
mod guard;
mod moment;
mod name;
mod prediction;
mod request;
mod response;
mod signature;
mod split;
mod trace;
mod traffic;
mod version;

pub use arm::{ArmName, ArmNameError};
pub use description::{
    DeclaredTensor, DynamicBatching, EngineChoice, FileName, FileNameError, ModelDescription,
    VersionPolicy, Warmup, WarmupData, WarmupInput,
};
pub use growth::{Grown, Growth, GrowthError, Numbers, Operation, Step};
pub use guard::{Empty, GuardError, Guards, Operand, Place, Quotient, SizeGuard};
pub use moment::Moment;
pub use name::{Alias, AliasError, ModelName, ModelNameError};
pub use prediction::{PredictionId, PredictionKey};
pub use request::{InferRequest, Input, Parameter, Parameters, RequestedOutput, VersionSelector};
pub use response::{InferResponse, ResponseOutput};
pub use signature::{Extent, Rows, Signature, SignatureError, TensorSpec, View};
pub use split::{SLOTS, Split, slots_of};
pub use trace::Trace;
pub use traffic::{ArmSpec, ShadowSpec, StickyBy, TrafficSource, TrafficSpec};
pub use version::{VersionId, VersionState};
