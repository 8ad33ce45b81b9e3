"""Every datatype there and back through tritonclient: in JSON and in binary form, flat and empty."""

import ml_dtypes
import numpy as np
import tritonclient.http as triton

from client import connect, given, refused, same

BORDERS = {
    "BOOL": np.array([True, False, True]),
    "FP16": np.array([-1.5, 0.0, 65504.0], dtype=np.float16),
    "BF16": np.array([-1.5, 0.0, 3.0e38], dtype=ml_dtypes.bfloat16),
    "FP32": np.array([-1.5, 0.1, np.finfo(np.float32).max], dtype=np.float32),
    "FP64": np.array([-1.5, 0.1, np.finfo(np.float64).max], dtype=np.float64),
    "BYTES": np.array([b"", b"tide", "\u6f6e \"quoted\" \\ \n".encode()], dtype=np.object_),
}
for kind in (np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64):
    limits = np.iinfo(kind)
    BORDERS[kind.__name__.upper()] = np.array([limits.min, 1, limits.max], dtype=kind)

BINARY_ONLY = ("FP16", "BF16")


def back(client, datatype, values, binary_in, binary_out):
    result = client.infer(
        f"identity_{datatype.lower()}",
        [given("INPUT", datatype, values, binary_in)],
        outputs=[triton.InferRequestedOutput("OUTPUT", binary_data=binary_out)],
    )
    same(result.get_output("OUTPUT")["datatype"], datatype)
    found = result.as_numpy("OUTPUT")
    if datatype == "BYTES":
        found = np.array([x.encode() if isinstance(x, str) else x for x in found], dtype=np.object_)
    return found


def main():
    client = connect()
    same(len(BORDERS), 14)
    for datatype, values in BORDERS.items():
        for binary_in in (True, False):
            for binary_out in (True, False):
                what = f"{datatype}, in {binary_in}, out {binary_out}"
                if datatype == "BF16" and not binary_in:
                    continue  # the client itself refuses
                if datatype in BINARY_ONLY and not (binary_in and binary_out):
                    with refused(400, "binary"):
                        back(client, datatype, values, binary_in, binary_out)
                    continue
                for part in (values, values[:1], values[:0]):
                    found = back(client, datatype, part, binary_in, binary_out)
                    same(found.tolist(), part.tolist(), what)
        print(f"{datatype} is well")
    odd = np.array([b"\xff\xfe", b"\x80"], dtype=np.object_)
    same(back(client, "BYTES", odd, True, True).tolist(), odd.tolist(), "bytes that are no text")
    # An engine may be unable to hold a zero byte; then it must say so, not cut the string.
    odd = np.array([b"a\x00b"], dtype=np.object_)
    try:
        same(back(client, "BYTES", odd, True, True).tolist(), odd.tolist(), "a string with a zero byte")
    except triton.InferenceServerException as error:
        same(error.status(), "400", error.message())
    client.close()


if __name__ == "__main__":
    main()
