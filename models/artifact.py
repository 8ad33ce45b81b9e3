"""What a training recipe hands over, and how it becomes files.

A recipe (`<model>/recipe.py`) has one function, `train()`, which returns a `Trained`: its versions as ONNX graphs,
golden cases computed by the training side, and the tables for its README. Always true of what is written:
- Same input, same bytes: no time, host, path or tool version is stored in a model.
- Golden outputs come from scikit-learn or NumPy, never from the engine that they are there to judge.
- `config.pbtxt` is derived from the graph, so the two cannot disagree.

Not here: choosing what to train (the recipes), comparing with the committed files (`train.py`).
"""

import csv
import io
import json
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
OPSETS_OF_DOMAINS = {"ai.onnx.ml": 3, "com.microsoft": 1}
IR_VERSION = 8
BATCH_ROWS_MAX = 1024

# How far an engine may be from the golden outputs: it computes in FP32 what training computed in FP64.
TOLERANCE = {"relative": 1e-4, "absolute": 1e-5}

# Datatype of the protocol -> element type in ONNX, in NumPy.
DATATYPES = {
    "FP32": (TensorProto.FLOAT, np.float32),
    "INT64": (TensorProto.INT64, np.int64),
    "BYTES": (TensorProto.STRING, np.object_),
}


@dataclass(frozen=True)
class Tensor:
    """One named tensor of a golden case."""

    name: str
    datatype: str
    values: np.ndarray

    def as_array(self) -> np.ndarray:
        """The values in the element type that ONNX Runtime takes."""
        return np.asarray(self.values).astype(DATATYPES[self.datatype][1])

    def as_json(self) -> str:
        """The tensor as the Open Inference Protocol writes it, with flat data, on one line."""
        array = self.as_array()
        # The shortest decimal that reads back as the same FP32.
        data = [float(str(value)) if self.datatype == "FP32" else value for value in array.ravel()]
        data = [int(value) if self.datatype == "INT64" else value for value in data]
        parts = {"name": self.name, "datatype": self.datatype, "shape": list(array.shape), "data": data}
        return json.dumps(parts, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True)
class Case:
    """Inputs, and the outputs that training computed for them."""

    inputs: list[Tensor]
    outputs: list[Tensor]

    def as_json(self) -> str:
        """One tensor a line: short enough to review, and a change shows where it is."""
        sides = []
        for side in ("inputs", "outputs"):
            rows = ",\n".join(f"   {tensor.as_json()}" for tensor in getattr(self, side))
            sides.append(f'  "{side}": [\n{rows}\n  ]')
        return "  {\n" + ",\n".join(sides) + "\n  }"


@dataclass(frozen=True)
class Version:
    """One version directory: the graph and its golden cases."""

    number: int
    graph: onnx.ModelProto
    cases: list[Case]

    def model(self) -> bytes:
        """The content of `model.onnx`."""
        return self.graph.SerializeToString(deterministic=True)

    def golden(self) -> bytes:
        """The content of `golden.json`."""
        cases = ",\n".join(case.as_json() for case in self.cases)
        return f'{{\n "tolerance": {json.dumps(TOLERANCE)},\n "cases": [\n{cases}\n ]\n}}\n'.encode()


@dataclass(frozen=True)
class Reference:
    """The rows that all versions were trained on, as a model gets them, and names for their columns."""

    columns: list[str]
    rows: np.ndarray

    def csv(self) -> bytes:
        """The rows as a CSV file; numbers are the shortest that read back as the same FP32."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        rows = self.rows if self.rows.dtype == object else self.rows.astype(np.float32)
        writer.writerows([str(value) for value in row] for row in rows.reshape(len(rows), -1))
        return text.getvalue().encode()


@dataclass(frozen=True)
class Trained:
    """All that one recipe produced."""

    versions: list[Version]
    # Class names in the order of the columns of `probabilities`.
    classes: list[str]
    reference: Reference
    # Tables for the model's README, where they stand between `<!-- NAME -->` and `<!-- /NAME -->`.
    tables: dict[str, str] = field(default_factory=dict)

    def files(self, name: str) -> dict[str, bytes]:
        """Every generated file of model `name`: its path below the model's directory, and its content."""
        files = {"config.pbtxt": config(name, self.versions), "labels.txt": lines(self.classes)}
        for version in self.versions:
            files[f"{version.number}/model.onnx"] = version.model()
            files[f"{version.number}/golden.json"] = version.golden()
        return files


def lines(texts: list[str]) -> bytes:
    """One text a line."""
    return "".join(f"{text}\n" for text in texts).encode()


def config(name: str, versions: list[Version]) -> bytes:
    """Triton's `config.pbtxt` for a model whose tensors all have the batch as their first dimension.

    Without a policy only the highest version is served; the samples serve all that they have. Triton leaves the batch dimension out of `dims` and allows no empty `dims`, hence the reshape of a plain `[N]`.
    """
    types = {TensorProto.FLOAT: "TYPE_FP32", TensorProto.INT64: "TYPE_INT64", TensorProto.STRING: "TYPE_STRING"}
    text = [f'name: "{name}"', 'platform: "onnxruntime_onnx"', f"max_batch_size: {BATCH_ROWS_MAX}"]
    text += ["version_policy { all { } }"] if len(versions) > 1 else []
    for side in ("input", "output"):
        tensors = []
        for info in getattr(versions[-1].graph.graph, side):
            dims = [dim.dim_value for dim in info.type.tensor_type.shape.dim[1:]]
            rows = [f'    name: "{info.name}"', f"    data_type: {types[info.type.tensor_type.elem_type]}"]
            rows += [f"    dims: [ {', '.join(map(str, dims)) or 1} ]"]
            rows += [] if dims else ["    reshape { shape: [ ] }"]
            rows += ['    label_filename: "labels.txt"'] if info.name == "probabilities" else []
            tensors.append("  {\n" + "\n".join(rows) + "\n  }")
        text.append(f"{side} [\n" + ",\n".join(tensors) + "\n]")
    return lines(text)


def table(head: list[str], rows: list[list[object]]) -> str:
    """A markdown table; numbers get four decimals."""
    cells = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *cells])


def settle(array: np.ndarray, decimals: int = 6) -> np.ndarray:
    """Learnt weights without their last digits, which depend on the processor that summed them up."""
    return np.round(array, decimals) + 0.0  # no negative zeros


def value_info(name: str, datatype: str, *dims: int) -> onnx.ValueInfoProto:
    """A tensor of the signature; the open batch dimension `N` comes first by itself."""
    return helper.make_tensor_value_info(name, DATATYPES[datatype][0], ["N", *dims])


def constants(**arrays: np.ndarray) -> list[onnx.TensorProto]:
    """Initializers, each in FP32."""
    return [numpy_helper.from_array(np.asarray(array, dtype=np.float32), name) for name, array in arrays.items()]


def finish(name: str, about: str, graph: onnx.GraphProto) -> onnx.ModelProto:
    """A checked model with nothing in it that changes from run to run."""
    graph.name = name
    domains = sorted({node.domain for node in graph.node} - {""})
    opsets = [helper.make_opsetid("", OPSET)]
    opsets += [helper.make_opsetid(domain, OPSETS_OF_DOMAINS[domain]) for domain in domains]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="models/train.py")
    model.doc_string = about
    onnx.checker.check_model(model, full_check=True)
    return model


def linear_classifier(name: str, about: str, scaler, classifier) -> onnx.ModelProto:
    """`StandardScaler` + `LogisticRegression` in plain ONNX operators, which every engine has.

    skl2onnx would write `Scaler` and `LinearClassifier` of the ai.onnx.ml domain, which few engines know.
    """
    weights, bias = classifier.coef_, classifier.intercept_
    if len(weights) == 1:  # two classes: softmax of (-score/2, +score/2) is the logistic function of the score
        weights, bias = np.vstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    graph = helper.make_graph(
        [
            helper.make_node("Sub", ["input", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "scale"], ["scaled"]),
            helper.make_node("Gemm", ["scaled", "weights", "bias"], ["scores"], transB=1),
            helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        ],
        name,
        [value_info("input", "FP32", weights.shape[1])],
        [value_info("label", "INT64"), value_info("probabilities", "FP32", len(weights))],
        constants(mean=scaler.mean_, scale=scaler.scale_, weights=weights, bias=bias),
    )
    return finish(name, about, graph)


def classifier_cases(fitted, batches: list[np.ndarray]) -> list[Case]:
    """Golden cases for `input` -> `label`, `probabilities`, one per batch, answered by scikit-learn."""
    cases = []
    for batch in batches:
        chances = fitted.predict_proba(batch)
        ordered = np.sort(chances, axis=1)
        assert (ordered[:, -1] - ordered[:, -2]).min() > 0.01, "a golden label hangs on a near tie: choose other rows"
        label = Tensor("label", "INT64", fitted.classes_[chances.argmax(axis=1)])
        cases.append(Case([Tensor("input", "FP32", batch)], [label, Tensor("probabilities", "FP32", chances)]))
    return cases
