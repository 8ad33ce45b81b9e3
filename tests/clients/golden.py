"""Predictions through tritonclient equal the outputs that the training library gave when the models were made."""

import json
from pathlib import Path

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import triton_to_np_dtype

from client import arguments, connect, given, same

# Served under a name, recorded under a sample's folder.
SAMPLES = {
    "sentiment": "sentiment/1",
    "digits": "digits/1",
    "breast_cancer": "breast_cancer/1",
    "breast_cancer_2": "breast_cancer/2",
}


def array(tensor):
    values = np.array(tensor["data"], dtype=triton_to_np_dtype(tensor["datatype"]))
    return values.reshape(tensor["shape"])


def compare(found, expected, tolerance):
    same(list(found.shape), list(expected["shape"]), expected["name"])
    wanted = array(expected)
    if expected["datatype"].startswith("FP"):
        near = np.isclose(found, wanted, rtol=tolerance["relative"], atol=tolerance["absolute"])
        assert near.all(), f"{expected['name']}: {found}, not {wanted}"
        return
    texts = [x.decode() if isinstance(x, bytes) else x for x in found.flatten().tolist()]
    same(texts, wanted.flatten().tolist(), expected["name"])


def main():
    client = connect()
    for served, sample in SAMPLES.items():
        golden = json.loads((Path(arguments().models) / sample / "golden.json").read_text())
        assert golden["cases"], sample
        for case in golden["cases"]:
            for binary in (True, False):
                asked = [given(t["name"], t["datatype"], array(t), binary) for t in case["inputs"]]
                outputs = [triton.InferRequestedOutput(t["name"], binary_data=binary) for t in case["outputs"]]
                result = client.infer(served, asked, outputs=outputs)
                for expected in case["outputs"]:
                    compare(result.as_numpy(expected["name"]), expected, golden["tolerance"])
        print(f"{sample}: {len(golden['cases'])} cases are well")
    client.close()


if __name__ == "__main__":
    main()
