//! The families of the page that Prometheus scrapes.
//!
//! They are built from merged shards when somebody scrapes. Names follow Prometheus' conventions: prefix
//! `tidegate_`, base units, `_total` for counters.
//!
//! Not here: how a page is written (`page`).

use std::time::Duration;

use crate::model::{ArmName, ModelName, VersionId};

use super::{
    Code, Format, Ledger, Monitor, Part, Phase, ShadowTotals, Spread, VersionTotals,
    page::{self, Bucket, Distribution, Exemplar, Family, Kind, Series, Value},
    upkeep,
};

/// A page in the making.
#[derive(Debug, Default)]
pub struct Exposition {
    families: Vec<Family>,
}

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Exposition {
    /// Everything that the recorders hold.
    #[must_use]
    pub fn of(monitor: &Monitor) -> Self {
        let mut page = Self::default();
        page.server(monitor);
        page.models(monitor);
        let ledger = monitor.upkeep().read();
        page.loads(&ledger);
        page.versions(&ledger);
        page.standing(&ledger);
        let help = "Log lines that were dropped because nobody read them.";
        let dropped = counter(&[], monitor.upkeep().dropped_lines());
        page.counters("tidegate_log_lines_dropped_total", help, [dropped]);
        let help = "Lines of the access log that were dropped.";
        let dropped = monitor.upkeep().dropped_access_lines().map(|lines| counter(&[], lines));
        page.counters("tidegate_access_lines_dropped_total", help, dropped);
        let help = "Sampled requests whose spans were dropped.";
        let dropped = monitor.upkeep().dropped_traces().map(|requests| counter(&[], requests));
        page.counters("tidegate_traced_requests_dropped_total", help, dropped);
        page
    }

    /// Adds a family of gauges: labels and value of each.
    pub fn gauges(&mut self, name: &str, help: &str, values: &[(Vec<(&str, &str)>, f64)]) {
        let series = values.iter().map(|(labels, value)| labelled(Value::Number(*value), labels));
        self.family(name, help, Kind::Gauge, series.collect());
    }

    /// Adds a family of counters: labels and value of each.
    pub fn counts<'a>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (Vec<(&'a str, String)>, u64)>,
    ) {
        let metrics = values.map(|(labels, value)| {
            let labels: Vec<_> = labels.iter().map(|(key, text)| (*key, text.as_str())).collect();
            counter(&labels, value)
        });
        self.counters(name, help, metrics);
    }

    /// Adds a family of one series that is always 1: its labels are what it says. The name ends in `_info`.
    pub fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) {
        self.family(name, help, Kind::Info, vec![labelled(Value::Number(1.0), labels)]);
    }

    /// Writes the page.
    #[must_use]
    pub fn write(&self, format: Format) -> Vec<u8> {
        page::write(&self.families, format)
    }

    fn server(&mut self, monitor: &Monitor) {
        let server = monitor.server();
        let answers = server.answers();
        let answers =
            answers.iter().map(|(code, n)| counter(&[("code", &code.status().to_string())], *n));
        self.counters(
            "tidegate_http_responses_total",
            "Answers on the data plane, by status.",
            answers,
        );
        let refused = [counter(&[], server.heads_refused())];
        let help = "Requests whose head the HTTP parser refused; their answer has no body.";
        self.counters("tidegate_http_heads_refused_total", help, refused);
        let lost = [counter(&[], server.workers_lost())];
        let help = "Workers that did not come back from a run in time and were replaced.";
        self.counters("tidegate_workers_lost_total", help, lost);
        let (open, opened) = server.connections();
        let help = "Connections taken on the data plane.";
        self.counters("tidegate_http_connections_total", help, [counter(&[], opened)]);
        #[expect(clippy::cast_precision_loss, reason = "a page of metrics holds doubles")]
        let open = open as f64;
        self.gauges(
            "tidegate_http_connections_open",
            "Connections open on the data plane.",
            &[(vec![], open)],
        );
    }

    /// Copies of requests, by the version that got them.
    fn shadows(&mut self, shadows: &[(ModelName, String, ShadowTotals)]) {
        let counts = |of: fn(&ShadowTotals) -> u64| {
            let copied = shadows.iter().filter(|(.., totals)| totals.requests + totals.dropped > 0);
            copied
                .map(|(model, version, totals)| {
                    counter(&[("model", model.as_str()), ("version", version)], of(totals))
                })
                .collect::<Vec<_>>()
        };
        let help = "Copies of requests that a shadow ran, answered or not.";
        self.counters("tidegate_shadow_requests_total", help, counts(|seen| seen.requests));
        let help = "Copies of requests that a shadow did not run.";
        self.counters("tidegate_shadow_dropped_total", help, counts(|seen| seen.dropped));
        let help = "Copies of requests whose answer by the shadow disagrees with the one returned, or failed.";
        let disagreements = counts(|seen| seen.disagreements);
        self.counters("tidegate_shadow_disagreements_total", help, disagreements);
    }

    fn models(&mut self, monitor: &Monitor) {
        let (mut requests, mut rows, mut totals) = (Vec::new(), Vec::new(), Vec::new());
        let (mut fallbacks, mut shadows) = (Vec::new(), Vec::new());
        for model in monitor.models() {
            let count = |version: &str, arm: &str, code: Code, n| {
                let code = code.status().to_string();
                let labels = [
                    ("model", model.name().as_str()),
                    ("version", version),
                    ("arm", arm),
                    // Both protocols over HTTP count alike; there is no other yet.
                    ("protocol", "http"),
                    ("code", &code),
                ];
                counter(&labels, n)
            };
            let unanswered = model.unanswered_codes();
            requests.extend(unanswered.into_iter().map(|(code, n)| count("", "", code, n)));
            let forgotten = model.forgotten();
            let codes = forgotten.codes.iter();
            requests.extend(codes.map(|(code, n)| count("retired", "", *code, *n)));
            if forgotten.rows > 0 {
                let labels =
                    [("model", model.name().as_str()), ("version", "retired"), ("arm", "")];
                rows.push(counter(&labels, forgotten.rows));
            }
            for (id, recorder) in model.versions() {
                let version = id.to_string();
                if recorder.fallbacks() > 0 {
                    let labels = [("model", model.name().as_str()), ("version", &version)];
                    fallbacks.push(counter(&labels, recorder.fallbacks()));
                }
                shadows.push((model.name().clone(), version.clone(), recorder.shadow().totals()));
                for (arm, recorder) in recorder.arms() {
                    let seen = recorder.totals();
                    // Every version has the arms that it might answer on.
                    if seen.codes.is_empty() && arm != ArmName::BASELINE {
                        continue;
                    }
                    let codes = seen.codes.iter();
                    requests
                        .extend(codes.map(|(code, n)| count(&version, arm.as_str(), *code, *n)));
                    let labels = [
                        ("model", model.name().as_str()),
                        ("version", &version),
                        ("arm", arm.as_str()),
                    ];
                    rows.push(counter(&labels, seen.rows));
                    totals.push((model.name().clone(), id, arm, seen));
                }
            }
        }
        let help = "Requests that a version could not answer and the baseline did in its place, by that version.";
        self.counters("tidegate_fallbacks_total", help, fallbacks);
        self.shadows(&shadows);
        let help = "Inference requests by model, version (empty where none was reached, `retired` for versions long gone), arm, protocol and status.";
        self.counters("tidegate_requests_total", help, requests);
        self.counters(
            "tidegate_rows_total",
            "Rows predicted with success, by model, version and arm.",
            rows,
        );
        self.durations(&monitor.settings().edges(), &totals);
    }

    fn durations(
        &mut self,
        edges: &[f64],
        totals: &[(ModelName, VersionId, ArmName, VersionTotals)],
    ) {
        let (mut requests, mut phases) = (Vec::new(), Vec::new());
        for (model, id, arm, totals) in totals {
            let version = id.to_string();
            let labels = [("model", model.as_str()), ("version", &version), ("arm", arm.as_str())];
            let exemplar = totals.traced.map(|traced| Exemplar {
                trace: traced.trace,
                value: traced.took.as_secs_f64(),
                at: traced.at,
            });
            let sum = totals.phases.total + totals.failed_time;
            let total = latencies(&totals.total, sum, edges);
            let total = Distribution { exemplar, ..total };
            requests.push(labelled(Value::Distribution(Box::new(total)), &labels));
            for (part, spread) in Part::ALL.into_iter().zip(&totals.parts) {
                let own = latencies(spread, totals.phases.part(part), &[]);
                let labels = [&labels[..], &[("phase", part.name())]].concat();
                phases.push(labelled(Value::Distribution(Box::new(own)), &labels));
            }
        }
        let help = "Seconds from the last byte of a request to its finished response.";
        self.family("tidegate_request_duration_seconds", help, Kind::Histogram, requests);
        let help = "Seconds that requests answered with success spent in each phase: queue, decode, run (in the engine), encode.";
        self.family("tidegate_phase_duration_seconds", help, Kind::Histogram, phases);
    }

    fn loads(&mut self, ledger: &Ledger) {
        let (mut loads, mut swaps) = (Vec::new(), Vec::new());
        for (name, model) in &ledger.models {
            let outcomes = model.loads.iter();
            loads.extend(outcomes.map(|(outcome, count)| {
                counter(&[("model", name.as_str()), ("outcome", outcome)], *count)
            }));
            swaps.push(counter(&[("model", name.as_str())], model.swaps));
        }
        let help =
            "Loads of versions that ended, by model and outcome: `ok`, or the code of the refusal.";
        self.counters("tidegate_loads_total", help, loads);
        let help = "Times that another version took the place of the one that answers for a model by default.";
        self.counters("tidegate_swaps_total", help, swaps);
        let proofs = ledger.proofs.iter();
        let proofs = proofs.map(|(outcome, count)| counter(&[("outcome", outcome)], *count));
        let help = "Proofs of versions, by outcome: `proven`, `remembered` from an earlier start, `failed`.";
        self.counters("tidegate_proofs_total", help, proofs);
        let phases = Phase::ALL.iter().zip(&ledger.phases);
        let phases = phases.map(|(phase, durations)| {
            let buckets = upkeep::EDGES.into_iter().zip(durations.below);
            let distribution = Distribution {
                count: durations.count,
                sum: durations.sum.as_secs_f64(),
                buckets: buckets.map(|(edge, below)| Bucket { edge, below }).collect(),
                native: None,
                exemplar: None,
            };
            labelled(Value::Distribution(Box::new(distribution)), &[("phase", phase.name())])
        });
        let phases = phases.collect();
        let help = "Seconds that loads took, by phase: fetch, proof, sessions, warmup.";
        let kind = Kind::Histogram;
        self.family("tidegate_load_duration_seconds", help, kind, phases);
    }

    #[expect(clippy::cast_precision_loss, reason = "a page of metrics holds doubles")]
    fn versions(&mut self, ledger: &Ledger) {
        let help = "The number of the table that answers: tables published since the start.";
        let generation = ledger.generation as f64;
        self.gauges("tidegate_table_generation", help, &[(vec![], generation)]);
        let help = "Versions that were let go.";
        let retired = counter(&[], ledger.retired.versions);
        self.counters("tidegate_versions_retired_total", help, [retired]);
        let help = "Versions that were let go and whose memory was given back.";
        let freed = counter(&[], ledger.freed.versions);
        self.counters("tidegate_versions_freed_total", help, [freed]);
        let help = "Versions that were let go and are still held by their last requests.";
        let draining = ledger.draining().0 as f64;
        self.gauges("tidegate_versions_draining", help, &[(vec![], draining)]);
    }

    #[expect(clippy::cast_precision_loss, reason = "a page of metrics holds doubles")]
    fn standing(&mut self, ledger: &Ledger) {
        let yes = |yes: bool| f64::from(u8::from(yes));
        let mut gauge = |name, help, value| self.gauges(name, help, &[(vec![], value)]);
        let repository = &ledger.repository;
        let help = "Whether the last look at the repository could be acted on: it was read, and was not gone all at once.";
        gauge("tidegate_repository_readable", help, yes(repository.problem.is_none()));
        let help = "What the last look at the repository had to leave out.";
        gauge("tidegate_repository_problems", help, ledger.left_out as f64);
        if let Some(well) = repository.well {
            let name = "tidegate_repository_last_read_timestamp_seconds";
            gauge(name, "When the repository was last read, since 1970.", well.as_secs_f64());
        }
        if let Some(mirror) = &ledger.mirror {
            let help =
                "Whether the mirror of the repository equals its object store, by the last look.";
            gauge("tidegate_mirror_current", help, yes(mirror.problem.is_none()));
            if let Some(well) = mirror.well {
                let name = "tidegate_mirror_last_success_timestamp_seconds";
                let help =
                    "When the mirror of the repository last equalled its object store, since 1970.";
                gauge(name, help, well.as_secs_f64());
            }
        }
        let (well, failed) = ledger.collections;
        let outcomes = [("ok", well), ("failed", failed)];
        let outcomes = outcomes.map(|(outcome, count)| counter(&[("outcome", outcome)], count));
        let help = "Collections of the content store, by outcome: `ok` or `failed`.";
        self.counters("tidegate_store_collections_total", help, outcomes);
        let help = "Bytes that were removed from the content store because no version needed them.";
        let bytes = counter(&[], ledger.collected_bytes);
        self.counters("tidegate_store_collected_bytes_total", help, [bytes]);
        let mut gauge = |name, help, value| self.gauges(name, help, &[(vec![], value)]);
        let Some(memory) = &ledger.memory else { return };
        let help = "Whether decisions of operators outlive the process.";
        gauge("tidegate_state_durable", help, yes(memory.durable));
        let help = "Decisions and facts that could not be written down.";
        let failures = counter(&[], memory.failures);
        self.counters("tidegate_state_write_failures_total", help, [failures]);
    }

    fn counters(&mut self, name: &str, help: &str, series: impl IntoIterator<Item = Series>) {
        self.family(name, help, Kind::Counter, series.into_iter().collect());
    }

    fn family(&mut self, name: &str, help: &str, kind: Kind, series: Vec<Series>) {
        self.families.push(Family { name: name.to_owned(), help: help.to_owned(), kind, series });
    }
}

fn counter(labels: Labels<'_>, value: u64) -> Series {
    #[expect(clippy::cast_precision_loss, reason = "a page of metrics holds doubles")]
    let value = value as f64;
    labelled(Value::Number(value), labels)
}

/// A histogram of latencies: with these edges, if any, and as a native one.
fn latencies(spread: &Spread, sum: Duration, edges: &[f64]) -> Distribution {
    Distribution {
        count: spread.count(),
        sum: sum.as_secs_f64(),
        buckets: spread.classic(edges),
        native: Some(spread.native()),
        exemplar: None,
    }
}

fn labelled(value: Value, labels: Labels<'_>) -> Series {
    let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Series { labels: labels.collect(), value }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use super::*;
    use crate::{
        model::ModelName,
        monitor::{Clock, Sample, WorkerId},
    };

    #[derive(Debug)]
    struct Still(Instant);

    impl Clock for Still {
        fn now(&self) -> Instant {
            self.0
        }

        fn unix(&self) -> Duration {
            Duration::from_secs(1)
        }
    }

    #[test]
    fn page_holds_what_was_recorded() {
        let monitor = Monitor::new(1, Arc::new(Still(Instant::now())));
        let name = ModelName::parse("m").unwrap();
        let sample = Sample { rows: 2, total: Duration::from_micros(30), ..Sample::default() };
        let ok = Code::from_status(200);
        let recorder = monitor.version(&name, VersionId::new(1)).arm(ArmName::BASELINE);
        recorder.record(WorkerId(0), ok, &sample, Duration::ZERO);
        monitor.model(&name).unanswered(WorkerId(0), Code::from_status(404));
        let page = String::from_utf8(Exposition::of(&monitor).write(Format::Text)).unwrap();
        for line in [
            r#"tidegate_requests_total{model="m",version="1",arm="baseline",protocol="http",code="200"} 1"#,
            r#"tidegate_requests_total{model="m",version="",arm="",protocol="http",code="404"} 1"#,
            r#"tidegate_rows_total{model="m",version="1",arm="baseline"} 2"#,
            r#"tidegate_request_duration_seconds_bucket{model="m",version="1",arm="baseline",le="0.000025"} 0"#,
            r#"tidegate_request_duration_seconds_bucket{model="m",version="1",arm="baseline",le="0.00005"} 1"#,
            r#"tidegate_request_duration_seconds_count{model="m",version="1",arm="baseline"} 1"#,
            r#"tidegate_phase_duration_seconds_count{model="m",version="1",arm="baseline",phase="run"} 1"#,
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
    }
}
