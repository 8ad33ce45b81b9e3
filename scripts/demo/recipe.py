"""Makes the candidate of `make demo`: iris, with a mistake that no proof finds.

    pip install onnx numpy && python3 scripts/demo/recipe.py

Its petal lengths go through a calibration table that somebody let end at 6.0 cm. It reproduces everything that the
version before it answers, for all flowers but those with longer petals, some 6 % of them: there the engine refuses the
index. Same input, same bytes: no time, host or path is stored.

Not here: the demonstration (`demo.py`).
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

HERE = Path(__file__).resolve().parent
LONGEST = 60  # tenths of a centimetre

model = onnx.load(HERE.parents[1] / "models/iris/1/model.onnx")
graph = model.graph


def constant(name: str, values: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


table = constant("calibration", np.arange(LONGEST + 1, dtype=np.float32) / np.float32(10))
ten = constant("ten", np.array(10, dtype=np.float32))
sizes = constant("sizes", np.array([2, 1, 1], dtype=np.int64))
calibrate = [
    helper.make_node("Split", ["input", sizes], ["sepal", "petal_length", "petal_width"], axis=1),
    helper.make_node("Mul", ["petal_length", ten], ["tenths"]),
    helper.make_node("Round", ["tenths"], ["rounded"]),
    helper.make_node("Cast", ["rounded"], ["index"], to=onnx.TensorProto.INT64),
    helper.make_node("Gather", [table, "index"], ["calibrated"]),
    helper.make_node("Concat", ["sepal", "calibrated", "petal_width"], ["lengths"], axis=1),
]
nodes = list(graph.node)
for node in nodes:
    node.input[:] = ["lengths" if name == "input" else name for name in node.input]
del graph.node[:]
graph.node.extend(calibrate + nodes)
model.producer_name = "scripts/demo/recipe.py"
model.doc_string = "Logistic regression on scaled lengths, petals by a table that is too short"
onnx.checker.check_model(model)
(HERE / "candidate.onnx").write_bytes(model.SerializeToString(deterministic=True))
