//! Versions of a model and the states they go through.

use std::fmt;

/// The number of a version; higher is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VersionId(u64);

impl VersionId {
    /// A version of this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Reads a number as repositories and clients write it: digits only, no sign, no leading zero but in `0`.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_digit())
            && (text.len() == 1 || !text.starts_with('0'));
        if plain { text.parse().ok().map(Self) } else { None }
    }

    /// The number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a version stands, in the words of the protocol's repository index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VersionState {
    /// Being fetched, loaded or warmed.
    Loading,
    /// Answers requests.
    Ready,
    /// Let go; the last requests finish.
    Unloading,
    /// Does not answer; a reason says why.
    Unavailable,
}

impl VersionState {
    /// The protocol's word, such as `READY`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loading => "LOADING",
            Self::Ready => "READY",
            Self::Unloading => "UNLOADING",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}

impl fmt::Display for VersionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_numbers_are_versions() {
        assert_eq!(VersionId::parse("17"), Some(VersionId::new(17)));
        assert_eq!(VersionId::parse("0"), Some(VersionId::new(0)));
        for bad in ["", "01", "+1", "-1", "1.0", "v1", "99999999999999999999"] {
            assert_eq!(VersionId::parse(bad), None, "{bad}");
        }
    }
}
