#!/usr/bin/env python3
"""Makes the models of the load tests, the same bytes at every call.

    python3 loadtests/make_models.py [--check]

Needs the packages onnx and numpy. The files are committed, so that a load test needs neither; `--check` compares them
with what would be made and changes nothing. The weights are random: what counts here is what a run costs.

    mlp      a perceptron 20-64-32-2: a run costs about 3 us, so nearly all of a request is the server's
    imgmean  the mean of each channel of a 3x224x224 image: what counts is moving 150,528 numbers
    imgnet   four convolutions over the same image: a run costs about 2 ms, as a small vision model's
    rounds   adds one as often as its input says: as long a run as one likes, about 1 us a round
"""

import argparse
import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HOME = pathlib.Path(__file__).parent / "models"


def weights(seed: int, **shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    random = np.random.RandomState(seed)  # its stream is frozen for ever, that of default_rng is not
    return [
        numpy_helper.from_array((random.randn(*shape) * 0.3).astype(np.float32), name)
        for name, shape in shapes.items()
    ]


def model(nodes, inputs, outputs, initializers=()) -> onnx.ModelProto:
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)  # noqa: E731
    graph = helper.make_graph(
        nodes,
        "loadtest",
        [value(*item) for item in inputs.items()],
        [value(*item) for item in outputs.items()],
        list(initializers),
    )
    made = helper.make_model(
        graph,
        producer_name="tidegate-loadtests",
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def mlp() -> onnx.ModelProto:
    node = helper.make_node
    return model(
        [
            node("Gemm", ["x", "w1", "b1"], ["h1"]),
            node("Relu", ["h1"], ["r1"]),
            node("Gemm", ["r1", "w2", "b2"], ["h2"]),
            node("Relu", ["h2"], ["r2"]),
            node("Gemm", ["r2", "w3", "b3"], ["h3"]),
            node("Softmax", ["h3"], ["prob"], axis=1),
        ],
        {"x": ["N", 20]},
        {"prob": ["N", 2]},
        weights(1, w1=(20, 64), b1=(64,), w2=(64, 32), b2=(32,), w3=(32, 2), b3=(2,)),
    )


def imgmean() -> onnx.ModelProto:
    return model(
        [helper.make_node("GlobalAveragePool", ["x"], ["y"])],
        {"x": ["N", 3, 224, 224]},
        {"y": ["N", 3, 1, 1]},
    )


def imgnet() -> onnx.ModelProto:
    nodes, image = [], "x"
    # Two layers halve the image, two keep it; three share their weights, which keeps the file small.
    for layer, (kernel, stride) in enumerate([("first", 2), ("rest", 2), ("rest", 1), ("rest", 1)]):
        sizes = {"strides": [stride, stride], "pads": [1, 1, 1, 1]}
        nodes.append(helper.make_node("Conv", [image, kernel], [f"conv{layer}"], **sizes))
        image = f"relu{layer}"
        nodes.append(helper.make_node("Relu", [f"conv{layer}"], [image]))
    nodes.append(helper.make_node("GlobalAveragePool", [image], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"]))
    nodes.append(helper.make_node("Gemm", ["features", "last"], ["logits"]))
    return model(
        nodes,
        {"x": ["N", 3, 224, 224]},
        {"logits": ["N", 10]},
        weights(2, first=(32, 3, 3, 3), rest=(32, 32, 3, 3), last=(32, 10)),
    )


def rounds() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["sum", "one"], ["next"])],
        "round",
        [value("round", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("sum", TensorProto.FLOAT, [1])],
        [value("on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.float32([1]), "one")],
    )
    return model(
        [
            helper.make_node("Cast", ["x"], ["rounds"], to=TensorProto.INT64),
            helper.make_node("Loop", ["rounds", "yes", "zero"], ["y"], body=body),
        ],
        {"x": [1]},
        {"y": [1]},
        [numpy_helper.from_array(np.array(True), "yes"), numpy_helper.from_array(np.float32([0]), "zero")],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare with the committed files")
    check = parser.parse_args().check
    stale = 0
    for make in (mlp, imgmean, imgnet, rounds):
        file = HOME / make.__name__ / "1" / "model.onnx"
        content = make().SerializeToString(deterministic=True)
        if check:
            same = file.is_file() and file.read_bytes() == content
            stale += not same
            print(f"{file}: {'same' if same else 'differs'}")
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            print(f"{file}: {len(content)} bytes")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
