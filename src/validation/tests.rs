//! Versions made of closures against small files.

use std::path::Path;

use super::*;
use crate::{
    dataset::Limits,
    model::TensorSpec,
    tensor::{Data, DataType, Shape, Strings},
};

fn spec(name: &str, datatype: DataType, dims: &[i64]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), datatype, dims: Some(dims.to_vec()), view: None }
}

/// One input `x` of numbers, and these outputs.
fn signature(outputs: Vec<TensorSpec>) -> Signature {
    Signature { inputs: vec![spec("x", DataType::Fp64, &[-1, 1])], outputs, ..Signature::default() }
}

fn tensor(dims: &[usize], data: Data) -> Tensor {
    let dims: Vec<i64> = dims.iter().map(|dim| i64::try_from(*dim).unwrap()).collect();
    Tensor::new(Shape::new(&dims).unwrap(), data).unwrap()
}

/// A version that answers row by row: `x` to outputs.
fn subject<'a>(
    signature: &'a Signature,
    class_names: &'a [Option<Vec<String>>],
    answer: impl Fn(&[f64]) -> Vec<Tensor> + 'a,
) -> Subject<'a> {
    Subject {
        model: "m".to_owned(),
        version: 2,
        signature,
        rows_max: 1000,
        class_names,
        feature_names: Vec::new(),
        predict: Box::new(move |inputs| Ok(answer(&inputs[0].tensor.view::<f64>().unwrap()))),
    }
}

struct Bench {
    folder: tempfile::TempDir,
    request: Request,
}

impl Bench {
    fn new(csv: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("d.csv"), csv).unwrap();
        Self { folder, request: Request { batch_rows: 2, ..Request::default() } }
    }

    fn with(mut self, change: impl FnOnce(&mut Request, &Path)) -> Self {
        change(&mut self.request, self.folder.path());
        self
    }

    fn run(&self, subject: Subject<'_>, other: Option<Subject<'_>>) -> Result<Report, String> {
        let data = Dataset::open(&self.folder.path().join("d.csv"), Limits::default()).unwrap();
        let begin = Instant::now();
        let around = Surroundings {
            clock: &|| begin,
            cancel: &AtomicBool::new(false),
            progress: &mut |_, _| (),
        };
        validate(&self.request, data, subject, other, around).map_err(|error| error.to_string())
    }
}

fn near(actual: Option<f64>, expected: f64) {
    assert!(
        actual.is_some_and(|actual| (actual - expected).abs() < 1e-12),
        "{actual:?} {expected}"
    );
}

/// Scores of two classes: `x` and the rest.
fn chances(rows: &[f64]) -> Vec<Tensor> {
    let data = rows.iter().flat_map(|x| [1.0 - x, *x]).collect();
    vec![tensor(&[rows.len(), 2], Data::Fp64(data))]
}

const FIVE: &str = "x,label\n0.9,1\n0.2,0\n0.6,0\n0.7,1\n0.4,1\n";

#[test]
fn scores_of_two_classes_are_judged_as_scikit_learn_does() {
    let signature = signature(vec![spec("p", DataType::Fp64, &[-1, 2])]);
    let report = Bench::new(FIVE).run(subject(&signature, &[], chances), None).unwrap();
    // accuracy_score, precision_score, recall_score, f1_score, roc_auc_score, log_loss.
    near(report.metric(Metric::Accuracy), 0.6);
    near(report.metric(Metric::Precision), 2.0 / 3.0);
    near(report.metric(Metric::Recall), 2.0 / 3.0);
    near(report.metric(Metric::F1), 2.0 / 3.0);
    near(report.metric(Metric::RocAuc), 5.0 / 6.0);
    let loss = -(0.9f64.ln() + 0.8f64.ln() + 0.4f64.ln() + 0.7f64.ln() + 0.4f64.ln()) / 5.0;
    near(report.metric(Metric::LogLoss), loss);
    assert_eq!((report.positive.as_deref(), report.passed), (Some("1"), true));
    assert_eq!(report.confusion, Some(vec![vec![1, 1], vec![1, 2]]));
    assert_eq!((report.latency.runs, report.latency.rows_of_run), (3, 2));
}

#[test]
fn the_other_class_may_be_the_positive_one() {
    let names = [Some(vec!["bad".to_owned(), "good".to_owned()])];
    let signature = signature(vec![spec("p", DataType::Fp64, &[-1, 2])]);
    let bench = Bench::new(&FIVE.replace(",1\n", ",good\n").replace(",0\n", ",bad\n"))
        .with(|request, _| request.positive = Some("bad".to_owned()));
    let report = bench.run(subject(&signature, &names, chances), None).unwrap();
    assert_eq!(report.positive.as_deref(), Some("bad"));
    near(report.metric(Metric::Precision), 0.5);
    near(report.metric(Metric::RocAuc), 5.0 / 6.0);
    let unknown = bench.with(|request, _| request.positive = Some("ugly".to_owned()));
    let error = unknown.run(subject(&signature, &names, chances), None).unwrap_err();
    assert!(error.contains("`ugly` is none of the classes, which are `bad`, `good`"), "{error}");
}

#[test]
fn one_score_a_row_is_a_class_or_a_number_as_the_labels_say() {
    let signature = signature(vec![spec("y", DataType::Fp64, &[-1, 1])]);
    let same = |rows: &[f64]| vec![tensor(&[rows.len(), 1], Data::Fp64(rows.to_vec()))];
    let report = Bench::new(FIVE).run(subject(&signature, &[], same), None).unwrap();
    assert_eq!(report.task, Task::Classification);
    near(report.metric(Metric::RocAuc), 5.0 / 6.0);
    let numbers = "x,y\n1,1.5\n2,2\n3,2.5\n";
    let report = Bench::new(numbers).run(subject(&signature, &[], same), None).unwrap();
    assert_eq!(report.task, Task::Regression);
    near(report.metric(Metric::Mae), 1.0 / 3.0);
    near(report.metric(Metric::Rmse), (0.5f64 / 3.0).sqrt());
    near(report.metric(Metric::R2), 0.0);
    let forced = Bench::new(FIVE).with(|request, _| request.task = Some(Task::Regression));
    let report = forced.run(subject(&signature, &[], same), None).unwrap();
    near(report.metric(Metric::Mae), (0.1 + 0.2 + 0.6 + 0.3 + 0.6) / 5.0);
}

#[test]
fn labels_of_the_version_itself_win_over_its_scores() {
    let outputs = vec![spec("label", DataType::Bytes, &[-1]), spec("p", DataType::Fp64, &[-1, -1])];
    let signature = signature(outputs);
    // A threshold of 0.65 instead of 0.5.
    let answer = |rows: &[f64]| {
        let labels = rows.iter().map(|x| if *x >= 0.65 { "yes" } else { "no" });
        let labels = tensor(&[rows.len()], Data::Bytes(labels.collect::<Strings>()));
        vec![labels, chances(rows).remove(0)]
    };
    let csv = FIVE.replace(",1\n", ",yes\n").replace(",0\n", ",no\n");
    let report = Bench::new(&csv).run(subject(&signature, &[], answer), None).unwrap();
    near(report.metric(Metric::Accuracy), 0.8);
    near(report.metric(Metric::RocAuc), 5.0 / 6.0);
    assert_eq!(report.positive.as_deref(), Some("yes"));
    // Columns in the other order cannot be told by names, but by their answers.
    let reversed = |rows: &[f64]| {
        let mut outputs = answer(rows);
        let turned: Vec<f64> = rows.iter().map(|x| 1.0 - x).collect();
        outputs[1] = chances(&turned).remove(0);
        outputs
    };
    let report = Bench::new(&csv).run(subject(&signature, &[], reversed), None).unwrap();
    assert_eq!((report.metric(Metric::RocAuc), report.metric(Metric::LogLoss)), (None, None));
    assert!(report.notes[0].contains("columns are in another order"), "{:?}", report.notes);
}

#[test]
fn what_is_no_number_fails_every_threshold() {
    let signature = signature(vec![spec("y", DataType::Fp64, &[-1])]);
    let broken = |rows: &[f64]| {
        let data = rows.iter().map(|x| if *x > 1.5 { f64::NAN } else { *x }).collect();
        vec![tensor(&[rows.len()], Data::Fp64(data))]
    };
    let bench = Bench::new("x,y\n1,1.5\n2,2\n3,2.5\n")
        .with(|request, _| request.thresholds = vec![Threshold::new("mae", 100.0).unwrap()]);
    let report = bench.run(subject(&signature, &[], broken), None).unwrap();
    assert_eq!((report.unanswered, report.passed), (2, false));
    assert_eq!(report.failures, ["mae cannot be computed, and should be 100"]);
    let chances = |rows: &[f64]| {
        let data = rows.iter().flat_map(|_| [f64::NAN, 0.5]).collect();
        vec![tensor(&[rows.len(), 2], Data::Fp64(data))]
    };
    let two = self::signature(vec![spec("p", DataType::Fp64, &[-1, 2])]);
    let report = Bench::new(FIVE).run(subject(&two, &[], chances), None).unwrap();
    near(report.metric(Metric::Accuracy), 0.0);
    assert_eq!((report.unanswered, report.metric(Metric::RocAuc)), (5, None));
}

#[test]
fn a_version_that_is_worse_on_the_same_rows_fails() {
    let signature = signature(vec![spec("p", DataType::Fp64, &[-1, 2])]);
    let mut csv = "x,label\n".to_owned();
    for row in 0..40 {
        csv += &format!("{},{}\n", (f64::from(row) + 0.5) / 40.0, u8::from(row >= 20));
    }
    let worse = |rows: &[f64]| {
        chances(
            &rows
                .iter()
                .map(|x| if (0.5..0.75).contains(x) { 0.1 } else { *x })
                .collect::<Vec<_>>(),
        )
    };
    let bench = Bench::new(&csv);
    let run = |first: &dyn Fn(&[f64]) -> Vec<Tensor>, second: &dyn Fn(&[f64]) -> Vec<Tensor>| {
        let mut other = subject(&signature, &[], second);
        other.version = 1;
        bench.run(subject(&signature, &[], first), Some(other)).unwrap()
    };
    let report = run(&worse, &chances);
    let comparison = report.comparison.as_ref().unwrap();
    assert_eq!((comparison.verdict, comparison.other_only), (Verdict::Worse, Some(10)));
    assert!(!report.passed && report.failures[0].contains("significantly worse than version 1"));
    assert!(report.markdown().contains("failed"));
    let report = run(&chances, &worse);
    assert_eq!((report.comparison.unwrap().verdict, report.passed), (Verdict::Better, true));
    let report = run(&chances, &chances);
    assert_eq!((report.comparison.unwrap().verdict, report.passed), (Verdict::Alike, true));
}

#[test]
fn rows_without_a_label_are_run_and_not_judged() {
    let signature = signature(vec![spec("p", DataType::Fp64, &[-1, 2])]);
    let report = Bench::new("x,label\n0.9,1\n0.2,\n0.6,NA\n0.3,0\n")
        .run(subject(&signature, &[], chances), None);
    let report = report.unwrap();
    assert_eq!((report.data.rows, report.data.unlabelled), (4, 2));
    near(report.metric(Metric::Accuracy), 1.0);
    let error = Bench::new("x,label\n1,\n").run(subject(&signature, &[], chances), None);
    assert!(error.unwrap_err().contains("no rows with a label"));
}

#[test]
fn labels_may_stand_in_a_file_of_their_own() {
    let signature = signature(vec![spec("p", DataType::Fp64, &[-1, 2])]);
    let check = |labels: &str, limit: Option<u64>| {
        let bench = Bench::new("x\n0.9\n0.2\n0.6\n").with(|request, folder| {
            let path = folder.join("labels.csv");
            std::fs::write(&path, labels).unwrap();
            request.labels = Some(path);
            request.rows_max = limit;
        });
        bench.run(subject(&signature, &[], chances), None)
    };
    near(check("c\n1\n0\n1\n", None).unwrap().metric(Metric::Accuracy), 1.0);
    assert!(check("c\n1\n0\n", None).unwrap_err().contains("must be equal in number"));
    assert!(check("c\n1\n0\n1\n1\n", None).unwrap_err().contains("must be equal in number"));
    assert_eq!(check("c\n1\n0\n", Some(2)).unwrap().data.rows, 2);
    assert!(check("a,b\n1,2\n", None).unwrap_err().contains("a file of labels has one"));
}

#[test]
fn misfits_say_what_would_be_right() {
    let two = signature(vec![spec("p", DataType::Fp64, &[-1, 2])]);
    let check = |csv: &str, expected: &str| {
        let error = Bench::new(csv).run(subject(&two, &[], chances), None).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    check("x,z\n1,1\n", "name it with --label");
    check(
        "a,b,label\n1,2,1\n",
        "from 2 columns (`a`, `b`): it takes 1 value a row; leave columns out with --ignore",
    );
    check("x,label\nno,1\n", "has `no` in row 1, column `x`; a number belongs there");
    check(
        "x,label\n0.5,3\n",
        "the label `3` of row 1 is no class of version 2, which has `0`, `1`",
    );
    let several =
        signature(vec![spec("a", DataType::Fp64, &[-1]), spec("b", DataType::Fp64, &[-1])]);
    let error = Bench::new(FIVE).run(subject(&several, &[], chances), None).unwrap_err();
    assert!(error.contains("name it with --output"), "{error}");
    let wrong = Bench::new(FIVE)
        .with(|request, _| request.thresholds = vec![Threshold::new("mae", 1.0).unwrap()]);
    let error = wrong.run(subject(&two, &[], chances), None).unwrap_err();
    assert!(error.contains("mae is no metric of classification"), "{error}");
    let mut failing = subject(&two, &[], chances);
    failing.predict = Box::new(|_| Err("out of luck".to_owned()));
    let error = Bench::new(FIVE).run(failing, None).unwrap_err();
    assert_eq!(error, "version 2 cannot run on rows 1 to 2: out of luck");
}

#[test]
fn a_validation_can_be_cancelled() {
    let two = signature(vec![spec("p", DataType::Fp64, &[-1, 2])]);
    let bench = Bench::new(FIVE);
    let data = Dataset::open(&bench.folder.path().join("d.csv"), Limits::default()).unwrap();
    let (cancel, begin) = (AtomicBool::new(false), Instant::now());
    let mut heard = Vec::new();
    let around = Surroundings {
        clock: &|| begin,
        cancel: &cancel,
        progress: &mut |done, total| {
            heard.push((done, total));
            cancel.store(done == 2, Ordering::Relaxed);
        },
    };
    let ended = validate(&bench.request, data, subject(&two, &[], chances), None, around);
    assert!(matches!(ended, Err(ValidationError::Cancelled)));
    assert_eq!(heard, [(5, None), (2, Some(5))]);
}
