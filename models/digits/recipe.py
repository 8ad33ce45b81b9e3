"""A handwritten digit from 8 x 8 pixels: a small convolutional network, trained here in plain NumPy.

image -> Conv 3x3, 8 -> Relu -> Conv 3x3, 16 -> Relu -> MaxPool 2 -> Flatten -> Gemm 32 -> Relu -> Gemm 10 -> Softmax
"""

import numpy as np
from artifact import Case, Reference, Tensor, Trained, Version, constants, finish, settle, table, value_info
from onnx import helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split

EPOCHS = 40
BATCH_ROWS = 32
PIXEL_MAX = 16.0
DECAY = 1e-3
SMOOTHING = 0.02

Weights = dict[str, np.ndarray]


def train() -> Trained:
    """One version, fitted on 1,347 images and judged on 450 others."""
    data = load_digits()
    images, truth = data.images[:, None].astype(np.float64), data.target
    seen, unseen, seen_truth, unseen_truth = train_test_split(
        images, truth, test_size=0.25, random_state=0, stratify=truth
    )
    fitted = fit(seen / PIXEL_MAX, seen_truth)
    # Pixels come as 0 to 16: the first layer does the scaling. Rounded as the file has them, so that golden is exact.
    fitted["conv1"] = fitted["conv1"] / PIXEL_MAX
    fitted = {name: settle(array).astype(np.float32).astype(np.float64) for name, array in fitted.items()}

    baseline = LogisticRegression(max_iter=2000).fit(seen.reshape(-1, 64) / PIXEL_MAX, seen_truth)
    rows = [
        ["version 1, this network", *scores(unseen_truth, answer(fitted, unseen))],
        [
            "for comparison, logistic regression",
            *scores(unseen_truth, baseline.predict_proba(unseen.reshape(-1, 64) / PIXEL_MAX)),
        ],
    ]
    cases = [
        Case([Tensor("image", "FP32", batch)], [Tensor("probabilities", "FP32", answer(fitted, batch))])
        for batch in (unseen[:1], unseen[1:4], np.zeros((2, 1, 8, 8)))
    ]
    return Trained(
        [Version(1, graph(fitted), cases)],
        classes=[str(name) for name in data.target_names],
        reference=Reference([f"image[{pixel}]" for pixel in range(64)], seen),
        tables={"held-out": table(["450 held-out images", "accuracy", "log loss"], rows)},
    )


def scores(truth: np.ndarray, chances: np.ndarray) -> list[float]:
    """Accuracy and log loss."""
    return [float(accuracy_score(truth, chances.argmax(axis=1))), float(log_loss(truth, chances))]


def answer(weights: Weights, images: np.ndarray) -> np.ndarray:
    """Probabilities `[N, 10]` for images `[N, 1, 8, 8]`."""
    return softmax(forward(weights, images)["scores"])


def fit(images: np.ndarray, truth: np.ndarray) -> Weights:
    """Adam on cross-entropy, the step size falling along half a cosine; images are shifted by up to a pixel."""
    random = np.random.default_rng(0)
    weights = beginning(random)
    mean = {name: np.zeros_like(array) for name, array in weights.items()}
    square = {name: np.zeros_like(array) for name, array in weights.items()}
    wanted = np.eye(10)[truth] * (1 - SMOOTHING) + SMOOTHING / 10
    steps = EPOCHS * (len(images) // BATCH_ROWS)
    for step in range(steps):
        if step % (steps // EPOCHS) == 0:
            order = random.permutation(len(images))
        chosen = order[step % (steps // EPOCHS) * BATCH_ROWS :][:BATCH_ROWS]
        slopes = backward(weights, shifted(images[chosen], random), wanted[chosen])
        rate = 3e-3 * 0.5 * (1 + np.cos(np.pi * step / steps))
        for name in weights:
            mean[name] += 0.1 * (slopes[name] - mean[name])
            square[name] += 0.001 * (slopes[name] ** 2 - square[name])
            grown = mean[name] / (1 - 0.9 ** (step + 1)), square[name] / (1 - 0.999 ** (step + 1))
            weights[name] = weights[name] - rate * (grown[0] / (np.sqrt(grown[1]) + 1e-8) + DECAY * weights[name])
    return weights


def beginning(random: np.random.Generator) -> Weights:
    """He's initial weights; biases are zero."""
    shapes = {"conv1": (8, 1, 3, 3), "conv2": (16, 8, 3, 3), "dense1": (256, 32), "dense2": (32, 10)}
    weights = {}
    for name, shape in shapes.items():
        convolution = len(shape) == 4
        inputs = np.prod(shape[1:]) if convolution else shape[0]
        weights[name] = random.normal(size=shape) * np.sqrt(2 / inputs)
        weights[name + "_bias"] = np.zeros(shape[0] if convolution else shape[1])
    return weights


def shifted(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Each image moved by -1, 0 or 1 pixel each way."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    corners = random.integers(0, 3, size=(len(images), 2))
    return np.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, corners, strict=True)])


def forward(weights: Weights, images: np.ndarray) -> Weights:
    """Every intermediate value, by name."""
    seen = {"patches1": patches(images)}
    seen["map1"] = np.maximum(convolved(seen["patches1"], weights, "conv1"), 0)
    seen["patches2"] = patches(seen["map1"])
    seen["map2"] = np.maximum(convolved(seen["patches2"], weights, "conv2"), 0)
    count, channels = seen["map2"].shape[:2]
    seen["pooled"] = seen["map2"].reshape(count, channels, 4, 2, 4, 2).max(axis=(3, 5))
    seen["flat"] = seen["pooled"].reshape(count, -1)
    seen["hidden"] = np.maximum(seen["flat"] @ weights["dense1"] + weights["dense1_bias"], 0)
    seen["scores"] = seen["hidden"] @ weights["dense2"] + weights["dense2_bias"]
    return seen


def backward(weights: Weights, images: np.ndarray, wanted: np.ndarray) -> Weights:
    """The slope of the mean cross-entropy along each weight."""
    seen = forward(weights, images)
    slopes = {}
    flow = (softmax(seen["scores"]) - wanted) / len(images)
    slopes["dense2"], slopes["dense2_bias"] = seen["hidden"].T @ flow, flow.sum(axis=0)
    flow = flow @ weights["dense2"].T * (seen["hidden"] > 0)
    slopes["dense1"], slopes["dense1_bias"] = seen["flat"].T @ flow, flow.sum(axis=0)
    flow = (flow @ weights["dense1"].T).reshape(seen["pooled"].shape)

    spread = flow.repeat(2, axis=2).repeat(2, axis=3)
    winners = seen["map2"] == seen["pooled"].repeat(2, axis=2).repeat(2, axis=3)
    flow = spread * winners * (seen["map2"] > 0)
    slopes["conv2"], slopes["conv2_bias"] = convolution_slopes(seen["patches2"], flow, weights["conv2"])
    # The slope at a convolution's input is the convolution of the slopes with the filters turned round.
    turned = weights["conv2"][:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    flow = convolved(patches(flow), {"turned": turned, "turned_bias": np.zeros(8)}, "turned") * (seen["map1"] > 0)
    slopes["conv1"], slopes["conv1_bias"] = convolution_slopes(seen["patches1"], flow, weights["conv1"])
    return slopes


def patches(maps: np.ndarray) -> np.ndarray:
    """The 3 x 3 surroundings of each pixel, zero beyond the edge: `[N, C, H, W]` to `[N, H, W, C * 9]`."""
    count, channels, height, width = maps.shape
    padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(count, height, width, channels * 9)


def convolved(around: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    """Filters `[C_out, C_in, 3, 3]` over patches: `[N, C_out, H, W]`."""
    filters = weights[name].reshape(len(weights[name]), -1)
    return (around @ filters.T + weights[name + "_bias"]).transpose(0, 3, 1, 2)


def convolution_slopes(around: np.ndarray, flow: np.ndarray, filters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes along the filters and the biases, given the slopes at the convolution's output."""
    columns = flow.transpose(0, 2, 3, 1).reshape(-1, len(filters))
    return (columns.T @ around.reshape(len(columns), -1)).reshape(filters.shape), columns.sum(axis=0)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Rows of positive numbers that sum to one."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def graph(weights: Weights):
    """The network in ONNX."""
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "conv1", "conv1_bias"], ["conv1_out"], **same),
        helper.make_node("Relu", ["conv1_out"], ["map1"]),
        helper.make_node("Conv", ["map1", "conv2", "conv2_bias"], ["conv2_out"], **same),
        helper.make_node("Relu", ["conv2_out"], ["map2"]),
        helper.make_node("MaxPool", ["map2"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "dense1", "dense1_bias"], ["dense1_out"]),
        helper.make_node("Relu", ["dense1_out"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "dense2", "dense2_bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    inputs, outputs = [value_info("image", "FP32", 1, 8, 8)], [value_info("probabilities", "FP32", 10)]
    about = "Small convolutional network for 8 x 8 digits"
    return finish("digits", about, helper.make_graph(nodes, "digits", inputs, outputs, constants(**weights)))
