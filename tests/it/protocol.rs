//! The objects of the Open Inference Protocol: server, models, health, configuration, statistics, index.

use serde_json::{Value, json};

use crate::{
    http::Request,
    repository::Repository,
    server::{Server, eventually},
    tensors::{add_sub, infer},
};

#[test]
fn server_and_models_describe_themselves_as_the_protocol_says() {
    let server = Server::over(&Repository::of(&["add_sub", "identity_bytes", "breast_cancer/2"]));

    let about = server.get("/v2").ok().json();
    assert_eq!(about["name"], "tidegate");
    assert_eq!(about["version"], env!("CARGO_PKG_VERSION"));
    let extensions = about["extensions"].as_array().expect("extensions");
    for there in ["binary_tensor_data", "classification", "model_repository", "statistics"] {
        assert!(extensions.contains(&json!(there)), "{there} in {extensions:?}");
    }
    for absent in ["sequence", "system_shared_memory", "cuda_shared_memory"] {
        assert!(!extensions.contains(&json!(absent)), "{absent} in {extensions:?}");
    }

    let cancer = server.get("/v2/models/breast_cancer").ok().json();
    assert_eq!(cancer["name"], "breast_cancer");
    assert_eq!(cancer["versions"], json!(["2"]));
    assert_eq!(cancer["platform"], "onnxruntime_onnx");
    let features = json!([{"name": "input", "datatype": "FP32", "shape": [-1, 30]}]);
    assert_eq!(tensors_of(&cancer["inputs"]), features);
    let label_and_probabilities = json!([
        {"name": "label", "datatype": "INT64", "shape": [-1]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]},
    ]);
    assert_eq!(tensors_of(&cancer["outputs"]), label_and_probabilities);
    assert_eq!(server.get("/v2/models/breast_cancer/versions/2").ok().json(), cancer);

    let strings = server.get("/v2/models/identity_bytes").ok().json();
    let input = json!([{"name": "INPUT", "datatype": "BYTES", "shape": [-1]}]);
    assert_eq!(tensors_of(&strings["inputs"]), input);

    let escaped = server.get("/v2/models/%61dd%5Fsub").ok().json();
    assert_eq!(escaped["name"], "add_sub", "names are percent-decoded");
}

/// Name, datatype and shape alone: servers may say more about a tensor.
fn tensors_of(list: &Value) -> Value {
    let only = |tensor: &Value| json!({"name": tensor["name"], "datatype": tensor["datatype"], "shape": tensor["shape"]});
    list.as_array().expect("a list of tensors").iter().map(only).collect()
}

#[test]
fn health_and_readiness_speak_json() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    let live = server.get("/v2/health/live").ok();
    assert_eq!(live.json()["live"], true);
    assert_eq!(live.header("content-type"), Some("application/json"));
    assert_eq!(server.get("/v2/health/ready").ok().json()["ready"], true);
    for path in ["/v2/models/add_sub/ready", "/v2/models/add_sub/versions/1/ready"] {
        let ready = server.get(path).ok().json();
        assert_eq!((&ready["name"], &ready["ready"]), (&json!("add_sub"), &json!(true)));
    }
    for path in ["/v2/models/nosuch/ready", "/v2/models/add_sub/versions/7/ready"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    assert_eq!(server.admin("/livez").status, 200);
    assert_eq!(server.admin("/readyz").status, 200);
}

#[test]
fn configuration_has_the_fields_that_perf_analyzer_reads() {
    let server = Server::over(&Repository::of(&["add_sub", "identity_bytes"]));
    let config = server.get("/v2/models/add_sub/config").ok().json();
    assert_eq!(config["name"], "add_sub");
    assert_eq!(config["platform"], "onnxruntime_onnx");
    assert_eq!(config["backend"], "onnxruntime");
    let rows_max = config["max_batch_size"].as_u64().expect("max_batch_size is a number");
    // With a batch size, Triton's dims leave the batch out.
    let dims = if rows_max == 0 { json!([-1, 16]) } else { json!([16]) };
    let names = |list: &Value| -> Vec<Value> {
        let tensors = list.as_array().expect("a list of tensors");
        for tensor in tensors {
            assert_eq!(tensor["data_type"], "TYPE_INT32", "{tensor}");
            assert_eq!(tensor["dims"], dims, "{tensor}");
        }
        tensors.iter().map(|tensor| tensor["name"].clone()).collect()
    };
    assert_eq!(names(&config["input"]), ["INPUT0", "INPUT1"]);
    assert_eq!(names(&config["output"]), ["OUTPUT0", "OUTPUT1"]);
    assert_eq!(server.get("/v2/models/add_sub/versions/1/config").ok().json(), config);
    let strings = server.get("/v2/models/identity_bytes/config").ok().json();
    assert_eq!(strings["input"][0]["data_type"], "TYPE_STRING");
}

#[test]
fn statistics_count_what_was_asked() {
    let server = Server::over(&Repository::of(&["add_sub", "scalar"]));
    for _ in 0..5 {
        server.post(&infer("add_sub"), &add_sub()).ok();
    }
    assert_eq!(server.post(&infer("add_sub"), &json!({"inputs": []})).status, 400);

    let of_model = server.get("/v2/models/add_sub/versions/1/stats").ok().json();
    let stats = &of_model["model_stats"][0];
    assert_eq!((&stats["name"], &stats["version"]), (&json!("add_sub"), &json!("1")));
    assert_eq!(stats["inference_count"], 5, "{stats}");
    assert_eq!(stats["execution_count"], 5, "{stats}");
    assert!(
        stats["last_inference"].as_u64().unwrap() > 1_600_000_000_000,
        "ms since 1970: {stats}"
    );
    let durations = &stats["inference_stats"];
    for key in ["success", "fail", "queue", "compute_input", "compute_infer", "compute_output"] {
        assert!(
            durations[key]["count"].is_u64() && durations[key]["ns"].is_u64(),
            "{key}: {stats}"
        );
    }
    for key in ["cache_hit", "cache_miss"] {
        assert_eq!(durations[key]["count"], 0, "{key}: {stats}");
    }
    assert_eq!(durations["success"]["count"], 5, "{stats}");
    assert!(durations["compute_infer"]["ns"].as_u64().unwrap() > 0, "{stats}");
    assert!(stats["batch_stats"].is_array(), "{stats}");

    let all = server.get("/v2/models/stats").ok().json();
    let names: Vec<_> = all["model_stats"].as_array().unwrap().iter().map(|s| &s["name"]).collect();
    assert!(names.contains(&&json!("add_sub")) && names.contains(&&json!("scalar")), "{names:?}");
    assert_eq!(server.get("/v2/models/nosuch/stats").status, 404);
}

#[test]
fn models_are_listed_unloaded_and_loaded_again() {
    let server = Server::over(&Repository::of(&["add_sub", "scalar"]));
    let index = server.ask(&Request::post("/v2/repository/index", "")).ok().json();
    let mut states: Vec<_> = index
        .as_array()
        .expect("the index is an array")
        .iter()
        .map(|entry| (&entry["name"], &entry["version"], &entry["state"]))
        .collect();
    states.sort_by_key(|(name, ..)| name.to_string());
    let ready = (json!("1"), json!("READY"));
    let expected = [(json!("add_sub"), &ready.0, &ready.1), (json!("scalar"), &ready.0, &ready.1)];
    assert_eq!(states, expected.each_ref().map(|(name, version, state)| (name, *version, *state)));

    // What is acknowledged holds for every request after it.
    server.post("/v2/repository/models/add_sub/unload", &json!({})).ok();
    let refused = server.post(&infer("add_sub"), &add_sub());
    assert!([404, 503].contains(&refused.status), "{refused:?}");
    assert_ne!(server.get("/v2/models/add_sub/ready").status, 200);
    let ready_only = server.post("/v2/repository/index", &json!({"ready": true})).ok().json();
    let names: Vec<_> = ready_only.as_array().unwrap().iter().map(|e| &e["name"]).collect();
    assert_eq!(names, [&json!("scalar")]);
    let entry = server.indexed("add_sub", "1").expect("an unloaded model stays in the index");
    assert_ne!(entry["state"], "READY");

    server.post("/v2/repository/models/add_sub/load", &json!({})).ok();
    server.post(&infer("add_sub"), &add_sub()).ok();
    server.post("/v2/repository/models/add_sub/load", &json!({})).ok();
    server.post(&infer("add_sub"), &add_sub()).ok();

    for verb in ["load", "unload"] {
        let unknown = server.post(&format!("/v2/repository/models/nosuch/{verb}"), &json!({}));
        assert!([400, 404].contains(&unknown.status), "{unknown:?}");
        assert!(unknown.error().contains("nosuch"), "{unknown:?}");
    }
}

#[test]
fn an_unloaded_model_stays_unloaded_when_the_folder_is_looked_at_again() {
    let repository = Repository::of(&["add_sub", "scalar"]);
    let server =
        crate::server::Launch::of(&repository).set("REPOSITORY__POLL_INTERVAL", "50ms").start();
    server.post("/v2/repository/models/add_sub/unload", &json!({})).ok();
    // A model added later proves that the folder has been looked at since.
    repository.add("identity_fp32", "1");
    eventually("the new model is served", || {
        (server.get("/v2/models/identity_fp32/ready").status == 200).then_some(())
    });
    assert_ne!(server.get("/v2/models/add_sub/ready").status, 200);
}

#[test]
fn the_repository_api_can_be_switched_off() {
    let repository = Repository::of(&["add_sub"]);
    let server = crate::server::Launch::of(&repository).set("REPOSITORY__API", "off").start();
    for path in ["/v2/repository/models/add_sub/unload", "/v2/repository/models/add_sub/load"] {
        assert_eq!(server.post(path, &json!({})).status, 503, "{path}");
    }
    server.post(&infer("add_sub"), &add_sub()).ok();
}

#[test]
fn each_plane_answers_only_its_own_paths() {
    let server = Server::over(&Repository::of(&["add_sub"]));
    for path in ["/metrics", "/livez", "/readyz", "/api/v1/models"] {
        let strange = server.get(path);
        assert_eq!(strange.status, 404, "data plane {path}: {strange:?}");
    }
    for path in ["/v2", "/v2/health/live", "/v2/models/add_sub"] {
        let strange = server.admin(path);
        assert_eq!(strange.status, 404, "admin plane {path}: {strange:?}");
    }
    let infer = Request::post_json(&infer("add_sub"), &add_sub());
    let strange = crate::http::Connection::open(server.admin).ask(&infer);
    assert!([404, 405].contains(&strange.status), "{strange:?}");
}
