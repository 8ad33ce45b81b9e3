//! Rollouts as they might be: requests, arms, failures, request by request.

use crate::judge::{Judge, Look};

/// Random numbers that follow from a seed (`SplitMix64`).
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    pub(crate) fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Requests of a rollout, and of one look of those judges that look at intervals: a hundred looks.
pub(crate) const REQUESTS: usize = 200_000;
pub(crate) const INTERVAL: usize = REQUESTS / 100;

/// Conditions of a simulated rollout.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    /// The baseline's rate of errors.
    pub(crate) base: f64,
    /// The canary's rate over the baseline's.
    pub(crate) ratio: f64,
    /// Five of a hundred intervals have ten times the errors, on both arms.
    pub(crate) incidents: bool,
    /// The share is 1, 10 and 25 % in turn, and the common rate meanwhile one, two and three times the base; else
    /// 5 % all the time.
    pub(crate) steps: bool,
}

/// Times at which a judge looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Interval,
    Event,
}

/// Runs one rollout before all judges; returns for each the canary's requests until it rolled back.
pub(crate) fn run(scenario: &Scenario, judges: &[(When, Judge)], seed: u64) -> Vec<Option<u64>> {
    let mut random = Random(seed << 32);
    let mut judges = judges.to_vec();
    let mut rolled_back = vec![None; judges.len()];
    let (mut since_event, mut since_interval) = (Look::default(), Look::default());
    let (mut canary_requests, mut rate) = (0, scenario.base);
    for request in 0..REQUESTS {
        let step = request / INTERVAL * 3 / 100;
        let share = if scenario.steps { [0.01, 0.1, 0.25][step] } else { 0.05 };
        if request % INTERVAL == 0 {
            let tenfold = scenario.incidents && random.unit() < 0.05;
            let trend = if scenario.steps { [1.0, 2.0, 3.0][step] } else { 1.0 };
            rate = scenario.base * trend * if tenfold { 10.0 } else { 1.0 };
        }
        let arm = usize::from(random.unit() >= share);
        let bad = random.unit() < if arm == 0 { rate * scenario.ratio } else { rate };
        let mut one = Look { share, ..Look::default() };
        (one.requests[arm], one.bad[arm]) = (1, u64::from(bad));
        canary_requests += one.requests[0];
        since_event.add(&one);
        since_interval.add(&one);
        let due = [(bad, When::Event), ((request + 1) % INTERVAL == 0, When::Interval)];
        for (_, when) in due.iter().filter(|(due, _)| *due) {
            let since = match when {
                When::Event => std::mem::take(&mut since_event),
                When::Interval => std::mem::take(&mut since_interval),
            };
            for ((looks, judge), result) in judges.iter_mut().zip(&mut rolled_back) {
                if looks == when && result.is_none() && judge.look(&since) {
                    *result = Some(canary_requests);
                }
            }
        }
        if rolled_back.iter().all(Option::is_some) {
            break;
        }
    }
    rolled_back
}

/// The order in which failures are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Assignment,
    Completion,
}

/// Five minutes at 200 requests a second and 1 % errors on both arms, of which the canary's take a millisecond and the
/// baseline's five seconds, with ten seconds in which half of all requests fail. True if the canary goes back.
pub(crate) fn run_speeds(order: Order, judge: &Judge, seed: u64) -> bool {
    let mut random = Random(seed << 32);
    let mut events = Vec::new();
    for request in 0..60_000_u32 {
        let assigned = f64::from(request) / 200.0;
        let canary = random.unit() < 0.05;
        let rate = if (100.0..110.0).contains(&assigned) { 0.5 } else { 0.01 };
        if random.unit() < rate {
            let completed = assigned + if canary { 0.001 } else { 5.0 };
            events.push((if order == Order::Assignment { assigned } else { completed }, canary));
        }
    }
    events.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut judge = judge.clone();
    events.into_iter().any(|(_, canary)| {
        let bad = [u64::from(canary), u64::from(!canary)];
        judge.look(&Look { share: 0.05, requests: bad, bad })
    })
}

/// Failures of a key that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    All,
    FirstPerInterval,
    FirstPerRollout,
}

/// Requests of 2,000 keys that stay on their arm, the k-th with a k-th of the first one's traffic, and uneven rates of
/// failure around 1 % on both arms; the share is 1, 10 and 25 %. True if the canary goes back.
pub(crate) fn run_keys(rule: Keys, judge: &Judge, seed: u64) -> bool {
    let mut random = Random(seed << 32);
    let mut traffic = 0.0;
    let keys: Vec<(f64, f64, f64)> = (1..=2000_u32)
        .map(|rank| {
            traffic += 1.0 / f64::from(rank);
            (traffic, random.unit(), -0.01 * random.unit().max(1e-12).ln())
        })
        .collect();
    let mut counted = vec![false; keys.len()];
    let mut judge = judge.clone();
    for request in 0..100_000 {
        if rule == Keys::FirstPerInterval && request % INTERVAL == 0 {
            counted.fill(false);
        }
        let share = [0.01, 0.1, 0.25][request * 3 / 100_000];
        let drawn = random.unit() * traffic;
        let key = keys.partition_point(|(until, ..)| *until < drawn).min(keys.len() - 1);
        let (_, place, rate) = keys[key];
        if random.unit() < rate && !(counted[key] && rule != Keys::All) {
            counted[key] = true;
            let bad = [u64::from(place < share), u64::from(place >= share)];
            if judge.look(&Look { share, requests: bad, bad }) {
                return true;
            }
        }
    }
    false
}
