//! Pages as text: Prometheus' format 0.0.4 and `OpenMetrics` 1.0.
//!
//! The two differ in names of families, units, how numbers of edges are spelled, exemplars and the end. A histogram
//! that has native buckets only shows its count and sum.

use std::fmt::Write as _;

use super::{Distribution, Exemplar, Family, Kind, Value};

/// One of the two formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Prometheus' text format 0.0.4.
    Plain,
    /// `OpenMetrics` 1.0.
    OpenMetrics,
}

type Labels<'a> = &'a [(String, String)];

/// Writes families as text.
pub(super) fn write(families: &[Family], dialect: Dialect) -> String {
    let mut page = Writer { out: String::new(), dialect };
    for family in families.iter().filter(|family| !family.series.is_empty()) {
        page.family(family);
    }
    if dialect == Dialect::OpenMetrics {
        page.out.push_str("# EOF\n");
    }
    page.out
}

struct Writer {
    out: String,
    dialect: Dialect,
}

impl Writer {
    fn family(&mut self, family: &Family) {
        let is_open = self.dialect == Dialect::OpenMetrics;
        let name = if is_open { family.base() } else { &family.name };
        // `OpenMetrics` has no counter without the suffix.
        let is_strange = is_open && family.kind == Kind::Counter && name == family.name;
        self.out.push_str("# HELP ");
        self.out.push_str(name);
        self.out.push(' ');
        escape(&mut self.out, &family.help, is_open);
        let kind = match family.kind {
            Kind::Counter if is_strange => "unknown",
            Kind::Counter => "counter",
            Kind::Info if is_open => "info",
            Kind::Gauge | Kind::Info => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = write!(self.out, "\n# TYPE {name} {kind}\n");
        if let Some(unit) = family.unit().filter(|_| is_open) {
            let _ = writeln!(self.out, "# UNIT {name} {unit}");
        }
        for series in &family.series {
            match &series.value {
                Value::Number(number) => {
                    self.head(&family.name, "", &series.labels, None);
                    self.number(*number);
                    self.out.push('\n');
                }
                Value::Distribution(value) => {
                    self.distribution(&family.name, &series.labels, value);
                }
            }
        }
    }

    fn distribution(&mut self, name: &str, labels: Labels<'_>, value: &Distribution) {
        let exemplar = value.exemplar_place();
        let edges = value.buckets.iter().map(|bucket| (bucket.edge, bucket.below));
        for (place, (edge, below)) in edges.chain([(f64::INFINITY, value.count)]).enumerate() {
            let edge = self.edge(edge);
            self.head(name, "_bucket", labels, Some(&edge));
            let _ = write!(self.out, "{below}");
            if let Some((_, exemplar)) = exemplar.filter(|(own, _)| *own == place) {
                self.exemplar(exemplar);
            }
            self.out.push('\n');
        }
        self.head(name, "_sum", labels, None);
        self.number(value.sum);
        self.out.push('\n');
        self.head(name, "_count", labels, None);
        let _ = writeln!(self.out, "{}", value.count);
    }

    /// The part of a line before its value.
    fn head(&mut self, name: &str, suffix: &str, labels: Labels<'_>, edge: Option<&str>) {
        self.out.push_str(name);
        self.out.push_str(suffix);
        let mut opening = '{';
        let pairs = labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in pairs.chain(edge.map(|edge| ("le", edge))) {
            self.out.push(opening);
            self.out.push_str(name);
            self.out.push_str("=\"");
            escape(&mut self.out, value, true);
            self.out.push('"');
            opening = ',';
        }
        self.out.push_str(if opening == ',' { "} " } else { " " });
    }

    fn number(&mut self, number: f64) {
        if number.is_nan() {
            self.out.push_str("NaN");
        } else if number.is_infinite() {
            self.out.push_str(if number > 0.0 { "+Inf" } else { "-Inf" });
        } else {
            let _ = write!(self.out, "{number}");
        }
    }

    /// An edge as the value of a label. `OpenMetrics` asks for the spelling of Go's `%g` with a point in whole numbers
    /// ("Considerations: Canonical Numbers"), which is the name that Prometheus gives edges of protobuf pages too.
    fn edge(&self, edge: f64) -> String {
        if edge.is_infinite() {
            return "+Inf".to_owned();
        }
        if self.dialect == Dialect::Plain {
            return edge.to_string();
        }
        if edge >= 1e-4 {
            return format!("{edge:?}");
        }
        let text = format!("{edge:e}");
        match text.split_once("e-") {
            Some((digits, exponent)) => format!("{digits}e-{exponent:0>2}"),
            None => text,
        }
    }

    fn exemplar(&mut self, Exemplar { trace, value, at }: Exemplar) {
        if self.dialect == Dialect::OpenMetrics {
            let at = at.as_secs_f64();
            let _ = write!(self.out, " # {{trace_id=\"{trace:032x}\"}} {value} {at:.3}");
        }
    }
}

/// Writes text with its backslashes, ends of lines and, if `quotes`, its quotation marks escaped.
fn escape(out: &mut String, text: &str, quotes: bool) {
    let mut rest = text;
    while let Some(at) = rest.find(['\\', '\n', '"']) {
        out.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            b'\n' => out.push_str("\\n"),
            b'"' if !quotes => out.push('"'),
            b'"' => out.push_str("\\\""),
            _ => out.push_str("\\\\"),
        }
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::{super::tests::families, *};

    #[test]
    fn plain_text_is_as_prometheus_reads_it() {
        let expected = r#"# HELP a_total Says "so",\nwith a \\.
# TYPE a_total counter
a_total{m="x\"\\\ny"} 3
# HELP b_bytes Says "so",\nwith a \\.
# TYPE b_bytes gauge
b_bytes -Inf
# HELP c_info Says "so",\nwith a \\.
# TYPE c_info gauge
c_info{version="1"} 1
# HELP d_seconds Says "so",\nwith a \\.
# TYPE d_seconds histogram
d_seconds_bucket{m="x",le="0.000025"} 1
d_seconds_bucket{m="x",le="0.5"} 2
d_seconds_bucket{m="x",le="1"} 3
d_seconds_bucket{m="x",le="+Inf"} 4
d_seconds_sum{m="x"} 2.5
d_seconds_count{m="x"} 4
"#;
        assert_eq!(write(&families(), Dialect::Plain), expected);
    }

    #[test]
    fn openmetrics_has_units_exemplars_and_an_end() {
        let expected = r#"# HELP a Says \"so\",\nwith a \\.
# TYPE a counter
a_total{m="x\"\\\ny"} 3
# HELP b_bytes Says \"so\",\nwith a \\.
# TYPE b_bytes gauge
# UNIT b_bytes bytes
b_bytes -Inf
# HELP c Says \"so\",\nwith a \\.
# TYPE c info
c_info{version="1"} 1
# HELP d_seconds Says \"so\",\nwith a \\.
# TYPE d_seconds histogram
# UNIT d_seconds seconds
d_seconds_bucket{m="x",le="2.5e-05"} 1
d_seconds_bucket{m="x",le="0.5"} 2
d_seconds_bucket{m="x",le="1.0"} 3 # {trace_id="00000000000000000000000000000abc"} 0.75 1.500
d_seconds_bucket{m="x",le="+Inf"} 4
d_seconds_sum{m="x"} 2.5
d_seconds_count{m="x"} 4
# EOF
"#;
        assert_eq!(write(&families(), Dialect::OpenMetrics), expected);
    }
}
