//! Golden inputs and outputs: what a version must reproduce before it answers.
//!
//! `golden.json` beside the model holds tensors as the protocol writes them:
//! `{"tolerance": {"relative": 1e-4, "absolute": 1e-5}, "cases": [{"inputs": [...], "outputs": [...]}]}`.
//! `NaN`, `Infinity` and `-Infinity` are numbers there, too. Numbers agree where
//! `|actual - expected| <= absolute + relative * |expected|`, and one that is none where both are the same; everything
//! else must be equal.

use crate::{
    engine::{RunError, Session},
    model::{Input, Signature, SignatureError},
    tensor::{DataType, Element, Tensor},
    wire::v2::{DecodeError, EncodeError, GoldenFileError, decode_golden, encode_golden},
};

/// Cases that a version must reproduce.
#[derive(Debug)]
pub struct Golden {
    tolerance: Tolerance,
    cases: Vec<Case>,
}

/// Why a version is not what its golden outputs say, or they cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// The file is not what it should be.
    #[error("golden.json is malformed: {0}")]
    File(DecodeError),
    /// Nothing would be compared.
    #[error(
        "golden.json has no cases and would prove nothing; give it at least one with inputs and outputs, or remove it"
    )]
    Empty,
    /// A case in the file is malformed.
    #[error("golden.json, case {case}: {source}")]
    Case {
        /// The case, from 0.
        case: usize,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The inputs or outputs are not the model's.
    #[error("golden.json, case {case}: {source}")]
    Signature {
        /// The case, from 0.
        case: usize,
        /// What does not fit.
        source: SignatureError,
    },
    /// The model did not run on the inputs.
    #[error("golden case {case} does not run: {source}")]
    Run {
        /// The case, from 0.
        case: usize,
        /// What the engine said.
        source: RunError,
    },
    /// A tensor cannot be written into the file.
    #[error("golden.json holds no {}", datatype.name())]
    Unwritable {
        /// The datatype.
        datatype: DataType,
    },
    /// A text cannot be written into the file.
    #[error("golden.json holds texts in UTF-8 only, and `{tensor}` has others")]
    NotText {
        /// The tensor.
        tensor: String,
    },
    /// The model gives something else.
    #[error("golden case {case} is not reproduced: output `{output}` {difference}")]
    Differs {
        /// The case, from 0.
        case: usize,
        /// The output.
        output: String,
        /// How it differs.
        difference: String,
    },
}

#[derive(Debug, Clone, Copy)]
struct Tolerance {
    relative: f64,
    absolute: f64,
}

#[derive(Debug)]
struct Case {
    inputs: Vec<Input>,
    outputs: Vec<Input>,
}

impl Default for Tolerance {
    /// FP32 arithmetic in another order differs by about this much.
    fn default() -> Self {
        Self { relative: 1e-4, absolute: 1e-5 }
    }
}

impl Golden {
    /// Reads the file.
    pub fn parse(file: &[u8]) -> Result<Self, GoldenError> {
        let file = decode_golden(file).map_err(|GoldenFileError { case, source }| match case {
            None => GoldenError::File(source),
            Some(case) => GoldenError::Case { case, source },
        })?;
        if file.cases.is_empty() {
            return Err(GoldenError::Empty);
        }
        let tolerance = file.tolerance.map(|(relative, absolute)| Tolerance { relative, absolute });
        let cases = file.cases.into_iter().map(|(inputs, outputs)| Case { inputs, outputs });
        Ok(Self { tolerance: tolerance.unwrap_or_default(), cases: cases.collect() })
    }

    /// Writes a file of cases with their inputs and outputs; numbers may be apart by this much, relatively and
    /// absolutely.
    pub fn file(
        tolerance: (f64, f64),
        cases: &[(Vec<Input>, Vec<Input>)],
    ) -> Result<Vec<u8>, GoldenError> {
        encode_golden(tolerance, cases).map_err(|error| match error {
            EncodeError::NoJsonForm { datatype, .. } => GoldenError::Unwritable { datatype },
            EncodeError::NotUtf8 { output, .. } => GoldenError::NotText { tensor: output },
        })
    }

    /// How many cases there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// The inputs of the first case, in the signature's order: real input to warm up with.
    pub fn first_inputs(&self, signature: &Signature) -> Option<Vec<Input>> {
        let mut inputs = self.cases.first()?.inputs.clone();
        signature.arrange(&mut inputs, false).ok().map(|()| inputs)
    }

    /// Whether the first case says what this output must be.
    pub fn vouches_for(&self, output: &str) -> bool {
        self.cases.first().is_some_and(|case| case.outputs.iter().any(|own| own.name == output))
    }

    /// Compares a case's outputs with those of an answer: the value of its `outputs`, as JSON. Outputs of which the
    /// case says nothing are not looked at.
    pub fn compare(&self, case: usize, outputs: &str) -> Result<(), GoldenError> {
        let answer = format!(r#"{{"cases":[{{"inputs":[],"outputs":{outputs}}}]}}"#);
        let answer = Self::parse(answer.as_bytes())?;
        let given = answer.cases.first().map(|case| &*case.outputs).unwrap_or_default();
        for expected in self.cases.get(case).map(|case| &*case.outputs).unwrap_or_default() {
            let output = &expected.name;
            let actual = given.iter().find(|given| given.name == *output);
            let difference = match actual {
                Some(actual) => difference(&expected.tensor, &actual.tensor, self.tolerance),
                None => Some("is not in the answer".to_owned()),
            };
            if let Some(difference) = difference {
                return Err(GoldenError::Differs { case, output: output.clone(), difference });
            }
        }
        Ok(())
    }

    /// Runs every case and compares.
    pub fn check(
        &self,
        session: &mut dyn Session,
        signature: &Signature,
    ) -> Result<(), GoldenError> {
        for (index, case) in self.cases.iter().enumerate() {
            let mut inputs = case.inputs.clone();
            let misfit = |source| GoldenError::Signature { case: index, source };
            signature.arrange(&mut inputs, false).map_err(misfit)?;
            let mut expected = Vec::with_capacity(case.outputs.len());
            for output in &case.outputs {
                expected.push((signature.output(&output.name).map_err(misfit)?, output));
            }
            expected.sort_by_key(|(position, _)| *position);
            expected.dedup_by_key(|(position, _)| *position);
            let wanted: Vec<usize> = expected.iter().map(|(position, _)| *position).collect();
            let mut actual = session
                .run(inputs.into(), &wanted)
                .map_err(|source| GoldenError::Run { case: index, source })?;
            // A file may have the model's own shapes, or those that clients see.
            for ((place, expected), actual) in expected.iter().zip(&mut actual) {
                if **expected.tensor.shape() != **actual.shape() {
                    signature.present(std::slice::from_mut(actual), &[*place]);
                }
                if let Some(difference) = difference(&expected.tensor, actual, self.tolerance) {
                    let output = expected.name.clone();
                    return Err(GoldenError::Differs { case: index, output, difference });
                }
            }
        }
        Ok(())
    }
}

/// How two tensors differ; `None` if they agree.
fn difference(expected: &Tensor, actual: &Tensor, tolerance: Tolerance) -> Option<String> {
    if expected.datatype() != actual.datatype() || **expected.shape() != **actual.shape() {
        let tensor = |tensor: &Tensor| format!("{}{}", tensor.datatype(), tensor.shape());
        return Some(format!("is {}, expected {}", tensor(actual), tensor(expected)));
    }
    match expected.datatype() {
        DataType::Fp32 => numbers::<f32>(expected, actual, tolerance),
        DataType::Fp64 => numbers::<f64>(expected, actual, tolerance),
        DataType::Bytes => {
            let (expected, actual) = (expected.strings()?, actual.strings()?);
            let index = expected.iter().zip(actual.iter()).position(|(e, a)| e != a)?;
            let text = |strings: &crate::tensor::Strings| {
                strings.iter().nth(index).map(|s| String::from_utf8_lossy(s).into_owned())
            };
            Some(format!(
                "is {:?} at element {index}, expected {:?}",
                text(actual)?,
                text(expected)?
            ))
        }
        _ => {
            let raw = |tensor: &Tensor| {
                let mut raw = Vec::with_capacity(tensor.raw_len());
                tensor.write_raw(&mut raw);
                raw
            };
            let (expected_raw, actual_raw) = (raw(expected), raw(actual));
            let byte = expected_raw.iter().zip(&actual_raw).position(|(e, a)| e != a)?;
            let index = byte / expected.datatype().size()?;
            Some(format!("differs at element {index}"))
        }
    }
}

fn numbers<T: Element + Into<f64>>(
    expected: &Tensor,
    actual: &Tensor,
    tolerance: Tolerance,
) -> Option<String> {
    let (expected, actual) = (expected.view::<T>().ok()?, actual.view::<T>().ok()?);
    expected.iter().zip(actual.iter()).enumerate().find_map(|(index, (expected, actual))| {
        let (expected, actual): (f64, f64) = ((*expected).into(), (*actual).into());
        // Any number would be close to an infinite one.
        let close = expected.is_finite()
            && (actual - expected).abs()
                <= tolerance.absolute + tolerance.relative * expected.abs();
        let same = actual.to_bits() == expected.to_bits() || (actual.is_nan() && expected.is_nan());
        (!close && !same).then(|| format!("is {actual} at element {index}, expected {expected}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Data, Shape};

    fn fp32(values: &[f32]) -> Tensor {
        let shape = Shape::new(&[i64::try_from(values.len()).unwrap()]).unwrap();
        Tensor::new(shape, Data::Fp32(values.to_vec())).unwrap()
    }

    #[test]
    fn numbers_agree_within_the_tolerance() {
        let tolerance = Tolerance { relative: 0.01, absolute: 0.1 };
        assert_eq!(
            difference(&fp32(&[100.0, f32::NAN]), &fp32(&[101.0, f32::NAN]), tolerance),
            None
        );
        let text = difference(&fp32(&[1.0, 100.0]), &fp32(&[1.0, 102.0]), tolerance).unwrap();
        assert_eq!(text, "is 102 at element 1, expected 100");
        assert_eq!(difference(&fp32(&[f32::INFINITY]), &fp32(&[f32::INFINITY]), tolerance), None);
        assert!(difference(&fp32(&[f32::INFINITY]), &fp32(&[1.0]), tolerance).is_some());
    }

    #[test]
    fn files_that_are_written_are_read() {
        let case = |value: f32| {
            let input = |name: &str, tensor| Input { name: name.to_owned(), tensor };
            (vec![input("x", fp32(&[value, f32::NAN]))], vec![input("y \"", fp32(&[1.5e-30]))])
        };
        let cases = [case(0.1), case(f32::NEG_INFINITY)];
        let file = Golden::file((1e-3, 0.0), &cases).unwrap();
        let golden = Golden::parse(&file).unwrap();
        assert_eq!(golden.len(), 2);
        assert!(golden.tolerance.absolute <= 0.0 && golden.tolerance.relative > 9e-4);
        for (read, (inputs, outputs)) in golden.cases.iter().zip(&cases) {
            assert_eq!(read.outputs, *outputs);
            assert_eq!(
                difference(&inputs[0].tensor, &read.inputs[0].tensor, Tolerance::default()),
                None
            );
        }
    }

    #[test]
    fn files_are_read_strictly() {
        let case = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}],"outputs":[{"name":"y","datatype":"INT64","shape":[1],"data":[1]}]}"#;
        let golden = Golden::parse(format!(r#"{{"cases":[{case}]}}"#).as_bytes()).unwrap();
        assert_eq!(golden.len(), 1);
        assert!(Golden::parse(br#"{"cases":[],"extra":1}"#).is_err());
        assert!(matches!(Golden::parse(br#"{"cases":[]}"#), Err(GoldenError::Empty)));
        let uncompared =
            case.replace(r#"[{"name":"y","datatype":"INT64","shape":[1],"data":[1]}]"#, "[]");
        assert!(Golden::parse(format!(r#"{{"cases":[{uncompared}]}}"#).as_bytes()).is_err());
        assert!(Golden::parse(br#"{"cases":[{"inputs":[],"outputs":[]}]}"#).is_err());
        let without_inputs =
            case.replace(r#"[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]"#, "[]");
        assert!(Golden::parse(format!(r#"{{"cases":[{without_inputs}]}}"#).as_bytes()).is_ok());
    }

    #[test]
    fn numbers_of_a_case_may_be_those_that_json_lacks() {
        let file = r#"{"cases": [{"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [-Infinity]}],
            "outputs": [{"name": "y", "data": [NaN, 1e5, Infinity], "shape": [3], "datatype": "FP32"}]}],
            "tolerance": {"absolute": 0, "relative": 1e-3}}"#;
        let golden = Golden::parse(file.as_bytes()).unwrap();
        let case = &golden.cases[0];
        assert_eq!(*case.inputs[0].tensor.view::<f64>().unwrap(), [f64::NEG_INFINITY]);
        let outputs = case.outputs[0].tensor.view::<f32>().unwrap();
        assert!(outputs[0].is_nan() && outputs[2] == f32::INFINITY, "{outputs:?}");
        assert!((golden.tolerance.relative - 1e-3).abs() < 1e-12);
        let refusal = |from: &str, to: &str| {
            Golden::parse(file.replace(from, to).as_bytes()).unwrap_err().to_string()
        };
        let of_case = "golden.json, case 0: ";
        let table = [
            ("[NaN,", "[NaN 2,", of_case, "expected `,` or `]`"),
            ("[NaN,", "[nan,", of_case, "expected a"),
            (r#""cases""#, r#""case""#, "golden.json is malformed: ", "unknown key `case`"),
            ("1e-3", "NaN", "golden.json is malformed: ", "invalid JSON"),
            ("1e-3", "1e999", "golden.json is malformed: ", "`relative` is not a number"),
            (r#", "relative": 1e-3"#, "", "golden.json is malformed: ", "no `relative`"),
            ("}]}],", "}]} 1],", "golden.json is malformed: ", "expected `,` or `]`"),
            (r#""outputs""#, r#""inputs""#, of_case, "a case has two keys `inputs`"),
            (r#""shape": [1],"#, "", of_case, "input `x`: has no `shape`"),
        ];
        for (from, to, begin, part) in table {
            let error = refusal(from, to);
            assert!(error.starts_with(begin) && error.contains(part), "{to}: {error}");
        }
    }
}
