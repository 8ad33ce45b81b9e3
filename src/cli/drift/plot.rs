//! A feature's drift as an SVG drawing: where values fall, now and in the reference, and how the index went.
//!
//! The bins stand side by side with the same width: those of the reference have about the same mass, so that what
//! drifts stands out, and what the index is made of is what is seen. Colours follow the reader's light or dark
//! scheme, on a background of their own. There is no script and nothing is fetched.

use std::fmt::Write as _;

use crate::{
    drift::{DriftReport, FeatureReport},
    rollout::words::{count, digits, html, percent},
};

use super::{
    super::terminal::shortened,
    words::{Bin, PSI_CONSPICUOUS, index, is_conspicuous, spelled},
};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
/// Top and floor of the histogram, and of the path below it.
const BARS: (f64, f64) = (64.0, 256.0);
const PATH: (f64, f64) = (366.0, 446.0);
/// Pixels of a character of a label.
const CHARACTER_WIDTH: f64 = 6.6;
/// Characters of a label that is turned.
const LABEL_MAX: usize = 20;

const STYLE: &str = "\
.drift{--paper:#fff;--live:#1f6feb;--bad:#c62828;--own:#8c96a3;--ink:#24292f;--faint:#57606a;--grid:#e2e5e9;\
font:12px system-ui,sans-serif}
.drift text{fill:var(--faint)}.drift .title{fill:var(--ink);font-weight:600;font-size:14px}
.drift .paper{fill:var(--paper)}.drift .own{fill:var(--own)}.drift .live{fill:var(--live)}
.drift .grid{stroke:var(--grid)}.drift .axis{fill:none;stroke:var(--faint)}
.drift .limit{stroke:var(--bad);stroke-dasharray:6 4;fill:none}.drift .at{fill:var(--bad)}
.drift .path{fill:none;stroke:var(--live);stroke-width:2;stroke-linejoin:round}
.drift.drifting .live{fill:var(--bad)}.drift.drifting .path{stroke:var(--bad)}
@media(prefers-color-scheme:dark){.drift{--paper:#0d1117;--live:#6cb0ff;--bad:#ff7b72;--own:#7d8590;--ink:#e6edf3;\
--faint:#9aa4b0;--grid:#2b3138}}
";

/// The drawing as a file of its own.
pub(super) fn svg(report: &DriftReport, feature: &FeatureReport) -> String {
    let bins = Bin::of(feature);
    let class = if is_conspicuous(feature) { " drifting" } else { "" };
    let (name, model, version) = (html(&feature.name), html(&report.model), html(&report.version));
    let about = format!(
        "{name} of {model}, version {version}: PSI {}, JS {}",
        index(feature.psi, true),
        index(feature.js, true)
    );
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"drift{class}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" aria-labelledby=\"title about\">\n<style>\n{STYLE}</style>\n\
         <title id=\"title\">{about}</title>\n<desc id=\"about\">{}</desc>\n\
         <rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n\
         <text class=\"title\" x=\"12\" y=\"24\">{about}</text>\n",
        html(&described(&bins))
    );
    legend(&mut text, report, feature);
    histogram(&mut text, &bins);
    path(&mut text, feature);
    text.push_str("</svg>\n");
    text
}

/// The histogram in words: the bins whose shares changed most.
fn described(bins: &[Bin]) -> String {
    let mut bins: Vec<&Bin> = bins.iter().collect();
    let change = |bin: &Bin| (bin.current - bin.reference).abs();
    bins.sort_by(|a, b| change(b).total_cmp(&change(a)));
    let told = bins.iter().take(3).map(|bin| {
        format!(
            "{}: {} where the reference has {}",
            bin.label,
            percent(bin.current),
            percent(bin.reference)
        )
    });
    format!("Shares that changed most. {}", told.collect::<Vec<_>>().join("; "))
}

fn legend(text: &mut String, report: &DriftReport, feature: &FeatureReport) {
    let own = format!("reference, {} values", count(feature.reference.iter().sum()));
    let live = format!("last {}, {} values", spelled(report.window_seconds), count(feature.rows));
    let mut x = 12.0;
    for (class, label) in [("own", own), ("live", live)] {
        let _ = writeln!(
            text,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"36\" width=\"11\" height=\"11\"/>\
             <text x=\"{:.1}\" y=\"46\">{label}</text>",
            x + 17.0
        );
        x += 48.0 + CHARACTER_WIDTH * pixels(label.len());
    }
}

fn histogram(text: &mut String, bins: &[Bin]) {
    let (top, floor) = BARS;
    let most = bins.iter().map(|bin| bin.reference.max(bin.current)).fold(0.0, f64::max);
    // A share of everything reaches the top.
    let (stride, most) = scale(most.max(0.01), 4.0);
    let y = |share: f64| floor - (floor - top) * share / most;
    grid(text, (stride, most), y, percent);
    let width = (WIDTH - LEFT - RIGHT) / pixels(bins.len().max(1));
    let longest = bins.iter().map(|bin| bin.label.chars().count()).max().unwrap_or(0);
    let is_turned = pixels(longest) * CHARACTER_WIDTH + 6.0 > width;
    for (number, bin) in bins.iter().enumerate() {
        let left = LEFT + width * pixels(number);
        let bar = (width * 0.4).min(48.0);
        let middle = left + width / 2.0;
        let label = html(&bin.label);
        let _ = write!(
            text,
            "<g><title>{label}: {} where the reference has {}</title>",
            percent(bin.current),
            percent(bin.reference)
        );
        for (class, x, share) in
            [("own", middle - bar, bin.reference), ("live", middle, bin.current)]
        {
            let y = y(share);
            let _ = write!(
                text,
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                (bar - 1.0).max(1.0),
                floor - y
            );
        }
        let under = floor + 15.0;
        let label = html(&shortened(&bin.label, LABEL_MAX));
        let place = if is_turned {
            format!(
                "transform=\"translate({:.1} {under:.1}) rotate(-35)\" text-anchor=\"end\"",
                middle + 4.0
            )
        } else {
            format!("x=\"{middle:.1}\" y=\"{under:.1}\" text-anchor=\"middle\"")
        };
        let _ = writeln!(text, "<text {place}>{label}</text></g>");
    }
    let _ = writeln!(text, "<path class=\"axis\" d=\"M{LEFT} {floor}H{:.1}\"/>", WIDTH - RIGHT);
}

/// The index minute by minute, and where it is conspicuous.
fn path(text: &mut String, feature: &FeatureReport) {
    let ((top, floor), minutes) = (PATH, &feature.psi_minutes);
    let _ = writeln!(
        text,
        "<text x=\"12\" y=\"{:.1}\">PSI beyond noise, minute by minute; the newest at the right</text>",
        top - 12.0
    );
    if minutes.is_empty() {
        let y = f64::midpoint(top, floor);
        let _ = writeln!(text, "<text x=\"{LEFT}\" y=\"{y:.1}\">no values in the last hour</text>");
        return;
    }
    let highest = minutes.iter().copied().fold(2.5 * PSI_CONSPICUOUS, f64::max);
    let (stride, most) = scale(highest, 2.0);
    let y = |psi: f64| floor - (floor - top) * psi / most;
    grid(text, (stride, most), y, |psi| digits(psi, 2));
    let (limit, right) = (y(PSI_CONSPICUOUS), WIDTH - RIGHT);
    let _ = writeln!(
        text,
        "<path class=\"limit\" d=\"M{LEFT} {limit:.1}H{right:.1}\"/>\
         <text class=\"at\" x=\"{:.1}\" y=\"{:.1}\">conspicuous from {PSI_CONSPICUOUS}</text>",
        LEFT + 6.0,
        limit - 4.0
    );
    let between = (right - LEFT - 8.0) / pixels(minutes.len().max(2) - 1);
    let x = |number: usize| right - 8.0 - between * pixels(minutes.len() - 1 - number);
    let points = minutes.iter().enumerate();
    let points = points.map(|(number, psi)| format!("{:.1} {:.1}", x(number), y(*psi)));
    let points: Vec<String> = points.collect();
    let _ = writeln!(text, "<path class=\"path\" d=\"M{}\"/>", points.join("L"));
    let last = minutes.len() - 1;
    let _ = writeln!(
        text,
        "<circle class=\"live\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"/>\
         <path class=\"axis\" d=\"M{LEFT} {floor}H{right:.1}\"/>",
        x(last),
        y(minutes[last])
    );
}

/// Lines at round values, with their names.
fn grid(
    text: &mut String,
    (stride, most): (f64, f64),
    y: impl Fn(f64) -> f64,
    name: impl Fn(f64) -> String,
) {
    let mut tick = stride;
    while tick <= most * 1.001 {
        let at = y(tick);
        let _ = writeln!(
            text,
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            name(tick)
        );
        tick += stride;
    }
}

/// A round stride that makes about so many steps up to a value, and the multiple of it that holds the value.
fn scale(most: f64, steps: f64) -> (f64, f64) {
    let rough = most / steps;
    let power = 10.0_f64.powf(rough.log10().floor());
    let stride = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power);
    let stride = stride.into_iter().find(|stride| *stride >= rough * 0.999).unwrap_or(rough);
    (stride, stride * (most / stride - 1e-9).ceil())
}

#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn pixels(count: usize) -> f64 {
    count as f64
}
