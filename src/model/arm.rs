//! Names of the arms of a model's traffic.

use std::fmt;

/// The name of an arm: `[a-z][a-z0-9_-]{0,31}`.
///
/// Small and copied, so that an answer on the path carries it without a count or an allocation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ArmName {
    bytes: [u8; Self::LENGTH_MAX],
    length: u8,
}

/// A name that breaks the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is not the name of an arm: it needs 1 to {} lower-case letters, digits, `_` or `-`, and begins with a letter",
    name.escape_debug(),
    ArmName::LENGTH_MAX
)]
pub struct ArmNameError {
    name: String,
}

impl ArmName {
    /// The longest name, in bytes.
    pub const LENGTH_MAX: usize = 32;
    /// The arm of what serves.
    pub const BASELINE: Self = Self::known("baseline");
    /// The arm of the version that a rollout tries.
    pub const CANARY: Self = Self::known("canary");
    /// Requests that name their version; no arm of a split.
    pub const DIRECT: Self = Self::known("direct");
    /// The arm that keeps the old version for a while after a promotion.
    pub const HOLDBACK: Self = Self::known("holdback");

    const fn known(name: &str) -> Self {
        let (from, mut bytes, mut at) = (name.as_bytes(), [0; Self::LENGTH_MAX], 0);
        while at < from.len() {
            bytes[at] = from[at];
            at += 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "known names are short")]
        Self { bytes, length: at as u8 }
    }

    /// Reads a name.
    pub fn parse(name: &str) -> Result<Self, ArmNameError> {
        let allowed =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
        let holds = (1..=Self::LENGTH_MAX).contains(&name.len())
            && name.as_bytes()[0].is_ascii_lowercase()
            && name.bytes().all(allowed);
        if holds {
            return Ok(Self::known(name));
        }
        Err(ArmNameError { name: name.chars().take(Self::LENGTH_MAX).collect() })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("an arm's name is ASCII")
    }

    /// The name as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Debug for ArmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl fmt::Display for ArmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_the_rule() {
        for good in ["a", "canary", "blue-2", "x_y", &"x".repeat(32)] {
            assert_eq!(ArmName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "1", "-a", "A", "a.b", "ä", &"x".repeat(33)] {
            assert!(ArmName::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(ArmName::parse("baseline"), Ok(ArmName::BASELINE));
    }
}
