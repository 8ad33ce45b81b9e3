"""A running gateway: started over a repository on free ports, asked over HTTP in JSON and in the binary extension."""

import http.client
import json
import os
import queue
import signal
import subprocess
import threading
import time

import numpy as np

DATATYPES = {
    "tensor(float)": ("FP32", np.float32),
    "tensor(double)": ("FP64", np.float64),
    "tensor(float16)": ("FP16", np.float16),
    "tensor(bfloat16)": ("BF16", np.uint16),
    "tensor(int8)": ("INT8", np.int8),
    "tensor(int16)": ("INT16", np.int16),
    "tensor(int32)": ("INT32", np.int32),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(uint8)": ("UINT8", np.uint8),
    "tensor(uint16)": ("UINT16", np.uint16),
    "tensor(uint32)": ("UINT32", np.uint32),
    "tensor(uint64)": ("UINT64", np.uint64),
    "tensor(bool)": ("BOOL", np.bool_),
    "tensor(string)": ("BYTES", np.object_),
}
DTYPES = dict(DATATYPES.values())
WITHOUT_JSON = {"FP16", "BF16"}


class Refused(Exception):
    """An answer with a status other than 200."""

    def __init__(self, status, text):
        super().__init__(f"{status}: {text}")
        self.status = status


class Gateway:
    """The program under test, as a context; `restart` after it has ended."""

    def __init__(self, binary, repository, state, patience, environment=None):
        self._command = [binary, "serve", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1"]
        self._command += ["--repository", str(repository), "--log-format", "json"]
        self._environment = {**os.environ, "TIDEGATE__STATE__PATH": str(state), **(environment or {})}
        self._patience = patience
        self._repository = repository

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def start(self):
        """Starts the program and waits until it answers."""
        self.said = []
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        ready = queue.Queue()
        threading.Thread(target=self._listen, args=(ready,), daemon=True).start()
        self.address = ready.get(timeout=self._patience)
        if self.address is None:
            raise RuntimeError("the gateway does not start:\n" + "".join(self.said))

    def is_running(self):
        """Whether the process is there still; a moment is given to one that ends."""
        time.sleep(0.05)
        return self._process.poll() is None

    def states(self):
        """State and reason of every model once none is loading, by name."""
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            index = {entry["name"]: entry for entry in self.ask("POST", "/v2/repository/index", {})}
            if self._names() <= set(index) and all(
                entry.get("state") in ("READY", "UNAVAILABLE") for entry in index.values()
            ):
                if not any(_is_pending(entry) for entry in index.values()):
                    return index
            time.sleep(0.2)
        raise RuntimeError(f"models are still loading: {index}")

    def _names(self):
        return {entry.name for entry in self._repository.iterdir() if entry.is_dir()}

    def metadata(self, model):
        """What the gateway says of a model."""
        return self.ask("GET", f"/v2/models/{model}")

    def infer(self, model, tensors, inputs, binary):
        """Outputs by name, as arrays."""
        datatypes = {tensor.name: DATATYPES[tensor.kind][0] for tensor in tensors}
        described, blobs = [], []
        for name, values in inputs.items():
            entry = {"name": name, "datatype": datatypes[name], "shape": list(values.shape)}
            if binary:
                blobs.append(_encode(values))
                entry["parameters"] = {"binary_data_size": len(blobs[-1])}
            else:
                entry["data"] = values.ravel().tolist()
            described.append(entry)
        body = {"inputs": described}
        if binary:
            body["parameters"] = {"binary_data_output": True}
        return self._outputs(*self._post(f"/v2/models/{model}/infer", body, blobs if binary else None))

    def ask(self, method, path, body=None):
        """The JSON of an answer."""
        head, answer = self._exchange(method, path, None if body is None else json.dumps(body).encode(), {})
        return json.loads(answer)

    def _post(self, path, body, blobs):
        head = json.dumps(body).encode()
        if blobs is None:
            return self._exchange("POST", path, head, {"content-type": "application/json"})
        headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
        return self._exchange("POST", path, head + b"".join(blobs), headers)

    def _exchange(self, method, path, body, headers):
        connection = http.client.HTTPConnection(self.address, timeout=self._patience)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise Refused(response.status, _error_of(answer))
        return response.headers, answer

    def _outputs(self, headers, answer):
        length = headers.get("inference-header-content-length")
        head = json.loads(answer[: int(length)] if length else answer)
        rest = memoryview(answer)[int(length) :] if length else b""
        outputs = {}
        for output in head["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            dtype, shape = DTYPES[output["datatype"]], output["shape"]
            if size is None:
                outputs[output["name"]] = np.array(output["data"], dtype).reshape(shape)
            else:
                outputs[output["name"]] = _decode(bytes(rest[:size]), dtype, shape)
                rest = rest[size:]
        if len(rest):
            raise ValueError(f"{len(rest)} bytes behind the last output")
        return outputs

    def _listen(self, ready):
        for line in self._process.stdout:
            self.said.append(line)
            address = _address(line)
            if address:
                ready.put(address)
        ready.put(None)


def _address(line):
    try:
        fields = json.loads(line)
        fields = fields.get("fields", fields)
    except (ValueError, AttributeError):
        return None
    if str(fields.get("message", "")).startswith("ready") and "http" in fields:
        return fields["http"].removeprefix("http://").rstrip("/")
    return None


def _is_pending(entry):
    return entry["state"] == "UNAVAILABLE" and entry.get("reason", "") in ("", "loading", "waiting")


def _error_of(answer):
    try:
        return json.loads(answer)["error"]
    except (ValueError, KeyError, TypeError):
        return answer[:200].decode(errors="replace")


def _encode(values):
    if values.dtype != np.object_:
        return np.ascontiguousarray(values).tobytes()
    texts = [text.encode() if isinstance(text, str) else bytes(text) for text in values.ravel()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def _decode(data, dtype, shape):
    if dtype is not np.object_:
        return np.frombuffer(data, dtype).reshape(shape)
    texts, at = [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        texts.append(data[at + 4 : end].decode())
        at = end
    return np.array(texts, np.object_).reshape(shape)
