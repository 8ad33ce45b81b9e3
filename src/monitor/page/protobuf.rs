//! Pages as length-delimited protobuf messages `io.prometheus.client.MetricFamily`.
//!
//! Written by hand: six small messages of `io/prometheus/client/metrics.proto`, whose numbers of fields stand beside
//! what is written. The only format with native histograms.

use super::{Distribution, Exemplar, Family, Kind, Native, SCHEMA, Series, Value, ZERO_THRESHOLD};

/// Writes families, each behind its length.
pub(super) fn write(families: &[Family]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut message = Message::default();
    for family in families.iter().filter(|family| !family.series.is_empty()) {
        message.0.clear();
        message.family(family);
        varint(&mut out, message.0.len() as u64);
        out.extend_from_slice(&message.0);
    }
    out
}

/// A message in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// `MetricFamily`: name 1, help 2, type 3, metric 4, unit 5.
    fn family(&mut self, family: &Family) {
        self.text(1, &family.name);
        self.text(2, &family.help);
        self.whole(
            3,
            match family.kind {
                Kind::Counter => 0,
                Kind::Gauge | Kind::Info => 1,
                Kind::Histogram => 4,
            },
        );
        for series in &family.series {
            self.message(4, |metric| metric.metric(family.kind, series));
        }
        if let Some(unit) = family.unit() {
            self.text(5, unit);
        }
    }

    /// `Metric`: label 1, gauge 2, counter 3, histogram 7.
    fn metric(&mut self, kind: Kind, series: &Series) {
        for (name, value) in &series.labels {
            self.message(1, |pair| pair.label(name, value));
        }
        match &series.value {
            Value::Number(number) => {
                let field = if kind == Kind::Counter { 3 } else { 2 };
                self.message(field, |value| value.double(1, *number));
            }
            Value::Distribution(value) => self.message(7, |it| it.histogram(value)),
        }
    }

    /// `LabelPair`: name 1, value 2.
    fn label(&mut self, name: &str, value: &str) {
        self.text(1, name);
        self.text(2, value);
    }

    /// `Histogram`: `sample_count` 1, `sample_sum` 2, bucket 3. `Bucket`: `cumulative_count` 1, `upper_bound` 2,
    /// exemplar 3.
    fn histogram(&mut self, value: &Distribution) {
        self.whole(1, value.count);
        self.double(2, value.sum);
        let exemplar = value.exemplar_place();
        let edges = value.buckets.iter().map(|bucket| (bucket.edge, bucket.below));
        // A native histogram needs no bucket up to infinity; a classic one always has it.
        let last = (value.native.is_none() || !value.buckets.is_empty())
            .then_some((f64::INFINITY, value.count));
        for (place, (edge, below)) in edges.chain(last).enumerate() {
            self.message(3, |bucket| {
                bucket.whole(1, below);
                bucket.double(2, edge);
                if let Some((_, exemplar)) = exemplar.filter(|(own, _)| *own == place) {
                    bucket.message(3, |it| it.exemplar(exemplar));
                }
            });
        }
        if let Some(native) = &value.native {
            self.native(native);
        }
    }

    /// The native half of a `Histogram`: schema 5, `zero_threshold` 6, `zero_count` 7, `positive_span` 12,
    /// `positive_delta` 13. `BucketSpan`: offset 1, length 2.
    fn native(&mut self, native: &Native) {
        self.whole(5, zigzag(SCHEMA.into()));
        self.double(6, ZERO_THRESHOLD);
        self.whole(7, native.zero);
        for (offset, length) in spans(&native.buckets) {
            self.message(12, |span| {
                span.whole(1, zigzag(offset));
                span.whole(2, length);
            });
        }
        let mut deltas = Vec::new();
        let mut before = 0;
        for (_, count) in &native.buckets {
            varint(&mut deltas, zigzag(count.wrapping_sub(before).cast_signed()));
            before = *count;
        }
        if !deltas.is_empty() {
            self.bytes(13, &deltas);
        }
    }

    /// `Exemplar`: label 1, value 2, timestamp 3 (`Timestamp`: seconds 1, nanos 2).
    fn exemplar(&mut self, Exemplar { trace, value, at }: Exemplar) {
        self.message(1, |pair| pair.label("trace_id", &format!("{trace:032x}")));
        self.double(2, value);
        self.message(3, |stamp| {
            stamp.whole(1, at.as_secs());
            stamp.whole(2, at.subsec_nanos().into());
        });
    }

    fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        varint(&mut self.0, field << 3 | 2);
        varint(&mut self.0, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn whole(&mut self, field: u64, value: u64) {
        varint(&mut self.0, field << 3);
        varint(&mut self.0, value);
    }

    fn double(&mut self, field: u64, value: f64) {
        varint(&mut self.0, field << 3 | 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// A message within this one; its length goes before it once it is known.
    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Self)) {
        varint(&mut self.0, field << 3 | 2);
        let start = self.0.len();
        fill(self);
        let length = self.0.len() - start;
        let end = self.0.len();
        varint(&mut self.0, length as u64);
        let shift = self.0.len() - end;
        self.0[start..].rotate_right(shift);
    }
}

/// Runs of neighbouring buckets: the distance from the end of the run before, and the length.
fn spans(buckets: &[(i32, u64)]) -> Vec<(i64, u64)> {
    let mut spans: Vec<(i64, u64)> = Vec::new();
    let mut next = 0i64;
    for (index, _) in buckets {
        let index = i64::from(*index);
        match spans.last_mut() {
            Some((_, length)) if index == next => *length += 1,
            _ => spans.push((index - next, 1)),
        }
        next = index + 1;
    }
    spans
}

fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use super::{super::tests::families, *};

    #[test]
    fn buckets_become_spans_and_deltas() {
        assert_eq!(spans(&[(-9, 2), (-8, 1), (0, 3)]), [(-9, 2), (7, 1)]);
        assert_eq!(spans(&[(0, 1), (1, 1)]), [(0, 2)]);
        assert_eq!(spans(&[]), []);
    }

    #[test]
    fn numbers_are_written_as_protobuf_says() {
        assert_eq!([0, -1, 1, -2].map(zigzag), [0, 1, 2, 3]);
        let mut out = Vec::new();
        varint(&mut out, 300);
        assert_eq!(out, [0xac, 0x02]);
    }

    #[test]
    fn a_counter_is_written_byte_by_byte() {
        let page = write(&families()[..1]);
        let mut expected = vec![62, 0x0a, 7];
        expected.extend_from_slice(b"a_total");
        expected.extend_from_slice(&[0x12, 21]);
        expected.extend_from_slice("Says \"so\",\nwith a \\.".as_bytes());
        expected.extend_from_slice(&[0x18, 0, 0x22, 26, 0x0a, 11, 0x0a, 1, b'm', 0x12, 6]);
        expected.extend_from_slice(b"x\"\\\ny");
        expected.extend_from_slice(&[0x1a, 9, 0x09]);
        expected.extend_from_slice(&3.0f64.to_le_bytes());
        // Lengths of the parts depend on nothing but the words above.
        let (help, label) = ("Says \"so\",\nwith a \\.".len(), "x\"\\\ny".len());
        expected[11] = u8::try_from(help).unwrap();
        let at = 12 + help;
        expected[at + 3] = u8::try_from(2 + 3 + 2 + label + 11).unwrap();
        expected[at + 5] = u8::try_from(3 + 2 + label).unwrap();
        expected[at + 10] = u8::try_from(label).unwrap();
        expected[0] = u8::try_from(expected.len() - 1).unwrap();
        assert_eq!(page, expected);
    }
}
