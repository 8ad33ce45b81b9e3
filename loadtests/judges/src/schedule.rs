//! A whole rollout by the default policy, decided by the code of the real server.
//!
//! Errors differ between the arms by a ratio; latencies and outputs are alike. Requests come evenly and end at once.
//! One that is held, mostly for more evidence at the end of its last step, is not followed further.

use std::time::Duration;

use tidegate::{
    model::PredictionId,
    rollout::{Effect, Event, Marks, Output, Policy, Rollout, Seen, Side, Start, State, Threshold},
};

use crate::{judge::number, world::Random};

/// Ends of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Promoted,
    RolledBack,
    Held,
}

/// Time of the requests that are heard of together: the limits of a promotion are read so often.
const BATCH_SECONDS: f64 = 2.0;

/// Runs a rollout; also returns the canary's requests, the warm-up included.
pub(crate) fn run(base: f64, ratio: f64, requests_per_second: f64, seed: u64) -> (End, u64) {
    let mut random = Random(seed << 32);
    let mut now = Duration::from_secs(1_000_000);
    let mut rollout = start(now);
    rollout.hear(&Event::Loaded, now);
    let (mut requests, mut batch) = (0, Vec::new());
    loop {
        let until = now + Duration::from_secs_f64(BATCH_SECONDS);
        batch.clear();
        while now < until {
            now += Duration::from_secs_f64(1.0 / requests_per_second);
            let request = request((base, ratio), rollout.weight(), now, &mut random);
            requests += u64::from(request.candidate);
            batch.push(request);
        }
        let effects = rollout.hear(&Event::Requests(&batch), now);
        if effects.iter().any(|effect| matches!(effect, Effect::FreezeQuantiles(_))) {
            let threshold =
                |quantile: f64| Threshold { quantile, seconds: 0.01, share_above: 1.0 - quantile };
            rollout.hear(&Event::Thresholds(&[threshold(0.5), threshold(0.95)]), now);
        }
        match rollout.state() {
            State::Promoting => return (End::Promoted, requests),
            State::RolledBack => return (End::RolledBack, requests),
            State::Held => return (End::Held, requests),
            _ => {}
        }
    }
}

fn start(now: Duration) -> Rollout {
    let side = |version: &str| Side { version: version.to_owned(), digest: version.to_owned() };
    let start = Start {
        id: "r-0".to_owned(),
        model: "simulated".to_owned(),
        baseline: side("1"),
        candidate: side("2"),
        policy: Policy::default(),
        salt: String::new(),
        actor: "judges",
        reason: "",
    };
    Rollout::start(start, now).0
}

fn request((base, ratio): (f64, f64), share: f64, at: Duration, random: &mut Random) -> Seen {
    let candidate = random.unit() < share;
    let error = random.unit() < if candidate { base * ratio } else { base };
    let slowness = random.unit();
    let marks = match slowness {
        _ if error => Marks::ERROR,
        slowness if slowness < 0.05 => Marks::ANSWERED | Marks::slow(0) | Marks::slow(1),
        slowness if slowness < 0.5 => Marks::ANSWERED | Marks::slow(0),
        _ => Marks::ANSWERED,
    };
    let (prediction, output) = (PredictionId::UNKNOWN, Output::Nothing);
    Seen { candidate, share, key: 0, sticky: false, at, prediction, marks, output }
}

/// Share of each end, and the median of the canary's requests among those that ended so.
pub(crate) fn summary(runs: &[(End, u64)], end: End) -> String {
    let mut requests: Vec<u64> = runs.iter().filter(|run| run.0 == end).map(|run| run.1).collect();
    requests.sort_unstable();
    let share = number(requests.len() as u64) / number(runs.len() as u64);
    match requests.get(requests.len() / 2) {
        Some(median) if share > 0.1 => format!("{share:.4} / {median}"),
        _ => format!("{share:.4}"),
    }
}
