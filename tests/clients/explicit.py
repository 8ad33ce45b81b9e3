"""Versions that come and go by the client's word, as under Triton's explicit mode, while others are asked for answers."""

import pathlib
import shutil
import threading
import time

import numpy
from client import arguments, connect, given, refused, same

MODEL = "truth"
X = numpy.array([1.5, -2.0], dtype=numpy.float32)


def folder(version):
    return pathlib.Path(arguments().repository) / MODEL / str(version)


def put(version, content):
    """Puts a version into the repository at once, as a publisher should."""
    aside = pathlib.Path(arguments().repository).with_name(f"aside-{version}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    (aside / "model.onnx").write_bytes(content)
    aside.rename(folder(version))


def model(name):
    return pathlib.Path(arguments().fixtures) / name / "1" / "model.onnx"


def answer(client, version=""):
    metadata = client.get_model_metadata(MODEL)
    asked = [given(metadata["inputs"][0]["name"], "FP32", X)]
    response = client.infer(MODEL, asked, model_version=version)
    said = response.get_response()["model_version"]
    return said, response.as_numpy(metadata["outputs"][0]["name"]).tolist()


ONCE, TWICE = X.tolist(), (2 * X).tolist()


def states(client):
    index = client.get_model_repository_index()
    return {entry.get("version"): (entry["state"], entry["reason"]) for entry in index if entry["name"] == MODEL}


def eventually(what, condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def a_new_version_answers_from_the_acknowledgement_on(client):
    same(answer(client), ("1", ONCE))
    put(2, model("doubled_fp32").read_bytes())
    client.load_model(MODEL)
    same(answer(client), ("2", TWICE))


def a_broken_version_changes_nothing(client):
    put(3, b"no model")
    with refused(400, "version 3: not an ONNX model"):
        client.load_model(MODEL)
    same(answer(client), ("2", TWICE))
    assert client.is_model_ready(MODEL)
    same(states(client)["2"][0], "READY")
    state, reason = states(client)["3"]
    same(state, "UNAVAILABLE")
    assert "not an ONNX model" in reason, reason
    shutil.rmtree(folder(3))
    client.load_model(MODEL)
    same(answer(client), ("2", TWICE))


def what_is_unloaded_is_gone_until_it_is_loaded(client):
    client.unload_model(MODEL, unload_dependents=True)
    assert not client.is_model_ready(MODEL)
    assert client.is_server_ready(), "the other model still answers"
    asked = [given("x", "FP32", X)]
    with refused(503, "not at ready state"):
        client.infer(MODEL, asked)
    eventually("nothing is held any more", lambda: {state for state, _ in states(client).values()} == {"UNAVAILABLE"})
    client.unload_model(MODEL)
    client.load_model(MODEL)
    same(answer(client), ("2", TWICE))


def loads_at_the_same_time_all_hold(client):
    problems = []

    def load():
        own = connect()
        try:
            own.load_model(MODEL)
            same(answer(own), ("2", TWICE))
        except Exception as problem:
            problems.append(problem)
        finally:
            own.close()

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    same(problems, [])


def thirty_rounds_under_load_disturb_nobody_else(client):
    """One model comes and goes; another is asked all the time and never refused."""
    problems, answered, done = [], [0], threading.Event()

    def ask():
        own = connect()
        try:
            name = own.get_model_metadata("steady")["inputs"][0]["name"]
            while not done.is_set():
                result = own.infer("steady", [given(name, "FP32", X)])
                output = result.get_response()["outputs"][0]["name"]
                same(result.as_numpy(output).tolist(), ONCE)
                answered[0] += 1
        except Exception as problem:
            problems.append(problem)
        finally:
            own.close()

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        for _ in range(30):
            client.unload_model(MODEL)
            assert not client.is_model_ready(MODEL)
            client.load_model(MODEL)
            same(answer(client), ("2", TWICE))
            same(answer(client, "2"), ("2", TWICE))
    finally:
        done.set()
        asker.join()
    same(problems, [])
    assert answered[0] > 0


TOPICS = [
    a_new_version_answers_from_the_acknowledgement_on,
    a_broken_version_changes_nothing,
    what_is_unloaded_is_gone_until_it_is_loaded,
    loads_at_the_same_time_all_hold,
    thirty_rounds_under_load_disturb_nobody_else,
]

if __name__ == "__main__":
    client = connect()
    for topic in TOPICS:
        topic(client)
        print(f"{topic.__name__}: well")
    client.close()
