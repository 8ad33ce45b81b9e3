"""Seeded random inputs that suit a model, at a wanted batch size."""

import zlib

import numpy as np

SIZE_OF_AN_OPEN_DIMENSION = 4
WORDS = ["red", "green", "blue", "", "zwölf", "a longer text, of several words"]
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}


class Unsuitable(Exception):
    """No input can be made, such as for a sequence."""


def make(model, tensors, batch):
    """Values for every input that must be given, by name."""
    seed = zlib.crc32(f"{model.name} {batch}".encode())
    random = np.random.default_rng(seed)
    needed = [tensor for tensor in tensors if model.overrules or not tensor.is_optional]
    return {tensor.name: _values(model, needed, tensor, batch, random) for tensor in needed}


def rebatched(recorded, batch):
    """Recorded inputs, cut or repeated along their first axis to this many rows."""
    rows = next((values.shape[0] for values in recorded.values() if values.ndim), None)
    made = {}
    for name, values in recorded.items():
        if values.ndim and values.shape[0] == rows and rows:
            values = values[np.arange(batch) % rows]
        made[name] = values
    return made


def batch_axis(tensors):
    """The first dimension of the first input that has one: a symbol, `None` if open without a name, or a number."""
    return next((tensor.shape[0] for tensor in tensors if tensor.shape), 1)


def _values(model, tensors, tensor, batch, random):
    wanted = model.values.get(tensor.name, {})
    if isinstance(wanted, np.ndarray):
        return wanted
    if tensor.kind not in DTYPES:
        raise Unsuitable(f"`{tensor.name}` is a {tensor.kind}")
    dtype = DTYPES[tensor.kind]
    shape = _shape(model, tensors, tensor, batch)
    if not isinstance(wanted, dict):
        return np.full(shape, wanted, dtype)
    if "choices" in wanted:
        chosen = random.integers(len(wanted["choices"]), size=shape)
        return np.array(wanted["choices"], dtype)[chosen]
    return _random(dtype, shape, wanted, random)


def _random(dtype, shape, wanted, random):
    if dtype is np.object_:
        return np.array(WORDS, dtype)[random.integers(len(WORDS), size=shape)]
    if dtype is np.bool_:
        return random.random(shape) < 0.5
    if np.issubdtype(dtype, np.integer):
        return random.integers(wanted.get("low", 0), wanted.get("high", 5), size=shape).astype(dtype)
    if wanted:
        return random.uniform(wanted["low"], wanted["high"], shape).astype(dtype)
    return random.standard_normal(shape).astype(dtype)


def _shape(model, tensors, tensor, batch):
    if tensor.shape is None:
        shape = model.sizes.get(tensor.name, ["batch", SIZE_OF_AN_OPEN_DIMENSION])
        return tuple(batch if size == "batch" else size for size in shape)
    first = batch_axis(tensors)
    return tuple(_size(model, tensor, axis, dim, first, batch) for axis, dim in enumerate(tensor.shape))


def _size(model, tensor, axis, dim, first, batch):
    size = model.sizes.get(f"{tensor.name}:{axis}", model.sizes.get(dim))
    if size is not None:
        return batch if size == "batch" else size
    if isinstance(dim, int):
        return batch if axis == 0 and dim == first == 1 else dim
    is_batch = axis == 0 or (dim is not None and dim == first)
    return batch if is_batch else SIZE_OF_AN_OPEN_DIMENSION
