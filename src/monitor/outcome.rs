//! The end of a call of a version, whatever protocol brought it.

use super::Code;

/// The end of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The model's answer.
    Ok,
    /// The request does not fit the version; the caller's mistake.
    Caller,
    /// No room for it now.
    Capacity,
    /// Its deadline passed.
    Deadline,
    /// The engine failed, or we did.
    Engine,
    /// Nobody waits for the answer any more.
    Abandoned,
}

impl Outcome {
    /// The code it counts under; the statuses that HTTP answers with.
    #[must_use]
    pub fn code(self) -> Code {
        Code::from_status(match self {
            Self::Ok => 200,
            Self::Caller => 400,
            Self::Capacity => 503,
            Self::Deadline => 504,
            Self::Engine => 500,
            Self::Abandoned => 499,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_a_code_of_its_own() {
        use Outcome::{Abandoned, Caller, Capacity, Deadline, Engine, Ok};
        let codes = [Ok, Caller, Capacity, Deadline, Engine, Abandoned].map(|o| o.code().status());
        assert_eq!(codes, [200, 400, 503, 504, 500, 499]);
    }
}
