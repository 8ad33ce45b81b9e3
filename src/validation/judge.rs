//! Answers against labels: what each row adds to the metrics.

use crate::{
    stats::{Confusion, LogLoss, RegressionErrors, roc_auc},
    tensor::{DataType, Tensor},
};

use super::{
    ClassReport, Metric, Request, Subject, Task, ValidationError,
    answers::{self, Reading},
    classes::{Classes, Naming, TooMany},
    sample::Sample,
    survey::{LabelKind, Survey, Truth, spelling},
};

/// Scores that are kept for the area under the ROC curve.
const SCORES_MAX: usize = 1 << 20;
/// Classes whose confusion is reported.
const SHOWN_MAX: usize = 20;

/// Collects what a version answers.
#[derive(Debug)]
pub(super) struct Judge {
    version: u64,
    task: Task,
    reading: Reading,
    /// True if the output with the class has text.
    has_text: bool,
    names: Vec<String>,
    is_named_by_request: bool,
    classes_max: usize,
    labels: Vec<String>,
    positive: Option<String>,
    /// Made with the first answers, when it is known how many scores a row has.
    classifier: Option<Classifier>,
    errors: RegressionErrors,
    /// Rows whose answer is no number.
    unanswered: u64,
}

#[derive(Debug)]
struct Classifier {
    classes: Classes,
    confusion: Confusion,
    scores: Option<Scores>,
    positive: Option<u32>,
    classes_max: usize,
}

#[derive(Debug)]
struct Scores {
    width: usize,
    sample: Sample,
    loss: LogLoss,
    /// False once a row was no distribution over the classes.
    are_probabilities: bool,
    are_numbers: bool,
    /// Rows whose largest score is that of the class that the version says.
    agreeing: u64,
}

/// Scores of a version.
#[derive(Debug)]
pub(super) struct Scored {
    pub(super) task: Task,
    pub(super) metrics: Vec<(Metric, Option<f64>)>,
    pub(super) positive: Option<String>,
    pub(super) classes: Vec<ClassReport>,
    /// Rows by actual and predicted class, in the order of `classes`.
    pub(super) confusion: Option<Vec<Vec<u64>>>,
    pub(super) unanswered: u64,
    pub(super) notes: Vec<String>,
}

impl Judge {
    pub(super) fn new(
        request: &Request,
        subject: &Subject<'_>,
        survey: &Survey,
    ) -> Result<Self, ValidationError> {
        let (task, reading) = answers::reading(request, subject, survey)?;
        let labels = match (task, &survey.classes) {
            (Task::Classification, None) => {
                return Err(ValidationError::Outputs(format!(
                    "there are more than {} different labels, too many for classes (validation.classes); for numbers say \
                     --task regression",
                    request.settings.classes_max
                )));
            }
            (Task::Classification, Some(classes)) => classes.clone(),
            (Task::Regression, _) => Vec::new(),
        };
        if task == Task::Regression && survey.kind == LabelKind::Text {
            return Err(ValidationError::Outputs(
                "a regression needs labels that are numbers, and some are not".to_owned(),
            ));
        }
        let output = match reading {
            Reading::Label { output, .. }
            | Reading::Scores { output }
            | Reading::Number { output } => output,
        };
        let names_of = |index: usize| subject.class_names.get(index).cloned().flatten();
        let names = match reading {
            _ if !request.classes.is_empty() => Some(request.classes.clone()),
            Reading::Label { scores: Some(scores), .. } => {
                names_of(scores).or_else(|| names_of(output))
            }
            _ => names_of(output),
        };
        Ok(Self {
            version: subject.version,
            task,
            reading,
            has_text: subject.signature.outputs[output].datatype == DataType::Bytes,
            names: names.unwrap_or_default().iter().map(|name| spelling(name)).collect(),
            is_named_by_request: !request.classes.is_empty(),
            classes_max: request.settings.classes_max,
            labels,
            positive: request.positive.as_deref().map(spelling),
            classifier: None,
            errors: RegressionErrors::new(),
            unanswered: 0,
        })
    }

    pub(super) fn task(&self) -> Task {
        self.task
    }

    /// Takes the answers to a batch; gives one number a row as [`super::Asked::run`] does.
    pub(super) fn take(
        &mut self,
        outputs: &[Tensor],
        rows: usize,
        first_row: u64,
        truth: &Truth,
    ) -> Result<Vec<Option<f64>>, ValidationError> {
        match (self.reading, truth) {
            (Reading::Number { output }, Truth::Numbers(truth)) => {
                let numbers = self.scores_of(outputs, output, rows)?;
                if numbers.len() != rows {
                    return Err(self.unfit(output, numbers.len(), rows));
                }
                Ok(self.take_numbers(&numbers, truth))
            }
            (Reading::Scores { output }, Truth::Classes(truth)) => {
                let scores = self.scores_of(outputs, output, rows)?;
                self.take_classes(None, Some(&scores), rows, first_row, truth)
            }
            (Reading::Label { output, scores }, Truth::Classes(truth)) => {
                let answers = answers::classes(&outputs[output]);
                if answers.len() != rows {
                    return Err(self.unfit(output, answers.len(), rows));
                }
                let scores =
                    scores.map(|output| self.scores_of(outputs, output, rows)).transpose()?;
                self.take_classes(Some(&answers), scores.as_deref(), rows, first_row, truth)
            }
            _ => unreachable!("labels are read for the task"),
        }
    }

    /// The numbers of an output, the same number of them for each row.
    fn scores_of(
        &self,
        outputs: &[Tensor],
        output: usize,
        rows: usize,
    ) -> Result<Vec<f64>, ValidationError> {
        let numbers = outputs.get(output).and_then(answers::numbers).ok_or_else(|| {
            ValidationError::Outputs(format!("version {} predicts text, not numbers", self.version))
        })?;
        if numbers.is_empty() || !numbers.len().is_multiple_of(rows) {
            return Err(self.unfit(output, numbers.len(), rows));
        }
        Ok(numbers)
    }

    fn unfit(&self, output: usize, values: usize, rows: usize) -> ValidationError {
        ValidationError::Outputs(format!(
            "output {} of version {} has {values} values for {rows} rows, which is no prediction a row; name another with \
             --output",
            output + 1,
            self.version
        ))
    }

    fn take_numbers(&mut self, numbers: &[f64], truth: &[Option<f64>]) -> Vec<Option<f64>> {
        let pairs = numbers.iter().zip(truth);
        let error = |(number, truth): (&f64, &Option<f64>)| {
            let truth = (*truth)?;
            if !number.is_finite() {
                self.unanswered += 1;
                return None;
            }
            self.errors.add(truth, *number);
            Some((number - truth).abs())
        };
        pairs.map(error).collect()
    }

    fn take_classes(
        &mut self,
        answers: Option<&[String]>,
        scores: Option<&[f64]>,
        rows: usize,
        first_row: u64,
        truth: &[Option<String>],
    ) -> Result<Vec<Option<f64>>, ValidationError> {
        let width = scores.map_or(0, |scores| scores.len() / rows);
        let mut classifier = match self.classifier.take() {
            Some(classifier) => classifier,
            None => self.classifier(width)?,
        };
        if classifier.scores.as_ref().is_some_and(|own| own.width != width) {
            return Err(ValidationError::Outputs(format!(
                "version {} gives {width} scores a row now, and gave another number before",
                self.version
            )));
        }
        let mut right = Vec::with_capacity(rows);
        for (row, truth) in truth.iter().enumerate() {
            let Some(truth) = truth else {
                right.push(None);
                continue;
            };
            let of_row = scores.map(|scores| &scores[row * width..][..width]);
            let answer = answers.map(|answers| answers[row].as_str());
            let actual = classifier.classes.of_label(truth).map_err(too_many)?.ok_or_else(|| {
                ValidationError::Outputs(format!(
                    "the label `{}` of row {} is no class of version {}, which has {}; write the class as its number, or name the \
                     classes in order with --classes",
                    truth.chars().take(48).flat_map(char::escape_debug).collect::<String>(),
                    first_row + row as u64,
                    self.version,
                    classifier.classes.listed()
                ))
            })?;
            let predicted = classifier.take(answer, of_row, actual).map_err(too_many)?;
            self.unanswered += u64::from(predicted.is_none());
            right.push(Some(f64::from(u8::from(predicted == Some(actual)))));
        }
        self.classifier = Some(classifier);
        Ok(right)
    }

    fn classifier(&self, width: usize) -> Result<Classifier, ValidationError> {
        let naming = match self.reading {
            Reading::Label { .. } if self.has_text => Naming::Texts,
            Reading::Label { .. } => Naming::Numbers,
            Reading::Scores { .. } | Reading::Number { .. } => Naming::Columns,
        };
        if self.is_named_by_request && width > 1 && self.names.len() != width {
            return Err(ValidationError::Outputs(format!(
                "{} classes are named, and version {} gives {width} scores a row; name each",
                self.names.len(),
                self.version
            )));
        }
        let mut classes = Classes::new(naming, &self.names, width, &self.labels, self.classes_max)
            .map_err(too_many)?;
        let positive = match &self.positive {
            Some(name) => {
                let known = classes.len();
                let class = classes.of_label(name).map_err(too_many)?;
                Some(class.filter(|class| (*class as usize) < known).ok_or_else(|| {
                    ValidationError::Outputs(format!(
                        "the positive class `{name}` is none of the classes, which are {}",
                        classes.listed()
                    ))
                })?)
            }
            // The second of two: of the columns, or in their order.
            None if classes.len() == 2 && width <= 2 => match classes.columns() {
                Some(columns) => columns.get(1).copied(),
                None => classes.in_order().get(1).copied(),
            },
            None => None,
        };
        let scores = (width > 0).then(|| Scores {
            width,
            sample: Sample::new(width, SCORES_MAX / width),
            loss: LogLoss::new(),
            are_probabilities: true,
            are_numbers: true,
            agreeing: 0,
        });
        let confusion = Confusion::new(self.classes_max + 1);
        let classes_max = self.classes_max;
        Ok(Classifier { classes, confusion, scores, positive, classes_max })
    }

    pub(super) fn finish(self) -> Scored {
        let mut notes = Vec::new();
        let mut scored = if let Some(classifier) = self.classifier {
            classifier.finish(&mut notes)
        } else {
            let is_whole = self.unanswered == 0;
            let errors = &self.errors;
            let values = [errors.mean_absolute(), errors.root_mean_squared(), errors.r_squared()];
            let values = values.map(|value| value.filter(|_| is_whole));
            Scored {
                task: self.task,
                metrics: self.task.metrics().iter().copied().zip(values).collect(),
                positive: None,
                classes: Vec::new(),
                confusion: None,
                unanswered: 0,
                notes: Vec::new(),
            }
        };
        if self.unanswered > 0 {
            let effect = match self.task {
                Task::Classification => "they count as wrong",
                Task::Regression => "so that no error can be computed",
            };
            notes.push(format!(
                "{} rows got an answer that is not a number; {effect}",
                self.unanswered
            ));
        }
        scored.unanswered = self.unanswered;
        scored.notes = notes;
        scored
    }
}

fn too_many(_: TooMany) -> ValidationError {
    ValidationError::Outputs(
        "labels and predictions have more classes together than there may be; raise validation.classes, or for numbers \
         say --task regression"
            .to_owned(),
    )
}

impl Classifier {
    /// Takes a row; gives the class predicted, `None` if the scores say none.
    fn take(
        &mut self,
        answer: Option<&str>,
        scores: Option<&[f64]>,
        actual: u32,
    ) -> Result<Option<u32>, TooMany> {
        let best = scores.and_then(|scores| self.classes.best(scores));
        let predicted = match answer {
            Some(answer) => Some(self.classes.of_answer(answer)?),
            None => best,
        };
        // Rows without an answer have a place of their own behind all classes.
        let place = predicted.map_or(self.classes_max, |class| class as usize);
        self.confusion.add(actual as usize, place);
        if let (Some(own), Some(row)) = (&mut self.scores, scores) {
            own.agreeing += u64::from(best == predicted);
            own.take(row, actual, self.classes.columns());
        }
        Ok(predicted)
    }

    fn finish(mut self, notes: &mut Vec<String>) -> Scored {
        let order = self.classes.in_order();
        let chosen = match self.positive {
            Some(class) => Some(self.confusion.class(class as usize)),
            None => self.confusion.macro_average(),
        };
        let auc = self.area(notes);
        let loss = self.loss(notes);
        let values = [
            self.confusion.accuracy(),
            chosen.map(|scores| scores.precision),
            chosen.map(|scores| scores.recall),
            chosen.map(|scores| scores.f1),
            auc,
            loss,
        ];
        let is_shown = order.len() <= SHOWN_MAX;
        let report = |class: &u32| {
            let scores = self.confusion.class(*class as usize);
            ClassReport {
                class: self.classes.name(*class),
                rows: scores.support,
                predicted: scores.predicted,
                precision: scores.precision,
                recall: scores.recall,
                f1: scores.f1,
            }
        };
        let row = |actual: &u32| {
            let count =
                |predicted: &u32| self.confusion.count(*actual as usize, *predicted as usize);
            order.iter().map(count).collect()
        };
        Scored {
            task: Task::Classification,
            metrics: Task::Classification.metrics().iter().copied().zip(values).collect(),
            positive: self.positive.map(|class| self.classes.name(class)),
            classes: order.iter().take(SHOWN_MAX).map(report).collect(),
            confusion: is_shown.then(|| order.iter().map(row).collect()),
            unanswered: 0,
            notes: Vec::new(),
        }
    }

    /// The area under the ROC curve of the positive class, or the mean over the classes.
    fn area(&mut self, notes: &mut Vec<String>) -> Option<f64> {
        let columns = self.classes.columns().map(<[u32]>::to_vec);
        let Some(scores) = &self.scores else {
            notes.push(
                "no roc_auc and log_loss: the version has no output with a score for each class"
                    .to_owned(),
            );
            return None;
        };
        let Some(columns) = columns else {
            notes.push(
                "no roc_auc and log_loss: it is not known which column of scores is which class; name them \
                 in order with --classes"
                    .to_owned(),
            );
            return None;
        };
        if !scores.are_numbers {
            notes.push("no roc_auc: some scores are not numbers".to_owned());
            return None;
        }
        // Chosen thresholds move some rows to another class, not most.
        if 2 * scores.agreeing < scores.sample.seen() {
            notes.push(
                "no roc_auc and log_loss: the largest score is mostly not that of the predicted class, so the columns are in \
                 another order; name them in order with --classes"
                    .to_owned(),
            );
            return None;
        }
        if scores.sample.is_partial() {
            notes.push(format!(
                "roc_auc is of a sample of {} of {} rows",
                scores.sample.len(),
                scores.sample.seen()
            ));
        }
        let area = |column: usize, class: u32| {
            let rows = scores.sample.column(column).map(|(score, mark)| (score, mark == class));
            roc_auc(&mut rows.collect::<Vec<_>>())
        };
        if let Some(positive) = self.positive {
            if scores.width == 1 {
                let of_second = area(0, columns[1]);
                return if columns[1] == positive {
                    of_second
                } else {
                    of_second.map(|area| 1.0 - area)
                };
            }
            let column = columns.iter().position(|class| *class == positive)?;
            return area(column, positive);
        }
        let areas: Vec<f64> =
            columns.iter().enumerate().filter_map(|(column, class)| area(column, *class)).collect();
        if areas.len() < columns.len() {
            notes.push(
                "roc_auc leaves out classes that no row, or every row, is labelled with".to_owned(),
            );
        }
        #[expect(clippy::cast_precision_loss, reason = "classes are few")]
        (!areas.is_empty()).then(|| areas.iter().sum::<f64>() / areas.len() as f64)
    }

    fn loss(&self, notes: &mut Vec<String>) -> Option<f64> {
        let scores = self.scores.as_ref()?;
        self.classes.columns()?;
        if 2 * scores.agreeing < scores.sample.seen() {
            return None;
        }
        if !scores.are_probabilities {
            notes.push("no log_loss: scores are not probabilities, which lie between 0 and 1 and sum up to 1".to_owned());
            return None;
        }
        scores.loss.mean()
    }
}

impl Scores {
    fn take(&mut self, row: &[f64], actual: u32, columns: Option<&[u32]>) {
        self.sample.add(row, actual);
        self.are_numbers &= row.iter().all(|score| !score.is_nan());
        let in_range = row.iter().all(|score| (-1e-6..=1.0 + 1e-6).contains(score));
        let sum: f64 = row.iter().sum();
        self.are_probabilities &= in_range && (self.width == 1 || (sum - 1.0).abs() < 1e-3);
        let Some(columns) = columns.filter(|_| self.are_probabilities) else { return };
        let column = columns.iter().position(|class| *class == actual);
        self.loss.add(match (self.width, column) {
            (1, Some(1)) => row[0],
            (1, Some(_)) => 1.0 - row[0],
            (_, Some(column)) => row[column],
            (_, None) => 0.0,
        });
    }
}
