//! Requests as bytes: plain ones, and those that try to make the server hold more than they bring.

use std::io::Write as _;

/// A POST with this body; `headers` are whole lines.
pub(crate) fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// A request for a model with this body, which must be within the limit.
type Case = (&'static str, Vec<u8>);

/// Requests that try to make the server hold more than they bring, each within `limit` bytes of body.
pub(crate) fn hostile(limit: usize) -> Vec<Case> {
    let mut cases = numbers(limit);
    cases.extend(strings(limit));
    cases.extend(envelopes(limit));
    cases.extend(binary(limit));
    cases.extend(framing(limit));
    cases
}

fn numbers(limit: usize) -> Vec<Case> {
    let ones = |datatype| filled(limit, datatype, "1");
    let early = filled(limit, "FP64", "1");
    let (head, data) = early.split_once(r#""shape""#).unwrap();
    let (kind, data) = data.rsplit_once(r#""data":"#).unwrap();
    let data = data.strip_suffix("}]}").unwrap();
    let early = format!(r#"{head}"data":{data},"shape"{}}}]}}"#, kind.trim_end_matches(','));
    let pairs = ["INPUT0", "INPUT1"].map(|name| {
        let rows = limit / 80;
        input(name, "INT32", &format!("[{rows},16]"), &list("1", 16 * rows))
    });
    let classes = r#","outputs":[{"name":"OUTPUT","parameters":{"classification":1000000}}]}"#;
    let rows = filled(limit - 100, "FP32", "1");
    let wide = rows.replacen(r#""shape":["#, r#""shape":[1,"#, 1);
    let with_classes = |json: &str| format!("{}{classes}", json.strip_suffix('}').unwrap());
    let sub = |json: &str| format!("{{\"inputs\":[{json}]}}");
    vec![
        ("FP64 of one digit", infer("identity_fp64", &ones("FP64"))),
        ("FP32 of one digit", infer("identity_fp32", &ones("FP32"))),
        ("INT64 of one digit", infer("identity_int64", &ones("INT64"))),
        ("UINT8 of one digit", infer("identity_uint8", &ones("UINT8"))),
        ("FP64 of five characters", infer("identity_fp64", &filled(limit, "FP64", "1e300"))),
        (
            "FP64 of 17 digits",
            infer("identity_fp64", &filled(limit, "FP64", "0.12345678901234568")),
        ),
        ("FP32 that become long", infer("identity_fp32", &filled(limit, "FP32", "1e38"))),
        ("data before its datatype", infer("identity_fp64", &early)),
        ("two inputs, two outputs", infer("add_sub", &sub(&pairs.join(",")))),
        ("a class for every row", infer("identity_fp32", &with_classes(&rows))),
        ("every element a class", infer("identity_fp32_2d", &with_classes(&wide))),
        ("many classes", infer("identity_fp32", &with_classes(&filled(120_000, "FP32", "1")))),
        (
            "long classes",
            infer("identity_fp64", &with_classes(&filled(limit - 100, "FP64", "9e307"))),
        ),
        ("another datatype than the model's", infer("identity_fp32", &ones("FP64"))),
    ]
}

fn strings(limit: usize) -> Vec<Case> {
    let of = |text: &str| infer("identity_bytes", &filled(limit, "BYTES", text));
    let one = |piece: &str| {
        let text = piece.repeat((limit - 100) / piece.len());
        infer(
            "identity_bytes",
            &envelope(&input("INPUT", "BYTES", "[1]", &format!("[\"{text}\"]"))),
        )
    };
    vec![
        ("empty strings", of(r#""""#)),
        ("strings of one byte", of(r#""a""#)),
        ("strings of an escape", of(r#""\n""#)),
        ("strings of a control character", of(r#""\u0001""#)),
        ("one long string", one("a")),
        ("one long string of escapes", one(r"\n")),
        ("numbers where strings are due", infer("identity_bytes", &filled(limit, "BYTES", "1"))),
    ]
}

fn envelopes(limit: usize) -> Vec<Case> {
    let half = limit / 2 - 200;
    let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    let inputs = |count: usize, name: usize| {
        let inputs = (0..count).map(|number| {
            let name = format!("{number}{}", "n".repeat(name));
            input(&name, "FP64", "[1]", "[1]")
        });
        envelope(&inputs.collect::<Vec<_>>().join(","))
    };
    let tiny = input("INPUT", "FP64", "[1]", "[1]");
    let beside = |extra: &str| format!(r#"{{{extra},"inputs":[{tiny}]}}"#);
    let many = |item: &dyn Fn(usize) -> String| {
        let mut all = String::new();
        for number in 0.. {
            let next = item(number);
            if all.len() + next.len() > limit - 300 {
                break;
            }
            all += if number > 0 { "," } else { "" };
            all += &next;
        }
        all
    };
    let keys = many(&|number| format!(r#""k{number}":{number}"#));
    let outputs = many(&|number| format!(r#"{{"name":"o{number}"}}"#));
    let dims = list("1", limit / 3);
    let levels = vec![nested(60); limit / 130].join(",");
    let fp64 = |json: &str| infer("identity_fp64", json);
    let of = |shape: &str, data: &str| fp64(&envelope(&input("INPUT", "FP64", shape, data)));
    vec![
        ("deeper than any limit", of("[1]", &nested(half))),
        ("deep, again and again", of(&format!("[{}]", limit / 130), &format!("[{levels}]"))),
        ("thousands of inputs", fp64(&inputs(limit / 60, 0))),
        ("as many inputs as allowed", fp64(&inputs(256, 200))),
        ("thousands of outputs", fp64(&beside(&format!(r#""outputs":[{outputs}]"#)))),
        ("thousands of parameters", fp64(&beside(&format!(r#""parameters":{{{keys}}}"#)))),
        ("thousands of unknown keys", fp64(&beside(&keys))),
        ("thousands of dimensions", of(&dims, "[1]")),
        ("a shape of 2^62 elements", of("[4611686018427387904]", "[1,1,1]")),
        ("a shape of 2^40 elements", of("[1099511627776]", "[1,1,1]")),
        ("a shape that overflows", of("[9223372036854775807,9223372036854775807]", "[1]")),
        ("a shape of more than is there", of("[1000000000]", &list("1", limit / 2 - 200))),
        ("the same key twice", fp64(&beside(&format!(r#""inputs":[{tiny}]"#)))),
        ("the same unknown key", fp64(&beside(&many(&|_| r#""k":[[]]"#.to_owned())))),
        ("a long name", fp64(&inputs(1, limit - 200))),
        ("a long id", fp64(&beside(&format!(r#""id":"{}""#, "i".repeat(limit - 200))))),
        ("a long key", fp64(&beside(&format!(r#""{}":1"#, "\\n".repeat(half / 2))))),
        (
            "a long datatype",
            fp64(&envelope(&input("INPUT", &"F".repeat(limit - 200), "[1]", "[1]"))),
        ),
        ("a long number", of("[1]", &format!("[0.{}]", "3".repeat(limit - 200)))),
        ("a long whole number", of("[1]", &format!("[{}]", "3".repeat(limit - 200)))),
        ("white space", of("[1]", &format!("[{}1]", " ".repeat(limit - 200)))),
        ("no end", fp64(&filled(limit, "FP64", "1")[..limit - 200])),
        ("no JSON", fp64(&"\u{1b}".repeat(limit))),
    ]
}

fn binary(limit: usize) -> Vec<Case> {
    let of = |model: &str, datatype: &str, count: usize, size: usize, bytes: &[u8], more: &str| {
        let json = format!(
            r#"{{"inputs":[{{"name":"INPUT","datatype":"{datatype}","shape":[{count}],"parameters":{{"binary_data_size":{size}}}}}]{more}}}"#
        );
        let headers = format!("inference-header-content-length: {}\r\n", json.len());
        post(&path(model), &headers, &[json.as_bytes(), bytes].concat())
    };
    let room = limit - 300;
    let words = |length: u32, each: usize| {
        let mut word = length.to_le_bytes().to_vec();
        word.resize(4 + each, 0);
        word.repeat(room / word.len())
    };
    let empty = words(0, 0);
    let (one, one_count) = (words(1, 1), room / 5);
    let long = [&u32::try_from(room - 4).unwrap().to_le_bytes()[..], &vec![1; room - 4]].concat();
    let answered = r#","parameters":{"binary_data_output":true}"#;
    let floats = vec![0x3f; room / 8 * 8];
    vec![
        ("binary empty strings", of("identity_bytes", "BYTES", room / 4, empty.len(), &empty, "")),
        (
            "binary empty strings, binary answer",
            of("identity_bytes", "BYTES", room / 4, empty.len(), &empty, answered),
        ),
        ("binary strings of NUL", of("identity_bytes", "BYTES", one_count, one.len(), &one, "")),
        (
            "a binary string that JSON must escape",
            of("identity_bytes", "BYTES", 1, long.len(), &long, ""),
        ),
        (
            "binary strings that lie about their length",
            of("identity_bytes", "BYTES", room / 4, room / 4 * 4, &words(u32::MAX, 0), ""),
        ),
        (
            "a shape of more strings than there are",
            of("identity_bytes", "BYTES", 1 << 40, empty.len(), &empty, ""),
        ),
        (
            "binary FP64 as JSON",
            of("identity_fp64", "FP64", floats.len() / 8, floats.len(), &floats, ""),
        ),
        (
            "binary FP64, binary answer",
            of("identity_fp64", "FP64", floats.len() / 8, floats.len(), &floats, answered),
        ),
        (
            "binary FP32 as JSON",
            of("identity_fp32", "FP32", floats.len() / 4, floats.len(), &floats, ""),
        ),
        (
            "binary UINT8 as JSON",
            of("identity_uint8", "UINT8", floats.len(), floats.len(), &vec![255; floats.len()], ""),
        ),
        (
            "a size of more than is there",
            of("identity_fp64", "FP64", 1 << 40, 1 << 43, &floats, ""),
        ),
        (
            "a raw request",
            post(&path("identity_fp32_2d"), "inference-header-content-length: 0\r\n", &floats),
        ),
        (
            "a raw string",
            post(&path("identity_bytes"), "inference-header-content-length: 0\r\n", &long),
        ),
    ]
}

fn framing(limit: usize) -> Vec<Case> {
    let ones = filled(limit, "FP64", "1");
    let gzip = |level, json: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
        encoder.write_all(json.as_bytes()).unwrap();
        post(&path("identity_fp64"), "content-encoding: gzip\r\n", &encoder.finish().unwrap())
    };
    // Random enough to stay below the ratio that is refused.
    let mut state = 1u64;
    let mut digits = ones.clone().into_bytes();
    for digit in digits.iter_mut().skip(100).filter(|byte| **byte == b'1') {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *digit = b'1' + (state >> 60) as u8 % 8;
    }
    let digits = String::from_utf8(digits).unwrap();
    let chunked = |size: usize| {
        let head = "POST /v2/models/identity_fp64/infer HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut request = head.as_bytes().to_vec();
        for chunk in ones.as_bytes().chunks(size) {
            write!(request, "{:x}\r\n", chunk.len()).unwrap();
            request.extend_from_slice(chunk);
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"0\r\n\r\n");
        request
    };
    let accepting = "accept-encoding: gzip\r\n";
    vec![
        ("gzip as small as can be", gzip(flate2::Compression::best(), &ones)),
        ("gzip of digits", gzip(flate2::Compression::best(), &digits)),
        (
            "gzip that saves nothing",
            gzip(flate2::Compression::none(), &filled(limit - 500, "FP64", "1")),
        ),
        ("chunks of one byte", chunked(1)),
        ("chunks of 64 KiB", chunked(1 << 16)),
        ("a compressed answer", post(&path("identity_fp64"), accepting, ones.as_bytes())),
        ("a body above the limit", post(&path("identity_fp64"), "", &vec![b'['; limit + 1])),
    ]
}

fn path(model: &str) -> String {
    format!("/v2/models/{model}/infer")
}

fn infer(model: &str, json: &str) -> Vec<u8> {
    post(&path(model), "", json.as_bytes())
}

fn envelope(inputs: &str) -> String {
    format!(r#"{{"inputs":[{inputs}]}}"#)
}

fn input(name: &str, datatype: &str, shape: &str, data: &str) -> String {
    format!(r#"{{"name":"{name}","datatype":"{datatype}","shape":{shape},"data":{data}}}"#)
}

fn list(element: &str, count: usize) -> String {
    format!("[{}]", vec![element; count].join(","))
}

/// A request for `INPUT` with as many of `element` as fit into `limit` bytes.
fn filled(limit: usize, datatype: &str, element: &str) -> String {
    let count = (limit - 100) / (element.len() + 1);
    envelope(&input("INPUT", datatype, &format!("[{count}]"), &list(element, count)))
}
