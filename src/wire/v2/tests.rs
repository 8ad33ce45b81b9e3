//! Requests in, responses out: by example.

use bytes::Bytes;

use super::*;
use crate::{
    model::{
        InferRequest, InferResponse, ModelName, Parameter, ResponseOutput, Signature, TensorSpec,
        VersionId,
    },
    tensor::{Data, DataType, Shape, Strings, Tensor},
};

fn decode(json: &str) -> Result<InferRequest, String> {
    decode_infer(&Bytes::copy_from_slice(json.as_bytes()), None, &Limits::default())
        .map_err(|error| error.to_string())
}

/// A request with one input `x`.
fn with_input(rest: &str) -> String {
    format!(r#"{{"inputs":[{{"name":"x",{rest}}}]}}"#)
}

/// The elements of the only input.
fn elements(datatype: &str, shape: &str, data: &str) -> Result<Data, String> {
    let keys = [
        format!(r#""datatype":"{datatype}""#),
        format!(r#""shape":{shape}"#),
        format!(r#""data":{data}"#),
    ];
    let read = |order: [usize; 3]| {
        let mut request = decode(&with_input(&order.map(|key| keys[key].clone()).join(",")))?;
        let tensor = request.inputs.remove(0).tensor;
        assert_eq!(tensor.datatype().name(), datatype);
        Ok::<_, String>(tensor.data().clone())
    };
    let (forward, backward) = (read([0, 1, 2]), read([2, 1, 0]));
    let outcome = |read: &Result<Data, String>| match read {
        Ok(data) => format!("{data:?}"),
        // The offset moves with the keys.
        Err(error) => error.split("byte ").next().unwrap_or_default().to_owned(),
    };
    assert_eq!(outcome(&forward), outcome(&backward), "the order of keys counts");
    forward
}

fn check_error(json: &str, expected: &str) {
    assert_eq!(decode(json).unwrap_err(), expected, "{json}");
}

fn check_element_error(datatype: &str, data: &str, expected: &str) {
    assert_eq!(
        elements(datatype, "[1]", data).unwrap_err(),
        format!("input `x`{expected}"),
        "{data}"
    );
}

#[test]
fn a_whole_request_is_read() {
    let request = decode(
        r#" {"model_name":"ignored","id":"é\u00e9","parameters":{"priority":2,"timeout":1500,
        "binary_data_output":true,"sequence_id":0,"sequence_start":false,"user":"a","n":-3,"big":
        18446744073709551615,"f":1e2,"yes":true},"inputs":[{"name":"a","shape":[2,2],"datatype":"FP32",
        "data":[[1,2.5],[-3e-1,4]]},{"shape":[1],"data":["\ud83d\ude00"],"datatype":"BYTES","name":"b",
        "parameters":{"content_type":"str"}}],"outputs":[{"name":"y","parameters":{"classification":3,
        "binary_data":false}},{"name":"z"}]} "#,
    )
    .unwrap();
    assert_eq!(request.id.as_deref(), Some("éé"));
    assert_eq!((request.priority, request.binary_output), (2, true));
    assert_eq!(request.timeout, Some(std::time::Duration::from_micros(1500)));
    let parameters: Vec<_> =
        request.parameters.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    assert_eq!(
        parameters,
        [
            ("user", Parameter::String("a".into())),
            ("n", Parameter::Int(-3)),
            ("big", Parameter::Uint(u64::MAX)),
            ("f", Parameter::Double(100.0)),
            ("yes", Parameter::Bool(true)),
        ]
    );
    assert_eq!(*request.inputs[0].tensor.data(), Data::Fp32(vec![1.0, 2.5, -0.3, 4.0]));
    assert_eq!(*request.inputs[1].tensor.data(), Data::Bytes(Strings::from_iter(["😀"])));
    assert_eq!(request.outputs[0].classification, Some(3));
    assert_eq!(request.outputs[0].binary, Some(false));
    assert_eq!((request.outputs[1].binary, request.outputs[1].classification), (None, None));
}

#[test]
fn every_datatype_takes_its_extremes() {
    let check = |datatype, shape, data, expected| {
        assert_eq!(elements(datatype, shape, data).unwrap(), expected);
    };
    check("BOOL", "[2]", "[true,false]", Data::Bool(vec![true, false]));
    check("UINT8", "[3]", "[0, 255,-0]", Data::Uint8(vec![0, 255, 0]));
    check("UINT16", "[1]", "[65535]", Data::Uint16(vec![u16::MAX]));
    check("UINT32", "[1]", "[4294967295]", Data::Uint32(vec![u32::MAX]));
    check("UINT64", "[1]", "[18446744073709551615]", Data::Uint64(vec![u64::MAX]));
    check("INT8", "[2]", "[-128,127]", Data::Int8(vec![-128, 127]));
    check("INT16", "[2]", "[-32768,32767]", Data::Int16(vec![i16::MIN, i16::MAX]));
    check("INT32", "[2]", "[-2147483648,2147483647]", Data::Int32(vec![i32::MIN, i32::MAX]));
    check(
        "INT64",
        "[2]",
        "[-9223372036854775808,9223372036854775807]",
        Data::Int64(vec![i64::MIN, i64::MAX]),
    );
    check("FP32", "[2]", "[3.4028235e38,-1e-45]", Data::Fp32(vec![f32::MAX, -f32::from_bits(1)]));
    check("FP64", "[2]", "[1.7976931348623157e308,5e-324]", Data::Fp64(vec![f64::MAX, 5e-324]));
    check(
        "BYTES",
        "[2]",
        r#"["a\n\"\\\/","ä"]"#,
        Data::Bytes(Strings::from_iter(["a\n\"\\/", "ä"])),
    );
}

#[test]
fn data_is_flat_or_nested_as_the_shape_says() {
    let expected = Data::Int32(vec![1, 2, 3, 4]);
    for (shape, data) in [
        ("[2,2]", "[1,2,3,4]"),
        ("[2,2]", "[[1,2],[3,4]]"),
        ("[2,2]", " [ [ 1 , 2 ] , [3,4 ] ] "),
        ("[4,1]", "[[1],[2],[3],[4]]"),
        ("[1,4]", "[[1,2,3,4]]"),
        ("[2,1,2]", "[[[1,2]],[[3,4]]]"),
        ("[1,1,4,1]", "[[[[1],[2],[3],[4]]]]"),
        ("[1,1,4,1]", "[1,2,3,4]"),
    ] {
        assert_eq!(elements("INT32", shape, data).unwrap(), expected, "{shape} {data}");
    }
    for (shape, data) in [
        ("[2,1]", "[1,[2]]"),
        ("[2,1]", "[[1],2]"),
        ("[2]", "[1,[2]]"),
        ("[2]", "[[1,2]]"),
        ("[2,2]", "[[1],[2,3,4]]"),
        ("[2,2]", "[[1,2,3,4]]"),
        ("[2,2]", "[[1,2],[],[3,4]]"),
        ("[2,2]", "[[[1],2],[],3,[[4]]]"),
        ("[2,2]", "[[1,2],3,4]"),
        ("[2,2]", "[1,2,[3,4]]"),
        ("[2,2]", "[[1,2],[3,4],[]]"),
        ("[2,2]", "[[],[1,2],[3,4]]"),
        ("[2,2]", "[[[1,2],[3,4]]]"),
        ("[2,1,2]", "[[1,2],[3,4]]"),
        ("[2,1,2]", "[[[1],[2]],[[3],[4]]]"),
        ("[1,2,2]", "[[1,2],[3,4]]"),
    ] {
        let refused = elements("INT32", shape, data).unwrap_err();
        assert!(refused.contains(&format!("not nested as the shape {shape} says")), "{refused}");
    }
    // Too many or too few is what is told first.
    assert!(elements("INT32", "[2,2]", "[[1,2],[3]]").unwrap_err().contains("3 elements"));
    assert_eq!(elements("INT32", "[]", "7").unwrap(), Data::Int32(vec![7]));
    assert_eq!(elements("BYTES", "[1]", "\"a\"").unwrap(), Data::Bytes(Strings::from_iter(["a"])));
    assert_eq!(elements("FP64", "[0,5]", "[]").unwrap(), Data::Fp64(vec![]));
}

#[test]
fn floats_take_the_words_for_what_json_lacks() {
    let Data::Fp32(values) = elements("FP32", "[3]", "[NaN,Infinity,-Infinity]").unwrap() else {
        panic!("not FP32")
    };
    assert!(values[0].is_nan());
    assert_eq!(values[1..], [f32::INFINITY, f32::NEG_INFINITY]);
    assert!(elements("FP64", "[]", "NaN").is_ok());
    assert!(elements("FP64", "[]", "-Infinity").is_ok());
}

#[test]
fn misfits_name_input_index_and_what_would_be_right() {
    let check = check_element_error;
    check("UINT8", "[300]", ", element 0: 300 does not fit UINT8 (0 to 255)");
    check("UINT8", "[-1]", ", element 0: -1 does not fit UINT8 (0 to 255)");
    check(
        "INT64",
        "[123456789012345678901234567890123456789012345678901]",
        ", element 0: 1234567890123456789012345678901234567890… does not fit INT64 \
         (-9223372036854775808 to 9223372036854775807)",
    );
    check(
        "INT32",
        "[1.0]",
        ", element 0: 1.0 is not a whole number; INT32 takes no fraction and no exponent",
    );
    check("INT32", "[NaN]", ", element 0: NaN is not a whole number, as INT32 needs");
    check("INT32", r#"["1"]"#, ", element 0: `1` is not a whole number, as INT32 needs");
    check("BOOL", "[1]", ", element 0: 1 is not a BOOL; only true and false are");
    check("FP32", "[null]", ", element 0: null is not a number, as FP32 needs");
    check("FP32", "[{}]", ", element 0: an object is not a number, as FP32 needs");
    check("FP64", "[true]", ", element 0: true is not a number, as FP64 needs");
    check("BYTES", "[1]", ", element 0: 1 is not a string, as BYTES needs");
    check(
        "FP32",
        "[1e39]",
        ", element 0: 1e39 does not fit FP32 (-3.4028234663852886e38 to 3.4028234663852886e38); \
         write Infinity if that is meant",
    );
    check(
        "FP64",
        "[-1e999]",
        ", element 0: -1e999 does not fit FP64 (-1.7976931348623157e308 to \
         1.7976931348623157e308); write Infinity if that is meant",
    );
    check(
        "FP16",
        "[1]",
        ": FP16 has no JSON form; send it in binary form, with `binary_data_size`",
    );
    check("FP32", "[1,2]", ": `data` has more elements than the 1 that the shape needs");
    check("FP32", "[]", ": `data` has 0 elements, the shape needs 1");
    assert!(
        elements("INT8", "[2]", "[1,999]").unwrap_err().starts_with("input `x`, element 1: 999")
    );
}

#[test]
fn broken_json_is_refused_with_its_offset() {
    let check = check_error;
    check("", "invalid JSON at byte 0: expected an object, found the end");
    check("[]", "invalid JSON at byte 0: expected an object, found `[`");
    check("{\"inputs\":[}", "invalid JSON at byte 11: expected an object, found `}`");
    check("{\"a\":01}", "invalid JSON at byte 6: expected `,` or `}`, found `1`");
    check("{\"a\":NaN}", "invalid JSON at byte 5: expected a value, found `N`");
    check(
        "{\"a\":\"\\ud800\"}",
        "invalid JSON at byte 6: expected a surrogate pair, not half of one, found `\\`",
    );
    check(
        "{\"a\":\"\n\"}",
        "invalid JSON at byte 6: expected control characters in strings escaped, found byte 0x0a",
    );
    check("{\"a\":1,}", "invalid JSON at byte 7: expected a key in quotes, found `}`");
    for data in [
        "[1,]", "[,1]", "[1 2]", "[01]", "[1.]", "[.5]", "[+1]", "[1e]", "[-]", "[1}", "1x", "-1x",
        "NaNx", "[nan]",
    ] {
        let error = elements("FP32", "[1]", data).unwrap_err();
        assert!(error.starts_with("invalid JSON at byte "), "{data}: {error}");
    }
    check(
        r#"{"inputs":[{"shape":[1],"datatype":"FP32","data":[1}]}"#,
        "invalid JSON at byte 51: expected `,` or `]`, found `}`",
    );
    let good = with_input(r#""shape":[1],"datatype":"FP32","data":[1]"#);
    assert!(decode(&good).is_ok());
    check_error(&(good + "x"), "invalid JSON at byte 66: expected the end of the JSON, found `x`");
    let not_utf8 = Bytes::from_static(b"{\"a\":\"\xff\"}");
    let error = decode_infer(&not_utf8, None, &Limits::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid JSON at byte 6: expected UTF-8 in a string, found byte 0xff"
    );
}

#[test]
fn levels_are_counted_everywhere() {
    let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let ignored = |levels| {
        format!(
            r#"{{"x":{},"inputs":[{{"name":"x","shape":[0],"datatype":"FP32"}}]}}"#,
            nested(levels)
        )
    };
    assert!(decode(&ignored(63)).is_ok());
    check_error(&ignored(64), "JSON nests deeper than 64 levels at byte 68");
    let data = |levels| elements("FP32", "[0]", &nested(levels));
    assert!(data(61).is_ok());
    assert!(data(62).unwrap_err().starts_with("JSON nests deeper than 64 levels"));
    // The worst that a body can hold takes neither stack nor time.
    let mut deep = String::from("{\"x\":");
    deep.extend(std::iter::repeat_n("{\"a\":[", 1 << 20));
    assert!(decode(&deep).unwrap_err().starts_with("JSON nests deeper"));
}

#[test]
fn requests_that_lack_or_repeat_something_are_refused() {
    let check = check_error;
    check("{}", "the request needs at least one of `inputs`");
    check(r#"{"inputs":[]}"#, "the request needs at least one of `inputs`");
    check(r#"{"id":"a","id":"b"}"#, "the request has two keys `id`");
    let input =
        |rest, expected: &str| check_error(&with_input(rest), &format!("input `x`: {expected}"));
    input(r#""shape":[1],"data":[1]"#, "has no `datatype`");
    input(r#""datatype":"FP32","data":[1]"#, "has no `shape`");
    input(
        r#""datatype":"FP32","shape":[1]"#,
        "has no data; give `data`, or `binary_data_size` in its `parameters`",
    );
    input(r#""shape":[1],"shape":[1]"#, "has two keys `shape`");
    input(
        r#""shape":[1],"datatype":"FP32","data":[1],"parameters":{"binary_data_size":4}"#,
        "has two sources of data; give either `data` or `binary_data_size`",
    );
    input(
        r#""shape":[1],"datatype":"FP32","parameters":{"shared_memory_region":"r"}"#,
        "shared memory is not supported; send `data`, or `binary_data_size` and the bytes",
    );
    input(
        r#""shape":[-1]"#,
        "`shape` holds `-1`; a dimension is a whole number from 0 to 9223372036854775807",
    );
    input(
        r#""shape":[1.5]"#,
        "`shape` holds `1.5`; a dimension is a whole number from 0 to 9223372036854775807",
    );
    input(r#""shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]"#, "`shape` has more than 16 dimensions");
    input(
        r#""shape":[9223372036854775807,9223372036854775807],"datatype":"FP32","data":[]"#,
        "shape [9223372036854775807,9223372036854775807] has too many elements",
    );
    assert!(
        decode(&with_input(r#""datatype":"FLOAT""#))
            .unwrap_err()
            .contains("`FLOAT` is not a datatype; there are BOOL, ")
    );
    check(r#"{"inputs":[{"shape":[0],"datatype":"FP32"}]}"#, "input 0: has no `name`");
    assert!(decode(r#"{"id":null,"parameters":null,"outputs":null,"inputs":[{"name":"x","shape":[0],"datatype":"FP32","parameters":null,"data":null}]}"#).is_ok());
}

#[test]
fn parameters_and_outputs_are_checked() {
    let parameter = |text: &str, expected: &str| {
        check_error(&format!(r#"{{"parameters":{{{text}}}}}"#), &format!("parameter {expected}"));
    };
    parameter(
        r#""sequence_id":1"#,
        "`sequence_id`: asks for a sequence; sequences are not supported, leave it out",
    );
    parameter(
        r#""sequence_end":true"#,
        "`sequence_end`: asks for a sequence; sequences are not supported, leave it out",
    );
    parameter(r#""triton_x":1"#, "`triton_x`: is reserved; choose a name without `triton_`");
    parameter(r#""headers":{}"#, "`headers`: is reserved; send headers as HTTP headers");
    parameter(
        r#""timeout":-1"#,
        "`timeout`: is `-1`; it must be a whole number from 0 to 18446744073709551615",
    );
    parameter(
        r#""timeout":"1""#,
        "`timeout`: is a string; it must be a whole number from 0 to 18446744073709551615",
    );
    parameter(r#""a":[1]"#, "`a`: is an array; it must be a string, a number, true or false");
    parameter(r#""a":1,"a":2"#, "`a`: is given twice");
    parameter(r#""priority":1,"priority":2"#, "`priority`: is given twice");
    let output = |text: &str, expected: &str| {
        check_error(&format!(r#"{{"outputs":[{text}]}}"#), &format!("output {expected}"));
    };
    output("{}", "0: has no `name`");
    output(
        r#"{"name":"y","parameters":{"classification":0}}"#,
        "`y`: `classification` is 0; it must be at least 1",
    );
    output(
        r#"{"name":"y","parameters":{"binary_data":1}}"#,
        "`y`: `binary_data` is a number; it must be true or false",
    );
    output(
        r#"{"name":"y","parameters":{"shared_memory_region":"r"}}"#,
        "`y`: shared memory is not supported; leave it out to get the values in the response",
    );
    output(r#"{"name":"y"},{"name":"y"}"#, "`y`: is requested more than once");
}

#[test]
fn limits_hold() {
    let many = |item: &str, count| vec![item; count].join(",");
    let input = r#"{"name":"x","shape":[0],"datatype":"FP32"}"#;
    assert!(decode(&format!(r#"{{"inputs":[{}]}}"#, many(input, 256))).is_ok());
    check_error(&format!(r#"{{"inputs":[{}]}}"#, many(input, 257)), "`inputs` are limited to 256");
    let parameters: Vec<_> = (0..129).map(|n| format!(r#""p{n}":1"#)).collect();
    check_error(
        &format!(r#"{{"parameters":{{{}}}}}"#, parameters.join(",")),
        "keys of a `parameters` object are limited to 128",
    );
    check_error(
        &format!(r#"{{"outputs":[{{"name":"{}"}}]}}"#, "n".repeat(257)),
        "bytes of a name are limited to 256",
    );
    // A shape that lies about its size reserves what the bytes justify.
    let error = elements("FP64", "[1000000000000]", "[1,2]").unwrap_err();
    assert_eq!(error, "input `x`: `data` has 2 elements, the shape needs 1000000000000");
}

#[test]
fn clients_text_in_messages_is_short_and_escaped() {
    let name = r"\u001b".repeat(256);
    let error = decode(&format!(r#"{{"inputs":[{{"name":"{name}","shape":[1]}}]}}"#)).unwrap_err();
    assert!(error.len() < 600 && !error.contains('\u{1b}'), "{error}");
}

fn binary(json: &str, raw: &[u8]) -> Result<InferRequest, String> {
    let body = Bytes::from([json.as_bytes(), raw].concat());
    decode_infer(&body, Some(json.len()), &Limits::default()).map_err(|error| error.to_string())
}

fn binary_input(datatype: &str, shape: &str, size: usize) -> String {
    with_input(&format!(
        r#""shape":{shape},"datatype":"{datatype}","parameters":{{"binary_data_size":{size}}}"#
    ))
}

#[test]
fn binary_tensors_are_slices_of_the_body() {
    let json = binary_input("FP16", "[2]", 4);
    let body = Bytes::from([json.as_bytes(), &[1, 2, 3, 4]].concat());
    let request = decode_infer(&body, Some(json.len()), &Limits::default()).unwrap();
    let Data::Raw(raw) = request.inputs[0].tensor.data() else { panic!("copied") };
    assert_eq!(raw.as_ptr(), body[json.len()..].as_ptr());

    let request = binary(&binary_input("BYTES", "[2]", 10), b"\x02\0\0\0hi\0\0\0\0").unwrap();
    assert_eq!(*request.inputs[0].tensor.data(), Data::Bytes(Strings::from_iter(["hi", ""])));

    let mixed = r#"{"inputs":[{"name":"a","datatype":"UINT8","shape":[1],"parameters":{"binary_data_size":1}},
        {"name":"b","datatype":"UINT8","shape":[1],"data":[2]},
        {"name":"c","datatype":"UINT8","shape":[1],"parameters":{"binary_data_size":1}}]}"#;
    let request = binary(mixed, &[1, 3]).unwrap();
    let values: Vec<_> =
        request.inputs.iter().map(|input| input.tensor.view::<u8>().unwrap()[0]).collect();
    assert_eq!(values, [1, 2, 3]);
}

#[test]
fn binary_sizes_must_agree() {
    let check = |json: &str, raw: &[u8], expected: &str| {
        assert_eq!(binary(json, raw).unwrap_err(), expected);
    };
    check(
        &binary_input("FP32", "[1]", 4),
        &[0; 3],
        "unexpected size for input `x`: expecting 4 additional bytes, got 3",
    );
    check(
        &binary_input("FP32", "[1]", 4),
        &[0; 5],
        "unexpected additional input data: 1 bytes behind the last binary input",
    );
    check(
        &binary_input("FP32", "[2]", 4),
        &[0; 4],
        "unexpected size for input `x`: shape [2] of FP32 needs 8 bytes, got 4",
    );
    check(
        &binary_input("BOOL", "[1]", 1),
        &[2],
        "unexpected size for input `x`: element 0 of BOOL is the byte 2; only 0 and 1 are allowed",
    );
    check(
        &binary_input("BYTES", "[1]", 6),
        b"\x03\0\0\0hi",
        "unexpected size for input `x`: string 0 of 1 has a length of 3 bytes, but only 2 are left",
    );
    check(
        &binary_input("BYTES", "[1000000000000]", 4),
        &[0; 4],
        "unexpected size for input `x`: the bytes end at string 1 of 1000000000000: 0 bytes are \
         left, its length needs 4",
    );
    check(
        &binary_input("BYTES", "[1]", 5),
        &[0; 5],
        "unexpected size for input `x`: 1 bytes are left behind the 1 strings",
    );
    assert!(binary(&binary_input("FP32", "[0]", 0), &[]).is_ok());
    assert!(
        decode(&binary_input("FP32", "[1]", 4))
            .unwrap_err()
            .contains("Inference-Header-Content-Length")
    );
    let body = Bytes::from_static(b"{}");
    let error = decode_infer(&body, Some(3), &Limits::default()).unwrap_err();
    assert_eq!(error.to_string(), "the JSON cannot be 3 bytes long in a body of 2 bytes");
    assert!(decode_infer(&body, Some(0), &Limits::default()).is_err());
}

fn raw(datatype: DataType, dims: Option<&[i64]>, body: &'static [u8]) -> Result<Tensor, String> {
    let spec =
        TensorSpec { name: "x".into(), datatype, dims: dims.map(<[i64]>::to_vec), view: None };
    let signature = Signature { inputs: vec![spec], outputs: vec![], ..Signature::default() };
    let batched = dims.is_some_and(|dims| dims.len() > 1);
    let mut request = decode_raw_infer(&Bytes::from_static(body), &signature, batched)
        .map_err(|error| error.to_string())?;
    assert!(request.binary_output);
    Ok(request.inputs.remove(0).tensor)
}

#[test]
fn a_raw_body_is_the_only_input() {
    let dims = |tensor: Result<Tensor, String>| tensor.unwrap().shape().to_vec();
    assert_eq!(dims(raw(DataType::Uint8, Some(&[-1, 2, 2]), &[0; 4])), [1, 2, 2]);
    assert_eq!(dims(raw(DataType::Uint16, Some(&[-1, -1, 2]), &[0; 12])), [1, 3, 2]);
    assert_eq!(dims(raw(DataType::Uint8, Some(&[-1]), &[0; 5])), [5]);
    let text = raw(DataType::Bytes, Some(&[-1, 1]), b"hello").unwrap();
    assert_eq!(*text.data(), Data::Bytes(Strings::from_iter(["hello"])));
    assert_eq!(text.shape()[..], [1, 1]);
    let check = |datatype, dims, body, expected: &str| {
        assert_eq!(raw(datatype, dims, body).unwrap_err(), expected);
    };
    check(
        DataType::Uint16,
        Some(&[-1, -1, 2]),
        &[0; 5],
        "unexpected size for input `x`: 5 bytes are not a multiple of 4",
    );
    check(
        DataType::Uint8,
        Some(&[-1, -1, -1]),
        &[0; 5],
        "input `x`: a raw request needs a shape with at most one open dimension, the model has x \
         UINT8[-1,-1,-1]; send JSON",
    );
    check(
        DataType::Bytes,
        Some(&[-1, 2]),
        b"a",
        "input `x`: a raw request is one string, the model takes x BYTES[-1,2]; send JSON",
    );
    assert!(raw(DataType::Uint8, None, &[0]).is_err());
    assert!(raw(DataType::Uint8, Some(&[i64::MAX, i64::MAX, i64::MAX]), &[0]).is_err());
}

fn tensor(dims: &[i64], data: Data) -> Tensor {
    Tensor::new(Shape::new(dims).unwrap(), data).unwrap()
}

fn encode(outputs: &[(&str, &Tensor, bool)]) -> Result<Encoded, String> {
    let model = ModelName::parse("m").unwrap();
    let response = InferResponse {
        model: &model,
        version: VersionId::new(3),
        id: Some("a\"\u{1}"),
        parameters: [("k", "v")].into_iter().collect(),
        outputs: outputs
            .iter()
            .map(|(name, tensor, binary)| ResponseOutput { name, tensor, binary: *binary })
            .collect(),
    };
    encode_infer(&response).map_err(|error| error.to_string())
}

#[test]
fn a_response_has_tritons_key_order_and_flat_data() {
    let scores = tensor(&[2, 2], Data::Fp32(vec![0.1, -1.0, f32::NAN, f32::NEG_INFINITY]));
    let names = tensor(&[2], Data::Bytes(Strings::from_iter(["a\n", "ä"])));
    let encoded = encode(&[("y", &scores, false), ("z", &names, false)]).unwrap();
    assert_eq!(encoded.json_bytes, None);
    assert_eq!(
        String::from_utf8(encoded.body).unwrap(),
        r#"{"id":"a\"\u0001","model_name":"m","model_version":"3","parameters":{"k":"v"},"outputs":["#.to_owned()
            + r#"{"name":"y","datatype":"FP32","shape":[2,2],"data":[0.1,-1.0,NaN,-Infinity]},"#
            + r#"{"name":"z","datatype":"BYTES","shape":[2],"data":["a\n","ä"]}]}"#
    );
}

#[test]
fn large_outputs_are_written_whole_whatever_the_lengths_of_their_elements() {
    // Long elements behind short ones, and the other way round: no guess at the room is right for both.
    let lengths =
        |index: usize| if (index / 1500).is_multiple_of(2) { 1.0 } else { -0.123_456_789 };
    let numbers: Vec<f64> = (0..5000).map(lengths).collect();
    let texts: Vec<_> =
        (0..5000).map(|i| "\u{1}".repeat(if i % 2000 == 0 { 999 } else { 0 })).collect();
    let expected = [
        serde_json::to_value(&numbers).unwrap(),
        serde_json::to_value(&texts).unwrap(),
        serde_json::to_value(&numbers[1500..1501]).unwrap(),
    ];
    let first = tensor(&[5000], Data::Fp64(numbers));
    let second = tensor(&[5000], Data::Bytes(texts.iter().collect()));
    let third = tensor(&[1], Data::Fp64(vec![-0.123_456_789]));
    let encoded = encode(&[("a", &first, false), ("b", &second, false), ("c", &third, false)]);
    let json: serde_json::Value = serde_json::from_slice(&encoded.unwrap().body).unwrap();
    for (index, expected) in expected.iter().enumerate() {
        assert_eq!(json["outputs"][index]["data"], *expected, "{index}");
    }
}

#[test]
fn binary_outputs_follow_the_json() {
    let values = tensor(&[2], Data::Int16(vec![1, -1]));
    let flags = tensor(&[1], Data::Bool(vec![true]));
    let none = tensor(&[0], Data::Fp64(vec![]));
    let encoded = encode(&[("y", &values, true), ("z", &flags, false)]).unwrap();
    let (json, raw) = encoded.body.split_at(encoded.json_bytes.unwrap());
    let json = std::str::from_utf8(json).unwrap();
    assert!(json.ends_with(
        r#"[{"name":"y","datatype":"INT16","shape":[2],"parameters":{"binary_data_size":4}},{"name":"z","datatype":"BOOL","shape":[1],"data":[true]}]}"#
    ), "{json}");
    assert_eq!(raw, [1, 0, 255, 255]);
    let empty = encode(&[("y", &none, true)]).unwrap();
    assert_eq!(empty.json_bytes, None);
    assert!(String::from_utf8(empty.body).unwrap().contains(r#""binary_data_size":0"#));
}

#[test]
fn what_json_cannot_hold_is_said() {
    let half =
        Tensor::from_raw(DataType::Fp16, Shape::new(&[1]).unwrap(), Bytes::from_static(&[0, 0]))
            .unwrap();
    assert_eq!(
        encode(&[("y", &half, false)]).unwrap_err(),
        "output `y` is FP16, which has no JSON form; ask for it with `binary_data`: true"
    );
    assert!(encode(&[("y", &half, true)]).is_ok());
    let strings = tensor(&[2], Data::Bytes(Strings::from_iter([&b"a"[..], b"\xff"])));
    assert_eq!(
        encode(&[("y", &strings, false)]).unwrap_err(),
        "output `y`, element 1 is not UTF-8, as JSON needs; ask for it with `binary_data`: true"
    );
}

#[test]
fn the_best_classes_come_first() {
    let check = |tensor: &Tensor,
                 classes,
                 batched,
                 names: Option<&[String]>,
                 dims: &[i64],
                 expected: &[&str]| {
        let classes = classify(tensor, classes, batched, names).unwrap();
        assert_eq!(classes.shape()[..], *dims);
        assert_eq!(*classes.data(), Data::Bytes(expected.iter().collect()));
    };
    let scores = tensor(&[2, 3], Data::Fp32(vec![1.1, 3.3, 2.2, f32::NAN, 0.5, 0.5]));
    check(
        &scores,
        2,
        true,
        None,
        &[2, 2],
        &["3.300000:1", "2.200000:2", "0.500000:1", "0.500000:2"],
    );
    check(&scores, 1, false, None, &[1], &["3.300000:1"]);
    let names = ["cat".to_owned(), String::new(), "dog".to_owned()];
    let counts = tensor(&[1, 4], Data::Int8(vec![-3, 7, 9, 8]));
    check(&counts, 9, true, Some(&names), &[1, 4], &["9:2:dog", "8:3", "7:1", "-3:0:cat"]);
    check(&tensor(&[0, 3], Data::Fp64(vec![])), 2, true, None, &[0, 0], &[]);
    let large = tensor(&[1], Data::Fp64(vec![1e22]));
    check(&large, 1, false, None, &[1], &["10000000000000000000000.000000:0"]);
    // glibc rounds the exact value half to even.
    let tie = tensor(&[2], Data::Fp64(vec![0.007_812_5, f64::INFINITY]));
    check(&tie, 2, false, None, &[2], &["inf:1", "0.007812:0"]);
    assert!(classify(&tensor(&[1], Data::Bool(vec![true])), 1, false, None).is_err());
}

#[test]
fn more_classes_than_an_answer_holds_are_refused() {
    let rows = tensor(&[70_000, 1], Data::Uint8(vec![1; 70_000]));
    let error = classify(&rows, 1, true, None).unwrap_err().to_string();
    assert!(
        error.starts_with("70000 rows with 1 classes each are too many; ask for fewer"),
        "{error}"
    );
    assert!(classify(&rows, 60_000, false, None).is_ok());
    let long = tensor(&[20_000], Data::Fp64(vec![1e307; 20_000]));
    assert!(classify(&long, 20_000, false, None).is_err());
}
