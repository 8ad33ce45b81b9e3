"""What Python's onnxruntime makes of a model: its signature, and its answers to given inputs.

Every model runs in a process of its own, since a model may end the process that runs it. An output of `ZipMap`, a
sequence of maps from class to probability, is given as the protocol carries it: one matrix, a column per class.
"""

import multiprocessing
import os
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime

from model import Tensor

PATIENCE_SECONDS = 120
_PROCESSES = multiprocessing.get_context("fork")


@dataclass
class Answer:
    """Outputs by name, or why there are none. `crashed` means that the process ended."""

    outputs: dict | None = None
    error: str | None = None
    crashed: bool = False


class Reference:
    """The runtime with one model loaded; used as a context."""

    def __init__(self, model):
        self._model = model
        self._open()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._close()

    def signature(self):
        """Inputs and outputs, lists of `Tensor`; or why the model cannot be loaded, a text."""
        answer = self._ask(("signature", None))
        return answer.error if answer.error else answer.outputs

    def run(self, inputs):
        """The runtime's `Answer`."""
        return self._ask(("run", inputs))

    def _ask(self, request):
        try:
            self._connection.send(request)
            if self._connection.poll(PATIENCE_SECONDS):
                return self._connection.recv()
            error = f"no answer within {PATIENCE_SECONDS} s"
        except (EOFError, BrokenPipeError, ConnectionResetError):
            error = "the process ended"
        self._close()
        self._open()
        return Answer(error=error, crashed=True)

    def _open(self):
        self._connection, theirs = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(target=_serve, args=(self._model.file, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def _close(self):
        self._connection.close()
        self._process.kill()
        self._process.join()


def _serve(file, connection):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a dying runtime says
    session = None
    while True:
        try:
            what, inputs = connection.recv()
        except EOFError:
            return
        try:
            session = session or _session(file)
            if what == "signature":
                connection.send(Answer(outputs=_signature(file, session)))
            else:
                connection.send(Answer(outputs=_run(file, session, inputs)))
        except Exception as error:  # the runtime has many
            connection.send(Answer(error=f"{type(error).__name__}: {error}"))


def _run(file, session, inputs):
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, inputs)))
    for name, (classes, dtype) in _zip_maps(onnx.load(file, load_external_data=False).graph).items():
        rows = [[row[a_class] for a_class in classes] for row in outputs[name]]
        outputs[name] = np.array(rows, dtype).reshape(len(rows), len(classes))
    return outputs


def _zip_maps(graph):
    """Outputs that are sequences of maps: the classes in their order."""
    names = {value.name for value in graph.output}
    found = {}
    for node in graph.node:
        if node.op_type == "ZipMap" and node.output[0] in names:
            attributes = {attribute.name: attribute for attribute in node.attribute}
            texts = attributes.get("classlabels_strings")
            labels = [text.decode() for text in texts.strings] if texts else attributes["classlabels_int64s"].ints
            found[node.output[0]] = (list(labels), np.float32)
    return found


def _session(file):
    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _signature(file, session):
    graph = onnx.load(file, load_external_data=False).graph
    unranked = {value.name for value in [*graph.input, *graph.output] if _is_unranked(value)}

    def tensors(values, is_optional=False):
        shape = {value.name: None if value.name in unranked else list(value.shape) for value in values}
        return [Tensor(value.name, value.type, shape[value.name], is_optional) for value in values]

    outputs = tensors(session.get_outputs())
    for output in outputs:
        if output.name in _zip_maps(graph):
            output.kind, output.shape = "tensor(float)", [-1, -1]
    defaults = tensors(session.get_overridable_initializers(), is_optional=True)
    return tensors(session.get_inputs()) + defaults, outputs


def _is_unranked(value):
    return value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")
