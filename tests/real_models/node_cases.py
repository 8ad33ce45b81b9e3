"""The onnx package's node cases through a running server: each operator's own model, inputs and expected outputs.

    node_cases.py build FOLDER            writes FOLDER/models, a repository, and FOLDER/cases.json
    node_cases.py run FOLDER HOST:PORT    sends every case to the server over that repository

`build` takes the cases that Python's onnxruntime passes on the CPU, by the rules of onnx's own backend runner. `run`
sends each by the protocol's binary tensor extension and compares datatypes, shapes and values by the case's tolerances.
What is not served rightly must stand in `node_refusals.txt` with its reason, and nothing else may: a row whose case is
served is stale. Exits with 1 otherwise.
"""

import argparse
import base64
import collections
import http.client
import json
import pathlib
import struct
import sys
import time
import unittest
import warnings

import numpy as np

REFUSALS = pathlib.Path(__file__).with_name("node_refusals.txt")
TIMEOUT = 60.0
# What BF16 may differ by at least: two units in its last place, as in onnx's runner.
BF16_RTOL = 2**-6

# The protocol's names of numpy's types; the rest cannot be carried.
DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "bfloat16": "BF16", "float32": "FP32",
    "float64": "FP64", "object": "BYTES",
}
NUMPY_TYPES = {datatype: kind for kind, datatype in DATATYPES.items() if kind not in ("object", "bfloat16")}


class Wrong(Exception):
    """A case that is not served rightly, and how."""


# Building.


def build(folder):
    """Writes a repository with every case that passes here, and the cases."""
    found = {"tensors": 0, "other types": 0, "fail in Python": 0}
    with (folder / "cases.json").open("w") as out:
        for case in all_cases():
            described = passed(case)
            if described is None:
                found["fail in Python"] += 1
                continue
            carried = described["inputs"] is not None and described["outputs"] is not None
            found["tensors" if carried else "other types"] += 1
            place = folder / "models" / case.name / "1"
            place.mkdir(parents=True)
            (place / "model.onnx").write_bytes(case.model.SerializeToString(deterministic=True))
            out.write(json.dumps(described) + "\n")
    print(", ".join(f"{what}: {count}" for what, count in found.items()))


def all_cases():
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Cases overflow and divide by zero on purpose.
        return sorted(load_model_tests(kind="node"), key=lambda case: case.name)


def passed(case):
    """The case for `run`, or None where Python's onnxruntime does not pass it."""
    import onnxruntime.backend
    from onnx.backend.test.runner import Runner

    try:
        prepared = onnxruntime.backend.prepare(case.model, "CPU", log_severity_level=4, intra_op_num_threads=1)
        ((inputs, expected),) = [[arrays(part) for part in data] for data in case.data_sets]
        outputs = prepared.run(inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Runner.assert_similar_outputs(expected, outputs, case.rtol, case.atol)
    except (Exception, unittest.SkipTest):
        return None
    graph = case.model.graph
    return {
        "name": case.name,
        "rtol": case.rtol,
        "atol": case.atol,
        "inputs": tensors(graph.input, inputs),
        "outputs": tensors(graph.output, expected),
    }


def arrays(values):
    """The values of a case as the runner gives them: protobuf's tensors and numpy's scalars become arrays."""
    import onnx

    def array(value):
        if isinstance(value, onnx.TensorProto):
            return onnx.numpy_helper.to_array(value)
        return np.asarray(value) if isinstance(value, np.generic) else value

    return [array(value) for value in values]


def tensors(declared, values):
    """The tensors as the protocol carries them; None where it cannot."""
    assert len(declared) == len(values)
    plain = all(one.type.HasField("tensor_type") for one in declared)
    carried = plain and all(datatype(value) is not None for value in values)
    return [tensor(one.name, value) for one, value in zip(declared, values)] if carried else None


def datatype(array):
    return "BYTES" if array.dtype.kind in "US" else DATATYPES.get(array.dtype.name)


def tensor(name, array):
    kind = datatype(array)
    raw = packed_strings(array) if kind == "BYTES" else np.ascontiguousarray(array).tobytes()
    return {"name": name, "datatype": kind, "shape": list(array.shape), "data": base64.b64encode(raw).decode()}


def packed_strings(array):
    encoded = [x if isinstance(x, bytes) else str(x).encode() for x in array.reshape(-1).tolist()]
    return b"".join(struct.pack("<I", len(x)) + x for x in encoded)


# Running.


def run(folder, address):
    """Sends every case; True if exactly the listed ones fail."""
    client = Client(address)
    states = client.settled_states({entry.name for entry in (folder / "models").iterdir()})
    failures, count = {}, 0
    for line in (folder / "cases.json").open():
        case = json.loads(line)
        count += 1
        try:
            check(client, case, states)
        except Wrong as wrong:
            failures[case["name"]] = str(wrong)
    print(f"{count - len(failures)} of {count} node cases are served rightly")
    return is_as_listed(failures)


def is_as_listed(failures):
    listed = refusals()
    for name, how in failures.items():
        print(f"{name}: {how}" + (f" [listed: {listed[name]}]" if name in listed else " [NOT LISTED]"))
    stale = [name for name in listed if name not in failures]
    for name in stale:
        print(f"{name}: served, or no case any more, but listed in {REFUSALS.name}: take its row out")
    return not stale and set(failures) <= set(listed)


def refusals():
    """The rows of the table, `case: reason`; lines that begin with # are comments."""
    lines = REFUSALS.read_text().splitlines() if REFUSALS.exists() else []
    rows = [line.split(": ", 1) for line in lines if line.strip() and not line.startswith("#")]
    twice = [name for name, times in collections.Counter(name for name, _ in rows).items() if times > 1]
    assert not twice, f"{REFUSALS.name} lists more than once: {twice}"
    return dict(rows)


def check(client, case, states):
    """Raises `Wrong` unless the server gives what the case expects."""
    state, reason = states.get(case["name"], ("not in the index", ""))
    if state != "READY":
        raise Wrong(f"{state}: {reason}")
    if case["inputs"] is None or case["outputs"] is None:
        raise Wrong("ready, although the protocol has no such types")
    answer = client.infer(case)
    for expected in case["outputs"]:
        compare(expected, answer[expected["name"]], case)


def compare(expected, found, case):
    name = expected["name"]
    for what in ("datatype", "shape"):
        if found[what] != expected[what]:
            raise Wrong(f"output {name}: {what} {found[what]}, expected {expected[what]}")
    wanted = values(expected, base64.b64decode(expected["data"]))
    given = values(found, found["data"])
    if expected["datatype"] == "BYTES":
        if given != wanted:
            raise Wrong(f"output {name}: {given}, expected {wanted}")
        return
    rtol = max(case["rtol"], BF16_RTOL) if expected["datatype"] == "BF16" else case["rtol"]
    try:
        np.testing.assert_allclose(given, wanted, rtol=rtol, atol=case["atol"])
    except AssertionError as error:
        raise Wrong(f"output {name}: {' '.join(str(error).split())[:200]}") from None


def values(described, raw):
    """The elements: a list of strings, or an array."""
    if described["datatype"] == "BYTES":
        return unpacked_strings(raw)
    if described["datatype"] == "BF16":
        flat = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    else:
        flat = np.frombuffer(raw, NUMPY_TYPES[described["datatype"]])
    return flat.reshape(described["shape"])


def unpacked_strings(raw):
    strings, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        strings.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    return strings


class Client:
    """A connection to the server's data plane."""

    def __init__(self, address):
        self.connection = http.client.HTTPConnection(address, timeout=TIMEOUT)

    def settled_states(self, names):
        """State and reason of every model, once these are all listed and none is still being loaded."""
        while True:
            _, body, _ = self.post("/v2/repository/index", b"{}", {})
            index = json.loads(body)
            states = {entry["name"]: (entry.get("state"), entry.get("reason", "")) for entry in index}
            if names <= set(states) and all(state in ("READY", "UNAVAILABLE") for state, _ in states.values()):
                return states
            time.sleep(0.2)

    def infer(self, case):
        """The outputs by name, each with its raw data."""
        body, header_length = request_body(case)
        headers = {"Inference-Header-Content-Length": str(header_length), "Content-Type": "application/octet-stream"}
        status, answer, length = self.post(f"/v2/models/{case['name']}/infer", body, headers)
        if status != 200:
            raise Wrong(f"{status}: {answer.decode(errors='replace').strip()}")
        return outputs_of(answer, int(length) if length else len(answer))

    def post(self, path, body, headers):
        try:
            self.connection.request("POST", path, body, headers)
            response = self.connection.getresponse()
            return response.status, response.read(), response.getheader("Inference-Header-Content-Length")
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()  # The next request opens it again.
            raise Wrong(f"no answer: {error!r}") from None


def request_body(case):
    """JSON and the raw tensors after it; the length of the JSON."""
    raws = [base64.b64decode(given["data"]) for given in case["inputs"]]
    inputs = [
        {key: given[key] for key in ("name", "datatype", "shape")} | {"parameters": {"binary_data_size": len(raw)}}
        for given, raw in zip(case["inputs"], raws)
    ]
    outputs = [{"name": wanted["name"], "parameters": {"binary_data": True}} for wanted in case["outputs"]]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    return b"".join([head, *raws]), len(head)


def outputs_of(answer, header_length):
    found, at = {}, header_length
    for output in json.loads(answer[:header_length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]] = output | {"data": answer[at : at + size]}
        at += size
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build").add_argument("folder", type=pathlib.Path)
    running = commands.add_parser("run")
    running.add_argument("folder", type=pathlib.Path)
    running.add_argument("address", metavar="HOST:PORT")
    asked = parser.parse_args()
    if asked.command == "build":
        build(asked.folder)
    elif not run(asked.folder, asked.address):
        sys.exit(1)


if __name__ == "__main__":
    main()
