//! From what was written to what rooms use: defaults applied, nothing unparsed, contradictions refused.
//!
//! Not here: reading single values (`value`, `draft`).

use std::{
    net::{IpAddr, SocketAddr},
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
};

use super::{
    Admin, Config, Findings, Logs, ModelPolicy, Reserved, Uploads,
    draft::Places,
    file::{self, File},
    value::{
        Class, EventSource, RepositoryApi, RolloutPolicy, Size, Table, Text, Texts, Webhooks, Whole,
    },
};
use crate::{
    drift, edge, engine, feedback,
    lifecycle::{self, OnNewVersion},
    model::ModelName,
    monitor, notify, predictions,
    serve::{self, AnswerRule},
    source, state, validation,
};

/// Turns a file into every room's settings and adds what contradicts itself to `findings`.
pub(super) fn check(file: File, places: &Places, findings: &mut Findings) -> Config {
    Contradictions { places, findings: &mut *findings }.find(&file);

    let drift = drift_settings(&file.drift);
    let http = file.server.http.0;
    let table = file.predictions.path.as_ref().map(|Text(path)| path.clone());
    let own_folders = [file.state.path.0.clone()].into_iter().chain(table).collect();
    let Text(api) = file.repository.api;
    let uploads = Uploads {
        allowed: file.repository.uploads.0,
        bytes_max: bytes(file.repository.upload_bytes),
        files_max: count(file.repository.upload_files),
    };
    Config {
        edge: edge::Settings {
            traced_share: file.tracing.sample.0,
            access: access(&file.logs, file.tracing.otlp.0.0),
            ..edge(&file.server, &file.limits)
        },
        admin: Admin {
            address: file.server.admin.0,
            connections_max: count(file.server.admin_connections),
        },
        repository_api: api == RepositoryApi::On
            || api == RepositoryApi::Auto && http.ip().is_loopback(),
        uploads,
        engine: engine(file.engine),
        proof: proof(&file.proof),
        serve: serving(&file.serve, &file.repository),
        validation: validation::Settings {
            columns_max: count(file.validation.columns),
            text_bytes_max: bytes(file.validation.text_bytes),
            row_bytes_max: bytes(file.validation.row_bytes),
            batch_bytes_max: bytes(file.validation.batch_bytes),
            classes_max: count(file.validation.classes),
        },
        drift: drift.clone(),
        feedback: feedback::Settings { memory_max: file.feedback.memory.0 },
        predictions: predictions(file.predictions),
        state: state::Settings {
            path: file.state.path.0,
            log_bytes_max: file.state.log_bytes.0,
            ..state::Settings::default()
        },
        notify: notify(file.notify, &file.models),
        loaded_bytes_max: Some(file.repository.loaded_bytes.0).filter(|bytes| *bytes > 0),
        source: source::Settings { own_folders, ..repository(file.repository) },
        metrics: monitor::Settings {
            objectives: file.metrics.objectives.0.into_iter().map(|it| it.0).collect(),
            series_max: count(file.metrics.series),
            compat: file.metrics.compat.0,
        },
        logs: Logs {
            filter: file.logs.level.0.0,
            format: file.logs.format.0,
            buffer_bytes_max: bytes(file.logs.buffer),
        },
        models: file
            .models
            .into_iter()
            .filter_map(|(name, model)| {
                Some((ModelName::parse(&name).ok()?, policy(&name, model, places, &drift)))
            })
            .collect(),
        reserved: Reserved { grpc: file.server.grpc.0 },
    }
}

fn serving(section: &file::Serve, repository: &file::RepositorySection) -> serve::Settings {
    serve::Settings {
        batch_rows_max: nonzero(section.batch_rows_max).unwrap_or(NonZeroUsize::MIN),
        request_timeout: section.request_timeout.0,
        stuck_after: section.stuck_after.0,
        demand_timeout: repository.demand_timeout.0,
        demand_waiting_max: count(repository.demand_waiting),
        shadow_waiting_max: nonzero(section.shadow_waiting).unwrap_or(NonZeroUsize::MIN),
        shadow_bytes_max: bytes(section.shadow_bytes),
    }
}

fn proof(proof: &file::Proof) -> lifecycle::ProofSettings {
    lifecycle::ProofSettings {
        enabled: proof.enabled.0,
        remember: proof.remember.0,
        spare: proof.spare.0,
        at_once: nonzero(proof.at_once).unwrap_or(NonZeroUsize::MIN),
        at_start: nonzero(proof.at_start),
        limits: lifecycle::ProofLimits {
            memory_max: proof.memory_max.0,
            time_max: proof.time_max.0,
            cpu_time_max: proof.cpu_time_max.0,
        },
    }
}

fn access(logs: &file::LogsSection, spans_to: Option<edge::Endpoint>) -> edge::AccessSettings {
    edge::AccessSettings {
        target: logs.access.0.clone(),
        share: logs.access_sample.0,
        buffer_bytes_max: bytes(logs.access_buffer),
        file_bytes_max: logs.access_bytes.0,
        spans_to,
    }
}

fn edge(server: &file::Server, limits: &file::Limits) -> edge::Settings {
    edge::Settings {
        http: server.http.0,
        workers: nonzero(server.workers),
        web_pages: match server.web_pages.0 {
            RepositoryApi::On => true,
            RepositoryApi::Off => false,
            RepositoryApi::Auto => !server.http.0.ip().is_loopback(),
        },
        drain_delay: server.drain_delay.0,
        grace: server.grace.0,
        limits: edge::Limits {
            body_bytes_max: bytes(limits.body),
            body_bytes_per_second_min: nonzero_u32(limits.body_rate_min.0),
            body_grace: limits.body_grace.0,
            header_timeout: limits.header_timeout.0,
            headers_max: count(limits.headers),
            header_bytes_max: bytes(limits.header_bytes),
            uri_bytes_max: bytes(limits.uri_bytes),
            idle_timeout: limits.idle_timeout.0,
            write_timeout: limits.write_timeout.0,
            linger: limits.linger.0,
            connections_max: nonzero(limits.connections),
            connections_per_ip_max: nonzero(limits.connections_per_ip),
            in_flight_bytes_max: NonZeroUsize::new(bytes(limits.in_flight_bytes)),
            http2_streams_max: nonzero_u32(limits.http2_streams.0),
            json_depth_max: count(limits.json_depth),
            inputs_max: count(limits.inputs),
            outputs_max: count(limits.outputs),
            parameters_max: count(limits.parameters),
            name_bytes_max: count(limits.name_bytes),
            compress_bytes_min: bytes(limits.compress_min),
            inflate_ratio_max: nonzero_u32(limits.inflate_ratio.0),
            gzip_members_max: count(limits.gzip_members),
        },
        ..edge::Settings::default()
    }
}

fn repository(section: file::RepositorySection) -> source::Settings {
    source::Settings {
        root: section.root.0.0,
        poll_interval: section.poll_interval.0,
        model_name: section.model_name.map(|Text(name)| name),
        artifact_bytes_max: section.artifact_bytes.0,
        models_max: count(section.models),
        versions_max: count(section.versions),
        hard_links: section.hard_links.0,
        vanished_grace: section.vanished_grace.0,
        own_folders: Vec::new(),
    }
}

/// Rules of retraining stand with their models.
fn notify(
    section: file::Notify,
    models: &std::collections::BTreeMap<String, file::Model>,
) -> notify::Settings {
    let rule = |(name, model): (&String, &file::Model)| {
        let rule = model.retrain.as_ref()?.0.read().ok()??;
        Some((ModelName::parse(name).ok()?, rule))
    };
    let (Texts(hosts), Texts(private_addresses)) = (section.hosts, section.private_addresses);
    let (Text(EventSource(source)), Webhooks(drafts)) = (section.source, section.webhook);
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    notify::Settings {
        source,
        webhooks: notify::Webhook::read(&drafts).unwrap_or_default(),
        hosts,
        private_addresses,
        ca_file: section.ca_file.map(|Text(path)| path),
        cooldown: section.cooldown.0,
        backoff: section.backoff.0,
        backoff_max: section.backoff_max.0,
        breaker_failures: small(section.breaker_failures.0),
        attempts_max: small(section.attempts.0),
        give_up_after: section.give_up_after.0,
        queue_max: count(section.queue),
        event_bytes_max: bytes(section.event_bytes),
        retrain: models.iter().filter_map(rule).collect(),
    }
}

fn engine(section: file::Engine) -> engine::Settings {
    engine::Settings {
        onnxruntime: section.onnxruntime.map(|Text(path)| path),
        default: section.default.0,
        sessions: nonzero(section.sessions),
        intra_op_threads: nonzero(section.intra_op_threads).unwrap_or(NonZeroUsize::MIN),
        run_memory_max: NonZeroU64::new(section.run_memory.0),
        warmup_runs: u32::try_from(section.warmup_runs.0).unwrap_or(u32::MAX),
    }
}

fn drift_settings(section: &file::Drift) -> drift::Settings {
    drift::Settings {
        enabled: section.enabled.0,
        false_alarm_every: section.false_alarm_every.0,
        tolerance: section.tolerance.0,
        caution: section.caution.0,
        learn_rows: section.learn_rows.0,
        cooldown: section.cooldown.0,
        window: section.window.0,
        features_max: count(section.features),
        sample_rows: count(section.sample_rows),
        values_max: count(section.values),
        rate_max: count(section.values_per_second),
        metric_features_max: count(section.metric_features),
        ignored: Vec::new(),
        contract: None,
        segments: None,
    }
}

/// Settings of all models, with what one model has differently.
///
/// `None` where it has nothing differently.
fn model_drift(
    all: &drift::Settings,
    own: Option<Table<file::ModelDrift>>,
    contract: Option<Table<file::ModelContract>>,
    segments: Option<drift::SegmentRule>,
) -> Option<drift::Settings> {
    if own.is_none() && contract.is_none() && segments.is_none() {
        return None;
    }
    let own = own.map(|own| own.0).unwrap_or_default();
    Some(drift::Settings {
        enabled: own.enabled.map_or(all.enabled, |own| own.0),
        false_alarm_every: own.false_alarm_every.map_or(all.false_alarm_every, |own| own.0),
        tolerance: own.tolerance.map_or(all.tolerance, |own| own.0),
        learn_rows: own.learn_rows.map_or(all.learn_rows, |own| own.0),
        cooldown: own.cooldown.map_or(all.cooldown, |own| own.0),
        window: own.window.map_or(all.window, |own| own.0),
        ignored: own.ignore,
        contract: contract.map(|contract| terms(contract.0)),
        segments,
        ..all.clone()
    })
}

fn terms(contract: file::ModelContract) -> drift::Contract {
    let rule = |rule: file::FeatureRule| drift::Rule {
        min: rule.min,
        max: rule.max,
        categories: rule.categories,
        missing_max: rule.missing_max.map(|share| share.0),
        action: rule.action.map(|Text(action)| action),
    };
    drift::Contract {
        owner: contract.owner,
        action: contract.action.map(|Text(action)| action).unwrap_or_default(),
        is_dry_run: contract.dry_run.is_some_and(|own| own.0),
        features: contract.features.into_iter().map(|(name, own)| (name, rule(own))).collect(),
    }
}

fn policy(name: &str, model: file::Model, places: &Places, drift: &drift::Settings) -> ModelPolicy {
    let is_said = places.origin(&format!("models.{name}.on_new_version")).is_some();
    let tries = model.rollout.is_some() && !is_said;
    ModelPolicy {
        engine: model.engine.map(|Text(engine)| engine),
        required: model.required.0,
        on_new_version: if tries { OnNewVersion::Rollout } else { model.on_new_version.0 },
        signature_may_change: model.signature_may_change.0,
        route_override: model.route_override.0,
        rollout: model.rollout.map(|RolloutPolicy(draft)| draft),
        drift: model_drift(
            drift,
            model.drift,
            model.contract,
            // Checked when it was read.
            model.segments.and_then(|segments| segments.0.read().ok()),
        ),
        feedback: model.feedback.map(|keys| outcomes(keys.0)).unwrap_or_default(),
        predictions: model.predictions.map(|keys| sampled(keys.0)).unwrap_or_default(),
    }
}

fn predictions(section: file::Predictions) -> predictions::Settings {
    predictions::Settings {
        share: section.sample.0,
        path: section.path.map(|Text(path)| path),
        upload: section.upload.map(|Text(address)| address.0),
        rotate_bytes: section.rotate_bytes.0,
        rotate_every: section.rotate_every.0,
        keep_bytes: section.keep_bytes.0,
        waiting_max: count(section.queue),
        waiting_bytes_max: bytes(section.queue_bytes),
        columns_max: count(section.columns),
    }
}

fn sampled(keys: file::ModelPredictions) -> predictions::Policy {
    predictions::Policy { share: keys.sample.map(|share| share.0), redacted: keys.redact }
}

fn outcomes(keys: file::ModelFeedback) -> feedback::Policy {
    feedback::Policy {
        rule: AnswerRule {
            enabled: keys.enabled.0,
            output: keys.output,
            positive: keys.positive.map(|Class(class)| class),
        },
        ttl: keys.ttl.0,
        memory_max: keys.memory.0,
        accuracy_min: keys.accuracy_min.map(|share| share.0),
        cooldown: keys.cooldown.0,
    }
}

/// Values that are right alone and wrong together.
struct Contradictions<'a> {
    places: &'a Places,
    findings: &'a mut Findings,
}

/// A key, its value, and what it must be to the other key.
type Side<'a> = (&'a str, String, &'a str);

impl Contradictions<'_> {
    fn find(&mut self, file: &File) {
        let file::Server { http, grpc, admin, drain_delay, grace, .. } = &file.server;
        let http = ("server.http", http.0);
        let grpc = ("server.grpc", grpc.0);
        let admin = ("server.admin", admin.0);
        for (one, other) in [(http, admin), (http, grpc), (admin, grpc)] {
            // Nothing listens at the default of a reserved key.
            let idle = other == grpc && self.places.origin(grpc.0).is_none();
            if collide(one.1, other.1) && !idle {
                let [one, other] =
                    [one, other].map(|(key, at)| (key, written(&Text(at)), "takes the port of"));
                self.add(one, other);
            }
        }
        if drain_delay.0 >= grace.0 {
            self.add(
                ("server.drain_delay", written(drain_delay), "must be shorter than"),
                ("server.grace", written(grace), "must be longer than"),
            );
        }
        let file::Limits { body, in_flight_bytes, uri_bytes, header_bytes, .. } = &file.limits;
        if (1..body.0).contains(&in_flight_bytes.0) {
            self.add(
                ("limits.body", written(body), "must be at most"),
                ("limits.in_flight_bytes", written(in_flight_bytes), "must be at least"),
            );
        }
        if uri_bytes.0 > header_bytes.0 {
            self.add(
                ("limits.uri_bytes", written(uri_bytes), "must be at most"),
                ("limits.header_bytes", written(header_bytes), "must be at least"),
            );
        }
        self.find_in_notify(&file.notify);
        let key = "predictions.upload";
        if let Some(Text(upload)) = &file.predictions.upload
            && let Some(feature) = upload.missing_feature()
            && let Some(origin) = self.places.origin(key)
        {
            let advice = format!(
                "is an object store that this build has no client for; build with `--features {feature}`"
            );
            self.findings.add(key, Some(&written(&Text(upload.clone()))), advice, origin);
        }
        let (key, most) = ("metrics.objectives", monitor::Settings::OBJECTIVES_MAX);
        if file.metrics.objectives.0.len() > most
            && let Some(origin) = self.places.origin(key)
        {
            self.findings.add(key, None, format!("may have {most} entries"), origin);
        }
    }

    fn find_in_notify(&mut self, section: &file::Notify) {
        let file::Notify { backoff, backoff_max, hosts: Texts(hosts), webhook, .. } = section;
        if backoff.0 > backoff_max.0 {
            self.add(
                ("notify.backoff", written(backoff), "must be at most"),
                ("notify.backoff_max", written(backoff_max), "must be at least"),
            );
        }
        let permits = |host: &str| hosts.is_empty() || hosts.iter().any(|rule| rule.permits(host));
        for webhook in notify::Webhook::read(&webhook.0).unwrap_or_default() {
            let host = &webhook.target.host;
            if !permits(host)
                && let Some(origin) = self.places.origin("notify.webhook")
            {
                let (name, key) = (&webhook.name, "notify.webhook");
                let advice = format!(
                    "webhook `{name}` names `{host}`, which `notify.hosts` does not list; add it there"
                );
                self.findings.add(key, None, advice, origin);
            }
        }
    }

    /// Adds a finding about two keys, at the one that was given, or given in the higher layer.
    fn add(&mut self, one: Side, other: Side) {
        if self.places.refused(one.0) || self.places.refused(other.0) {
            // The default that stands in for a refused value contradicts nobody.
            return;
        }
        let origins = [self.places.origin(one.0), self.places.origin(other.0)];
        let (blamed, partner) = if origins[0] >= origins[1] { (one, other) } else { (other, one) };
        let Some(origin) = origins.into_iter().max().flatten() else { return };
        let default = match self.places.origin(partner.0) {
            Some(_) => "",
            None => ", its default",
        };
        let advice = format!("{} `{}` ({}{default})", blamed.2, partner.0, partner.1);
        self.findings.add(blamed.0, Some(&blamed.1), advice, origin);
    }
}

/// True if two listeners can't have these addresses at once.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let covers =
        |all: IpAddr, one: IpAddr| all.is_unspecified() && (all.is_ipv6() || one.is_ipv4());
    let (a, b) = (one.ip(), other.ip());
    one.port() == other.port() && one.port() != 0 && (a == b || covers(a, b) || covers(b, a))
}

fn written(value: &impl serde::Serialize) -> String {
    toml::Value::try_from(value).map_or_else(|_| String::new(), |value| value.to_string())
}

fn count<const MIN: u64, const MAX: u64>(number: Whole<MIN, MAX>) -> usize {
    usize::try_from(number.0).unwrap_or(usize::MAX)
}

fn bytes<const MIN: u64, const MAX: u64>(size: Size<MIN, MAX>) -> usize {
    usize::try_from(size.0).unwrap_or(usize::MAX)
}

/// `None` for 0, which means "as many as fit" wherever it is allowed.
fn nonzero<const MIN: u64, const MAX: u64>(number: Whole<MIN, MAX>) -> Option<NonZeroUsize> {
    NonZeroUsize::new(count(number))
}

/// For keys whose bounds leave out 0 and stay below 2^32.
fn nonzero_u32(number: u64) -> NonZeroU32 {
    u32::try_from(number).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN)
}
