//! What clients do wrong and what they are told: one table, one server, one connection wherever it may live on.

use serde_json::{Value, json};

use crate::{
    http::{Connection, Request, Response},
    repository::Repository,
    server::Server,
    tensors::{JSON_LENGTH, add_sub, body, identity, infer, input, with_tail},
};

/// A mistake and its answer.
struct Mistake {
    /// What is wrong with it.
    name: &'static str,
    request: Request,
    /// The codes that are right.
    codes: &'static [u16],
    /// What the error text must contain, whatever its case.
    says: &'static str,
}

fn mistake(
    name: &'static str,
    request: Request,
    codes: &'static [u16],
    says: &'static str,
) -> Mistake {
    Mistake { name, request, codes, says }
}

/// Mistakes in a head, whose body may be left unread; then the connection must end.
const LEAVE_A_BODY: [&str; 7] = [
    "unknown coding",
    "a negative JSON length",
    "a JSON length of text",
    "a JSON length beyond 64 bits",
    "a JSON length beyond the body",
    "two JSON lengths",
    "two timeouts",
];

const BAD: &[u16] = &[400];
const UNKNOWN: &[u16] = &[404];

#[test]
fn every_mistake_gets_a_clear_answer_and_the_connection_lives_on() {
    let models = [
        "add_sub",
        "identity_fp32",
        "identity_fp16",
        "identity_uint8",
        "identity_int8",
        "identity_int64",
        "identity_bool",
        "identity_bytes",
    ];
    let mut server = Server::over(&Repository::of(&models));
    let mut connection = server.connect();
    let groups = [syntax(), elements(), tensors(), parameters(), binary(), names(), routes()];
    for mistake in groups.into_iter().flatten() {
        let response = connection.ask(&mistake.request);
        check(&mistake, &response);
        if response.closes() {
            assert!(
                LEAVE_A_BODY.contains(&mistake.name),
                "`{}` ended it: {response:?}",
                mistake.name
            );
            assert!(connection.is_closed(), "`{}`", mistake.name);
            connection = server.connect();
        }
        let next = connection.try_ask(&Request::post_json(&infer("add_sub"), &add_sub()));
        let next = next.unwrap_or_else(|error| panic!("after `{}`: {error}", mistake.name));
        assert_eq!(next.status, 200, "after `{}`: {next:?}", mistake.name);
    }
    assert!(server.is_running());
}

#[test]
fn mistakes_that_leave_a_body_unread_end_the_connection_after_the_answer() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let lengths = [("more than the limit", (64_u64 << 20) + 1), ("more than memory", 1 << 60)];
    for (name, length) in lengths {
        let mut connection = server.connect();
        let request =
            Request::post(&infer("add_sub"), "").header("content-length", &length.to_string());
        connection.send(request.head());
        let response = connection.answer();
        assert_eq!(response.status, 413, "{name}: {response:?}");
        assert_error_form(name, &response);
        assert!(connection.is_closed(), "{name}: the rest can't be told from a request");
    }
}

#[test]
fn heads_beyond_the_limits_are_refused() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let get = |target: &str| Request::get(target);
    let many = (0..70).fold(get("/v2"), |request, n| request.header(&format!("x-{n}"), "1"));
    let wide = get("/v2").header("x-wide", &"w".repeat(40_000));
    let cases: [(&str, Request, &[u16]); 4] = [
        ("70 headers", many, &[431]),
        ("a header block of 40 KB", wide, &[431]),
        ("a URI of 9 KB", get(&format!("/v2/{}", "u".repeat(9_000))), &[414]),
        ("a URI of 100 KB", get(&format!("/v2/{}", "u".repeat(100_000))), &[414, 431]),
    ];
    for (name, request, codes) in cases {
        let mut connection = server.connect();
        // The server may answer and close while the rest is still being sent.
        let _ = connection.try_send(request.bytes());
        let Ok(response) = connection.try_answer() else {
            continue_if_reset(name);
            continue;
        };
        assert!(codes.contains(&response.status), "{name}: {response:?}");
        if !response.body.is_empty() {
            assert_error_form(name, &response);
        }
    }
    let fits = (0..50).fold(get("/v2"), |request, n| request.header(&format!("x-{n}"), "1"));
    server.ask(&fits).ok();
}

#[test]
fn what_is_no_http_is_answered_with_400_and_not_only_cut_off() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let chunked =
        "POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let cases = [
        ("another protocol", "GET /v2 HTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
        ("a line that is no header", "GET /v2 HTTP/1.1\r\nHost: x\r\nno header\r\n\r\n".to_owned()),
        ("a length of text", "GET /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n".to_owned()),
        ("a chunk of text", format!("{chunked}x\r\n{{}}\r\n0\r\n\r\n")),
    ];
    for (name, bytes) in cases {
        let mut connection = server.connect();
        connection.send(bytes);
        let answer = connection.try_answer();
        let response = answer.unwrap_or_else(|error| panic!("{name} is not answered: {error}"));
        assert_eq!(response.status, 400, "{name}: {response:?}");
        assert!(connection.is_closed(), "{name}");
    }
}

/// Closing early can reset the connection before the answer is read; only large heads may meet that.
fn continue_if_reset(name: &str) {
    assert!(name.contains("KB"), "{name}: no answer");
}

fn check(mistake: &Mistake, response: &Response) {
    let name = mistake.name;
    assert!(mistake.codes.contains(&response.status), "{name}: {response:?}");
    assert_error_form(name, response);
    let (text, says) = (response.error().to_lowercase(), mistake.says.to_lowercase());
    assert!(text.contains(&says), "{name}: no `{says}` in `{text}`");
    match name {
        "wrong method" => assert!(response.header("allow").is_some(), "{name}: {response:?}"),
        "unknown coding" => {
            let accepted = response.header("accept-encoding").unwrap_or_default();
            assert!(accepted.contains("gzip") && accepted.contains("deflate"), "{response:?}");
        }
        _ => {}
    }
}

/// Errors are JSON that no browser takes for a page, and tell nothing about the inside.
fn assert_error_form(name: &str, response: &Response) {
    assert_eq!(response.header("content-type"), Some("application/json"), "{name}: {response:?}");
    assert_eq!(response.header("x-content-type-options"), Some("nosniff"), "{name}: {response:?}");
    let text = response.error();
    assert!((1..2000).contains(&text.len()), "{name}: `{text}`");
    for private in ["/tmp", "/root", "/home", ".rs", "onnxruntime/", "panicked", "0x"] {
        assert!(!text.contains(private), "{name}: `{text}` tells {private}");
    }
}

fn text(model: &str, body: &str) -> Request {
    Request::post(&infer(model), body).header("content-type", "application/json")
}

fn syntax() -> Vec<Mistake> {
    let ask = |body: &str| text("add_sub", body);
    let nested = |depth: usize| {
        let data = "[".repeat(depth) + "1" + &"]".repeat(depth);
        ask(&format!(
            r#"{{"inputs":[{{"name":"INPUT0","shape":[1],"datatype":"INT32","data":{data}}}]}}"#
        ))
    };
    let unknown_nested = "{\"a\":".repeat(5_000) + "1" + &"}".repeat(5_000);
    let coded = ask("{}").header("content-encoding", "br");
    let broken = Request::post(&infer("add_sub"), &b"\x1f\x8b\x08not gzip"[..]);
    vec![
        mistake("no body", ask(""), BAD, ""),
        mistake("half an object", ask(r#"{"inputs":["#), BAD, ""),
        mistake("no object", ask("[]"), BAD, "object"),
        mistake("null", ask("null"), BAD, "object"),
        mistake("text after the object", ask(&format!("{} x", add_sub())), BAD, ""),
        mistake("no JSON", ask("inputs=1"), BAD, ""),
        mistake("a comma too much", ask(r#"{"inputs":[],}"#), BAD, ""),
        mistake("inputs that are no list", ask(r#"{"inputs":{}}"#), BAD, "inputs"),
        mistake("no inputs", ask("{}"), BAD, "input"),
        mistake("an input that is no object", ask(r#"{"inputs":[1]}"#), BAD, "object"),
        mistake("an id that is no text", ask(r#"{"id":[],"inputs":[]}"#), BAD, "id"),
        mistake("70 levels", nested(70), BAD, ""),
        mistake("50,000 levels", nested(50_000), BAD, ""),
        mistake("5,000 levels of nobody's key", ask(&unknown_nested), BAD, ""),
        mistake("unknown coding", coded, &[415], ""),
        mistake("broken gzip", broken.header("content-encoding", "gzip"), BAD, ""),
    ]
}

fn elements() -> Vec<Mistake> {
    let one = |model: &str, datatype: &str, data: Value| {
        let count = data.as_array().map_or(1, Vec::len);
        let body = body(&[input("INPUT", datatype, &[count], &data)]);
        Request::post_json(&infer(model), &body)
    };
    let counted = |shape: usize, data: Value| {
        let body = body(&[input("INPUT", "FP32", &[shape], &data)]);
        Request::post_json(&infer("identity_fp32"), &body)
    };
    let huge = r#"{"inputs":[{"name":"INPUT","datatype":"INT64","shape":[1],"data":[9223372036854775808]}]}"#;
    vec![
        mistake("too few elements", counted(3, json!([1, 2])), BAD, "INPUT"),
        mistake("too many elements", counted(1, json!([1, 2])), BAD, "INPUT"),
        mistake("no data", counted(1, json!([])), BAD, "INPUT"),
        mistake("data that is no list", counted(1, json!({})), BAD, "INPUT"),
        mistake("300 in UINT8", one("identity_uint8", "UINT8", json!([1, 300])), BAD, "INPUT"),
        mistake("-1 in UINT8", one("identity_uint8", "UINT8", json!([-1])), BAD, "INPUT"),
        mistake("128 in INT8", one("identity_int8", "INT8", json!([128])), BAD, "INPUT"),
        mistake("2^63 in INT64", text("identity_int64", huge), BAD, "INPUT"),
        mistake("1.5 in INT64", one("identity_int64", "INT64", json!([1.5])), BAD, "INPUT"),
        mistake("text in FP32", one("identity_fp32", "FP32", json!(["1"])), BAD, "INPUT"),
        mistake("null in FP32", one("identity_fp32", "FP32", json!([null])), BAD, "INPUT"),
        mistake("an object in FP32", one("identity_fp32", "FP32", json!([{}])), BAD, "INPUT"),
        mistake("1 in BOOL", one("identity_bool", "BOOL", json!([1])), BAD, "INPUT"),
        mistake("true in INT64", one("identity_int64", "INT64", json!([true])), BAD, "INPUT"),
        mistake("a number in BYTES", one("identity_bytes", "BYTES", json!([1])), BAD, "INPUT"),
        mistake("FP16 in JSON", one("identity_fp16", "FP16", json!([1])), BAD, "binary"),
        mistake("FP16 to be told in JSON", half_to_json(), BAD, "binary"),
        mistake("no UTF-8 to be told in JSON", bytes_to_json(), &[400, 500], "binary"),
    ]
}

fn half_to_json() -> Request {
    let input = json!({"name": "INPUT", "datatype": "FP16", "shape": [1],
                       "parameters": {"binary_data_size": 2}});
    with_tail(&infer("identity_fp16"), &json!({"inputs": [input]}), &[0, 60])
}

fn bytes_to_json() -> Request {
    let input = json!({"name": "INPUT", "datatype": "BYTES", "shape": [1],
                       "parameters": {"binary_data_size": 5}});
    with_tail(&infer("identity_bytes"), &json!({"inputs": [input]}), &[1, 0, 0, 0, 0xff])
}

fn tensors() -> Vec<Mistake> {
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut body = add_sub();
        change(&mut body["inputs"]);
        Request::post_json(&infer("add_sub"), &body)
    };
    let shaped = |shape: Value| changed(&|inputs| inputs[0]["shape"] = shape.clone());
    let key_gone = |key: &'static str| {
        changed(&move |inputs| drop(inputs[0].as_object_mut().unwrap().remove(key)))
    };
    let short = changed(&|inputs| {
        inputs[0] = input("INPUT0", "INT32", &[1, 15], &json!(vec![0; 15]));
    });
    let rows = changed(&|inputs| {
        inputs[0] = input("INPUT0", "INT32", &[2, 16], &json!(vec![0; 32]));
    });
    let extra = changed(&|inputs| {
        inputs.as_array_mut().unwrap().push(input("X", "INT32", &[0], &json!([])));
    });
    vec![
        mistake("15 columns", short, BAD, "unexpected shape for input"),
        mistake("one dimension", shaped(json!([16])), BAD, "unexpected shape for input"),
        mistake("three dimensions", shaped(json!([1, 1, 16])), BAD, "unexpected shape for input"),
        mistake("a negative dimension", shaped(json!([-1, 16])), BAD, ""),
        mistake("2^62 rows", shaped(json!([1_u64 << 62, 16])), BAD, ""),
        mistake("2^32 by 2^32", shaped(json!([1_u64 << 32, 1_u64 << 32])), BAD, ""),
        mistake("a shape of fractions", shaped(json!([1.5, 16])), BAD, "shape"),
        mistake("a shape of text", shaped(json!("1,16")), BAD, "shape"),
        mistake("a thousand dimensions", shaped(json!(vec![1; 1000])), BAD, ""),
        mistake("no shape", key_gone("shape"), BAD, "shape"),
        mistake("no datatype", key_gone("datatype"), BAD, "datatype"),
        mistake("no name", key_gone("name"), BAD, "name"),
        mistake("no data at all", key_gone("data"), BAD, "INPUT0"),
        mistake("rows that disagree", rows, BAD, "batch"),
        mistake("an input too much", extra, BAD, "X"),
        mistake(
            "an input missing",
            changed(&|inputs| drop(inputs.as_array_mut().unwrap().pop())),
            BAD,
            "INPUT1",
        ),
        mistake(
            "an input twice",
            changed(&|inputs| inputs[1]["name"] = json!("INPUT0")),
            BAD,
            "INPUT0",
        ),
        mistake(
            "another name",
            changed(&|inputs| inputs[0]["name"] = json!("nobody")),
            BAD,
            "nobody",
        ),
        mistake(
            "another datatype",
            changed(&|inputs| inputs[0]["datatype"] = json!("INT64")),
            BAD,
            "datatype",
        ),
        mistake(
            "no datatype of the protocol",
            changed(&|inputs| inputs[0]["datatype"] = json!("FLOAT")),
            BAD,
            "FLOAT",
        ),
    ]
}

fn parameters() -> Vec<Mistake> {
    let with = |key: &str, value: Value| {
        let mut body = add_sub();
        body[key] = value;
        Request::post_json(&infer("add_sub"), &body)
    };
    let output =
        |parameters: Value| with("outputs", json!([{"name": "OUTPUT0", "parameters": parameters}]));
    let of_input = |parameters: Value| {
        let mut body = add_sub();
        body["inputs"][0]["parameters"] = parameters;
        Request::post_json(&infer("add_sub"), &body)
    };
    vec![
        mistake("a reserved parameter", with("parameters", json!({"triton_x": 1})), BAD, "triton_"),
        mistake("parameters as a list", with("parameters", json!([])), BAD, "parameters"),
        mistake("a timeout of text", with("parameters", json!({"timeout": "1"})), BAD, "timeout"),
        mistake(
            "a negative priority",
            with("parameters", json!({"priority": -1})),
            BAD,
            "priority",
        ),
        mistake("an unknown output", with("outputs", json!([{"name": "nobody"}])), BAD, "nobody"),
        mistake("an output without a name", with("outputs", json!([{}])), BAD, "name"),
        mistake("outputs as text", with("outputs", json!("OUTPUT0")), BAD, "outputs"),
        mistake("no classes", output(json!({"classification": 0})), BAD, "classification"),
        mistake("classes as text", output(json!({"classification": "3"})), BAD, "classification"),
        mistake("binary as text", output(json!({"binary_data": "yes"})), BAD, "binary_data"),
        mistake("data twice", of_input(json!({"binary_data_size": 64})), BAD, "INPUT0"),
        mistake(
            "shared memory",
            of_input(json!({"shared_memory_region": "r", "shared_memory_byte_size": 64})),
            &[400, 501],
            "",
        ),
    ]
}

fn binary() -> Vec<Mistake> {
    let sized = |datatype: &str, count: usize, size: Value, tail: &[u8]| {
        let input = json!({"name": "INPUT", "datatype": datatype, "shape": [count],
                           "parameters": {"binary_data_size": size}});
        let model = format!("identity_{}", datatype.to_lowercase());
        with_tail(&infer(&model), &json!({"inputs": [input]}), tail)
    };
    let lengthy = |value: &str| {
        let body = identity("FP32", &json!([1])).to_string();
        Request::post(&infer("identity_fp32"), body).header(JSON_LENGTH, value)
    };
    vec![
        mistake("a JSON length beyond the body", lengthy("100000"), BAD, ""),
        mistake("a negative JSON length", lengthy("-1"), BAD, ""),
        mistake("a JSON length of text", lengthy("all"), BAD, ""),
        mistake("a JSON length beyond 64 bits", lengthy("99999999999999999999"), BAD, ""),
        mistake("two JSON lengths", lengthy("1").header(JSON_LENGTH, "2"), BAD, "different values"),
        mistake(
            "two timeouts",
            lengthy("1").header("x-request-timeout-ms", "1").header("x-request-timeout-ms", "2"),
            BAD,
            "different values",
        ),
        mistake(
            "rows and elements side by side",
            Request::post(
                &infer("identity_fp32"),
                r#"{"inputs":[{"name":"INPUT","shape":[2],"datatype":"FP32","data":[1,[2]]}]}"#,
            ),
            BAD,
            "not nested as the shape [2] says",
        ),
        mistake(
            "fewer bytes than told",
            sized("FP32", 2, json!(8), &[0; 4]),
            BAD,
            "unexpected size for input",
        ),
        mistake(
            "more bytes than told",
            sized("FP32", 1, json!(4), &[0; 8]),
            BAD,
            "unexpected additional input data",
        ),
        mistake("another size than the shape's", sized("FP32", 2, json!(4), &[0; 4]), BAD, "INPUT"),
        mistake("a negative size", sized("FP32", 1, json!(-4), &[0; 4]), BAD, "binary_data_size"),
        mistake("a size of text", sized("FP32", 1, json!("4"), &[0; 4]), BAD, "binary_data_size"),
        mistake("a size near 2^64", sized("FP32", 1, json!(u64::MAX), &[0; 4]), BAD, ""),
        mistake("2 as BOOL", sized("BOOL", 1, json!(1), &[2]), BAD, "INPUT"),
        mistake(
            "a string that ends early",
            sized("BYTES", 1, json!(5), &[9, 0, 0, 0, 65]),
            BAD,
            "INPUT",
        ),
        mistake("half a length prefix", sized("BYTES", 1, json!(2), &[1, 0]), BAD, "INPUT"),
        mistake("a string near 4 GiB", sized("BYTES", 1, json!(4), &[255; 4]), BAD, "INPUT"),
        mistake("a string too few", sized("BYTES", 2, json!(4), &[0; 4]), BAD, "INPUT"),
        mistake("a string too much", sized("BYTES", 1, json!(8), &[0; 8]), BAD, "INPUT"),
    ]
}

fn names() -> Vec<Mistake> {
    let post = |path: &str| Request::post_json(path, &add_sub());
    let long = format!("/v2/models/{}/infer", "m".repeat(2_000));
    vec![
        mistake("unknown model", post("/v2/models/nosuch/infer"), UNKNOWN, "nosuch"),
        mistake("unknown version", post("/v2/models/add_sub/versions/99/infer"), UNKNOWN, "99"),
        mistake("unknown alias", post("/v2/models/add_sub/versions/nosuch/infer"), UNKNOWN, ""),
        mistake("negative version", post("/v2/models/add_sub/versions/-1/infer"), &[400, 404], ""),
        mistake(
            "version 2^80",
            post("/v2/models/add_sub/versions/1208925819614629174706176/infer"),
            &[400, 404],
            "",
        ),
        mistake("unknown model's metadata", Request::get("/v2/models/nosuch"), UNKNOWN, "nosuch"),
        mistake(
            "unknown version's metadata",
            Request::get("/v2/models/add_sub/versions/9"),
            UNKNOWN,
            "9",
        ),
        mistake(
            "unknown model's config",
            Request::get("/v2/models/nosuch/config"),
            UNKNOWN,
            "nosuch",
        ),
        mistake("a way out", post("/v2/models/..%2f..%2fetc/infer"), &[400, 404], ""),
        mistake("a slash in a name", post("/v2/models/add%2Fsub/infer"), &[400, 404], ""),
        mistake("NUL in a name", post("/v2/models/add%00sub/infer"), &[400, 404], ""),
        mistake("no UTF-8 in a name", post("/v2/models/%ff%fe/infer"), &[400, 404], ""),
        mistake("bad percent-encoding", post("/v2/models/%zz/infer"), &[400, 404], ""),
        mistake("half a percent-encoding", post("/v2/models/a%2/infer"), &[400, 404], ""),
        mistake("no name", post("/v2/models//infer"), &[400, 404], ""),
        mistake("2,000 letters", post(&long), &[400, 404], ""),
    ]
}

fn routes() -> Vec<Mistake> {
    let wrong = |method: &str, path: &str| Request::new(method, path);
    let mut mistakes: Vec<_> = [
        wrong("GET", "/v2/models/add_sub/infer"),
        wrong("DELETE", "/v2/models/add_sub/infer"),
        wrong("POST", "/v2/models/add_sub"),
        wrong("PUT", "/v2"),
        wrong("GET", "/v2/repository/index"),
        wrong("PATCH", "/v2/health/live"),
    ]
    .into_iter()
    .map(|request| mistake("wrong method", request, &[405], "method not allowed"))
    .collect();
    let unknown =
        ["/", "/nope", "/v2x", "/v2/nope", "/v2/models/add_sub/nope", "/v3", "//v2", "/v2/../v2"];
    mistakes.extend(unknown.map(|path| match path {
        // A probe of a load balancer may be answered.
        "/" => mistake("unknown path", Request::get("/v1/nope"), UNKNOWN, "not found"),
        _ => mistake("unknown path", Request::get(path), UNKNOWN, "not found"),
    }));
    mistakes
}

#[test]
fn a_client_that_vanishes_harms_nobody() {
    let mut server = Server::over(&Repository::of(&["add_sub"]));
    let whole = Request::post_json(&infer("add_sub"), &add_sub()).bytes();
    for cut in [1, 10, 40, 100, whole.len() - 1, whole.len()] {
        let mut connection: Connection = server.connect();
        connection.send(&whole[..cut]);
        drop(connection);
    }
    server.post(&infer("add_sub"), &add_sub()).ok();
    assert!(server.is_running());
}
