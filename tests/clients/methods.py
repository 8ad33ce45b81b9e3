"""Every method of tritonclient's HTTP client that a tabular or tensor model needs."""

import numpy as np
import tritonclient.http as triton

from client import connect, given, refused, same

FIRST = np.arange(16, dtype=np.int32).reshape(1, 16)
SECOND = np.ones((1, 16), dtype=np.int32)


def inputs(binary=True):
    return [given("INPUT0", "INT32", FIRST, binary), given("INPUT1", "INT32", SECOND, binary)]


def health(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("add_sub")
    assert client.is_model_ready("add_sub", "1")
    assert not client.is_model_ready("nosuch")
    assert not client.is_model_ready("add_sub", "99")


def metadata(client):
    about = client.get_server_metadata()
    same(about["name"], "tidegate")
    assert "binary_tensor_data" in about["extensions"], about
    model = client.get_model_metadata("add_sub")
    same(model["name"], "add_sub")
    same(model["versions"], ["1"])
    same([tensor["name"] for tensor in model["inputs"]], ["INPUT0", "INPUT1"])
    same([tensor["shape"] for tensor in model["outputs"]], [[-1, 16], [-1, 16]])
    same(client.get_model_metadata("add_sub", "1"), model)
    config = client.get_model_config("add_sub")
    same(config["name"], "add_sub")
    same([tensor["data_type"] for tensor in config["input"]], ["TYPE_INT32", "TYPE_INT32"])
    with refused(404, "nosuch"):
        client.get_model_metadata("nosuch")
    with refused(404, "nosuch"):
        client.get_model_config("nosuch")


def repository(client):
    index = client.get_model_repository_index()
    states = {entry["name"]: entry["state"] for entry in index}
    same(states, {"add_sub": "READY", "scalar": "READY", "identity_fp32_2d": "READY"})
    client.unload_model("scalar")
    assert not client.is_model_ready("scalar")
    client.load_model("scalar")
    assert client.is_model_ready("scalar")
    client.load_model("scalar")
    try:
        client.load_model("nosuch")
    except triton.InferenceServerException as error:
        assert "nosuch" in error.message(), error
    else:
        raise AssertionError("a model that is not there was loaded")


def statistics(client):
    before = client.get_inference_statistics("add_sub", "1")["model_stats"][0]
    client.infer("add_sub", inputs())
    after = client.get_inference_statistics("add_sub", "1")["model_stats"][0]
    same(after["inference_count"], before["inference_count"] + 1)
    keys = "success fail queue compute_input compute_infer compute_output cache_hit cache_miss".split()
    for key in keys:
        assert set(after["inference_stats"][key]) == {"count", "ns"}, after
    names = {stats["name"] for stats in client.get_inference_statistics()["model_stats"]}
    assert {"add_sub", "scalar"} <= names, names


def check(result):
    same(result.as_numpy("OUTPUT0").tolist(), (FIRST + SECOND).tolist())
    same(result.as_numpy("OUTPUT1").tolist(), (FIRST - SECOND).tolist())


def infer(client):
    for binary in (True, False):
        check(client.infer("add_sub", inputs(binary)))
        check(client.infer("add_sub", inputs(binary), model_version="1"))
    result = client.infer("add_sub", inputs(), request_id="r-7", priority=1, timeout=5_000_000)
    same(result.get_response()["id"], "r-7")
    same(result.get_response()["model_name"], "add_sub")
    same(result.get_response()["model_version"], "1")
    named = {"own": "x", "number": 3, "share": 0.5, "flag": True}
    result = client.infer("add_sub", inputs(), parameters=named, headers={"x-own": "y"})
    check(result)
    prediction = result.get_response()["parameters"]["x-tidegate-prediction-id"]
    assert prediction, result.get_response()

    for binary in (True, False):
        only = [triton.InferRequestedOutput("OUTPUT1", binary_data=binary)]
        result = client.infer("add_sub", inputs(), outputs=only)
        same(result.as_numpy("OUTPUT1").tolist(), (FIRST - SECOND).tolist())
        same(result.as_numpy("OUTPUT0"), None)
    mixed = [given("INPUT0", "INT32", FIRST, True), given("INPUT1", "INT32", SECOND, False)]
    kinds = [
        triton.InferRequestedOutput("OUTPUT0", binary_data=False),
        triton.InferRequestedOutput("OUTPUT1", binary_data=True),
    ]
    check(client.infer("add_sub", mixed, outputs=kinds))

    for sent in (None, "gzip", "deflate"):
        for received in (None, "gzip", "deflate"):
            for binary in (True, False):
                result = client.infer(
                    "add_sub",
                    inputs(binary),
                    request_compression_algorithm=sent,
                    response_compression_algorithm=received,
                )
                check(result)
    scalar = client.infer("scalar", [given("INPUT", "FP32", np.array(2.5, dtype=np.float32))])
    same(scalar.as_numpy("OUTPUT").shape, ())
    same(float(scalar.as_numpy("OUTPUT")), 5.0)


def together(client):
    requests = [client.async_infer("add_sub", inputs(), request_id=str(n)) for n in range(40)]
    for number, request in enumerate(requests):
        result = request.get_result()
        same(result.get_response()["id"], str(number))
        check(result)


def classification(client):
    scores = np.array([[0.5, 3.25, 1.0], [9.0, -1.0, 0.0]], dtype=np.float32)
    for binary in (True, False):
        best = [triton.InferRequestedOutput("OUTPUT", binary_data=binary, class_count=2)]
        result = client.infer("identity_fp32_2d", [given("INPUT", "FP32", scores)], outputs=best)
        classes = result.as_numpy("OUTPUT")
        same(classes.shape, (2, 2))
        parts = [
            (text if isinstance(text, str) else text.decode()).split(":") for text in classes.flatten().tolist()
        ]
        same([(float(part[0]), int(part[1])) for part in parts], [(3.25, 1), (1.0, 2), (9.0, 0), (0.0, 2)])


def mistakes(client):
    with refused(404, "nosuch"):
        client.infer("nosuch", inputs())
    with refused(404, "99"):
        client.infer("add_sub", inputs(), model_version="99")
    with refused(400, "INPUT1"):
        client.infer("add_sub", inputs()[:1])
    with refused(400, "nobody"):
        client.infer("add_sub", [*inputs(), given("nobody", "INT32", FIRST)])
    with refused(400, "nobody"):
        client.infer("add_sub", inputs(), outputs=[triton.InferRequestedOutput("nobody")])
    with refused(400, "unexpected shape for input"):
        short = given("INPUT0", "INT32", FIRST[:, :15])
        client.infer("add_sub", [short, inputs()[1]])
    with refused(400, "datatype"):
        client.infer("add_sub", [given("INPUT0", "FP32", FIRST.astype(np.float32)), inputs()[1]])
    check(client.infer("add_sub", inputs()))


def left_out(client):
    """What tidegate does not offer says so, or says that there is nothing."""
    same(client.get_system_shared_memory_status(), [])
    same(client.get_cuda_shared_memory_status(), [])
    with refused(501):
        client.register_system_shared_memory("region", "/region", 64)


def main():
    client = connect(concurrency=8)
    topics = [health, metadata, repository, statistics, infer, together, classification, mistakes, left_out]
    for topic in topics:
        topic(client)
        print(f"{topic.__name__} is well")
    client.close()


if __name__ == "__main__":
    main()
