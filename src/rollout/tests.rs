//! Scripts: what a rollout hears, line by line, and where it stands and what has to be done after each.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::model::PredictionId;

/// A rollout, its clock, and the numbers of its requests.
pub(super) struct Stage {
    pub(super) rollout: Rollout,
    pub(super) now: Duration,
    number: u64,
}

const ALPHA_SHARE: f64 = 6554.0 / 65_536.0;

/// Two short steps; of the gates only `errors`, unless `more` says otherwise.
pub(super) fn quick(more: &Value) -> Policy {
    let step = |weight: f64| json!({"weight": weight, "min_duration": "10s", "min_requests": 5, "max_duration": "60s"});
    let off = json!({"mode": "off"});
    let short = json!({
        "steps": [step(0.1), step(0.25)], "warmup_requests": 2,
        "gates": {"slow": off, "invalid_output": off, "disagreement": off, "wrong_label": off,
                  "fewer_outcomes": off, "fewer_positives": off, "output_shift": off},
    });
    let drafts = [more, &short].map(|draft| PolicyDraft::read(draft).unwrap());
    Policy::from_drafts(&[&drafts[0], &drafts[1]]).unwrap()
}

pub(super) fn start(policy: Policy) -> (Rollout, Vec<Effect>) {
    let side = |version: &str| Side { version: version.to_owned(), digest: format!("d{version}") };
    let start = Start {
        id: "r-1".to_owned(),
        model: "fraud".to_owned(),
        baseline: side("3"),
        candidate: side("4"),
        policy,
        salt: "00112233445566778899aabbccddeeff".to_owned(),
        actor: "anna",
        reason: "",
    };
    Rollout::start(start, Duration::from_secs(1_000_000))
}

impl Stage {
    pub(super) fn new(policy: Policy) -> Self {
        let (rollout, effects) = start(policy);
        assert_eq!(spelled(&effects), "record, tell started");
        Self { rollout, now: Duration::from_secs(1_000_000), number: 0 }
    }

    pub(super) fn hear(&mut self, event: &Event<'_>) -> Vec<Effect> {
        self.rollout.hear(event, self.now)
    }

    /// Requests of one arm that ended with these marks, a millisecond apart.
    pub(super) fn requests(&mut self, count: u64, candidate: bool, marks: Marks) -> Vec<Effect> {
        let seen: Vec<_> = (0..count).map(|_| self.seen(candidate, marks)).collect();
        self.hear(&Event::Requests(&seen))
    }

    fn seen(&mut self, candidate: bool, marks: Marks) -> Seen {
        self.number += 1;
        self.now += Duration::from_millis(1);
        let prediction = PredictionId::from_bits(self.number.into());
        let share = if self.rollout.weight() > 0.0 { self.rollout.weight() } else { ALPHA_SHARE };
        Seen {
            candidate,
            share,
            key: self.number,
            sticky: false,
            at: self.now,
            prediction,
            marks,
            output: Output::Nothing,
        }
    }

    /// Does what lines say.
    pub(super) fn play(&mut self, lines: &str) {
        for line in lines.lines() {
            self.act(line.trim());
        }
    }

    /// Does what a line says.
    fn act(&mut self, line: &str) -> Vec<Effect> {
        let words: Vec<&str> = line.split(' ').collect();
        let count = |at: usize| words[at].parse::<u64>().unwrap();
        let order = |order| Event::Order { order, actor: "anna", reason: "so" };
        match words[..] {
            ["wait", _] => {
                self.now += Duration::from_secs(count(1));
                self.hear(&Event::Tick)
            }
            ["canary" | "baseline", _, ref how @ ..] => {
                let marks = how.iter().fold(Marks::default(), |marks, how| marks | mark(how));
                self.requests(count(1), words[0] == "canary", marks)
            }
            // As many of both arms as the weight says, all answered.
            ["both", _] => {
                let mut seen = Vec::new();
                for number in 0..count(1) {
                    let every = (1.0 / self.rollout.weight()).round();
                    let candidate = number % report::as_u64(every) == 0;
                    seen.push(self.seen(candidate, Marks::ANSWERED));
                }
                self.hear(&Event::Requests(&seen))
            }
            ["shadowed", _, how] => {
                let flipped = how == "flipped";
                let comparisons = vec![Comparison { flipped, ..Comparison::default() }; 1000];
                let comparisons = &comparisons[..usize::try_from(count(1)).unwrap()];
                self.hear(&Event::Shadowed(comparisons))
            }
            ["thresholds"] => {
                let threshold = |quantile: f64| Threshold {
                    quantile,
                    seconds: 0.01,
                    share_above: 1.0 - quantile,
                };
                self.hear(&Event::Thresholds(&[threshold(0.5), threshold(0.95)]))
            }
            ["loaded"] => self.hear(&Event::Loaded),
            ["validated", how] => {
                let (report, why) = (json!({"accuracy": 0.8}), "accuracy 0.8".to_owned());
                self.hear(&Event::Validated { report, pass: how == "well", why })
            }
            ["freeze"] => self.hear(&Event::Frozen(true)),
            ["thaw"] => self.hear(&Event::Frozen(false)),
            ["crash"] => self.hear(&Event::Guard { kind: GuardKind::Crash, why: "signal 11" }),
            ["unloadable"] => {
                self.hear(&Event::Guard { kind: GuardKind::LoadFailure, why: "no such operator" })
            }
            ["superseded"] => self.hear(&Event::Superseded { why: "version 5 was loaded" }),
            ["weigh", share] => self.hear(&Event::Weighed(share.parse().unwrap())),
            ["took over"] | ["took", "over"] => self.hear(&Event::Promoted),
            ["did", "not"] => self.hear(&Event::PromotionFailed { why: "no memory" }),
            ["restarted"] => self.hear(&Event::Restarted { lost: "one second" }),
            ["pause"] => self.hear(&order(Order::Pause)),
            ["resume"] => self.hear(&order(Order::Resume)),
            ["approve"] => self.hear(&order(Order::Approve)),
            ["promote"] => self.hear(&order(Order::Promote)),
            ["abort"] => self.hear(&order(Order::Abort)),
            _ => panic!("no such line: {line}"),
        }
    }
}

fn mark(word: &str) -> Marks {
    match word {
        "answered" => Marks::ANSWERED,
        "error" => Marks::ERROR,
        "fault" => Marks::FAULT | Marks::ERROR,
        "invalid" => Marks::INVALID | Marks::ANSWERED,
        "full" => Marks::CAPACITY,
        "left" => Marks::ABANDONED,
        "slow" => Marks::slow(0) | Marks::slow(1),
        _ => panic!("no such mark: {word}"),
    }
}

fn spelled(effects: &[Effect]) -> String {
    let effect = |effect: &Effect| match effect {
        Effect::Validate(validation) => format!("validate {}", validation.data),
        Effect::Shadow { share } => format!("shadow {share}"),
        Effect::NoShadow => "no shadow".to_owned(),
        Effect::SetWeight(weight) => format!("weight {weight:.2}"),
        Effect::FreezeQuantiles(quantiles) => format!("freeze {quantiles:?}"),
        Effect::Promote { holdback } => format!("promote {holdback:.2}"),
        Effect::Rollback { .. } => "roll back".to_owned(),
        Effect::Record => "record".to_owned(),
        Effect::Tell { kind, .. } => format!("tell {}", format!("{kind:?}").to_lowercase()),
        Effect::End => "end".to_owned(),
        Effect::Release => "release".to_owned(),
    };
    effects.iter().map(effect).collect::<Vec<_>>().join(", ")
}

/// Plays a script of `what happens => state/step effects`, and replays what it left behind.
#[track_caller]
fn check(policy: Policy, script: &str) -> Rollout {
    let mut stage = Stage::new(policy);
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (what, expected) = line.split_once(" => ").unwrap();
        let effects = spelled(&stage.act(what.trim()));
        let at = format!("{}/{}", stage.rollout.state().name(), stage.rollout.head.step);
        let found = format!("{at} {effects}");
        assert_eq!(found.trim(), expected.trim(), "{line}");
    }
    let bundle = serde_json::to_value(stage.rollout.bundle()).unwrap();
    let replayed = replay(&bundle).unwrap();
    assert!(replayed.is_equal(), "{:#?}", replayed.differences);
    let report = stage.rollout.report(stage.now);
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    stage.rollout
}

const ROLLED_BACK: &str = "roll back, record, tell rolledback, end";

#[test]
fn good_candidate_goes_from_step_to_step_and_takes_over() {
    let rollout = check(
        quick(&json!({})),
        "loaded           => canary/0 record, weight 0.10, tell step
         both 20          => canary/0
         wait 1           => canary/0
         both 100         => canary/0
         wait 8           => canary/0
         wait 2           => canary/1 record, weight 0.25, tell step
         both 100         => canary/1
         wait 11          => canary/1
         both 4000        => promoting/1 record, promote 0.00
         took over        => promoted/1 record, tell promoted, end
         canary 50 error  => promoted/1
         wait 3599        => promoted/1
         wait 1           => promoted/1 record, release
         wait 9           => promoted/1",
    );
    assert!(rollout.weight() >= 1.0);
    assert!(rollout.is_released());
}

#[test]
fn validation_and_shadow_come_first() {
    let more = json!({
        "validate": {"data": "labelled.csv"},
        "shadow": {"share": 0.5, "requests": 300, "duration": "1m"},
        "gates": {"disagreement": {"mode": "required"}}, "holdback": 0.05
    });
    check(
        quick(&more),
        "loaded               => validating/0 record, validate labelled.csv
         wait 1               => validating/0
         validated well       => shadow/0 record, shadow 0.5
         shadowed 100 alike   => shadow/0
         pause                => paused/0 record
         wait 90              => paused/0
         shadowed 200 alike   => paused/0
         resume               => canary/0 record, shadow 0.5, no shadow, record, weight 0.10, tell step
         both 20              => canary/0
         both 120             => canary/0
         wait 10              => canary/1 record, weight 0.25, tell step
         promote              => promoting/1 record, promote 0.05
         took over            => promoted/1 record, tell promoted, end
         wait 3600            => promoted/1 record, release",
    );
    check(
        quick(&more),
        "loaded          => validating/0 record, validate labelled.csv
         validated badly => failed/0 record, tell failed, end",
    );
    let rollout = check(
        quick(&more),
        &format!(
            "loaded              => validating/0 record, validate labelled.csv
             restarted           => validating/0 record, validate labelled.csv
             validated well      => shadow/0 record, shadow 0.5
             restarted           => shadow/0 record, shadow 0.5
             shadowed 20 alike   => shadow/0
             shadowed 20 flipped => rolled_back/0 {ROLLED_BACK}"
        ),
    );
    let reason = rollout.report(Duration::ZERO).reason;
    assert!(reason.starts_with("gate disagreement: "), "{reason}");
    check(
        quick(&more),
        "loaded         => validating/0 record, validate labelled.csv
         promote        => promoting/0 record, promote 0.05
         did not        => held/0 record, tell held",
    );
    check(
        quick(&more),
        "loaded         => validating/0 record, validate labelled.csv
         validated well => shadow/0 record, shadow 0.5
         wait 61        => canary/0 no shadow, record, weight 0.10, tell step",
    );
}

#[test]
fn errors_roll_back_on_the_request_that_proves_them() {
    let rollout = check(
        quick(&json!({})),
        &format!(
            "loaded            => canary/0 record, weight 0.10, tell step
             both 40           => canary/0
             both 90           => canary/0
             baseline 1 error  => canary/0
             canary 2 error    => canary/0
             canary 90 error   => rolled_back/0 {ROLLED_BACK}
             wait 3600         => rolled_back/0 record, release"
        ),
    );
    let report = rollout.report(Duration::ZERO);
    let gate = &report.gates[0];
    assert!(gate.log_e >= gate.log_e_threshold && gate.log_e < gate.log_e_threshold + 2.0);
    assert!(gate.candidate.events < 10, "what came later is no evidence: {gate:?}");
    assert_eq!(gate.verdict, Verdict::Fail);
    assert!(report.reason.starts_with("gate errors: "), "{}", report.reason);
    assert_eq!(report.gate, Some(Gate::Errors));

    let why = report.why.unwrap();
    assert_eq!(u64::try_from(why.worst.len()).unwrap(), gate.candidate.events);
    assert!(why.worst.last().unwrap().starts_with("0000000000000000"), "{:?}", why.worst);
    assert_eq!((why.users_met, why.kind.as_str()), (gate.candidate.events, "gate"));
    assert!((why.weight - 0.1).abs() < 1e-4, "the share until then: {}", why.weight);
    assert!((why.path.last().unwrap().log_e - gate.log_e).abs() < 1e-9);
    assert_eq!(why.elsewhere.len(), 2);
    assert!(why.elsewhere[0].requests > why.elsewhere[1].requests, "{:?}", why.elsewhere);
}

#[test]
fn each_kind_of_bad_event_has_its_gate() {
    let on = json!({"mode": "required"});
    let more = json!({"gates": {"slow": on, "invalid_output": on}});
    for (bad, gate) in [
        ("canary 60 answered slow", Gate::Slow),
        ("canary 60 left slow", Gate::Slow),
        ("canary 60 invalid", Gate::InvalidOutput),
        ("canary 60 error", Gate::Errors),
    ] {
        let rollout = check(
            quick(&more),
            &format!(
                "loaded          => canary/0 record, weight 0.10, tell step
                 both 40         => canary/0 freeze [0.5, 0.95]
                 both 40         => canary/0
                 thresholds      => canary/0
                 both 40         => canary/0
                 {bad}           => rolled_back/0 {ROLLED_BACK}"
            ),
        );
        assert_eq!(rollout.report(Duration::ZERO).gate, Some(gate), "{bad}");
    }
    for good in ["canary 300 full", "canary 300 left", "canary 300 error left"] {
        let good = good.replace("error left", "answered");
        check(
            quick(&more),
            &format!(
                "loaded          => canary/0 record, weight 0.10, tell step
                 both 40         => canary/0 freeze [0.5, 0.95]
                 thresholds      => canary/0
                 {good}          => held/0 record, tell held"
            ),
        );
    }
}

#[test]
fn slowness_before_the_quantiles_are_frozen_counts_for_nothing() {
    let more = json!({"gates": {"slow": {"mode": "required"}}});
    let rollout = check(
        quick(&more),
        "loaded                  => canary/0 record, weight 0.10, tell step
         both 40                 => canary/0 freeze [0.5, 0.95]
         both 60                 => canary/0
         canary 6 answered slow  => canary/0
         wait 10                 => canary/0
         wait 5                  => held/0 record, tell held
         thresholds              => held/0
         both 60                 => canary/1 record, record, weight 0.25, tell step",
    );
    let slow = &rollout.report(Duration::ZERO).gates[1];
    assert_eq!((slow.candidate.requests, slow.candidate.events), (6, 0));
}

#[test]
fn warm_up_is_no_evidence_on_either_arm() {
    let more = json!({"warmup_requests": 20});
    let rollout = check(
        quick(&more),
        "loaded           => canary/0 record, weight 0.10, tell step
         baseline 9 error => canary/0
         canary 19 error  => canary/0
         canary 9 error   => canary/0
         both 10          => canary/0
         restarted        => canary/0 record, weight 0.10
         canary 19 error  => canary/0
         canary 1 error   => canary/0
         both 10          => canary/0",
    );
    let report = rollout.report(Duration::ZERO);
    assert_eq!(report.requests, Pair { baseline: 18, candidate: 2 });
    assert_eq!(report.gates[0].candidate.events, 0);
}

#[test]
fn guard_counts_faults_in_a_row_while_the_baseline_answers() {
    let fault = "canary 1 fault => canary/0\n baseline 1 answered => canary/0\n";
    let (four, begin) = (
        fault.repeat(4),
        "loaded => canary/0 record, weight 0.10, tell step\n baseline 1 answered => canary/0\n",
    );
    let gate = json!({"gates": {"errors": {"mode": "signal"}}});
    let rollout =
        check(quick(&gate), &format!("{begin}{four}canary 1 fault => rolled_back/0 {ROLLED_BACK}"));
    assert!(rollout.report(Duration::ZERO).reason.starts_with("guard consecutive_failures: 5"));
    // An answer in between, refusals of values, and an incident that hits both arms.
    let (begin, four) = (begin, four);
    check(quick(&gate), &format!("{begin}{four}canary 1 answered => canary/0\n{four}"));
    check(quick(&gate), &format!("{begin}{four}canary 9 error => canary/0"));
    check(quick(&gate), &format!("{begin}canary 90 fault => canary/0"));
}

#[test]
fn crashes_and_load_failures_roll_back_or_fail() {
    let begin = "loaded => canary/0 record, weight 0.10, tell step";
    for (script, reason) in [
        (format!("{begin}\n crash => rolled_back/0 {ROLLED_BACK}"), "guard crash: signal 11"),
        (
            format!("{begin}\n unloadable => rolled_back/0 {ROLLED_BACK}"),
            "load failed: no such operator",
        ),
        (
            "unloadable => failed/0 record, tell failed, end".to_owned(),
            "load failed: no such operator",
        ),
        (format!("{begin}\n abort => rolled_back/0 {ROLLED_BACK}"), "operator: so (anna)"),
        (
            format!("{begin}\n superseded => superseded/0 record, tell failed, end"),
            "superseded: version 5 was loaded",
        ),
    ] {
        let rollout = check(quick(&json!({})), &script);
        assert_eq!(rollout.report(Duration::ZERO).reason, reason);
        assert!(rollout.weight() <= 0.0);
    }
}

#[test]
fn pause_keeps_the_split_and_still_rolls_back() {
    let begin = "loaded     => canary/0 record, weight 0.10, tell step
                 both 20    => canary/0
                 both 100   => canary/0
                 pause      => paused/0 record
                 weigh 0.2  => paused/0 record
                 both 100   => paused/0
                 wait 90    => paused/0\n";
    check(
        quick(&json!({})),
        &format!(
            "{begin}resume => canary/0 record, weight 0.10
             wait 9        => canary/0
             wait 1        => canary/1 record, weight 0.25, tell step"
        ),
    );
    check(quick(&json!({})), &format!("{begin}canary 60 error => rolled_back/0 {ROLLED_BACK}"));
}

#[test]
fn person_must_agree_where_the_step_says_so() {
    let more = json!({"steps": [
        {"weight": 0.1, "min_duration": "10s", "min_requests": 5, "approval": "manual"},
        {"weight": 0.25, "min_duration": "10s", "min_requests": 5, "approval": "manual"}]});
    let begin = "loaded      => canary/0 record, weight 0.10, tell step
                 both 20     => canary/0
                 both 100    => canary/0
                 wait 10     => awaiting_approval/0 record, tell held
                 wait 9999   => awaiting_approval/0\n";
    check(
        quick(&more),
        &format!(
            "{begin}approve => canary/1 record, record, weight 0.25, tell step
             both 100       => canary/1
             wait 10        => canary/1
             both 4000      => awaiting_approval/1 record, tell held
             pause          => paused/1 record
             resume         => awaiting_approval/1 record, weight 0.25
             wait 1         => awaiting_approval/1
             approve        => promoting/1 record, record, promote 0.00"
        ),
    );
    check(quick(&more), &format!("{begin}canary 60 error => rolled_back/0 {ROLLED_BACK}"));
    check(
        quick(&more),
        &format!(
            "{begin}freeze => awaiting_approval/0
             approve       => canary/1 record, record, weight 0.25, tell step"
        ),
    );
}

#[test]
fn time_that_is_over_holds_passes_or_rolls_back() {
    let with = |on_timeout: &str| {
        json!({"steps": [{"weight": 0.1, "min_duration": "10s", "min_requests": 50,
                          "max_duration": "60s", "on_timeout": on_timeout}]})
    };
    let begin = "loaded   => canary/0 record, weight 0.10, tell step
                 both 20  => canary/0
                 both 100 => canary/0
                 wait 59  => canary/0\n";
    check(
        quick(&with("hold")),
        &format!(
            "{begin}wait 1  => held/0 record, tell held
             wait 9999      => held/0
             both 300       => held/0
             wait 1         => held/0
             both 16000     => promoting/0 record, record, promote 0.00"
        ),
    );
    let rollout = check(
        quick(&with("promote")),
        &format!("{begin}wait 1 => promoting/0 record, promote 0.00"),
    );
    let waived = |rollout: &Rollout| {
        let bundle = rollout.bundle();
        bundle.ledger.iter().rev().find_map(|entry| match &entry.body {
            ledger::Body::Transition { transition } => Some(transition.waived.clone()),
            _ => None,
        })
    };
    assert_eq!(waived(&rollout).flatten().as_deref(), Some("on_timeout"), "recorded as such");
    let rollout =
        check(quick(&with("rollback")), &format!("{begin}wait 1 => rolled_back/0 {ROLLED_BACK}"));
    assert!(rollout.report(Duration::ZERO).reason.starts_with("timeout: step 1"));
    // Never over a required gate without data.
    let mut without = with("promote");
    without["gates"] = json!({"slow": {"mode": "required"}});
    check(
        quick(&without),
        "loaded   => canary/0 record, weight 0.10, tell step
         both 100 => canary/0 freeze [0.5, 0.95]
         wait 60  => held/0 record, tell held",
    );
    // Where the hold began a new time, a resume begins it again.
    check(
        quick(&with("hold")),
        &format!(
            "{begin}wait 1 => held/0 record, tell held
             resume        => canary/0 record, weight 0.10
             wait 59       => canary/0
             wait 1        => held/0 record, tell held
             abort         => rolled_back/0 {ROLLED_BACK}"
        ),
    );
}

#[test]
fn wrong_share_of_assignments_holds_until_an_operator_decides() {
    let begin = "loaded             => canary/0 record, weight 0.10, tell step
                 both 100           => canary/0
                 baseline 300 answered => held/0 record, tell held
                 both 100           => held/0
                 wait 99            => held/0\n";
    check(
        quick(&json!({})),
        &format!("{begin}resume => canary/0 record, weight 0.10\n both 100 => canary/0"),
    );
    check(quick(&json!({})), &format!("{begin}promote => promoting/0 record, promote 0.00"));
    check(quick(&json!({})), &format!("{begin}canary 60 error => rolled_back/0 {ROLLED_BACK}"));
    check(
        quick(&json!({"on_srm": "ignore"})),
        "loaded                => canary/0 record, weight 0.10, tell step
         both 100              => canary/0
         baseline 300 answered => canary/0",
    );
}

#[test]
fn promotion_that_failed_is_held_with_its_share() {
    let rollout = check(
        quick(&json!({})),
        "loaded     => canary/0 record, weight 0.10, tell step
         promote    => promoting/0 record, promote 0.00
         restarted  => promoting/0 record, promote 0.00
         did not    => held/0 record, tell held
         wait 100   => held/0
         resume     => canary/0 record, weight 0.10",
    );
    assert!((rollout.weight() - 0.1).abs() < 1e-4);
    assert!(rollout.report(Duration::ZERO).history[3].why.starts_with("promotion failed: no"));
}

#[test]
fn frozen_rollout_advances_only_by_hand_and_still_rolls_back() {
    check(
        quick(&json!({})),
        "freeze   => pending/0
         loaded   => pending/0
         wait 9   => pending/0
         thaw     => canary/0 record, weight 0.10, tell step
         both 20  => canary/0
         both 100 => canary/0
         freeze   => canary/0
         wait 999 => canary/0
         thaw     => canary/0
         wait 9   => canary/0
         wait 1   => canary/1 record, weight 0.25, tell step
         freeze   => canary/1
         promote  => promoting/1 record, promote 0.00",
    );
    check(
        quick(&json!({})),
        &format!(
            "loaded          => canary/0 record, weight 0.10, tell step
             both 100        => canary/0
             freeze          => canary/0
             canary 60 error => rolled_back/0 {ROLLED_BACK}"
        ),
    );
}

#[test]
fn signal_is_computed_and_decides_nothing() {
    let more = json!({"gates": {"errors": {"mode": "signal"}}});
    let rollout = check(
        quick(&more),
        "loaded          => canary/0 record, weight 0.10, tell step
         both 100        => canary/0
         canary 60 error => held/0 record, tell held",
    );
    let gate = &rollout.report(Duration::ZERO).gates[0];
    assert!(!gate.decides && gate.verdict == Verdict::Fail && gate.log_e > 20.0);
    assert!((gate.log_e_threshold - 1000_f64.ln()).abs() < 1e-9);
}

#[test]
fn orders_that_do_not_fit_the_state_are_refused_and_change_nothing() {
    let (mut rollout, _) = start(quick(&json!({})));
    let now = Duration::from_secs(1_000_001);
    let order = |order| Event::Order { order, actor: "anna", reason: "" };
    for (state, refused) in [
        ("pending", &[Order::Pause, Order::Resume, Order::Approve, Order::Promote][..]),
        ("canary", &[Order::Resume, Order::Approve]),
        (
            "rolled_back",
            &[Order::Pause, Order::Resume, Order::Approve, Order::Promote, Order::Abort],
        ),
    ] {
        if state == "canary" {
            rollout.hear(&Event::Loaded, now);
        } else if state == "rolled_back" {
            rollout.hear(&order(Order::Abort), now);
        }
        assert_eq!(rollout.state().name(), state);
        for wrong in refused {
            let error = rollout.check(*wrong).unwrap_err().to_string();
            assert!(error.contains(state) && error.contains("possible"), "{error}");
            let revision = rollout.revision();
            assert_eq!(rollout.hear(&order(*wrong), now), []);
            assert_eq!(rollout.revision(), revision);
        }
    }
    assert!(rollout.forbids("d4", true, false, now).is_some());
    assert!(rollout.forbids("d4", false, false, now).is_some());
    assert!(rollout.forbids("d4", false, true, now).is_none());
    assert!(rollout.forbids("d5", true, false, now).is_none());
    let later = now + Duration::from_hours(1);
    assert!(rollout.forbids("d4", false, false, later).is_none(), "the cooldown is over");
    assert!(rollout.forbids("d4", true, false, later).is_some(), "by itself never");
}

#[test]
fn late_outcomes_are_credited_with_the_share_of_their_assignment() {
    let on = json!({"mode": "if_present"});
    for (kind, bad_arm, gate) in [
        (OutcomeKind::Label { wrong: true }, true, "wrong_label"),
        (OutcomeKind::Happened, false, "fewer_outcomes"),
        (OutcomeKind::Predicted { positive: true }, false, "fewer_positives"),
    ] {
        let more = json!({"gates": {gate: on}});
        let mut stage = Stage::new(quick(&more));
        stage.act("loaded");
        stage.act("both 100");
        let at = stage.now;
        stage.act("both 100");
        let outcome = |early: bool| Outcome {
            candidate: bad_arm,
            share: if bad_arm { 0.1 } else { 0.5 },
            key: 1,
            sticky: false,
            at: if early { Duration::ZERO } else { at + Duration::from_millis(1) },
            prediction: PredictionId::from_bits(0xa),
            kind,
        };
        assert_eq!(stage.hear(&Event::Outcomes(&[outcome(true); 90])), [], "of the warm-up");
        let effects = stage.hear(&Event::Outcomes(&[outcome(false); 90]));
        assert_eq!(spelled(&effects), ROLLED_BACK, "{gate}");
        assert_eq!(stage.rollout.report(at).gate.unwrap().name(), gate);
        let bundle = serde_json::to_value(stage.rollout.bundle()).unwrap();
        let replayed = replay(&bundle).unwrap();
        assert!(replayed.is_equal(), "{:#?}", replayed.differences);
    }
}

#[test]
fn key_counts_once_however_often_it_fails() {
    let mut stage = Stage::new(quick(&json!({})));
    stage.act("loaded");
    stage.act("both 20");
    stage.act("both 60");
    let mut seen = stage.seen(true, Marks::ERROR);
    seen.sticky = true;
    let many: Vec<Seen> = (0..1000).map(|number| Seen { key: number % 3, ..seen }).collect();
    assert_eq!(stage.hear(&Event::Requests(&many)), []);
    let gate = stage.rollout.report(stage.now).gates.remove(0);
    assert_eq!(
        (gate.candidate.events, stage.rollout.report(stage.now).keys.unwrap().known),
        (3, 3)
    );
    assert_eq!(gate.candidate.requests, 3 + 6, "keys, beside the requests without one");
    let bundle = serde_json::to_value(stage.rollout.bundle()).unwrap();
    assert!(replay(&bundle).unwrap().is_equal());
}

#[test]
fn rollout_that_was_written_down_goes_on_as_if_nothing_had_been() {
    let mut stage = Stage::new(quick(&json!({})));
    let text = serde_json::to_string(&stage.rollout).unwrap();
    let mut copy: Rollout = serde_json::from_str(&text).unwrap();
    stage.rollout.checkpoint();
    for line in ["loaded", "both 100", "wait 5", "baseline 2 error", "wait 6", "both 50"] {
        stage.act(line);
        let mut seen = stage.seen(true, Marks::ANSWERED);
        seen.sticky = true;
        stage.hear(&Event::Requests(&[seen]));
        let checkpoint = serde_json::to_string(&stage.rollout.checkpoint()).unwrap();
        copy.restore(serde_json::from_str(&checkpoint).unwrap());
    }
    assert_eq!(copy.bundle(), stage.rollout.bundle());
    assert_eq!(copy.report(stage.now), stage.rollout.report(stage.now));
    let whole = serde_json::to_string(&stage.rollout).unwrap();
    let whole: Rollout = serde_json::from_str(&whole).unwrap();
    assert_eq!(whole.report(stage.now), stage.rollout.report(stage.now));
    let bad = stage.seen(true, Marks::ERROR);
    let many = vec![bad; 60];
    let effects = stage.hear(&Event::Requests(&many));
    assert_eq!(copy.hear(&Event::Requests(&many), stage.now), effects);
    assert_eq!(copy.bundle(), stage.rollout.bundle());
}

/// Outputs of 3000 requests, a tenth of them the candidate's: its answers are of class 2 more often.
fn outputs(stage: &mut Stage, sticky: bool) -> Vec<Seen> {
    let one = |number: u64| {
        let candidate = number.is_multiple_of(10);
        let rare = if candidate { number.is_multiple_of(20) } else { number % 6 == 1 };
        let output = Output::Class(1 + i64::from(rare));
        Seen { sticky, output, ..stage.seen(candidate, Marks::ANSWERED) }
    };
    (0..3000).map(one).collect()
}

#[test]
fn moved_outputs_are_shown_and_decide_nothing() {
    let more = json!({"gates": {"output_shift": {"mode": "signal"}}});
    let mut stage = Stage::new(quick(&more));
    stage.play("loaded\n both 20");
    let mut copy: Rollout =
        serde_json::from_str(&serde_json::to_string(&stage.rollout).unwrap()).unwrap();
    stage.rollout.checkpoint();
    let seen = outputs(&mut stage, false);
    for part in seen.chunks(700) {
        assert_eq!(stage.hear(&Event::Requests(part)), []);
        let checkpoint = serde_json::to_string(&stage.rollout.checkpoint()).unwrap();
        copy.restore(serde_json::from_str(&checkpoint).unwrap());
    }
    let report = stage.rollout.report(stage.now);
    assert_eq!(report.state, State::Canary);
    let gate = report.gates.iter().find(|gate| gate.gate == Gate::OutputShift).unwrap();
    assert_eq!((gate.verdict, gate.decides), (Verdict::Fail, false), "{gate:?}");
    assert_eq!((gate.candidate.requests, gate.candidate.events), (299, 149));
    assert_eq!(
        gate.outputs.as_ref().unwrap().moved.as_deref(),
        Some(
            "outputs moved: class 2 is 49.8 % of the candidate's answers and 18.5 % of the baseline's"
        )
    );
    assert_eq!(copy.report(stage.now), report, "it survives the process");
    stage.act("wait 11");
    assert_eq!(stage.rollout.report(stage.now).step, 1, "and the step passes all the same");
    let bundle = serde_json::to_value(stage.rollout.bundle()).unwrap();
    let replayed = replay(&bundle).unwrap();
    assert!(replayed.is_equal(), "{:#?}", replayed.differences);
    assert!((replayed.log_e[&Gate::OutputShift] - gate.log_e).abs() < 1e-9);
    assert!(stage.rollout.bundle().trace().gates.iter().any(|it| it.gate == Gate::OutputShift));
}

#[test]
fn a_key_has_one_output() {
    let more = json!({"gates": {"output_shift": {"mode": "signal"}}});
    let mut stage = Stage::new(quick(&more));
    stage.play("loaded\n both 20");
    for request in outputs(&mut stage, true) {
        stage.hear(&Event::Requests(&[Seen { key: request.key % 40, ..request }]));
    }
    let report = stage.rollout.report(stage.now);
    let gate = report.gates.iter().find(|gate| gate.gate == Gate::OutputShift).unwrap();
    // The first two came before counting began.
    assert_eq!((gate.candidate.requests, gate.baseline.requests), (3, 35), "{gate:?}");
}

#[test]
fn bundle_with_a_changed_count_does_not_replay() {
    let mut stage = Stage::new(quick(&json!({})));
    for line in ["loaded", "both 100", "baseline 1 error", "canary 60 error"] {
        stage.act(line);
    }
    let bundle = serde_json::to_value(stage.rollout.bundle()).unwrap();
    let text = serde_json::to_string(&bundle).unwrap();
    assert!(replay(&serde_json::from_str(&text).unwrap()).unwrap().is_equal());
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut bundle = bundle.clone();
        change(&mut bundle);
        // Whoever changes a count can change the digest as well.
        bundle["sha256"] = json!("");
        let mut fields = bundle.clone();
        fields.as_object_mut().unwrap().remove("sha256");
        bundle["sha256"] = json!(canonical::digest(&fields));
        replay(&bundle).unwrap().differences
    };
    assert!(changed(&|_| {}).is_empty());
    let evidence = |bundle: &Value| {
        let ledger = bundle["ledger"].as_array().unwrap();
        ledger.iter().position(|entry| entry["events"].get("errors").is_some()).unwrap()
    };
    let at = evidence(&bundle);
    let events = bundle["ledger"][at]["events"]["errors"].as_str().unwrap().to_owned();
    for (name, change) in [
        ("fewer events", json!(events.replace('c', "b1c"))),
        ("no events", json!("b1")),
        ("nonsense", json!("x")),
    ] {
        let found = changed(&|bundle| bundle["ledger"][at]["events"]["errors"] = change.clone());
        assert!(!found.is_empty(), "{name}");
    }
    let found = changed(&|bundle| bundle["ledger"][at]["requests"]["baseline"] = json!(7));
    assert!(found[0].contains("gate errors is"), "{found:?}");
    let found = changed(&|bundle| bundle["verdict"]["state"] = json!("promoted"));
    assert!(found[0].contains("the ledger leads to rolled_back by gate errors"), "{found:?}");
    let mut tampered = bundle.clone();
    tampered["salt"] = json!("00");
    assert!(replay(&tampered).unwrap().differences[0].starts_with("sha256 is"));
    assert!(matches!(replay(&json!({})), Err(ReplayError::Form(_))));
    assert_eq!(replay(&json!({"schema": 2})), Err(ReplayError::Schema(2)));
}
