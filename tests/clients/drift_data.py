"""Writes the rows that the sample model `digits` was trained on, and the rows that a test streams.

    python3 drift_data.py FOLDER

`train.csv` has the 1,347 pictures of the model's training (models/digits/recipe.py), with their digit. `calm.f32` has rows of the
450 others, in random order and as often as a fixed seed has it, `shifted.f32` rows of their sevens alone: 64 floats a row, little-endian.
"""

import pathlib
import sys

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CALM_ROWS = 4_000
SHIFTED_ROWS = 400

folder = pathlib.Path(sys.argv[1])
data = load_digits()
seen, unseen, seen_truth, unseen_truth = train_test_split(
    data.data, data.target, test_size=0.25, random_state=0, stratify=data.target
)
head = ",".join([f"pixel_{column}" for column in range(64)] + ["digit"])
table = np.column_stack([seen, seen_truth])
np.savetxt(folder / "train.csv", table, fmt="%d", delimiter=",", header=head, comments="")
draw = np.random.default_rng(20)
for name, pool, count in [("calm", unseen, CALM_ROWS), ("shifted", unseen[unseen_truth == 7], SHIFTED_ROWS)]:
    pool[draw.integers(0, len(pool), count)].astype("<f4").tofile(folder / f"{name}.f32")
