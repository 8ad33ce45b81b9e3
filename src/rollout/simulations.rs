//! The promises of the decision, by simulation of its real core: short ones, with fixed seeds.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    plan::Random,
    report::{as_f64, as_u64},
    tests::start,
    *,
};
use crate::model::PredictionId;

/// Simulated traffic, and the arms' answers to it.
#[derive(Clone, Copy)]
struct World {
    /// Requests per second.
    rate: f64,
    /// Probability of an error on the baseline.
    base: f64,
    /// The candidate's probability divided by it.
    ratio: f64,
    /// Seconds of shared incidents per hundred: everything fails ten times as often.
    incidents: f64,
    /// Users whose requests stay together, of uneven traffic; some fail always.
    users: Option<u32>,
    /// True if these users are told apart.
    sticky: bool,
    requests_max: u64,
}

const CALM: World = World {
    rate: 10.0,
    base: 0.01,
    ratio: 1.0,
    incidents: 0.0,
    users: None,
    sticky: true,
    requests_max: 100_000,
};

/// End of a rollout, with the candidate's requests until then.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    RolledBack(u64),
    Promoted(u64),
    Neither,
}

/// Requests that are heard of together.
const BATCH: u64 = 20;

fn run(policy: &Policy, world: World, seed: u64) -> End {
    let (mut rollout, _) = start(policy.clone());
    let mut random = Random(seed.wrapping_mul(0x5851_f42d_4c95_7f2d));
    let mut now = Duration::from_secs(1_000_000);
    let (mut canary, mut sent, mut incident) = (0, 0, false);
    rollout.hear(&Event::Loaded, now);
    while sent < world.requests_max {
        let mut batch = Vec::new();
        if sent % as_u64(world.rate.max(as_f64(BATCH))) < BATCH {
            incident = random.unit() < world.incidents;
        }
        for _ in 0..BATCH {
            now += Duration::from_secs_f64(1.0 / world.rate);
            let request = request(rollout.weight(), world, seed, incident, now, &mut random);
            canary += u64::from(request.candidate);
            batch.push(request);
        }
        sent += BATCH;
        let effects = rollout.hear(&Event::Requests(&batch), now);
        if effects.iter().any(|effect| matches!(effect, Effect::FreezeQuantiles(_))) {
            let threshold =
                |quantile: f64| Threshold { quantile, seconds: 0.01, share_above: 1.0 - quantile };
            rollout.hear(&Event::Thresholds(&[threshold(0.5), threshold(0.95)]), now);
        }
        if matches!(rollout.state(), State::RolledBack | State::Promoting) {
            break;
        }
    }
    if seed.is_multiple_of(8) {
        check_bundle(&rollout);
    }
    match rollout.state() {
        State::RolledBack => End::RolledBack(canary),
        State::Promoting => End::Promoted(canary),
        _ => End::Neither,
    }
}

/// Replays what a run left behind: as it is, and with one request more.
fn check_bundle(rollout: &Rollout) {
    let mut bundle = serde_json::to_value(rollout.bundle()).unwrap();
    let replayed = replay(&bundle).unwrap();
    assert!(replayed.is_equal(), "{:#?}", replayed.differences);
    assert_eq!(replayed.verdict.unwrap().state, rollout.state());
    let ledger = bundle["ledger"].as_array_mut().unwrap();
    let is_over = rollout.state() != State::Canary;
    if let Some(entry) = ledger.iter_mut().find(|entry| entry.get("requests").is_some()) {
        entry["requests"]["candidate"] =
            json!(entry["requests"]["candidate"].as_u64().unwrap() + 1);
        let differences = replay(&bundle).unwrap().differences;
        assert!(differences.len() > usize::from(is_over), "{differences:?}");
    }
}

fn request(
    share: f64,
    world: World,
    seed: u64,
    incident: bool,
    at: Duration,
    random: &mut Random,
) -> Seen {
    // A user has a place between 0 and 1, and is the candidate's where that is below its share.
    let (key, place, always) = match world.users {
        Some(users) => {
            // A few make most of the requests.
            let user = as_u64(f64::from(users) * random.unit().powi(4));
            let mut own = Random((seed << 32 | user).wrapping_mul(0x9fb2_1c65_1e98_df25));
            (user, own.unit(), own.unit() < world.base)
        }
        None => (0, random.unit(), false),
    };
    let candidate = place <= share;
    let mut probability = if candidate { world.base * world.ratio } else { world.base };
    if incident {
        probability *= 10.0;
    }
    let bad = if world.users.is_some() {
        always && random.unit() < 0.9
    } else {
        random.unit() < probability
    };
    let slow = random.unit();
    let marks = if bad {
        Marks::ERROR
    } else if slow < 0.05 {
        Marks::ANSWERED | Marks::slow(0) | Marks::slow(1)
    } else if slow < 0.5 {
        Marks::ANSWERED | Marks::slow(0)
    } else {
        Marks::ANSWERED
    };
    let sticky = world.users.is_some() && world.sticky;
    let (prediction, output) = (PredictionId::UNKNOWN, Output::Nothing);
    Seen { candidate, share, key, sticky, at, prediction, marks, output }
}

fn policy(written: &Value) -> Policy {
    Policy::from_drafts(&[&PolicyDraft::read(written).unwrap()]).unwrap()
}

/// Three steps that pass at once but for the last, only `errors`, at an error of 0.05 and without any tolerance.
fn strict() -> Policy {
    let step = |weight: f64, requests: u64| {
        json!({"weight": weight, "min_duration": "1s", "min_requests": requests,
               "max_duration": "30d"})
    };
    let off = json!({"mode": "off"});
    policy(&json!({
        "steps": [step(0.05, 100), step(0.2, 300), step(0.5, 1_000_000)],
        "alpha": 0.1, "warmup_requests": 10, "on_srm": "ignore",
        "gates": {"errors": {"delta": 0.0}, "slow": off, "invalid_output": off, "wrong_label": off,
                  "disagreement": off, "fewer_outcomes": off, "fewer_positives": off,
                  "output_shift": off}}))
}

fn rolled_back(policy: &Policy, world: World, runs: u64) -> usize {
    (0..runs).filter(|seed| matches!(run(policy, world, *seed), End::RolledBack(_))).count()
}

fn median(mut ends: Vec<u64>) -> u64 {
    ends.sort_unstable();
    ends[ends.len() / 2]
}

#[test]
fn equal_arms_are_rolled_back_as_rarely_as_promised() {
    let world = World { base: 0.05, requests_max: 6000, ..CALM };
    let false_ones = rolled_back(&strict(), world, 100);
    assert!(false_ones <= 5, "{false_ones} of 100, with a look at every event");
    let shaken = World { incidents: 0.1, ..world };
    let false_ones = rolled_back(&strict(), shaken, 100);
    assert!(false_ones <= 5, "{false_ones} of 100, with shared incidents");
    let worse = World { ratio: 2.0, ..world };
    assert!(rolled_back(&strict(), worse, 20) >= 18, "the same test has teeth");
}

#[test]
fn users_of_uneven_traffic_count_once() {
    let world = World { base: 0.05, users: Some(2000), requests_max: 6000, ..CALM };
    let false_ones = rolled_back(&strict(), world, 100);
    assert!(false_ones <= 5, "{false_ones} of 100");
    let untold = World { sticky: false, ..world };
    assert!(rolled_back(&strict(), untold, 50) >= 5, "their requests are not independent");
}

#[test]
fn five_times_the_errors_are_rolled_back_within_the_promised_requests() {
    let policy = policy(&json!({"steps": [{"weight": 0.05, "max_duration": "30d"}]}));
    let world = World { ratio: 5.0, ..CALM };
    let ends = (0..61).map(|seed| match run(&policy, world, seed) {
        End::RolledBack(canary) => canary,
        End::Promoted(_) | End::Neither => u64::MAX,
    });
    let median = median(ends.collect());
    assert!(median <= 300, "{median} requests of the canary");
}

#[test]
fn good_candidate_passes_the_default_policy_within_the_promised_requests() {
    let promoted = |world: World, runs: u64| {
        let ends = (0..runs).map(|seed| match run(&Policy::default(), world, seed) {
            End::Promoted(canary) => canary,
            End::RolledBack(_) | End::Neither => u64::MAX,
        });
        median(ends.collect())
    };
    let canary = promoted(CALM, 9);
    assert!(canary <= 5000, "{canary} requests of the canary");
    let canary = promoted(World { base: 0.0, ..CALM }, 3);
    assert!(canary <= 3000, "without any error: {canary} requests of the canary");
}
