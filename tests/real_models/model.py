"""What is known of a model that is to be served: where its file is, and which inputs suit it."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Model:
    """One model file, and what a random input must keep to.

    `sizes` gives the size of an open dimension, by its symbol or as `input:axis`; `"batch"` as a size means the size
    of the batch that is tried. An input of no declared rank has a list of sizes instead. `values` says what an input's
    elements are: a number, `{"low", "high"}` for a range, `{"choices"}` for a list, or a whole array. `recorded` is a
    folder with `input_0.pb` and so on, used as they are. `overrules` gives inputs that have a default as well.
    `tolerance` is how far numbers may be apart, 0 unless there is a reason.
    """

    name: str
    file: Path
    source: str
    sizes: dict = field(default_factory=dict)
    values: dict = field(default_factory=dict)
    recorded: Path | None = None
    beside: list = field(default_factory=list)
    overrules: bool = False
    tolerance: float = 0.0


@dataclass
class Tensor:
    """An input or output as the runtime describes it; `shape` is `None` where the file declares no rank."""

    name: str
    kind: str
    shape: list | None
    is_optional: bool = False
