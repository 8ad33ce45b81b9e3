//! Split of a model's requests between versions, as it was decided and is written down.

use serde::{Deserialize, Serialize};

use super::{ArmName, Split, VersionId};

/// A split that was decided; without one, every request goes to the baseline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficSpec {
    /// Source of the decision.
    pub source: TrafficSource,
    /// The rollout that decided it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<String>,
    /// The key of the hash.
    pub salt: [u64; 2],
    /// The part of a request that keeps it in its arm.
    pub sticky: StickyBy,
    /// The arms, the baseline first.
    pub arms: Vec<ArmSpec>,
    /// The runs of the split: the first slot behind each, and the index of its arm.
    pub runs: Vec<(u32, u8)>,
    /// Versions that get copies of requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shadow: Vec<ShadowSpec>,
    /// Versions that stay loaded without a share: the way back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<u64>,
}

/// Sources of a decision about a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrafficSource {
    /// A person or a program of theirs.
    Operator,
    /// A rollout.
    Rollout,
}

/// The part of a request that keeps it in its arm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "by", content = "name")]
pub enum StickyBy {
    /// A header's value.
    Header(String),
    /// A cookie's value.
    Cookie(String),
    /// A parameter of the request: its name, or a JSON pointer into the parameters.
    Parameter(String),
    /// The header `x-request-id`, else the `id` in the body.
    RequestId,
    /// No part: every request is assigned anew.
    None,
}

/// An arm and its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArmSpec {
    /// The arm's name, which [`ArmName::parse`] takes.
    pub name: String,
    /// The version.
    pub version: u64,
}

/// A version that gets copies of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowSpec {
    /// The version.
    pub version: u64,
    /// The share of requests that is copied, in slots of [`super::SLOTS`].
    pub slots: u32,
}

impl TrafficSource {
    /// The word for it, such as `operator`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Rollout => "rollout",
        }
    }
}

impl Default for StickyBy {
    fn default() -> Self {
        Self::Header("x-tidegate-key".to_owned())
    }
}

impl StickyBy {
    /// The word for it, such as `header`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Header(_) => "header",
            Self::Cookie(_) => "cookie",
            Self::Parameter(_) => "parameter",
            Self::RequestId => "request_id",
            Self::None => "none",
        }
    }

    /// The name of the header, cookie or parameter.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Header(name) | Self::Cookie(name) | Self::Parameter(name) => Some(name),
            Self::RequestId | Self::None => None,
        }
    }
}

impl TrafficSpec {
    /// The version of the arm `baseline`.
    pub fn baseline(&self) -> Option<VersionId> {
        self.arms.first().map(|arm| VersionId::new(arm.version))
    }

    /// Every version that must be loaded for it.
    pub fn versions(&self) -> impl Iterator<Item = VersionId> {
        let arms = self.arms.iter().map(|arm| arm.version);
        let shadow = self.shadow.iter().map(|shadow| shadow.version);
        arms.chain(shadow).chain(self.keep.iter().copied()).map(VersionId::new)
    }

    /// The split between the arms; everything to the baseline if what was written down is no split.
    pub fn split(&self) -> Split {
        Split::from_runs(self.runs.iter().copied(), self.arms.len()).unwrap_or_else(Split::whole)
    }

    /// The arms' names; one that breaks the rule counts as the baseline's.
    pub fn names(&self) -> impl Iterator<Item = ArmName> {
        self.arms.iter().map(|arm| ArmName::parse(&arm.name).unwrap_or(ArmName::BASELINE))
    }
}
