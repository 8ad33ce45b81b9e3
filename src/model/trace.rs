//! The place of a request in a distributed trace, as W3C Trace Context writes it
//! (<https://www.w3.org/TR/trace-context/>, Recommendation of 2021; the flag `random` is that of level 2).
//!
//! Always true: neither a trace nor a span has the id 0.
//!
//! Not here: which requests are traced (`edge`).

/// A request's place in a trace: the span that answers it, and the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// The whole trace.
    pub id: u128,
    /// The span of the request here.
    pub span: u64,
    /// The caller's span; `None` if the trace begins here.
    pub parent: Option<u64>,
    /// True if the trace is recorded.
    pub is_sampled: bool,
    /// True if the right-most 56 bits of the id are random.
    pub is_random: bool,
}

const SAMPLED: u8 = 0x01;
const RANDOM: u8 = 0x02;

/// Bits of an id that are random by level 2.
const RANDOM_BITS: u32 = 56;

impl Trace {
    /// Bytes of `00-<trace>-<span>-<flags>`.
    pub const BYTES: usize = 55;

    /// Continues the trace of a `traceparent`, with this number for the request's own span.
    ///
    /// `None` if it is not valid: then its `tracestate` counts for nothing either, and the trace begins here (3.2.2.1
    /// and 4.3). A version from the future is read by the fields that it has in common with 00.
    #[must_use]
    pub fn continued(traceparent: &[u8], span: u64) -> Option<Self> {
        let (known, more) = traceparent.split_at_checked(Self::BYTES)?;
        let version = hexadecimal(&known[..2])?;
        let is_delimited = [2, 35, 52].iter().all(|at| known[*at] == b'-');
        let is_whole = match version {
            0 => more.is_empty(),
            0xff => false,
            _ => more.first().is_none_or(|byte| *byte == b'-'),
        };
        let id = hexadecimal(&known[3..35])?;
        let parent = u64::try_from(hexadecimal(&known[36..52])?).ok()?;
        let flags = u8::try_from(hexadecimal(&known[53..])?).ok()?;
        let is_valid = is_delimited && is_whole && id != 0 && parent != 0;
        is_valid.then(|| Self {
            id,
            span: span.max(1),
            parent: Some(parent),
            is_sampled: flags & SAMPLED != 0,
            is_random: flags & RANDOM != 0,
        })
    }

    /// A trace that begins with the request, of these random numbers, if its id is among this share of all.
    #[must_use]
    pub fn begun(share: f64, id: u128, span: u64) -> Option<Self> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of all numbers"
        )]
        let threshold = (share * (1_u64 << RANDOM_BITS) as f64) as u128;
        let random = id & ((1 << RANDOM_BITS) - 1);
        (random < threshold).then(|| Self {
            id: id.max(1),
            span: span.max(1),
            parent: None,
            is_sampled: true,
            is_random: true,
        })
    }

    /// The id of the whole trace, in 32 digits.
    #[must_use]
    pub fn id_text(&self) -> String {
        format!("{:032x}", self.id)
    }

    /// Its `traceparent`, for whoever asked.
    #[must_use]
    pub fn traceparent(&self) -> [u8; Self::BYTES] {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(self.is_sampled, SAMPLED) | flag(self.is_random, RANDOM);
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write(&mut text[3..35], self.id);
        write(&mut text[36..52], self.span.into());
        write(&mut text[53..], flags.into());
        text
    }
}

/// Reads hexadecimal digits, of which only small ones are allowed.
fn hexadecimal(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

fn write(digits: &mut [u8], mut number: u128) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 0xf) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification.
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_trace_goes_on_with_a_span_of_its_own() {
        let trace = Trace::continued(PARENT.as_bytes(), 0x1234).unwrap();
        assert_eq!(trace.parent, Some(0x00f0_67aa_0ba9_02b7));
        assert!(trace.is_sampled && !trace.is_random);
        let told = "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000001234-01";
        assert_eq!(std::str::from_utf8(&trace.traceparent()).unwrap(), told);
        let flags = |flags: &str| {
            let parent = PARENT.replace("-01", flags);
            let told = Trace::continued(parent.as_bytes(), 1).unwrap().traceparent();
            String::from_utf8(told[53..].to_vec()).unwrap()
        };
        assert_eq!(["-00", "-02", "-03", "-fc", "-ff"].map(flags), ["00", "02", "03", "00", "03"]);
    }

    #[test]
    fn what_the_specification_forbids_is_no_parent() {
        let check = |traceparent: &str, valid: bool| {
            let trace = Trace::continued(traceparent.as_bytes(), 1);
            assert_eq!(trace.is_some(), valid, "{traceparent}");
        };
        let zero = |from: &str| PARENT.replace(from, &"0".repeat(from.len()));
        check(PARENT, true);
        check("", false);
        check(&zero("4bf92f3577b34da6a3ce929d0e0e4736"), false);
        check(&zero("00f067aa0ba902b7"), false);
        check(&PARENT.to_uppercase(), false);
        check(&PARENT.replace("4bf9", "4bg9"), false);
        check(&PARENT[..54], false);
        check(&format!("{PARENT} "), false);
        check(&format!("{PARENT}-00"), false);
        check(&PARENT.replacen('-', "_", 1), false);
        check(&PARENT.replace("736-", "7360"), false);
        check(&PARENT.replacen("00", "ff", 1), false);
        check(&PARENT.replacen("00", "0", 1), false);
        let future = PARENT.replacen("00", "cc", 1);
        check(&future, true);
        check(&format!("{future}-what-the-future-will-be-like"), true);
        check(&format!("{future}."), false);
    }

    #[test]
    fn a_share_of_ids_begins_a_trace() {
        let begun = |share, id| Trace::begun(share, id, 0);
        let half = 1_u128 << 55;
        assert_eq!(begun(0.0, 7), None);
        assert_eq!(begun(0.5, half), None);
        assert_eq!(begun(1.0, u128::MAX).unwrap().id, u128::MAX);
        let trace = begun(0.5, (1 << 127) + half - 1).unwrap();
        assert!(trace.is_sampled && trace.is_random && trace.parent.is_none() && trace.span == 1);
        assert_eq!(begun(1.0, 0).unwrap().id, 1, "an id is not 0");
    }
}
