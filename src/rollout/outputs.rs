//! Outputs by arm: which answers came more or less often from the candidate than its share.
//!
//! Both arms share their bins: a class each, in the order in which they first appeared, and for numbers the tenths of
//! the baseline's first answers. Answers before that are frozen count for neither arm. An answer is an event in one
//! bin; in each bin two bets are made, that the candidate has more of them and that it has fewer, by more than a
//! tenth. The evidence is the mean over all bins there can be and both directions: a mean of e-processes is one.
//! Always true:
//! - While the candidate answers as the baseline does, the evidence ever reaches 1/alpha with probability alpha at
//!   most, however often one looks, and whatever the mixture of inputs does meanwhile.
//! - The order of answers at one share does not matter: the ledger has their number in each bin.
//!
//! Not here: which answers count (`judging`); what follows from them, as nothing does.

use serde::{Deserialize, Serialize};

use super::{
    evidence::{AtShare, Pair, at_share, sum_of},
    report::as_f64,
    words,
};
use crate::{
    serve::{ClassName, Output},
    stats::{Direction, EventProcess, mean_log_e, total_variation},
};

/// Most bins: 15 classes and whatever else comes.
pub(super) const BINS: usize = 16;
/// Answers of the baseline from which the bins of numbers are made.
const LEARNT: usize = 200;
/// Excess of a ratio above 1, and of its inverse, that is no move.
const DELTA: f64 = 0.1;
/// Most texts of classes that are known.
const TEXTS_MAX: usize = 32;

/// Answers of both arms by their outputs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Outputs {
    scale: Scale,
    bins: Vec<Bin>,
    /// Texts of classes by their hashes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    texts: Vec<(u64, String)>,
}

/// Kind of the outputs, by the baseline's first one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Scale {
    /// The baseline has not answered yet.
    #[default]
    Unknown,
    /// Classes; each gets a bin when it first appears.
    Classes,
    /// Numbers; these of the baseline are known.
    Learning(Vec<f64>),
    /// Numbers; a bin begins at each of these edges.
    Edges(Vec<f64>),
}

/// Answers that are counted together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Bin {
    name: String,
    /// The class that is counted here, if it is one.
    class: Output,
    strata: Vec<AtShare>,
}

/// Answers of both arms by their outputs, as people and programs see them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputsReport {
    /// The bin with the most evidence in words; none until the evidence reaches the threshold.
    pub moved: Option<String>,
    /// Total variation distance of the arms' counts, 0 to 1: half the sum of all differences of shares.
    pub total_variation: f64,
    /// Answers in each bin.
    pub bins: Vec<BinReport>,
}

/// Answers in one bin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BinReport {
    /// The class or the numbers that are counted here, such as `class 2` or `0.25 to 0.5`.
    pub bin: String,
    /// The baseline's.
    pub baseline: u64,
    /// The candidate's.
    pub candidate: u64,
    /// Natural logarithm of the evidence that the candidate has more or fewer than its share.
    pub log_e: f64,
}

impl Outputs {
    /// True once it is known which bins there are.
    pub(super) fn is_counting(&self) -> bool {
        matches!(self.scale, Scale::Classes | Scale::Edges(_))
    }

    /// True if nothing was counted.
    pub(super) fn is_empty(&self) -> bool {
        self.bins.iter().all(|bin| bin.strata.is_empty())
    }

    /// Takes an answer from before counting began; the baseline's say which bins there will be.
    pub(super) fn learn(&mut self, candidate: bool, output: Output) {
        if candidate {
            return;
        }
        if self.scale == Scale::Unknown {
            self.scale = match output {
                Output::Nothing => return,
                Output::Class(_) | Output::Text(_) => Scale::Classes,
                Output::Value(_) => Scale::Learning(Vec::new()),
            };
        }
        if let (Scale::Learning(values), Output::Value(value)) = (&mut self.scale, output)
            && value.is_finite()
        {
            values.push(value);
            if values.len() >= LEARNT {
                let edges = tenths(std::mem::take(values));
                let named = |name| Bin { name, class: Output::Nothing, strata: Vec::new() };
                self.bins = (0..=edges.len()).map(|bin| named(interval(&edges, bin))).collect();
                self.scale = Scale::Edges(edges);
            }
        }
    }

    /// Knows the texts of classes from now on.
    pub(super) fn learn_texts(&mut self, texts: &[(u64, &str)]) {
        for (hash, text) in texts {
            let is_known = self.texts.iter().any(|(known, _)| known == hash);
            if !is_known && self.texts.len() < TEXTS_MAX {
                self.texts.push((*hash, (*text).to_owned()));
            }
        }
    }

    /// Counts an answer; returns the index of its bin.
    pub(super) fn count(&mut self, output: Output, share: f64, candidate: bool) -> usize {
        let index = self.bin_of(output);
        let mut counts = Pair::default();
        counts.add(candidate, 1);
        at_share(&mut self.bins[index].strata, share, counts);
        index
    }

    /// Counts answers in the bin of this name, as the ledger has them; false if there is no room for one more bin.
    pub(super) fn add(&mut self, name: &str, share: f64, counts: Pair) -> bool {
        let found = self.bins.iter().position(|bin| bin.name == name);
        let index = match found {
            None if self.bins.len() >= BINS => return false,
            found => found.unwrap_or_else(|| self.push(name.to_owned(), Output::Nothing)),
        };
        at_share(&mut self.bins[index].strata, share, counts);
        true
    }

    /// The index of an output's bin, which is made for a class that comes for the first time.
    fn bin_of(&mut self, output: Output) -> usize {
        match (&self.scale, output) {
            (Scale::Edges(edges), Output::Value(value)) if !value.is_nan() => {
                edges.partition_point(|edge| *edge <= value)
            }
            (Scale::Edges(edges), _) => {
                let rest = edges.len() + 1;
                if rest < self.bins.len() {
                    return rest;
                }
                self.push("no number".to_owned(), Output::Nothing)
            }
            (_, Output::Class(_) | Output::Text(_)) => {
                let found = self.bins.iter().position(|bin| bin.class == output);
                let classes = self.bins.iter().filter(|bin| bin.class != Output::Nothing);
                match found {
                    Some(found) => found,
                    None if classes.count() < BINS - 1 => {
                        self.push(self.class_name(output), output)
                    }
                    None => self.other(),
                }
            }
            _ => self.other(),
        }
    }

    /// The bin of whatever is none of the classes.
    fn other(&mut self) -> usize {
        let found = self.bins.iter().position(|bin| bin.class == Output::Nothing);
        found.unwrap_or_else(|| self.push("any other class".to_owned(), Output::Nothing))
    }

    fn push(&mut self, name: String, class: Output) -> usize {
        self.bins.push(Bin { name, class, strata: Vec::new() });
        self.bins.len() - 1
    }

    /// A name that no other bin has.
    fn class_name(&self, class: Output) -> String {
        let Output::Text(hash) = class else {
            let Output::Class(number) = class else { return "no class".to_owned() };
            return format!("class {number}");
        };
        let text = self.texts.iter().find(|(known, _)| *known == hash);
        let name = text.map(|(_, text)| format!("class {}", ClassName::Text(text.clone())));
        // Long texts are cut, and may look alike.
        name.filter(|name| self.bins.iter().all(|bin| bin.name != *name))
            .unwrap_or_else(|| format!("class with hash {hash:016x}"))
    }

    /// Counts by the index of the bin, with the names of the bins.
    pub(super) fn named(&self, counts: &[Pair; BINS]) -> std::collections::BTreeMap<String, Pair> {
        let counted = self.bins.iter().zip(counts).filter(|(_, pair)| **pair != Pair::default());
        counted.map(|(bin, pair)| (bin.name.clone(), *pair)).collect()
    }

    /// Answers of both arms.
    pub(super) fn totals(&self) -> Pair {
        self.bins.iter().fold(Pair::default(), |sum, bin| sum.plus(sum_of(&bin.strata)))
    }

    /// Answers of both arms in each bin, as a transition has them: all of them, and those of the bin.
    pub(super) fn counts(&self) -> impl Iterator<Item = (String, [u64; 4])> + '_ {
        let all = self.totals();
        self.bins.iter().filter(|bin| !bin.strata.is_empty()).map(move |bin| {
            let own = sum_of(&bin.strata);
            (bin.name.clone(), [all.baseline, all.candidate, own.baseline, own.candidate])
        })
    }

    /// Natural logarithm of the e-process: the mean over all bins there can be; 0 before any answer.
    pub(super) fn log_e(&self) -> f64 {
        if self.is_empty() {
            return 0.0;
        }
        let mut logs = [0.0; BINS];
        for (log, bin) in logs.iter_mut().zip(&self.bins) {
            *log = bin.log_e();
        }
        mean_log_e(&logs)
    }

    /// The bin with the most evidence.
    fn most(&self) -> Option<&Bin> {
        let counted = self.bins.iter().filter(|bin| !bin.strata.is_empty());
        counted.max_by(|one, other| one.log_e().total_cmp(&other.log_e()))
    }

    /// Answers in the bin with the most evidence, by share.
    pub(super) fn most_moved(&self) -> Option<&[AtShare]> {
        self.most().map(|bin| &*bin.strata)
    }

    /// Answers by bin, with the words for what moved if it has.
    pub(super) fn report(&self, has_moved: bool) -> OutputsReport {
        let all = self.totals();
        let share = |own: u64, all: u64| as_f64(own) / as_f64(all.max(1));
        let counted = self.bins.iter().filter(|bin| !bin.strata.is_empty());
        let bins: Vec<BinReport> = counted
            .map(|bin| {
                let Pair { baseline, candidate } = sum_of(&bin.strata);
                BinReport { bin: bin.name.clone(), baseline, candidate, log_e: bin.log_e() }
            })
            .collect();
        let baseline: Vec<_> = bins.iter().map(|bin| share(bin.baseline, all.baseline)).collect();
        let candidate: Vec<_> =
            bins.iter().map(|bin| share(bin.candidate, all.candidate)).collect();
        let moved = self.most().filter(|_| has_moved).map(|bin| {
            let own = sum_of(&bin.strata);
            format!(
                "outputs moved: {} is {} of the candidate's answers and {} of the baseline's",
                bin.name,
                words::percent(share(own.candidate, all.candidate)),
                words::percent(share(own.baseline, all.baseline))
            )
        });
        OutputsReport { moved, total_variation: total_variation(&baseline, &candidate), bins }
    }
}

impl Bin {
    /// Natural logarithm of the mean of two bets: that the candidate has more of these answers, and that it has fewer.
    fn log_e(&self) -> f64 {
        let log_e = |direction| {
            let mut process = EventProcess::new(direction, DELTA, None);
            for AtShare { share, counts } in &self.strata {
                process.add(*share, counts.candidate, counts.baseline);
            }
            process.log_e()
        };
        mean_log_e(&[log_e(Direction::More), log_e(Direction::Fewer)])
    }
}

/// Edges between the tenths of some values; one that fills a tenth has a bin of its own.
fn tenths(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    let mut edges: Vec<f64> = Vec::new();
    for tenth in 1..10 {
        let value = values[tenth * values.len() / 10];
        // The second time, its bin ends right above it.
        let edge = if edges.contains(&value) { value.next_up() } else { value };
        if !edges.contains(&edge) && edge.is_finite() {
            edges.push(edge);
        }
    }
    edges
}

/// The name of a bin between edges.
fn interval(edges: &[f64], bin: usize) -> String {
    let is_next = |from: f64, to: f64| from.next_up().to_bits() == to.to_bits();
    let lower = bin.checked_sub(1).map(|index| edges[index]);
    let upper = edges.get(bin).copied();
    // An edge right above another one ends the bin of a single value.
    let below = bin.checked_sub(2).map(|index| edges[index]);
    let below = below.zip(lower).filter(|(below, lower)| is_next(*below, *lower));
    match (lower, upper, below) {
        (None, None, _) => "any number".to_owned(),
        (None, Some(upper), _) => format!("below {}", number(upper)),
        (Some(_), None, Some((below, _))) => format!("above {}", number(below)),
        (Some(lower), None, None) => format!("{} or more", number(lower)),
        (Some(lower), Some(upper), _) if is_next(lower, upper) => number(lower),
        (Some(_), Some(upper), Some((below, _))) => {
            format!("above {} to {}", number(below), number(upper))
        }
        (Some(lower), Some(upper), None) => format!("{} to {}", number(lower), number(upper)),
    }
}

/// A number with as many digits as it takes, as 32 bits where it has no more.
fn number(value: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "it is compared")]
    let short = value as f32;
    let is_short = f64::from(short).to_bits() == value.to_bits();
    let text = if is_short { format!("{short:?}") } else { format!("{value:?}") };
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::plan::Random;

    const SHARES: [f64; 3] = [0.05, 0.2, 0.5];

    /// Answers of some length: at each share in turn, the candidate's drawn by one distribution of classes and the
    /// baseline's by another, both of which move with time; returns the largest evidence of looks at every 20.
    fn largest(seed: u64, answers: u64, draw: impl Fn(bool, f64, f64) -> Output) -> (f64, Outputs) {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let (mut outputs, mut largest) = (Outputs::default(), 0.0_f64);
        for number in 0..answers {
            let share = SHARES[usize::try_from(3 * number / answers).unwrap()];
            let candidate = random.unit() < share;
            let output = draw(candidate, as_f64(number) / as_f64(answers), random.unit());
            if outputs.is_counting() {
                outputs.count(output, share, candidate);
            } else {
                outputs.learn(candidate, output);
            }
            if number.is_multiple_of(20) {
                largest = largest.max(outputs.log_e());
            }
        }
        (largest, outputs)
    }

    /// One of four classes; the first becomes rarer with time.
    fn class(time: f64, at: f64) -> Output {
        let first = 0.5 - 0.3 * time;
        let rest = (at - first) / (1.0 - first);
        let bounds = [0.0, 0.4, 0.8].iter().filter(|bound| rest > **bound);
        Output::Class(bounds.map(|_| 1).sum())
    }

    #[test]
    fn arms_alike_look_different_as_rarely_as_promised() {
        let alarm = 20_f64.ln();
        let alarms = |draw: fn(bool, f64, f64) -> Output| {
            (0..100).filter(|seed| largest(*seed, 2000, draw).0 >= alarm).count()
        };
        let classes = alarms(|_, time, at| class(time, at));
        assert!(classes <= 5, "{classes} of 100 with classes");
        let values = alarms(|_, time, at| Output::Value(at * at + time));
        assert!(values <= 5, "{values} of 100 with numbers");
    }

    #[test]
    fn moved_classes_and_numbers_are_found_and_named() {
        let alarm = 1000_f64.ln();
        for seed in 0..20 {
            let (found, outputs) = largest(seed, 2000, |candidate, _, at| {
                Output::Class(i64::from(at < if candidate { 0.31 } else { 0.12 }))
            });
            assert!(found >= alarm, "{found} with seed {seed}");
            let report = outputs.report(true);
            let moved = report.moved.unwrap();
            assert!(moved.starts_with("outputs moved: class 1 is 3"), "{moved}");
            assert!(report.total_variation > 0.1 && report.total_variation < 0.3);
            let (found, outputs) = largest(seed, 2000, |candidate, _, at| {
                Output::Value(if candidate { at.sqrt() } else { at })
            });
            assert!(found >= alarm, "{found} with seed {seed}");
            assert_eq!(outputs.bins.len(), 10);
            assert_eq!(outputs.report(false).moved, None);
        }
    }

    #[test]
    fn fewer_of_a_class_are_found_as_well() {
        let (found, outputs) = largest(3, 4000, |candidate, _, at| {
            Output::Class(i64::from(at < if candidate { 0.1 } else { 0.3 }) * 7)
        });
        assert!(found > 1000_f64.ln(), "{found}");
        let most = outputs.most().unwrap();
        assert_eq!((&*most.name, most.class), ("class 7", Output::Class(7)));
    }

    #[test]
    fn bins_are_bounded_and_what_has_none_shares_one() {
        let mut outputs = Outputs::default();
        outputs.learn(true, Output::Value(1.0));
        assert!(!outputs.is_counting(), "the candidate says nothing about the bins");
        outputs.learn(false, Output::Class(0));
        outputs.learn_texts(&[(8, "ant")]);
        let first = outputs.count(Output::Text(8), 0.5, true);
        assert_eq!(outputs.bins[first].name, "class \"ant\"");
        for class in 0..100 {
            outputs.count(Output::Class(class), 0.5, false);
        }
        let other = outputs.count(Output::Value(0.5), 0.5, true);
        assert_eq!((outputs.bins.len(), &*outputs.bins[other].name), (BINS, "any other class"));
        assert_eq!(outputs.totals(), Pair::new(100, 2));
        assert_eq!(sum_of(&outputs.bins[other].strata), Pair::new(86, 1));
        assert!(!outputs.add("class -1", 0.5, Pair::new(1, 1)), "one too many");

        let mut copy = Outputs::default();
        for bin in &outputs.bins {
            assert!(copy.add(&bin.name, 0.5, sum_of(&bin.strata)));
        }
        assert!((copy.log_e() - outputs.log_e()).abs() < 1e-12, "names and counts say it all");
        let text = serde_json::to_string(&outputs).unwrap();
        assert_eq!(serde_json::from_str::<Outputs>(&text).unwrap(), outputs);
    }

    #[test]
    fn a_number_that_fills_tenths_has_a_bin_of_its_own() {
        let bins = |value: fn(usize) -> f64| {
            let edges = tenths((0..LEARNT).map(value).collect());
            (0..=edges.len()).map(|bin| interval(&edges, bin)).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(bins(|_| 7.5), "below 7.5, 7.5, above 7.5");
        assert_eq!(bins(|index| if index < 100 { 0.0 } else { 1.0 }), {
            "below 0, 0, above 0 to 1, 1, above 1"
        });
        assert_eq!(
            bins(|index| f64::from(f32::from(u16::try_from(index).unwrap()) / 200.0)),
            "below 0.1, 0.1 to 0.2, 0.2 to 0.3, 0.3 to 0.4, 0.4 to 0.5, 0.5 to 0.6, 0.6 to 0.7, 0.7 to 0.8, \
             0.8 to 0.9, 0.9 or more"
        );
        let mut outputs = Outputs::default();
        for _ in 0..LEARNT {
            outputs.learn(false, Output::Value(7.5));
        }
        for value in [f64::NEG_INFINITY, 7.5, f64::INFINITY, f64::NAN] {
            outputs.count(Output::Value(value), 0.5, true);
        }
        let names: Vec<_> = outputs.bins.iter().map(|bin| &*bin.name).collect();
        assert_eq!(names, ["below 7.5", "7.5", "above 7.5", "no number"]);
        assert!(outputs.bins.iter().all(|bin| sum_of(&bin.strata) == Pair::new(0, 1)));
    }
}
