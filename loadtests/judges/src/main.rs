//! Simulates canaries before tidegate's judge and before others, and prints how often each is wrong.
//!
//! Every table is Markdown and follows from seeds alone. `judges [RUNS]`, 1,000 by default, takes about three minutes.
//!
//! Rules are compared on the same requests; whole rollouts are decided by the code of the real server.

mod judge;
mod schedule;
mod world;

use std::thread;

use judge::{Judge, Look, number};
use schedule::End;
use world::{Keys, Order, REQUESTS, Scenario, When, run, run_keys, run_speeds};

fn main() {
    let runs = std::env::args().nth(1).map_or(1000, |runs| runs.parse().expect("a number of runs"));
    println!(
        "{runs} runs of each; those of the first tables have {REQUESTS} requests. A cell: the share of runs"
    );
    println!(
        "that were rolled back, and the canary's requests until then (the median of those runs).\n"
    );
    false_rollbacks(runs);
    power(runs, 0.01);
    power(runs, 0.001);
    orders(runs);
    keys(runs);
    schedules(runs);
}

/// All judges for a service with this base rate, by name.
fn judges(base: f64) -> Vec<(&'static str, (When, Judge))> {
    use When::{Event, Interval};
    let fixed = |failures_left| Judge::Fixed { rate: 0.02, failures_left };
    let z_test = |quantile| Judge::ZTest { quantile, so_far: Look::default() };
    let track_and_stop = Judge::TrackAndStop { delta: 0.01, so_far: Look::default() };
    vec![
        ("at most 2 % per interval, 5 failures (Flagger-like)", (Interval, fixed(5))),
        ("at most 2 % per interval, no failure (Argo-like)", (Interval, fixed(1))),
        ("z-test at 5 %, 100 looks", (Interval, z_test(1.645))),
        ("z-test at 1 %, 100 looks", (Interval, z_test(2.326))),
        ("z-test at 1 %, every event", (Event, z_test(2.326))),
        (
            "Mann-Whitney on intervals (Kayenta-like)",
            (Interval, Judge::Ranks { rates: Vec::new() }),
        ),
        ("Track-and-Stop's rule at 1 %, every event", (Event, track_and_stop)),
        ("event e-process at 1 %, delta 0, 100 looks", (Interval, Judge::events(0.01, 0.0, base))),
        ("event e-process at 1 %, delta 0, every event", (Event, Judge::events(0.01, 0.0, base))),
        (
            "tidegate's gate: at 0.5 %, delta 0.2, every event",
            (Event, Judge::events(0.005, 0.2, base)),
        ),
    ]
}

fn false_rollbacks(runs: u64) {
    let same = Scenario { base: 0.01, ratio: 1.0, incidents: false, steps: false };
    table(
        "Both arms alike: every rollback is false",
        runs,
        &[
            ("1 % errors", same),
            ("0.1 % errors", Scenario { base: 0.001, ..same }),
            ("tenfold incidents on both", Scenario { incidents: true, ..same }),
            ("share 1, 10, 25 % while the rate trebles", Scenario { steps: true, ..same }),
        ],
    );
}

fn power(runs: u64, base: f64) {
    let worse = |ratio| Scenario { base, ratio, incidents: false, steps: false };
    table(
        &format!("A worse canary at share 5 %, baseline {} % errors", base * 100.0),
        runs,
        &[("1.2 x", worse(1.2)), ("1.5 x", worse(1.5)), ("2 x", worse(2.0)), ("5 x", worse(5.0))],
    );
}

fn table(title: &str, runs: u64, scenarios: &[(&str, Scenario)]) {
    let columns: Vec<(&str, Vec<Vec<Option<u64>>>)> = scenarios
        .iter()
        .map(|(name, scenario)| {
            let judges: Vec<_> =
                judges(scenario.base).into_iter().map(|(_, judge)| judge).collect();
            (*name, each(runs, |seed| run(scenario, &judges, seed)))
        })
        .collect();
    println!("{title}:\n");
    print!("| judge |");
    for (name, _) in &columns {
        print!(" {name} |");
    }
    println!("\n| --- |{}", " --- |".repeat(columns.len()));
    for (index, (name, _)) in judges(0.01).into_iter().enumerate() {
        print!("| {name} |");
        for (_, results) in &columns {
            let mut until: Vec<u64> = results.iter().filter_map(|result| result[index]).collect();
            until.sort_unstable();
            print!(" {:.3}", number(until.len() as u64) / number(runs));
            // A median of few runs, or of false rollbacks, says nothing.
            if 2 * until.len() as u64 > runs && !title.starts_with("Both") {
                print!(" / {}", until[until.len() / 2]);
            }
            print!(" |");
        }
        println!();
    }
    println!();
}

fn orders(runs: u64) {
    println!(
        "Both arms alike, the canary fails in 1 ms and the baseline in 5 s, one shared incident:\n"
    );
    println!("| failures are counted in order of | false rollbacks |\n| --- | --- |");
    for (name, order) in [("assignment", Order::Assignment), ("completion", Order::Completion)] {
        let judge = Judge::events(0.01, 0.2, 0.01);
        print_share(name, &each(runs, |seed| run_speeds(order, &judge, seed)));
    }
    println!();
}

fn keys(runs: u64) {
    println!("Both arms alike, sticky keys of uneven traffic, delta 0:\n");
    println!("| failures of a key that count | false rollbacks |\n| --- | --- |");
    let rules = [
        ("all", Keys::All),
        ("the first of each interval", Keys::FirstPerInterval),
        ("the first of the rollout", Keys::FirstPerRollout),
    ];
    for (name, rule) in rules {
        let judge = Judge::events(0.01, 0.0, 0.01);
        print_share(name, &each(runs, |seed| run_keys(rule, &judge, seed)));
    }
}

fn schedules(runs: u64) {
    println!("\nWhole rollouts by the default policy; latencies and outputs alike:\n");
    println!(
        "| requests/s | baseline's errors | canary's, times that | promoted | rolled back | held |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for (per_second, base, ratios) in [
        (10.0, 0.01, [1.0, 1.2, 1.5, 2.0, 5.0].as_slice()),
        (50.0, 0.01, &[1.0, 1.2, 1.5, 2.0, 5.0]),
        (50.0, 0.001, &[1.0, 2.0, 5.0]),
        (50.0, 0.0, &[1.0]),
    ] {
        for ratio in ratios {
            let runs = each(runs, |seed| schedule::run(base, *ratio, per_second, seed));
            let [promoted, rolled_back, held] = [End::Promoted, End::RolledBack, End::Held]
                .map(|end| schedule::summary(&runs, end));
            let base = base * 100.0;
            println!("| {per_second} | {base} % | {ratio} | {promoted} | {rolled_back} | {held} |");
        }
    }
}

fn print_share(name: &str, rolled_back: &[bool]) {
    let count = rolled_back.iter().filter(|rolled_back| **rolled_back).count();
    println!("| {name} | {:.3} |", number(count as u64) / number(rolled_back.len() as u64));
}

/// The results of all seeds, in order, by as many threads as there are cores.
fn each<T: Send>(runs: u64, one: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let threads = thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let one = &one;
    thread::scope(|scope| {
        let part = |thread| {
            move || (runs * thread / threads..runs * (thread + 1) / threads).map(one).collect()
        };
        let parts: Vec<_> = (0..threads).map(|thread| scope.spawn(part(thread))).collect();
        parts
            .into_iter()
            .flat_map(|part| -> Vec<T> { part.join().expect("no run fails") })
            .collect()
    })
}
