"""What the client scripts share: arguments, a connected client, and checks that say what went wrong."""

import argparse
import contextlib

import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", required=True, help="host:port of the data plane")
    parser.add_argument("--models", required=True, help="folder of the sample models, with golden.json files")
    parser.add_argument("--fixtures", required=True, help="folder of the models that tests are made with")
    parser.add_argument("--repository", required=True, help="the folder that the server watches")
    return parser.parse_args()


def connect(concurrency=1):
    return triton.InferenceServerClient(
        arguments().http, concurrency=concurrency, connection_timeout=20.0, network_timeout=20.0
    )


def given(name, datatype, values, binary=True):
    """An input with these values, a numpy array."""
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def same(actual, expected, what=""):
    assert actual == expected, f"{what}: {actual!r}, not {expected!r}"


@contextlib.contextmanager
def refused(status, text=""):
    """The client must be told this status, and an error that contains the text."""
    try:
        yield
    except InferenceServerException as error:
        same(error.status(), str(status), error.message())
        assert text.lower() in error.message().lower(), f"no {text!r} in {error.message()!r}"
    else:
        raise AssertionError(f"not refused with {status}")
