//! The truth: models whose every answer tells which version gave it, and the judge of such answers.
//!
//! Version `v` computes `y = x * slope(v) + offset(v)` and gives its `nonce` back. All of it is exact in single
//! precision, so that an answer is right or wrong and never nearly right. Where a model is to be large, `y` also
//! holds the weight that the nonce picks, so that no engine can leave the weights out. Always true:
//! - The body, the body's `model_version`, the header and the values of a right answer name one version.
//! - Whether an answer is late is judged by what was acknowledged before its request was sent, not by comparing clocks.
//!
//! Not here: sending and receiving.

use std::{borrow::Cow, fmt::Write as _};

use serde::Deserialize;

use super::onnx::{Element, Graph};

/// The model's name.
pub(crate) const MODEL: &str = "truth";

/// Versions above this would not be exact.
pub(crate) const VERSION_MAX: u64 = 16_000;

const WIDTH: usize = 4;
const NONCE_MAX: u64 = 1 << 40;

/// The file of a version, with this many weights.
pub(crate) fn model(version: u64, weights: u64) -> Vec<u8> {
    let graph = Graph::new(MODEL)
        .input("x", Element::Float, &[None])
        .input("nonce", Element::Int64, &[Some(1)])
        .output("y", Element::Float, &[None])
        .output("echo", Element::Int64, &[Some(1)])
        .floats("slope", &[1], &[slope(version)])
        .floats("offset", &[1], &[offset(version)])
        .node("Identity", &["nonce"], &["echo"])
        .node("Mul", &["x", "slope"], &["scaled"]);
    if weights == 0 {
        return graph.node("Add", &["scaled", "offset"], &["y"]).into_model();
    }
    let raw: Vec<u8> = (0..weights).flat_map(|row| weight(version, row).to_le_bytes()).collect();
    graph
        .constant("weights", Element::Float, &[weights], &raw)
        .node("Gather", &["weights", "nonce"], &["picked"])
        .node("Add", &["scaled", "offset"], &["moved"])
        .node("Add", &["moved", "picked"], &["y"])
        .into_model()
}

fn slope(version: u64) -> f32 {
    version as f32
}

fn offset(version: u64) -> f32 {
    (version % 1_000) as f32 + 0.5
}

fn weight(version: u64, row: u64) -> f32 {
    ((version + row) % 7) as f32
}

/// A request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question {
    nonce: u64,
    weights: u64,
}

/// What a response's body says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    version: u64,
    echo: u64,
    y: Vec<f32>,
}

/// What an answer is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Right, and of a version that might answer.
    Right,
    /// Parts of it come from different versions or requests.
    Mixed(String),
    /// Of an older version than the one acknowledged before the request was sent.
    Late(String),
}

impl Question {
    /// The question of this number, the same each time.
    pub(crate) fn new(number: u64, weights: u64) -> Self {
        // SplitMix64: neighbours become strangers.
        let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let end = if weights == 0 { NONCE_MAX } else { weights };
        Self { nonce: (mixed ^ (mixed >> 31)) % end, weights }
    }

    /// Whole numbers from 1 to 255.
    fn x(&self) -> [f32; WIDTH] {
        let bytes = self.nonce.to_le_bytes();
        std::array::from_fn(|index| f32::from(bytes[index].max(1)))
    }

    /// What a version answers to it.
    fn y(&self, version: u64) -> [f32; WIDTH] {
        let picked = if self.weights == 0 { 0.0 } else { weight(version, self.nonce) };
        self.x().map(|x| x * slope(version) + offset(version) + picked)
    }

    /// The inputs as JSON.
    pub(crate) fn json(&self) -> String {
        let [a, b, c, d] = self.x();
        format!(
            r#"{{"inputs":[{{"name":"x","shape":[{WIDTH}],"datatype":"FP32","data":[{a},{b},{c},{d}]}},{{"name":"nonce","shape":[1],"datatype":"INT64","data":[{}]}}]}}"#,
            self.nonce
        )
    }

    /// The inputs in the binary form, and how long its JSON is.
    pub(crate) fn binary(&self) -> (Vec<u8>, usize) {
        let mut text = String::from(r#"{"parameters":{"binary_data_output":true},"inputs":["#);
        for (name, datatype, elements, size) in
            [("x", "FP32", WIDTH, WIDTH * 4), ("nonce", "INT64", 1, 8)]
        {
            let comma = if name == "x" { "," } else { "]}" };
            write!(
                text,
                r#"{{"name":"{name}","shape":[{elements}],"datatype":"{datatype}","parameters":{{"binary_data_size":{size}}}}}{comma}"#
            )
            .expect("text can be written to");
        }
        let json_bytes = text.len();
        let mut body = text.into_bytes();
        body.extend(self.x().iter().flat_map(|x| x.to_le_bytes()));
        body.extend(self.nonce.to_le_bytes());
        (body, json_bytes)
    }

    /// Judges an answer by its header, by what was acknowledged before the question was sent, and by what had
    /// been put up when it came.
    pub(crate) fn judge(
        &self,
        header: Option<&str>,
        answer: &Answer,
        acknowledged: u64,
        newest: u64,
    ) -> Verdict {
        let version = answer.version;
        if header != Some(version.to_string().as_str()) {
            return Verdict::Mixed(format!("the header says {header:?}, the body {version}"));
        }
        if answer.echo != self.nonce {
            let (echo, nonce) = (answer.echo, self.nonce);
            return Verdict::Mixed(format!("the nonce came back as {echo}, not as {nonce}"));
        }
        if version == 0 || version > newest {
            return Verdict::Mixed(format!("version {version} answers; {newest} is the newest"));
        }
        let expected = self.y(version);
        if answer.y != expected {
            return Verdict::Mixed(format!(
                "{:?}, where version {version} gives {expected:?}",
                answer.y
            ));
        }
        if version < acknowledged {
            return Verdict::Late(format!(
                "version {version} answers after {acknowledged} was acknowledged"
            ));
        }
        Verdict::Right
    }
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    model_version: Cow<'a, str>,
    #[serde(borrow)]
    outputs: Vec<Output<'a>>,
}

#[derive(Deserialize)]
struct Output<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(default)]
    data: Vec<f64>,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Deserialize, Default)]
struct Parameters {
    binary_data_size: Option<usize>,
}

impl Answer {
    /// Reads a body; `json_bytes` is the length of its JSON where binary data follow.
    pub(crate) fn read(body: &[u8], json_bytes: Option<usize>) -> Result<Self, String> {
        let (json, mut tail) =
            body.split_at_checked(json_bytes.unwrap_or(body.len())).ok_or("too short")?;
        let body: Body<'_> = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let version = body.model_version.parse().map_err(|_| "`model_version` is no number")?;
        let mut answer = Self { version, echo: u64::MAX, y: Vec::new() };
        for output in &body.outputs {
            let raw;
            (raw, tail) = tail
                .split_at_checked(output.parameters.binary_data_size.unwrap_or(0))
                .ok_or("the binary data end early")?;
            answer.take(output, raw);
        }
        Ok(answer)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "compared later")]
    fn take(&mut self, output: &Output<'_>, raw: &[u8]) {
        let is_binary = output.parameters.binary_data_size.is_some();
        match &*output.name {
            "y" if is_binary => {
                let (elements, _) = raw.as_chunks();
                self.y = elements.iter().map(|element| f32::from_le_bytes(*element)).collect();
            }
            "y" => self.y = output.data.iter().map(|element| *element as f32).collect(),
            "echo" if is_binary => {
                self.echo = raw.try_into().map_or(u64::MAX, u64::from_le_bytes);
            }
            "echo" => self.echo = output.data.first().map_or(u64::MAX, |echo| *echo as u64),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, Question, VERSION_MAX, Verdict, offset, slope};

    fn right(question: &Question, version: u64) -> Answer {
        Answer { version, echo: question.nonce, y: question.y(version).to_vec() }
    }

    #[test]
    fn versions_are_exact_and_distinct() {
        for version in 1..=VERSION_MAX {
            for x in [1.0_f32, 128.0, 255.0] {
                let exact = f64::from(x) * f64::from(slope(version)) + f64::from(offset(version));
                let single = x * slope(version) + offset(version);
                assert_eq!(f64::from(single).to_bits(), exact.to_bits(), "{version} at {x}");
                let before = x * slope(version - 1) + offset(version - 1);
                assert_ne!(single.to_bits(), before.to_bits(), "{version} at {x}");
            }
        }
    }

    #[test]
    fn right_answers_are_right() {
        for number in 0..1_000 {
            let question = Question::new(number, number % 2 * 10_000);
            let verdict = question.judge(Some("7"), &right(&question, 7), 7, 8);
            assert_eq!(verdict, Verdict::Right);
        }
    }

    #[test]
    fn an_older_version_than_acknowledged_is_late() {
        let question = Question::new(1, 0);
        let verdict = question.judge(Some("6"), &right(&question, 6), 7, 7);
        assert!(matches!(verdict, Verdict::Late(_)), "{verdict:?}");
    }

    #[test]
    fn parts_of_different_origin_are_mixed() {
        let (question, other) = (Question::new(1, 0), Question::new(2, 0));
        let (mut value, mut foreign) = (right(&question, 7), right(&question, 7));
        value.y[3] = question.y(6)[3];
        foreign.echo = other.nonce;
        for (what, header, answer, newest) in [
            ("header", Some("6"), right(&question, 7), 8),
            ("no header", None, right(&question, 7), 8),
            ("value", Some("7"), value, 8),
            ("nonce", Some("7"), foreign, 8),
            ("never put up", Some("9"), right(&question, 9), 8),
        ] {
            let verdict = question.judge(header, &answer, 1, newest);
            assert!(matches!(verdict, Verdict::Mixed(_)), "{what}: {verdict:?}");
        }
    }

    #[test]
    fn both_forms_of_an_answer_are_read() {
        let expected = Answer { version: 3, echo: 5, y: vec![1.5, 2.5] };
        let json = br#"{"model_name":"truth","model_version":"3","outputs":[{"name":"y","datatype":"FP32","shape":[2],"data":[1.5,2.5]},{"name":"echo","datatype":"INT64","shape":[1],"data":[5]}]}"#;
        assert_eq!(Answer::read(json, None), Ok(expected.clone()));
        let head = br#"{"model_name":"truth","model_version":"3","outputs":[{"name":"y","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":8}},{"name":"echo","datatype":"INT64","shape":[1],"parameters":{"binary_data_size":8}}]}"#;
        let mut binary = head.to_vec();
        binary.extend([1.5_f32.to_le_bytes(), 2.5_f32.to_le_bytes()].concat());
        binary.extend(5_u64.to_le_bytes());
        assert_eq!(Answer::read(&binary, Some(head.len())), Ok(expected));
        assert!(Answer::read(&binary[..binary.len() - 1], Some(head.len())).is_err());
        assert!(Answer::read(b"{}", None).is_err());
    }

    #[test]
    fn both_forms_of_a_question_hold_the_same() {
        let question = Question::new(42, 0);
        let (body, json_bytes) = question.binary();
        let head: serde_json::Value = serde_json::from_slice(&body[..json_bytes]).unwrap();
        assert_eq!(head["inputs"][1]["parameters"]["binary_data_size"], 8);
        assert_eq!(body[json_bytes + 16..], question.nonce.to_le_bytes());
        let json: serde_json::Value = serde_json::from_str(&question.json()).unwrap();
        assert_eq!(json["inputs"][1]["data"][0], question.nonce);
        assert_eq!(json["inputs"][0]["data"][3].as_f64(), Some(f64::from(question.x()[3])));
    }
}
