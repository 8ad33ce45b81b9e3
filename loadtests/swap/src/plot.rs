//! Latencies and memory over time, drawn as SVG: p50 and p99 of every 100 ms on a logarithmic scale, memory below,
//! and a light line for every swap.
//!
//! Not here: anything that is not in the findings.

use std::fmt::Write as _;

use crate::{Options, load::STEP, swapping::Findings};

const WIDTH: f64 = 1_200.0;
const HEIGHT: f64 = 640.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 24.0;
const LATENCY: Panel = Panel { top: 70.0, bottom: 400.0 };
const MEMORY: Panel = Panel { top: 450.0, bottom: 580.0 };
/// More lines than this are a grey area.
const LINES_MAX: usize = 400;

const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#444}.title{font-size:19px;font-weight:600;fill:#111}\
.small{font-size:12px;fill:#777}.grid{stroke:#e8e8e8}.swap{stroke:#f0b429;stroke-opacity:.35}\
.line{fill:none;stroke-width:1.5;stroke-linejoin:round}.p50{stroke:#2b6cb0}.p99{stroke:#c53030}\
.memory{stroke:#2f855a}.frame{fill:none;stroke:#bbb}";

/// Where a drawing stands, from top to bottom.
#[derive(Debug, Clone, Copy)]
struct Panel {
    top: f64,
    bottom: f64,
}

/// Values between two bounds, from bottom to top.
#[derive(Debug, Clone, Copy)]
struct Scale {
    panel: Panel,
    low: f64,
    high: f64,
}

impl Scale {
    fn y(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        self.panel.bottom - share.clamp(0.0, 1.0) * (self.panel.bottom - self.panel.top)
    }
}

/// The drawing.
pub(crate) fn draw(findings: &Findings, options: &Options) -> String {
    let mut svg = Svg::new(findings, options);
    svg.swaps(findings);
    svg.latencies(findings);
    svg.memory(findings);
    svg.time_axis();
    svg.text + "</svg>\n"
}

struct Svg {
    text: String,
    seconds: f64,
}

impl Svg {
    fn new(findings: &Findings, options: &Options) -> Self {
        let seconds = (findings.tally.steps.len() as f64 * STEP.as_secs_f64()).max(1.0);
        let mut svg = Self { text: String::new(), seconds };
        svg.add(&format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">"#
        ));
        svg.add(&format!("<style>{STYLE}</style>"));
        svg.add(&format!(r##"<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>"##));
        let (count, connections) =
            (findings.swaps.len(), options.connections + options.h2_connections);
        let what = options
            .bad
            .map_or("hot swaps".to_owned(), |bad| format!("bad candidates ({})", bad.name()));
        let wrong = findings.tally.wrong();
        svg.label(LEFT, 30.0, "title", &format!("{count} {what} under load"));
        let loop_of = findings.rate.map_or("closed loop".to_owned(), |rate| {
            format!("{rate:.0} requests/s, latency counted from when each was due")
        });
        let right = findings.tally.right;
        let line =
            format!("{connections} connections, {loop_of}; {right} right answers, {wrong} wrong");
        svg.label(LEFT, 52.0, "small", &line);
        svg
    }

    fn add(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn label(&mut self, x: f64, y: f64, class: &str, text: &str) {
        self.add(&format!(r#"<text x="{x:.1}" y="{y:.1}" class="{class}">{text}</text>"#));
    }

    fn x(&self, seconds: f64) -> f64 {
        LEFT + seconds / self.seconds * (WIDTH - LEFT - RIGHT)
    }

    fn swaps(&mut self, findings: &Findings) {
        let skip = findings.swaps.len().div_ceil(LINES_MAX).max(1);
        let mut path = String::new();
        for swap in findings.swaps.iter().step_by(skip) {
            let x = self.x(swap.put_up);
            for panel in [LATENCY, MEMORY] {
                let _ = write!(path, "M{x:.1} {}V{}", panel.top, panel.bottom);
            }
        }
        self.add(&format!(r#"<path class="swap" d="{path}"/>"#));
    }

    fn latencies(&mut self, findings: &Findings) {
        let quantile = |quantile: f64| -> Vec<(f64, f64)> {
            let steps =
                findings.tally.steps.iter().enumerate().filter(|(_, step)| !step.is_empty());
            let ms = |value: u64| (value as f64 / 1e6).max(1e-4).log10();
            let middle = |index: usize| (index as f64 + 0.5) * STEP.as_secs_f64();
            steps.map(|(i, step)| (middle(i), ms(step.value_at_quantile(quantile)))).collect()
        };
        let (p50, p99) = (quantile(0.5), quantile(0.99));
        let lowest = p50.iter().map(|point| point.1).fold(0.0, f64::min).floor();
        let highest = p99.iter().map(|point| point.1).fold(lowest + 1.0, f64::max).ceil();
        let scale = Scale { panel: LATENCY, low: lowest, high: highest };
        let mut power = lowest;
        while power <= highest {
            self.grid(scale.y(power), &milliseconds(10_f64.powf(power)));
            // Light lines at 2 and 5, where they do not crowd.
            for step in [2.0_f64, 5.0] {
                if power < highest && highest - lowest < 3.5 {
                    let value = power + step.log10();
                    self.grid(scale.y(value), &milliseconds(10_f64.powf(value)));
                }
            }
            power += 1.0;
        }
        self.frame(LATENCY, "latency");
        self.line("p50", &p50, &scale);
        self.line("p99", &p99, &scale);
        for (x, class, text) in [
            (WIDTH - 330.0, "p50", "p50 of 100 ms"),
            (WIDTH - 215.0, "p99", "p99 of 100 ms"),
            (WIDTH - 100.0, "swap", "swap"),
        ] {
            self.add(&format!(
                r#"<path class="line {class}" d="M{x} 48h20" style="stroke-width:3;stroke-opacity:1"/>"#
            ));
            self.label(x + 26.0, 52.0, "small", text);
        }
    }

    fn memory(&mut self, findings: &Findings) {
        let points: Vec<(f64, f64)> =
            findings.resident.iter().map(|(at, bytes)| (*at, *bytes as f64 / 1e6)).collect();
        let points: Vec<_> = points.into_iter().filter(|point| point.0 <= self.seconds).collect();
        let highest = points.iter().map(|point| point.1).fold(1.0, f64::max) * 1.1;
        let step = nice_step(highest / 4.0);
        let scale = Scale { panel: MEMORY, low: 0.0, high: highest };
        let mut value = 0.0;
        while value <= highest {
            self.grid(scale.y(value), &format!("{value} MB"));
            value += step;
        }
        self.frame(MEMORY, "resident memory");
        // As many points as there are pixels, the highest of each.
        let skip = points.len().div_ceil(1_200).max(1);
        let highest_of = |chunk: &[(f64, f64)]| {
            (chunk[0].0, chunk.iter().map(|point| point.1).fold(0.0, f64::max))
        };
        self.line("memory", &points.chunks(skip).map(highest_of).collect::<Vec<_>>(), &scale);
    }

    fn grid(&mut self, y: f64, text: &str) {
        self.add(&format!(r#"<path class="grid" d="M{LEFT} {y:.1}H{}"/>"#, WIDTH - RIGHT));
        let (x, y) = (LEFT - 8.0, y + 4.0);
        self.add(&format!(
            r#"<text x="{x}" y="{y:.1}" text-anchor="end" class="small">{text}</text>"#
        ));
    }

    fn frame(&mut self, panel: Panel, name: &str) {
        let (width, height) = (WIDTH - LEFT - RIGHT, panel.bottom - panel.top);
        let top = panel.top;
        self.add(&format!(
            r#"<rect class="frame" x="{LEFT}" y="{top}" width="{width}" height="{height}"/>"#
        ));
        let y = f64::midpoint(panel.top, panel.bottom);
        self.add(&format!(
            r#"<text transform="translate(18 {y}) rotate(-90)" text-anchor="middle">{name}</text>"#
        ));
    }

    fn line(&mut self, class: &str, points: &[(f64, f64)], scale: &Scale) {
        let mut path = String::new();
        for (index, (at, value)) in points.iter().enumerate() {
            let letter = if index == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{letter}{:.1} {:.1}", self.x(*at), scale.y(*value));
        }
        self.add(&format!(r#"<path class="line {class}" d="{path}"/>"#));
    }

    fn time_axis(&mut self) {
        let step = nice_step(self.seconds / 10.0);
        let mut at = 0.0;
        while at <= self.seconds {
            let x = self.x(at);
            let y = MEMORY.bottom + 20.0;
            self.add(&format!(
                r#"<text x="{x:.1}" y="{y}" text-anchor="middle" class="small">{at}</text>"#
            ));
            at += step;
        }
        let (x, y) = (f64::midpoint(LEFT, WIDTH - RIGHT), MEMORY.bottom + 44.0);
        self.add(&format!(r#"<text x="{x}" y="{y}" text-anchor="middle">seconds of load</text>"#));
    }
}

/// 1, 2 or 5 times a power of ten, at least this.
fn nice_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.max(1.0).log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|step| step * power)
        .find(|step| *step >= least)
        .unwrap_or(10.0 * power)
}

fn milliseconds(value: f64) -> String {
    if value < 0.999 { format!("{:.0} us", value * 1e3) } else { format!("{value:.0} ms") }
}

#[cfg(test)]
mod tests {
    use super::{LATENCY, Scale, milliseconds, nice_step};

    #[test]
    fn steps_are_round() {
        let steps = [0.3, 1.0, 1.2, 3.0, 7.0, 30.0, 260.0].map(nice_step);
        let expected = [1.0, 1.0, 2.0, 5.0, 10.0, 50.0, 500.0];
        for (step, expected) in steps.iter().zip(expected) {
            assert!((step - expected).abs() < 1e-9, "{steps:?}");
        }
        assert_eq!((milliseconds(0.2), milliseconds(5.0)), ("200 us".into(), "5 ms".into()));
    }

    #[test]
    fn scales_go_upwards_and_stay_inside() {
        let scale = Scale { panel: LATENCY, low: 0.0, high: 10.0 };
        assert!(scale.y(10.0) < scale.y(5.0) && scale.y(5.0) < scale.y(0.0));
        assert!((scale.y(99.0) - LATENCY.top).abs() < 1e-9);
    }
}
