"""Models that the client brings with a load."""

import json
import pathlib

import numpy
import tritonclient.http as triton
from client import arguments, connect, given, refused, same

CONFIG = json.dumps({"backend": "onnxruntime", "max_batch_size": 0})


def sample(name):
    return (pathlib.Path(arguments().models) / name / "1" / "model.onnx").read_bytes()


def golden(client, name, model):
    """Asks a model the first case that was recorded when the sample was trained."""
    text = (pathlib.Path(arguments().models) / model / "1" / "golden.json").read_text()
    case = json.loads(text)["cases"][0]
    inputs = []
    for tensor in case["inputs"]:
        values = numpy.array(tensor["data"], dtype=triton.triton_to_np_dtype(tensor["datatype"]))
        inputs.append(given(tensor["name"], tensor["datatype"], values.reshape(tensor["shape"])))
    answer = client.infer(name, inputs)
    for expected in case["outputs"]:
        actual = answer.as_numpy(expected["name"])
        if expected["datatype"].startswith("FP"):
            numpy.testing.assert_allclose(actual.ravel(), expected["data"], rtol=1e-3, atol=1e-4)
        else:
            same(actual.ravel().tolist(), expected["data"])


def new_model(client):
    client.load_model("brought", config=CONFIG, files={"file:1/model.onnx": sample("digits")})
    assert client.is_model_ready("brought")
    golden(client, "brought", "digits")
    client.unload_model("brought")


def in_place_of_the_repository(client):
    x = numpy.array([1.5], dtype=numpy.float32)
    name = client.get_model_metadata("identity_fp32")["inputs"][0]["name"]
    config = json.dumps({"version_policy": {"all": {}}, "input": [{"name": name, "data_type": "TYPE_FP32", "dims": [-1]}]})
    client.load_model("identity_fp32", config=config)
    same(client.get_model_config("identity_fp32")["version_policy"], {"all": {}})
    client.infer("identity_fp32", [given(name, "FP32", x)])
    client.load_model("identity_fp32")
    assert client.get_model_config("identity_fp32")["version_policy"] != {"all": {}}


def mistakes(client):
    with refused(400, "not an ONNX model"):
        client.load_model("brought", config=CONFIG, files={"file:1/model.onnx": b"no model"})
    with refused(400, "file:../model.onnx"):
        client.load_model("brought", config=CONFIG, files={"file:../model.onnx": b""})
    with refused(400, "max_batch_sice"):
        client.load_model("identity_fp32", config=json.dumps({"max_batch_sice": 1}))
    assert client.is_model_ready("identity_fp32")


if __name__ == "__main__":
    client = connect()
    for topic in [new_model, in_place_of_the_repository, mistakes]:
        topic(client)
        print(f"{topic.__name__} is well")
    client.close()
