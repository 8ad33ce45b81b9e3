"""Makes the models in this folder with PyTorch's two exporters, with fixed seeds.

    python tests/real_models/torch_exports/recipe.py          needs torch, onnx and onnxscript

The files are kept in the repository, some hundred kilobytes, because PyTorch is larger than all else together.
"""

from pathlib import Path

import onnx
import torch
from torch import nn

HERE = Path(__file__).parent


class Encoder(nn.Module):
    """A transformer with a padding mask."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.embed = nn.Embedding(50, 16)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens, mask):
        hidden = self.encoder(self.embed(tokens), src_key_padding_mask=mask == 0)
        return self.head(hidden[:, 0])


class MaskedMean(nn.Module):
    """The mean of what a mask leaves: no number where it leaves nothing."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)

    def forward(self, tokens, mask):
        weights = mask.unsqueeze(-1).float()
        return (self.embed(tokens) * weights).sum(1) / weights.sum(1)


class UnitVector(nn.Module):
    """Rows of length one: no number for a row of zeros."""

    def forward(self, x):
        return x / x.norm(dim=-1, keepdim=True)


class MaskedSoftmax(nn.Module):
    """A softmax over what a mask leaves: no number where it leaves nothing."""

    def forward(self, x, mask):
        return torch.softmax(torch.where(mask, x, float("-inf")), dim=-1)


class Recurrent(nn.Module):
    """An LSTM or GRU whose state is an input and an output."""

    def __init__(self, kind):
        super().__init__()
        self.layer = kind(6, 8, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0][:, -1]


class Convolutions(nn.Module):
    """A small network for images of any size."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1, groups=2),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        )

    def forward(self, image):
        return self.layers(image)


class Messages(nn.Module):
    """Sums over the edges of a graph: nodes and edges are of different number."""

    def __init__(self):
        super().__init__()
        self.weigh = nn.Linear(1, 2)

    def forward(self, nodes, edges, sources, targets):
        message = nodes[sources] * self.weigh(edges)
        sums = torch.zeros_like(nodes)
        return sums.scatter_add(0, targets.unsqueeze(-1).expand(-1, 2), message)


class Autoencoder(nn.Module):
    """Plain layers, in half precision or with large weights."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, 8))

    def forward(self, x):
        return self.layers(x)


class Ids(nn.Module):
    """Integers and truth values as outputs, and one input without a batch."""

    def forward(self, scores, threshold):
        best = scores.argmax(-1)
        return best, scores.amax(-1) > threshold, torch.topk(scores, 2, dim=-1).values


def main():
    tokens, mask = torch.randint(1, 50, (2, 6)), torch.ones(2, 6, dtype=torch.int64)
    by_token = {"tokens": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}}
    rows = {"x": {0: "batch"}}
    steps = {"x": {0: "batch", 1: "length"}}
    graph = (torch.rand(4, 2), torch.rand(5, 1), torch.randint(4, (5,)), torch.randint(4, (5,)))
    of_graph = {
        "nodes": {0: "num_nodes"},
        "edges": {0: "num_edges"},
        "sources": {0: "num_edges"},
        "targets": {0: "num_edges"},
    }
    cases = {
        "encoder": (Encoder, (tokens, mask), by_token),
        "masked_mean": (MaskedMean, (tokens, mask), by_token),
        "unit_vector": (UnitVector, (torch.rand(2, 8),), rows),
        "masked_softmax": (
            MaskedSoftmax,
            (torch.rand(2, 5), torch.rand(2, 5) > 0.5),
            {"x": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}},
        ),
        "lstm": (lambda: Recurrent(nn.LSTM), (torch.rand(2, 4, 6),), steps),
        "gru": (lambda: Recurrent(nn.GRU), (torch.rand(2, 4, 6),), steps),
        "cnn": (Convolutions, (torch.rand(2, 3, 16, 16),), {"image": {0: "batch", 2: "height", 3: "width"}}),
        "messages": (Messages, graph, of_graph),
        "half": (lambda: Autoencoder(16).half(), (torch.rand(2, 8).half(),), rows),
        "external": (lambda: Autoencoder(512), (torch.rand(2, 8),), rows),
        "ids": (Ids, (torch.rand(2, 5), torch.tensor(0.5)), {"scores": {0: "batch"}, "threshold": {}}),
        "fixed_batch": (lambda: Autoencoder(16), (torch.rand(1, 8),), {}),
    }
    for name, (make, inputs, axes) in cases.items():
        for exporter in ("scripted", "dynamo"):
            torch.manual_seed(0)
            try:
                export(f"{name}.{exporter}", make().eval(), inputs, axes, exporter == "dynamo")
            except Exception as error:
                print(f"{name}.{exporter}: {type(error).__name__}: {str(error)[:300]}")


def export(name, module, inputs, axes, is_dynamo):
    """Writes one model."""
    names = list(module.forward.__code__.co_varnames[1 : 1 + len(inputs)])
    file = str(HERE / f"{name}.onnx")
    if is_dynamo:
        export_dynamo(name, module, inputs, axes, names, file)
    else:
        torch.onnx.export(
            module, inputs, file, input_names=names, dynamic_axes=axes, opset_version=17, dynamo=False
        )
    strip(file)


def export_dynamo(name, module, inputs, axes, names, file):
    """Exports by tracing bytecode; with weights beside the model where its name says so."""
    shapes = {axis: {number: torch.export.Dim.DYNAMIC for number in sizes} for axis, sizes in axes.items()}
    shapes = {key: shapes.get(key, {}) for key in names} if axes else None
    torch.onnx.export(
        module,
        inputs,
        file,
        input_names=names,
        dynamic_shapes=shapes,
        dynamo=True,
        external_data=name.startswith("external"),
        verbose=False,
    )


def strip(file):
    """Removes what tells where and from which lines a model was made, most of the bytes."""
    model = onnx.load(file, load_external_data=False)
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in [*graph.value_info, *graph.input, *graph.output] if graph is model.graph else graph.value_info:
            del value.metadata_props[:]
            value.doc_string = ""
    for initializer in model.graph.initializer:
        del initializer.metadata_props[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    onnx.save(model, file)


if __name__ == "__main__":
    main()
