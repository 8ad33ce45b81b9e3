//! The families of the page that Prometheus scrapes.
//!
//! They are built from merged shards when somebody scrapes. Names follow Prometheus' conventions: prefix
//! `tidegate_`, base units, `_total` for counters.
//!
//! Not here: how a page is written (`page`).

use std::{collections::BTreeMap, time::Duration};

use crate::model::ModelName;

use super::{
    Code, Compat, Format, Ledger, Monitor, Part, Phase, Reason, Retired, ShadowTotals, Spread,
    Uploads, VersionTotals,
    page::{self, Bucket, Distribution, Exemplar, Family, Kind, Series, Value},
    process::Process,
    saturation::saturation,
    upkeep,
};

/// A page in the making.
#[derive(Debug)]
pub struct Exposition {
    families: Vec<Family>,
    series_max: usize,
}

/// What one version answered on one arm.
struct Seen {
    model: ModelName,
    version: String,
    arm: String,
    totals: VersionTotals,
}

impl Seen {
    fn labels(&self) -> [(&str, &str); 3] {
        [("model", self.model.as_str()), ("version", &self.version), ("arm", &self.arm)]
    }
}

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Exposition {
    /// Everything that the recorders hold.
    #[must_use]
    pub fn of(monitor: &Monitor) -> Self {
        let series_max = monitor.settings().series_max;
        let mut page = Self { families: Vec::new(), series_max };
        page.process();
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

    /// Writes the page, bounded as the monitor's settings say.
    #[must_use]
    pub fn write(mut self, format: Format) -> Vec<u8> {
        self.bound();
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
        #[expect(clippy::cast_precision_loss, reason = "a page of metrics holds doubles")]
        let in_flight = server.in_flight() as f64;
        let help = "Requests that are being read, answered or waited for on the data plane.";
        self.gauges("tidegate_http_requests_in_flight", help, &[(vec![], in_flight)]);
        let (busy, rate) = server.pace();
        let help = "Share of their time that workers are busy, over the last seconds.";
        self.gauges("tidegate_busy_ratio", help, &[(vec![], busy)]);
        let objective = monitor.settings().objectives.iter().min().copied();
        let saturation = saturation(busy, rate, objective);
        let help = "The busy share of the workers, or how near the expected 99th percentile of the latency is to the strictest objective, whichever is more.";
        self.gauges("tidegate_saturation_ratio", help, &[(vec![], saturation)]);
    }

    fn refusals(&mut self, monitor: &Monitor) {
        let mut series = Vec::new();
        let mut add = |model: &str, counts: &[(Reason, u64)]| {
            series.extend(counts.iter().map(|(reason, count)| {
                counter(&[("model", model), ("reason", reason.name())], *count)
            }));
        };
        add("", &monitor.server().refusals());
        for model in monitor.models() {
            add(model.name().as_str(), &model.refusals());
        }
        let help = "Requests that were not answered with what they asked for, by model (empty where none was reached) and reason.";
        self.counters("tidegate_refusals_total", help, series);
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
        let now = monitor.clock().unix();
        let (mut unanswered, mut seen) = (Vec::new(), Vec::new());
        let (mut fallbacks, mut shadows) = (Vec::new(), Vec::new());
        for model in monitor.models() {
            let (name, totals) = (model.name(), model.look(now));
            unanswered.push((name.clone(), totals.unanswered));
            if let Some(Retired { totals, fallbacks: fallen, shadow }) = totals.retired {
                let version = "retired".to_owned();
                fallbacks.push((name.clone(), version.clone(), fallen));
                shadows.push((name.clone(), version.clone(), shadow));
                seen.push(Seen { model: name.clone(), version, arm: String::new(), totals });
            }
            for (id, recorder) in totals.versions {
                fallbacks.push((name.clone(), id.to_string(), recorder.fallbacks()));
                shadows.push((name.clone(), id.to_string(), recorder.shadow().totals()));
                for (arm, recorder) in recorder.arms() {
                    let (version, arm) = (id.to_string(), arm.as_str().to_owned());
                    seen.push(Seen {
                        model: name.clone(),
                        version,
                        arm,
                        totals: recorder.totals(),
                    });
                }
            }
        }
        self.refusals(monitor);
        // Every version has the arms that it might answer on.
        seen.retain(|seen| !seen.totals.codes.is_empty());
        self.requests(&unanswered, &seen);
        self.durations(&monitor.settings().edges(), &seen);
        let fallbacks =
            fallbacks.iter().filter(|(.., count)| *count > 0).map(|(model, version, count)| {
                counter(&[("model", model.as_str()), ("version", version)], *count)
            });
        let help = "Requests that a version could not answer and the baseline did in its place, by that version.";
        self.counters("tidegate_fallbacks_total", help, fallbacks);
        self.shadows(&shadows);
        if monitor.settings().compat.contains(&Compat::Triton) {
            self.triton(&seen);
        }
    }

    fn requests(&mut self, unanswered: &[(ModelName, Vec<(Code, u64)>)], seen: &[Seen]) {
        let count = |(model, version, arm): (&ModelName, &str, &str),
                     (code, count): (Code, u64)| {
            let code = code.status().to_string();
            let labels = [
                ("model", model.as_str()),
                ("version", version),
                ("arm", arm),
                // Both protocols over HTTP count alike; there is no other yet.
                ("protocol", "http"),
                ("code", &code),
            ];
            counter(&labels, count)
        };
        let mut requests = Vec::new();
        for (model, codes) in unanswered {
            requests.extend(codes.iter().map(|own| count((model, "", ""), *own)));
        }
        for Seen { model, version, arm, totals } in seen {
            requests.extend(totals.codes.iter().map(|own| count((model, version, arm), *own)));
        }
        let help = "Inference requests by model, version (empty where none was reached, `retired` for versions long gone), arm, protocol and status.";
        self.counters("tidegate_requests_total", help, requests);
        let rows = seen.iter().filter(|seen| seen.totals.rows > 0);
        let rows = rows.map(|seen| counter(&seen.labels(), seen.totals.rows));
        let help = "Rows predicted with success, by model, version and arm.";
        self.counters("tidegate_rows_total", help, rows);
    }

    /// The names of Triton Inference Server, with its labels and units.
    fn triton(&mut self, seen: &[Seen]) {
        let mut versions: BTreeMap<(&ModelName, &str), VersionTotals> = BTreeMap::new();
        for seen in seen {
            versions.entry((&seen.model, &seen.version)).or_default().add(&seen.totals);
        }
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let of = |name: &str, help: &str, of: &dyn Fn(&VersionTotals) -> u64| {
            let series = versions.iter().map(|((model, version), totals)| {
                counter(&[("model", model.as_str()), ("version", version)], of(totals))
            });
            let (name, help, kind) = (name.to_owned(), help.to_owned(), Kind::Counter);
            Family { name, help, kind, series: series.collect() }
        };
        let families = [
            of("nv_inference_request_success", "Successful requests.", &|it| it.success),
            of("nv_inference_request_failure", "Failed requests.", &|it| it.failed),
            of("nv_inference_count", "Inferences: rows of batches.", &|it| it.rows),
            of("nv_inference_exec_count", "Executions of the model.", &|it| it.executions),
            of(
                "nv_inference_request_duration_us",
                "Microseconds of successful requests, end to end.",
                &|it| micros(it.phases.total),
            ),
            of("nv_inference_queue_duration_us", "Microseconds in queues.", &|it| {
                micros(it.phases.queue)
            }),
            of(
                "nv_inference_compute_input_duration_us",
                "Microseconds of reading inputs.",
                &|it| micros(it.phases.decode),
            ),
            of("nv_inference_compute_infer_duration_us", "Microseconds in the model.", &|it| {
                micros(it.phases.run)
            }),
            of(
                "nv_inference_compute_output_duration_us",
                "Microseconds of writing outputs.",
                &|it| micros(it.phases.encode),
            ),
        ];
        self.families.extend(families);
    }

    /// The process, as Prometheus' client libraries name what the kernel says.
    #[expect(clippy::cast_precision_loss, reason = "a page of metrics holds doubles")]
    fn process(&mut self) {
        let Some(process) = Process::read() else { return };
        let help = "Processor time of all threads, in user and kernel mode, in seconds.";
        let cpu = labelled(Value::Number(process.cpu), &[]);
        self.counters("process_cpu_seconds_total", help, [cpu]);
        let mut gauge = |name, help, value| self.gauges(name, help, &[(vec![], value)]);
        gauge("process_resident_memory_bytes", "Resident memory.", process.resident as f64);
        let space = process.virtual_memory as f64;
        gauge("process_virtual_memory_bytes", "Address space.", space);
        let help = "Start of the process, in seconds since 1970.";
        gauge("process_start_time_seconds", help, process.started);
        gauge("process_threads", "Threads of the process.", process.threads as f64);
        gauge("process_open_fds", "Open file descriptors.", process.descriptors as f64);
        if let Some(most) = process.descriptors_max {
            gauge("process_max_fds", "Most file descriptors that may be open.", most as f64);
        }
    }

    fn durations(&mut self, edges: &[f64], seen: &[Seen]) {
        let (mut requests, mut phases) = (Vec::new(), Vec::new());
        for seen in seen {
            let (labels, totals) = (seen.labels(), &seen.totals);
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
            if model.swaps > 0 {
                swaps.push(counter(&[("model", name.as_str())], model.swaps));
            }
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
        if let Some(uploads) = &ledger.uploads {
            self.uploads(uploads);
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

    #[expect(clippy::cast_precision_loss, reason = "a page of metrics holds doubles")]
    fn uploads(&mut self, uploads: &Uploads) {
        let outcomes = [("ok", uploads.uploaded), ("failed", uploads.failed)];
        let outcomes = outcomes.map(|(outcome, count)| counter(&[("outcome", outcome)], count));
        let help =
            "Tries to upload a file of predictions or outcomes, by outcome: `ok` or `failed`.";
        self.counters("tidegate_predictions_uploads_total", help, outcomes);
        let help = "Bytes of files of predictions and outcomes that were uploaded.";
        let bytes = counter(&[], uploads.uploaded_bytes);
        self.counters("tidegate_predictions_uploaded_bytes_total", help, [bytes]);
        let help = "Files of predictions that were removed before they were uploaded, as all together had more than predictions.keep_bytes.";
        let lost = counter(&[], uploads.lost);
        self.counters("tidegate_predictions_upload_lost_files_total", help, [lost]);
        let mut gauge = |name, help, value| self.gauges(name, help, &[(vec![], value)]);
        let help = "Complete files of predictions and outcomes that wait to be uploaded.";
        gauge("tidegate_predictions_upload_waiting_files", help, uploads.files as f64);
        let help = "Bytes of files that wait to be uploaded.";
        gauge("tidegate_predictions_upload_waiting_bytes", help, uploads.bytes as f64);
    }

    /// Bounds the page, and says so on it.
    #[expect(clippy::cast_precision_loss, reason = "a page of metrics holds doubles")]
    fn bound(&mut self) {
        let own = 3;
        let most = self.series_max.saturating_sub(own);
        let (kept, left_out) = page::bound(&mut self.families, most);
        let mut gauge = |name, help, value: usize| {
            self.gauges(name, help, &[(vec![], value as f64)]);
        };
        gauge("tidegate_metrics_series", "Series of this page.", kept + own);
        let help =
            "Series that this page leaves out because it would be larger than metrics.series.";
        gauge("tidegate_metrics_series_left_out", help, left_out);
        let help = "Most series of a page: metrics.series.";
        gauge("tidegate_metrics_series_max", help, most + own);
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
        model::{ArmName, ModelName, VersionId},
        monitor::{Clock, Sample, Settings, WorkerId},
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

    /// 2,000 models of which 20 get requests.
    fn busy(settings: Settings) -> Monitor {
        let monitor = Monitor::new(2, Arc::new(Still(Instant::now()))).shown(settings);
        for number in 0..2_000 {
            let name = ModelName::parse(&format!("department-{number}.model")).unwrap();
            let recorder = monitor.version(&name, VersionId::new(1));
            recorder.arm(ArmName::DIRECT);
            let arm = recorder.arm(ArmName::BASELINE);
            monitor.upkeep().loaded(&name, "ok");
            if number % 100 == 0 {
                let total = Duration::from_micros(number + 50);
                let sample = Sample { rows: 1, run: total / 2, total, ..Sample::default() };
                arm.record(WorkerId(0), Code::from_status(200), &sample, Duration::ZERO);
            }
        }
        monitor
    }

    #[test]
    fn two_thousand_models_with_little_traffic_fit_half_a_mebibyte() {
        let monitor = busy(Settings::default());
        for format in [Format::Text, Format::OpenMetrics, Format::Protobuf] {
            let bytes = Exposition::of(&monitor).write(format).len();
            assert!(bytes < 1 << 19, "{format:?}: {bytes}");
        }
    }

    #[test]
    fn a_page_is_bounded_and_says_what_is_missing() {
        let monitor = busy(Settings { series_max: 500, ..Settings::default() });
        let page = String::from_utf8(Exposition::of(&monitor).write(Format::Text)).unwrap();
        let value = |name: &str| -> usize {
            let line = page.lines().find(|line| line.starts_with(&format!("{name} ")));
            line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
        };
        let lines = page.lines().filter(|line| !line.starts_with('#')).count();
        assert!(lines <= 500 && lines == value("tidegate_metrics_series"), "{lines}");
        assert_eq!(value("tidegate_metrics_series_max"), 500);
        assert!(value("tidegate_metrics_series_left_out") > 1_500);
    }

    #[test]
    fn triton_names_are_there_where_they_are_wanted() {
        let monitor = busy(Settings { compat: vec![Compat::Triton], ..Settings::default() });
        let page = |format| String::from_utf8(Exposition::of(&monitor).write(format)).unwrap();
        let text = page(Format::Text);
        for line in [
            "# TYPE nv_inference_request_success counter",
            r#"nv_inference_request_success{model="department-100.model",version="1"} 1"#,
            r#"nv_inference_request_failure{model="department-100.model",version="1"} 0"#,
            r#"nv_inference_count{model="department-100.model",version="1"} 1"#,
            r#"nv_inference_exec_count{model="department-100.model",version="1"} 1"#,
            r#"nv_inference_request_duration_us{model="department-100.model",version="1"} 150"#,
            r#"nv_inference_compute_infer_duration_us{model="department-100.model",version="1"} 75"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        let open = page(Format::OpenMetrics);
        assert!(open.contains("# TYPE nv_inference_count unknown\n"), "{open}");
    }
}
