"""Models of PyTorch's exporters, kept beside their recipe in torch_exports/."""

from pathlib import Path

from model import Model

FOLDER = Path(__file__).with_name("torch_exports")
# Indices below the number of nodes, and at least one element that a mask leaves.
VALUES = {
    "encoder": {"mask": 1, "tokens": {"low": 1, "high": 50}},
    "masked_mean": {"mask": {"low": 0, "high": 2}, "tokens": {"low": 0, "high": 50}},
    "messages": {"sources": {"low": 0, "high": 1}, "targets": {"low": 0, "high": 1}},
    "ids": {"threshold": 0.5},
}
SIZES = {
    "cnn": {"height": 16, "width": 24, "image:2": 16, "image:3": 24},
    "encoder": {"length": 6},
    "messages": {"edges:0": 7, "sources:0": 7, "targets:0": 7},
}


def kept():
    """Every model of the folder."""
    models = []
    for file in sorted(FOLDER.glob("*.onnx")):
        name, exporter = file.stem.split(".")
        beside = list(FOLDER.glob(file.name + ".*"))
        source = f"torch.onnx, {exporter}"
        sizes, values = SIZES.get(name, {}), VALUES.get(name, {})
        models.append(Model(f"torch.{file.stem}", file, source, sizes=sizes, values=values, beside=beside))
    return models
