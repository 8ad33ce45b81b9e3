//! Reasons of requests that were not answered with what they asked for: a closed set, so that no client can add to it.

/// Reason of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The connection was turned away: too many are open.
    Connections,
    /// The head could not be read, or is larger than a limit.
    Head,
    /// The head comes slower than the limit; the connection ends without an answer.
    SlowHead,
    /// A page in a browser asks that may not.
    WebPage,
    /// There is nothing at this path.
    Path,
    /// The path has other methods.
    Method,
    /// Header lines or body break the protocol.
    Malformed,
    /// The body uses an encoding that is not offered.
    Encoding,
    /// The body is larger than a limit.
    BodySize,
    /// The body comes slower than the limit.
    SlowBody,
    /// Too many bytes of requests and answers are in flight.
    InFlightBytes,
    /// No such model.
    UnknownModel,
    /// The model has no such version, alias or arm.
    UnknownVersion,
    /// The server, the model or the version does not answer now.
    NotReady,
    /// Too many requests wait for versions that load on demand.
    DemandWaiting,
    /// Inputs or requested outputs do not fit the model's signature.
    Signature,
    /// More rows than one request may bring.
    Rows,
    /// The inputs break the model's contract.
    Contract,
    /// The model cannot run on these inputs.
    Inputs,
    /// Other runs have the memory that this one needs.
    Memory,
    /// The answer cannot be written as it was asked for.
    Outputs,
    /// The deadline passed.
    Deadline,
    /// The version, or the server, had to go before the run was done.
    Stopping,
    /// The client left before its answer.
    Gone,
    /// The engine failed.
    Engine,
    /// Not offered here.
    Unsupported,
    /// A fault of the server outside the engine.
    Internal,
    /// The repository's or the feedback's API refused it.
    Api,
}

impl Reason {
    /// All reasons, in the order of a request's way.
    pub const ALL: [Self; 28] = [
        Self::Connections,
        Self::Head,
        Self::SlowHead,
        Self::WebPage,
        Self::Path,
        Self::Method,
        Self::Malformed,
        Self::Encoding,
        Self::BodySize,
        Self::SlowBody,
        Self::InFlightBytes,
        Self::UnknownModel,
        Self::UnknownVersion,
        Self::NotReady,
        Self::DemandWaiting,
        Self::Signature,
        Self::Rows,
        Self::Contract,
        Self::Inputs,
        Self::Memory,
        Self::Outputs,
        Self::Deadline,
        Self::Stopping,
        Self::Gone,
        Self::Engine,
        Self::Unsupported,
        Self::Internal,
        Self::Api,
    ];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Head => "head",
            Self::SlowHead => "slow_head",
            Self::WebPage => "web_page",
            Self::Path => "path",
            Self::Method => "method",
            Self::Malformed => "malformed",
            Self::Encoding => "encoding",
            Self::BodySize => "body_size",
            Self::SlowBody => "slow_body",
            Self::InFlightBytes => "in_flight_bytes",
            Self::UnknownModel => "unknown_model",
            Self::UnknownVersion => "unknown_version",
            Self::NotReady => "not_ready",
            Self::DemandWaiting => "demand_waiting",
            Self::Signature => "signature",
            Self::Rows => "rows",
            Self::Contract => "contract",
            Self::Inputs => "inputs",
            Self::Memory => "memory",
            Self::Outputs => "outputs",
            Self::Deadline => "deadline",
            Self::Stopping => "stopping",
            Self::Gone => "gone",
            Self::Engine => "engine",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal",
            Self::Api => "api",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_documented() {
        let page = include_str!("../../docs/metrics.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("- "));
        let names: Vec<_> = rows.filter_map(|row| row.split_once(": ")).map(|it| it.0).collect();
        for reason in Reason::ALL {
            let name = format!("`{}`", reason.name());
            assert!(names.iter().any(|names| names.contains(&name)), "{name}");
        }
    }

    #[test]
    fn all_reasons_are_listed_in_their_order() {
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place, "{}", reason.name());
        }
        assert_eq!(Reason::Api as usize + 1, Reason::ALL.len());
    }
}
