//! The evidence of a gate as a plot: an SVG drawing by itself, or inline in a page.
//!
//! Evidence is drawn as its natural logarithm, over the candidate's requests; the gate fires where the line meets
//! the threshold. Colours follow the reader's light or dark scheme. There is no script and nothing is fetched.
//!
//! Not here: the page around it (`page`).

use std::fmt::Write as _;

use super::{
    report::{Point, as_f64, as_u64},
    trace::{GateTrace, Trace},
    words::{count, digits, html, share},
};

/// A plot's width and height in pixels; text is 12 pixels high at this size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// At least 240.
    pub width: u32,
    /// At least 160.
    pub height: u32,
}

/// Colours of plots, for the page or the drawing that they stand in.
pub(super) const STYLE: &str = "\
.plot{--line:#1f6feb;--bad:#c62828;--ink:#24292f;--faint:#6b7280;--grid:#e2e5e9;font:12px system-ui,sans-serif}
.plot text{fill:var(--faint)}.plot .title{fill:var(--ink);font-weight:600;font-size:13px}
.plot .grid{stroke:var(--grid);stroke-width:1}.plot .axis{fill:none;stroke:var(--faint);stroke-width:1}
.plot .step{stroke:var(--faint);stroke-width:1;stroke-dasharray:2 3;opacity:.7}
.plot .threshold{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:6 4}.plot .limit{fill:var(--bad)}
.plot .path{fill:none;stroke:var(--line);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.plot .end{fill:var(--line)}.plot.fired .path{stroke:var(--bad)}.plot.fired .end{fill:var(--bad)}
@media(prefers-color-scheme:dark){.plot{--line:#6cb0ff;--bad:#ff7b72;--ink:#e6edf3;--faint:#9aa4b0;--grid:#2b3138}}
";

/// The margins in pixels.
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 42.0;
/// Room in pixels for a character of a label.
const CHARACTER_WIDTH: f64 = 7.5;
/// Most steps whose begin is drawn.
const STEPS_MAX: usize = 20;

/// The drawing of a gate as a file of its own.
pub fn svg(trace: &Trace, gate: &GateTrace, size: Size) -> String {
    let drawing = drawing(trace, gate, size);
    drawing.replacen("<title>", &format!("<style>\n{STYLE}</style>\n<title>"), 1)
}

/// Scale that maps a plot's values to the drawing.
struct Scale {
    size: Size,
    requests: f64,
    bottom: f64,
    top: f64,
}

impl Scale {
    /// A scale that holds the path and the threshold. Values far below zero, evidence for the candidate, are cut off.
    fn of(gate: &GateTrace, size: Size) -> Self {
        let threshold = gate.log_e_threshold.clamp(1.0, 1e3);
        let values = || gate.points.iter().map(|point| point.log_e);
        let (low, high) = values()
            .fold((0.0_f64, threshold), |(low, high), log_e| (low.min(log_e), high.max(log_e)));
        let requests = gate.points.last().map_or(1, |point| point.requests.max(1));
        Self {
            size,
            requests: as_f64(requests),
            bottom: low.max(-threshold),
            top: high.min(3.0 * threshold) + 0.12 * threshold,
        }
    }

    fn x(&self, requests: u64) -> f64 {
        let width = f64::from(self.size.width) - LEFT - RIGHT;
        LEFT + width * (as_f64(requests) / self.requests).min(1.0)
    }

    fn y(&self, log_e: f64) -> f64 {
        let height = f64::from(self.size.height) - TOP - BOTTOM;
        let log_e = log_e.clamp(self.bottom, self.top);
        TOP + height * (self.top - log_e) / (self.top - self.bottom)
    }

    fn floor(&self) -> f64 {
        f64::from(self.size.height) - BOTTOM
    }

    fn right(&self) -> f64 {
        f64::from(self.size.width) - RIGHT
    }
}

/// The drawing without its colours, which [`STYLE`] has.
pub(super) fn drawing(trace: &Trace, gate: &GateTrace, size: Size) -> String {
    let size = Size { width: size.width.max(240), height: size.height.max(160) };
    let scale = Scale::of(gate, size);
    let last = gate.points.last();
    let fired = gate.decides && last.is_some_and(|last| last.log_e >= gate.log_e_threshold);
    let (width, height, class) = (size.width, size.height, if fired { " fired" } else { "" });
    let name = html(gate.gate.name());
    let (end, at) = last.map_or((0.0, 0), |last| (last.log_e, last.requests));
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot{class}\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" role=\"img\">\n\
         <title>Evidence of gate {name} over the candidate's requests: {} after {}, threshold {}</title>\n",
        digits(end, 3),
        count(at),
        digits(gate.log_e_threshold, 3)
    );
    let note = if gate.decides { "" } else { " (signal: decides nothing)" };
    let _ = writeln!(
        text,
        "<text class=\"title\" x=\"8\" y=\"17\">{name}{note}: evidence that the candidate is worse</text>"
    );
    axes(&mut text, &scale);
    steps(&mut text, trace, &scale);
    threshold(&mut text, gate, &scale);
    path(&mut text, &gate.points, &scale);
    text.push_str("</svg>\n");
    text
}

/// The grid, its numbers and what they are.
fn axes(text: &mut String, scale: &Scale) {
    let (floor, right) = (scale.floor(), scale.right());
    for tick in ticks(scale.bottom, scale.top, 5) {
        let y = scale.y(tick);
        let _ = writeln!(
            text,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            digits(tick, 4).replace('-', "\u{2212}")
        );
    }
    let wide = if scale.size.width > 480 { 7 } else { 4 };
    for tick in ticks(0.0, scale.requests, wide).into_iter().filter(|tick| tick.fract() == 0.0) {
        let requests = as_u64(tick);
        let x = scale.x(requests);
        // The last number must not reach beyond the drawing.
        let anchor = if x > right - 18.0 { "end" } else { "middle" };
        let _ = writeln!(
            text,
            "<path class=\"axis\" d=\"M{x:.1} {floor:.1}v4\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            floor + 16.0,
            count(requests)
        );
    }
    let middle = f64::midpoint(TOP, floor);
    let _ = writeln!(
        text,
        "<path class=\"axis\" d=\"M{LEFT} {TOP}V{floor:.1}H{right:.1}\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">judged requests of the candidate</text>\n\
         <text transform=\"translate(13 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">log e (natural)</text>",
        f64::midpoint(LEFT, right),
        floor + 34.0
    );
}

/// Marks where steps began, with their shares as far as there is room.
fn steps(text: &mut String, trace: &Trace, scale: &Scale) {
    let mut free = LEFT;
    for step in trace.steps.iter().take(STEPS_MAX) {
        let x = scale.x(step.requests);
        if step.requests > 0 {
            let _ = writeln!(
                text,
                "<path class=\"step\" d=\"M{x:.1} {:.1}V{:.1}\"/>",
                TOP - 4.0,
                scale.floor()
            );
        }
        let what = if free > LEFT || scale.size.width < 480 { "" } else { "share " };
        let label = format!("{what}{}", share(step.weight));
        let width = CHARACTER_WIDTH * as_f64(label.len() as u64);
        if x >= free && x + width <= scale.right() {
            let _ = writeln!(text, "<text x=\"{x:.1}\" y=\"{:.1}\">{label}</text>", TOP - 9.0);
            free = x + width;
        }
    }
}

fn threshold(text: &mut String, gate: &GateTrace, scale: &Scale) {
    let y = scale.y(gate.log_e_threshold);
    let what = if gate.decides { "rolls back at" } else { "would roll back at" };
    let odds = as_u64(gate.log_e_threshold.exp().min(1e15));
    let _ = writeln!(
        text,
        "<path class=\"threshold\" d=\"M{LEFT} {y:.1}H{:.1}\"/>\
         <text class=\"limit\" x=\"{:.1}\" y=\"{:.1}\">{what} {} (e = {})</text>",
        scale.right(),
        LEFT + 6.0,
        y + 15.0,
        digits(gate.log_e_threshold, 3),
        count(odds)
    );
}

fn path(text: &mut String, points: &[Point], scale: &Scale) {
    let mut line = format!("M{:.1} {:.1}", scale.x(0), scale.y(0.0));
    for point in points {
        let _ = write!(line, "L{:.1} {:.1}", scale.x(point.requests), scale.y(point.log_e));
    }
    let _ = writeln!(text, "<path class=\"path\" d=\"{line}\"/>");
    if let Some(last) = points.last() {
        let (x, y) = (scale.x(last.requests), scale.y(last.log_e));
        let _ = writeln!(text, "<circle class=\"end\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>");
    }
}

/// Round numbers in a range, about so many.
fn ticks(low: f64, high: f64, about: u32) -> Vec<f64> {
    let rough = (high - low).max(1e-9) / f64::from(about);
    let power = 10.0_f64.powf(rough.log10().floor());
    let stride = [1.0, 2.0, 5.0].into_iter().map(|digit| digit * power);
    let stride = stride.into_iter().find(|stride| *stride >= rough).unwrap_or(10.0 * power);
    let first = (low / stride).ceil();
    (0..=3 * about)
        .map(|index| (first + f64::from(index)) * stride)
        .take_while(|tick| *tick <= high)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::model::Moment;

    use super::{
        super::{policy::Gate, trace::Entered},
        *,
    };

    fn gate(log_e: &[f64]) -> GateTrace {
        let points = log_e.iter().zip(1..).map(|(log_e, number)| Point {
            at: Moment::at(Duration::from_secs(number)),
            requests: number * 10,
            log_e: *log_e,
        });
        let points = points.collect();
        GateTrace { gate: Gate::Errors, decides: true, log_e_threshold: 5.3, points }
    }

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(ticks(0.0, 1.25, 5), [0.0, 0.5, 1.0]);
        assert_eq!(ticks(-2.1, 6.0, 5), [-2.0, 0.0, 2.0, 4.0, 6.0]);
        assert_eq!(ticks(0.0, 4512.0, 5), [0.0, 1000.0, 2000.0, 3000.0, 4000.0]);
        assert!(ticks(0.0, 0.0, 5).len() < 20);
    }

    #[test]
    fn a_drawing_has_titles_units_and_a_threshold_and_stays_within_its_frame() {
        let trace = Trace {
            steps: vec![
                Entered { requests: 0, weight: 0.01 },
                Entered { requests: 20, weight: 0.1 },
            ],
            gates: vec![gate(&[0.0, -900.0, 1.2, f64::MAX])],
        };
        let size = Size { width: 640, height: 260 };
        let text = svg(&trace, &trace.gates[0], size);
        for part in [
            "plot fired",
            "<style>",
            "judged requests of the candidate",
            "log e (natural)",
            "rolls back at 5.3 (e = 200)",
            ">share 1 %<",
            ">10 %<",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        for pair in text.split(['M', 'L']).skip(1) {
            let numbers: Vec<f64> =
                pair.split(['"', ' ', 'V', 'H', 'v']).map_while(|n| n.parse().ok()).collect();
            assert!(numbers.iter().all(|number| (0.0..=640.0).contains(number)), "{pair}");
        }
        // Nothing at all can be drawn, too.
        let empty = svg(&Trace::default(), &gate(&[]), Size { width: 1, height: 1 });
        assert!(empty.contains("width=\"240\"") && !empty.contains("NaN"), "{empty}");
    }
}
