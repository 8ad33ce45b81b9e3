//! From a request to its arm and version, in one table.
//!
//! Not here: waiting for a version or a session (`call`, `edge`).

use std::sync::Arc;

use crate::{
    model::{ArmName, VersionId, VersionSelector},
    monitor::ArmRecorder,
};

use super::{Asked, Assignment, Evidence, Model, RouteError, Shadow, Table, Traffic, Version};

/// Destination of a request.
pub(super) struct Routed<'t> {
    pub(super) version: &'t Arc<Version>,
    pub(super) arm: ArmName,
    pub(super) recorder: &'t ArmRecorder,
    /// The baseline's version, where the request may fall back to it.
    pub(super) spare: Option<&'t Arc<Version>>,
    /// The arm that it was assigned to, whose version is not loaded.
    pub(super) missed: Option<ArmName>,
    /// Its place in the evidence of a rollout.
    pub(super) assignment: Option<(&'t Evidence, Assignment)>,
    /// The shadow that gets a copy of it.
    pub(super) shadow: Option<&'t Arc<Shadow>>,
}

impl<'t> Routed<'t> {
    fn baseline(version: &'t Arc<Version>) -> Self {
        Self {
            version,
            arm: ArmName::BASELINE,
            recorder: version.baseline(),
            spare: None,
            missed: None,
            assignment: None,
            shadow: None,
        }
    }

    fn direct(version: &'t Arc<Version>) -> Self {
        let recorder = version.direct();
        Self { arm: ArmName::DIRECT, recorder, ..Self::baseline(version) }
    }

    /// Sends it to the baseline's version instead; its evidence stays with the arm that it was assigned to.
    pub(super) fn turn_to(&mut self, spare: &'t Arc<Version>) {
        self.version = spare;
        self.arm = ArmName::BASELINE;
        self.recorder = spare.baseline();
        self.spare = None;
    }
}

impl Table {
    /// The split that a request takes part in; `None` where nothing but its version matters.
    pub fn traffic(&self, name: &str, selector: VersionSelector<'_>) -> Option<&Traffic> {
        if !matches!(selector, VersionSelector::Default) {
            return None;
        }
        self.model(name)?.traffic.as_deref()
    }

    /// The arm and version of a request.
    pub(super) fn assign<'t>(&'t self, asked: &Asked<'_>) -> Result<Routed<'t>, RouteError> {
        let model = self.model(asked.model).ok_or_else(|| self.missing(asked.model))?;
        if !matches!(asked.selector, VersionSelector::Default) {
            return model.route(asked.selector).map(Routed::direct);
        }
        if let Some(wanted) = asked.route.filter(|_| model.route_override) {
            return model.follow(wanted);
        }
        match model.traffic.as_deref() {
            None => model.route(asked.selector).map(Routed::baseline),
            Some(traffic) => model.split(traffic, asked),
        }
    }
}

impl Model {
    /// The version of the arm `baseline`.
    fn baseline<'t>(
        &'t self,
        traffic: Option<&'t Traffic>,
    ) -> Result<&'t Arc<Version>, RouteError> {
        if let Some(own) = traffic.and_then(|traffic| traffic.arms().first()?.version.as_ref()) {
            return Ok(own);
        }
        let other = self.route(VersionSelector::Default)?;
        let arms = traffic.map(Traffic::arms).unwrap_or_default();
        // What is being tried must not take the baseline's share.
        if arms.iter().skip(1).any(|arm| arm.id == other.id()) {
            return Err(self.not_ready(arms.first().map(|arm| arm.id)));
        }
        Ok(other)
    }

    /// Follows a header's value: to an arm by its name, or to a version.
    fn follow(&self, wanted: &str) -> Result<Routed<'_>, RouteError> {
        let traffic = self.traffic.as_deref();
        if wanted == ArmName::BASELINE.as_str() {
            return self.baseline(traffic).map(Routed::baseline);
        }
        if let Some(arm) = traffic.and_then(|traffic| traffic.named(wanted)) {
            let version = arm.version.as_ref().zip(arm.recorder.as_deref());
            let baseline = self.baseline(traffic);
            return match version {
                Some((version, recorder)) => {
                    let spare = baseline.ok();
                    Ok(Routed { arm: arm.name, recorder, spare, ..Routed::baseline(version) })
                }
                None => Ok(Routed { missed: Some(arm.name), ..Routed::baseline(baseline?) }),
            };
        }
        let selector = match VersionId::parse(wanted) {
            Some(id) => VersionSelector::Number(id),
            None => VersionSelector::Alias(wanted),
        };
        self.route(selector).map(Routed::direct).map_err(|error| match error {
            RouteError::UnknownVersion { .. } => self.unknown_arm(wanted),
            error => error,
        })
    }

    /// The arm that the request's key falls to.
    fn split<'t>(
        &'t self,
        traffic: &'t Traffic,
        asked: &Asked<'_>,
    ) -> Result<Routed<'t>, RouteError> {
        let baseline = self.baseline(Some(traffic));
        let hashed = asked.key.unwrap_or_else(|| traffic.hash(asked.id.as_str().as_bytes()));
        let index = traffic.index(hashed);
        let evidence = traffic.evidence().filter(|_| index < 2);
        let assignment = evidence.map(|evidence| {
            let (share, key) = (traffic.share(), hashed.bits());
            let (is_sticky, is_candidate) = (asked.key.is_some(), index == 1);
            (&**evidence, Assignment { share, key, is_sticky, is_candidate })
        });
        let arm = &traffic.arms()[index];
        let routed = match arm.version.as_ref().zip(arm.recorder.as_deref()) {
            _ if index == 0 => Routed::baseline(baseline?),
            Some((version, recorder)) => {
                let spare = baseline.ok();
                Routed { arm: arm.name, recorder, spare, ..Routed::baseline(version) }
            }
            None => Routed { missed: Some(arm.name), ..Routed::baseline(baseline?) },
        };
        Ok(Routed { assignment, shadow: traffic.copies(&asked.id), ..routed })
    }
}
