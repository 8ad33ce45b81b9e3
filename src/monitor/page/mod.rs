//! A page of metrics as values, and the three formats that it is written in.
//!
//! A page is a list of families, a family a list of series with one value each. Always true:
//! - One model, three writers: what a scraper reads does not depend on the format that it asks for, except that only
//!   protobuf carries native histograms and only `OpenMetrics` and protobuf carry exemplars.
//! - A family without series is not written.
//!
//! Not here: which families there are (`exposition`, `admin`).

mod accept;
mod protobuf;
mod text;

use std::time::Duration;

pub use accept::Format;

/// The kind of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows; the family's name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Always 1: its labels are what it says; the family's name ends in `_info`.
    Info,
    /// A distribution.
    Histogram,
}

/// Series of one name.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: String,
    pub(super) help: String,
    pub(super) kind: Kind,
    pub(super) series: Vec<Series>,
}

/// One series: its labels and its value.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) labels: Vec<(String, String)>,
    pub(super) value: Value,
}

/// The value of a series.
#[derive(Debug)]
pub(super) enum Value {
    Number(f64),
    Distribution(Box<Distribution>),
}

/// The value of a histogram, as of one look.
#[derive(Debug, Default)]
pub(super) struct Distribution {
    /// Observations.
    pub(super) count: u64,
    /// Their sum.
    pub(super) sum: f64,
    /// Classic buckets in rising order, without the one up to infinity.
    pub(super) buckets: Vec<Bucket>,
    /// The same observations in exponential buckets.
    pub(super) native: Option<Native>,
    /// A recent observation that has a trace.
    pub(super) exemplar: Option<Exemplar>,
}

/// A classic bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Upper edge, inclusive.
    pub(super) edge: f64,
    /// Observations up to the edge.
    pub(super) below: u64,
}

/// Buckets of a native histogram of [`SCHEMA`].
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Native {
    /// Observations of zero.
    pub(super) zero: u64,
    /// Index and count of each bucket that holds something, in rising order. Index `i` holds values in
    /// `(2^((i-1)/8), 2^(i/8)]`.
    pub(super) buckets: Vec<(i32, u64)>,
}

/// An observation that can be looked up elsewhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exemplar {
    /// Its trace, as W3C Trace Context numbers it.
    pub(super) trace: u128,
    /// The value that was observed.
    pub(super) value: f64,
    /// When it was observed, since 1970.
    pub(super) at: Duration,
}

/// The resolution of native histograms: 2^3 buckets for each doubling of the value, a factor of 1.09 each
/// (Prometheus' native histograms, "Schema").
pub(super) const SCHEMA: i32 = 3;

/// What lies below counts as zero, in seconds: less than a nanosecond.
const ZERO_THRESHOLD: f64 = 1.0 / 1_073_741_824.0;

impl Family {
    /// The name without the suffix that the samples of its kind carry.
    fn base(&self) -> &str {
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => return &self.name,
        };
        self.name.strip_suffix(suffix).unwrap_or(&self.name)
    }

    /// The unit that the name ends in.
    fn unit(&self) -> Option<&'static str> {
        let base = self.base();
        let is_last = |unit: &str| base.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_'));
        ["seconds", "bytes", "ratio"].into_iter().find(|unit| is_last(unit))
    }
}

impl Distribution {
    /// The bucket that the exemplar belongs to: the first one that holds its value, `buckets.len()` beyond the last.
    fn exemplar_place(&self) -> Option<(usize, Exemplar)> {
        let exemplar = self.exemplar?;
        let place = self.buckets.partition_point(|bucket| bucket.edge < exemplar.value);
        Some((place, exemplar))
    }
}

impl Value {
    /// Series that it makes in text, where it makes most.
    fn series(&self) -> usize {
        match self {
            Self::Number(_) => 1,
            Self::Distribution(value) => value.buckets.len() + 3,
        }
    }
}

/// Leaves out what is beyond so many series, from the end; returns the series that remain and those left out.
pub(super) fn bound(families: &mut [Family], most: usize) -> (usize, usize) {
    let (mut kept, mut left_out) = (0, 0);
    for family in families {
        family.series.retain(|series| {
            let own = series.value.series();
            let fits = kept + own <= most;
            *if fits { &mut kept } else { &mut left_out } += own;
            fits
        });
    }
    (kept, left_out)
}

/// Writes families in a format.
pub(super) fn write(families: &[Family], format: Format) -> Vec<u8> {
    match format {
        Format::Text => text::write(families, text::Dialect::Plain).into_bytes(),
        Format::OpenMetrics => text::write(families, text::Dialect::OpenMetrics).into_bytes(),
        Format::Protobuf => protobuf::write(families),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_beyond_the_bound_are_left_out() {
        let all = 3 + 6;
        for (most, expected) in [(all, (all, 0)), (8, (3, 6)), (2, (2, 7)), (0, (0, all))] {
            let mut families = families();
            assert_eq!(bound(&mut families, most), expected, "{most}");
        }
    }

    /// A family of every kind, with what is hard to write.
    pub(super) fn families() -> Vec<Family> {
        let family = |name: &str, kind, series| Family {
            name: name.to_owned(),
            help: "Says \"so\",\nwith a \\.".to_owned(),
            kind,
            series,
        };
        let series = |labels: &[(&str, &str)], value| Series {
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            value,
        };
        let distribution = Distribution {
            count: 4,
            sum: 2.5,
            buckets: vec![
                Bucket { edge: 0.000_025, below: 1 },
                Bucket { edge: 0.5, below: 2 },
                Bucket { edge: 1.0, below: 3 },
            ],
            native: Some(Native { zero: 1, buckets: vec![(-9, 2), (-8, 1), (0, 3)] }),
            exemplar: Some(Exemplar {
                trace: 0xabc,
                value: 0.75,
                at: Duration::from_millis(1_500),
            }),
        };
        let number = Value::Number;
        vec![
            family("a_total", Kind::Counter, vec![series(&[("m", "x\"\\\ny")], number(3.0))]),
            family("b_bytes", Kind::Gauge, vec![series(&[], number(f64::NEG_INFINITY))]),
            family("c_info", Kind::Info, vec![series(&[("version", "1")], number(1.0))]),
            family(
                "d_seconds",
                Kind::Histogram,
                vec![series(&[("m", "x")], Value::Distribution(Box::new(distribution)))],
            ),
            family("nothing", Kind::Gauge, Vec::new()),
        ]
    }
}
