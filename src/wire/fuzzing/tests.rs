//! The checks over the committed corpus, and over requests that are made and then damaged.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::tensor::{Data, Shape};

fn over_corpus(target: &str, check: impl Fn(&[u8])) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/");
    let mut seeds = 0;
    for entry in std::fs::read_dir(format!("{folder}{target}")).unwrap() {
        let path = entry.unwrap().path();
        eprintln!("{}", path.display());
        check(&std::fs::read(path).unwrap());
        seeds += 1;
    }
    assert!(seeds >= 20, "{target} has only {seeds} seeds");
}

#[test]
fn json_tensors_hold_over_the_corpus() {
    over_corpus("json_tensors", json_tensors);
}

#[test]
fn binary_tensors_hold_over_the_corpus() {
    over_corpus("binary_tensors", binary_tensors);
}

#[test]
fn whole_requests_hold_over_the_corpus() {
    over_corpus("whole_request", whole_request);
}

#[test]
fn uploads_hold_over_the_corpus() {
    over_corpus("upload", upload);
}

#[test]
fn answers_hold_over_the_corpus() {
    over_corpus("answer", answer);
}

proptest! {
    #[test]
    fn any_bytes_of_an_answer_are_read_or_refused(body in vec(any::<u8>(), 0..200)) {
        answer(&body);
        answer(&[b"{\"outputs\":[", &body[..], b"]}"].concat());
    }

    #[test]
    fn any_body_of_a_load_is_read_or_refused(body in vec(any::<u8>(), 0..200)) {
        upload(&body);
    }

    #[test]
    fn any_pieces_of_a_load_are_read_or_refused(body in "[{}\",:=A/ ]{0,20}(\"(config|file:1/a|file:2/b)\":\"[AB/+=\\\\]{0,9}\",?){0,6}[}]{0,3}") {
        upload(format!("{{\"parameters\":{{{body}").as_bytes());
        upload(body.as_bytes());
    }
}

/// Tensors of every datatype and small shapes.
fn tensor() -> impl Strategy<Value = Tensor> {
    let shape = vec(0i64..4, 0..4).prop_map(|dims| Shape::new(&dims).unwrap());
    (shape, 0..DataType::ALL.len()).prop_flat_map(|(shape, datatype)| {
        let datatype = DataType::ALL[datatype];
        let count = shape.element_count().unwrap();
        match datatype.size() {
            None => vec(any::<String>(), count)
                .prop_map(move |strings| {
                    Tensor::new(shape.clone(), Data::Bytes(strings.iter().collect())).unwrap()
                })
                .boxed(),
            Some(size) => vec(any::<u8>(), count * size)
                .prop_map(move |mut raw| {
                    if datatype == DataType::Bool {
                        for byte in &mut raw {
                            *byte &= 1;
                        }
                    }
                    Tensor::from_raw(datatype, shape.clone(), raw.into()).unwrap()
                })
                .boxed(),
        }
    })
}

/// Pieces of requests, right and wrong ones.
fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        " ",
        "\"",
        "\\",
        "0",
        "-",
        ".",
        "e",
        "1e5",
        "NaN",
        "Infinity",
        "-Infinity",
        "null",
        "true",
        "\"name\":",
        "\"shape\":[1],",
        "\"datatype\":\"FP32\",",
        "\"datatype\":\"UINT8\",",
        "\"datatype\":\"BYTES\",",
        "\"data\":[1]",
        "\"data\":",
        "[1,2]",
        "\"parameters\":{\"binary_data_size\":4},",
        "\"x\"",
        "\"inputs\":[",
        "\"outputs\":[",
        "\u{e9}",
        "\\u00e9",
        "\\ud83d\\ude00",
        "\\ud83d",
        "9007199254740993",
        "16777217",
        "1e39",
        "1e400",
        "\0",
        "\"classification\":1",
        "\"priority\":1,",
        "\"timeout\":0,",
        "\"id\":\"a\",",
        "\"id\":null,",
    ])
}

/// Cuts pieces out of a request and puts others in.
fn damage(mut bytes: Vec<u8>, wounds: &[(prop::sample::Index, usize, &'static str)]) -> Vec<u8> {
    for (at, cut, piece) in wounds {
        let start = at.index(bytes.len() + 1);
        let end = (start + cut).min(bytes.len());
        bytes.splice(start..end, piece.bytes());
    }
    bytes
}

/// A request as an honest client writes it, and the length of its JSON; `data` is the first key of an input
/// on demand. Empty if JSON cannot hold the tensors.
fn request(tensors: &[Tensor], binary: bool, data_first: bool) -> (Vec<u8>, usize) {
    let (mut inputs, mut raw) = (vec![], vec![]);
    for tensor in tensors {
        let input = crate::model::Input { name: "x".to_owned(), tensor: tensor.clone() };
        let request = InferRequest { inputs: vec![input], ..InferRequest::default() };
        let mut object = None;
        echo(&request, binary, |response| {
            let Ok(encoded) = encode_infer(response) else { return };
            let (json, behind) =
                encoded.body.split_at(encoded.json_bytes.unwrap_or(encoded.body.len()));
            raw.extend_from_slice(behind);
            let json = std::str::from_utf8(json).unwrap();
            let (_, outputs) = json.split_once("\"outputs\":[").unwrap();
            object = Some(outputs.strip_suffix("]}").unwrap().to_owned());
        });
        let Some(mut object) = object else { return (vec![], 0) };
        // Quotes inside of strings are escaped, so this is the key.
        if data_first && let Some((keys, data)) = object.split_once(",\"data\":") {
            let (keys, data) = (&keys[1..], data.strip_suffix('}').unwrap());
            object = format!("{{\"data\":{data},{keys}}}");
        }
        inputs.push(object);
    }
    let json = format!("{{\"inputs\":[{}]}}", inputs.join(","));
    let json_bytes = json.len();
    ([json.into_bytes(), raw].concat(), json_bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn damaged_requests_are_read_as_the_reference_reads_them(
        tensors in vec(tensor(), 1..3),
        wounds in vec((any::<prop::sample::Index>(), 0usize..6, piece()), 0..4),
        data_first in any::<bool>(),
    ) {
        let (body, _) = request(&tensors, false, data_first);
        json_tensors(&body);
        json_tensors(&damage(body, &wounds));
    }

    #[test]
    fn damaged_binary_requests_are_read_as_the_reference_reads_them(
        tensors in vec(tensor(), 1..3),
        wounds in vec((any::<prop::sample::Index>(), 0usize..6, piece()), 0..3),
    ) {
        let (mut body, json_bytes) = request(&tensors, true, false);
        body.insert(json_bytes, 0);
        binary_tensors(&body);
        binary_tensors(&damage(body, &wounds));
    }

    #[test]
    fn any_bytes_are_answered(bytes in vec(any::<u8>(), 0..200)) {
        json_tensors(&bytes);
        binary_tensors(&bytes);
        whole_request(&bytes);
    }

    #[test]
    fn scrambled_pieces_are_answered(choice in any::<[u8; 2]>(), pieces in vec(piece(), 0..30)) {
        let text = pieces.concat();
        json_tensors(text.as_bytes());
        whole_request(&[&choice[..], text.as_bytes()].concat());
        let inside = format!("{{\"inputs\":[{{\"name\":\"x\",{text}}}]}}");
        json_tensors(inside.as_bytes());
    }

    #[test]
    fn binary_tensors_survive_being_written(tensors in vec(tensor(), 1..4)) {
        let inputs = tensors.into_iter().map(|tensor| crate::model::Input { name: "x".into(), tensor });
        let request = InferRequest { inputs: inputs.collect(), ..InferRequest::default() };
        written_in_binary_is_the_same(&request);
    }
}
