//! Numbers and names of a rollout in the words that people read.
//!
//! Text that somebody else wrote, such as a reason, is made harmless here: for HTML, for Markdown, for a terminal.
//!
//! Not here: pages (`page`), plots (`plot`).

use crate::model::Moment;

use super::{
    evidence::Verdict,
    policy::{Gate, Mode},
    report::{Counts, GateReport, as_f64, as_u64},
    state::State,
};

/// A count with thousands set apart: `12,345`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count in at most five characters: `999`, `5.4k`, `12M`.
pub fn short_count(number: u64) -> String {
    let scaled = |unit: f64, name: &str| {
        let value = as_f64(number) / unit;
        if value < 9.95 { format!("{value:.1}{name}") } else { format!("{value:.0}{name}") }
    };
    match number {
        0..1_000 => number.to_string(),
        1_000..999_500 => scaled(1e3, "k"),
        999_500..999_500_000 => scaled(1e6, "M"),
        _ => scaled(1e9, "G"),
    }
}

/// A share as a percentage with three digits at most: `10 %`, `5.38 %`, `0.043 %`.
pub fn percent(share: f64) -> String {
    format!("{} %", digits(share * 100.0, 3))
}

/// A share of traffic as a percentage, to a hundredth of a percent: `1 %` for the 655/65536 that are in effect.
pub fn share(share: f64) -> String {
    let hundredths = (share * 1e4).round();
    if hundredths < 10.0 { percent(share) } else { format!("{} %", digits(hundredths / 100.0, 4)) }
}

/// A time in UTC, to the second: `2026-11-28 15:51:42 UTC`.
pub fn time(at: Moment) -> String {
    let text = at.to_string();
    match (text.get(..10), text.get(11..19)) {
        (Some(date), Some(time)) => format!("{date} {time} UTC"),
        _ => text,
    }
}

/// A number with this many significant digits, without zeros at the end and without an exponent.
pub fn digits(number: f64, significant: u32) -> String {
    if number == 0.0 || !number.is_finite() {
        return if number.is_finite() { "0".to_owned() } else { "-".to_owned() };
    }
    let magnitude = number.abs().log10().floor();
    // Beyond twelve places nobody reads on.
    let places = as_u64((f64::from(significant) - 1.0 - magnitude).clamp(0.0, 12.0));
    let text = format!("{number:.0$}", usize::try_from(places).unwrap_or(0));
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// A time of some seconds, the two largest units: `12 s`, `2 min 5 s`, `3 h 10 min`.
pub fn seconds(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{} s", digits((seconds.max(0.0) * 10.0).round() / 10.0, 2));
    }
    let whole = as_u64(seconds);
    let two = |large: u64, large_name: &str, small: u64, small_name: &str| match small {
        0 => format!("{large} {large_name}"),
        _ => format!("{large} {large_name} {small} {small_name}"),
    };
    match whole {
        0..60 => format!("{whole} s"),
        60..3_600 => two(whole / 60, "min", whole % 60, "s"),
        3_600..86_400 => two(whole / 3_600, "h", whole / 60 % 60, "min"),
        _ => two(whole / 86_400, "d", whole / 3_600 % 24, "h"),
    }
}

/// The state in words: `awaiting approval`.
pub fn state(state: State) -> &'static str {
    match state {
        State::AwaitingApproval => "awaiting approval",
        State::RolledBack => "rolled back",
        other => other.name(),
    }
}

/// The mode in words.
pub const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Required => "required",
        Mode::IfPresent => "if present",
        Mode::Signal => "signal",
        Mode::Off => "off",
    }
}

/// True if a gate has nothing to show and need not have.
pub fn is_idle(gate: &GateReport) -> bool {
    gate.verdict == Verdict::NoData && gate.mode != Mode::Required
}

/// The verdict in words.
pub const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Collecting => "collecting",
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::NoData => "no data",
    }
}

/// The units that a gate counts events of, and what an event is: `10 of 200 requests failed`.
pub const fn event(gate: Gate) -> &'static str {
    match gate {
        Gate::Errors => "failed",
        Gate::Slow => "were slow",
        Gate::InvalidOutput => "had invalid outputs",
        Gate::Disagreement => "had other outputs",
        Gate::WrongLabel => "had the wrong label",
        Gate::FewerOutcomes => "had the outcome",
        Gate::FewerPositives => "were positive",
        Gate::OutputShift => "moved",
    }
}

/// States what moved, of a gate whose outputs have: `outputs moved: class 2 is 31 % of …`.
pub fn moved(gate: &GateReport) -> Option<String> {
    Some(plain(gate.outputs.as_ref()?.moved.as_ref()?))
}

/// Evidence and where it fires: `1.3 of 5.3`; `-` where it never does.
pub fn evidence(log_e: f64, log_e_threshold: f64) -> String {
    if log_e_threshold > 1e6 {
        return "-".to_owned();
    }
    format!("{} of {}", digits(log_e, 3), digits(log_e_threshold, 3))
}

/// Events of units, with their rate: `13 of 240 (5.42 %)`.
pub fn counts(counts: Counts) -> String {
    let of = format!("{} of {}", count(counts.events), count(counts.requests));
    match rate(counts) {
        Some(rate) => format!("{of} ({})", percent(rate)),
        None => of,
    }
}

/// The share of units with an event.
pub fn rate(counts: Counts) -> Option<f64> {
    (counts.requests > 0).then(|| as_f64(counts.events) / as_f64(counts.requests))
}

/// A ratio with its limits: `5.4 (2.1 to 12)`; open where no large ratio is excluded.
pub fn ratio(ratio: Option<f64>, lower: Option<f64>, upper: Option<f64>) -> String {
    // A lower limit of nothing says nothing.
    let lower = lower.filter(|lower| *lower > 0.0 || upper.is_some());
    let limit = |limit: Option<f64>| limit.map(|limit| digits(limit, 2));
    let limits = match (limit(lower), limit(upper)) {
        (None, None) => None,
        (lower, None) => Some(format!("from {}", lower.unwrap_or_default())),
        (None, Some(upper)) => Some(format!("up to {upper}")),
        (Some(lower), Some(upper)) => Some(format!("{lower} to {upper}")),
    };
    match (ratio.map(|ratio| digits(ratio, 3)), limits) {
        (Some(ratio), Some(limits)) => format!("{ratio} ({limits})"),
        (Some(ratio), None) => ratio,
        (None, Some(limits)) => limits,
        (None, None) => "-".to_owned(),
    }
}

/// Text without control characters, on one line.
pub fn plain(text: &str) -> String {
    let harmless = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    // Marks that reorder text would let a reason rewrite the line that it stands in.
    harmless.filter(|c| !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')).collect()
}

/// Text as it stands in an element or in an attribute in double quotes.
pub fn html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in plain(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Text as it stands within a line of Markdown (`CommonMark`, with the tables of GitHub's).
pub fn markdown(text: &str) -> String {
    let text: Vec<char> = plain(text).chars().collect();
    let mut escaped = String::with_capacity(text.len());
    for (index, c) in text.iter().enumerate() {
        // An underscore within a word is none of emphasis: `log_e` stays readable.
        let within =
            |at: Option<usize>| at.and_then(|at| text.get(at)).is_some_and(|c| c.is_alphanumeric());
        let is_word = *c == '_' && within(index.checked_sub(1)) && within(Some(index + 1));
        if matches!(c, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '&' | '|' | '~') && !is_word
        {
            escaped.push('\\');
        }
        escaped.push(*c);
    }
    escaped
}

/// A name as code in Markdown, also within a table.
pub fn code(text: &str) -> String {
    format!("`{}`", plain(text).replace('`', "'").replace('|', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_exact_enough() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        let short = [999, 1_000, 9_949, 10_000, 999_499, 999_500, 2_000_000_000];
        assert_eq!(short.map(short_count), ["999", "1.0k", "9.9k", "10k", "999k", "1.0M", "2.0G"]);
        let shares = [0.0, 1.0, 0.1, 0.05375, 0.000_431, 0.333_33];
        assert_eq!(shares.map(percent), ["0 %", "100 %", "10 %", "5.38 %", "0.0431 %", "33.3 %"]);
        let weights = [655.0 / 65_536.0, 0.125, 1.0, 0.0005, 0.0];
        assert_eq!(weights.map(share), ["1 %", "12.5 %", "100 %", "0.05 %", "0 %"]);
        let times = [0.0, 0.26, 9.96, 59.7, 125.0, 3_600.0, 11_400.0, 180_000.0];
        assert_eq!(
            times.map(seconds),
            ["0 s", "0.3 s", "10 s", "1 min", "2 min 5 s", "1 h", "3 h 10 min", "2 d 2 h"]
        );
        assert_eq!(ratio(Some(5.42), Some(2.11), Some(12.3)), "5.42 (2.1 to 12)");
        assert_eq!(ratio(Some(5.42), Some(2.11), None), "5.42 (from 2.1)");
        assert_eq!(ratio(None, Some(1.7), None), "from 1.7");
        assert_eq!(ratio(None, Some(0.0), None), "-");
    }

    #[test]
    fn what_others_wrote_is_harmless_everywhere() {
        let wrote =
            "<script>alert('1')</script> & \"q\"\u{1b}[2J\n| log_e *b* _i_ [l](u) `c`\u{202e}";
        assert_eq!(
            html(wrote),
            "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &quot;q&quot; [2J | log_e *b* _i_ [l](u) `c`"
        );
        assert_eq!(
            markdown(wrote),
            "\\<script\\>alert('1')\\</script\\> \\& \"q\" \\[2J \\| log_e \\*b\\* \\_i\\_ \\[l\\](u) \\`c\\`"
        );
        assert_eq!(code("a`b|c\n"), "`a'b/c `");
    }
}
