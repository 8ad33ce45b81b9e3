"""Malignant or benign from 30 measured features: version 1 a random forest, version 2 scaled logistic regression."""

import numpy as np
from artifact import Reference, Trained, Version, classifier_cases, finish, linear_classifier, settle, table
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.model_selection import RepeatedStratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOREST = RandomForestClassifier(n_estimators=100, random_state=0)
LOGISTIC = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky", tol=1e-8))


def train() -> Trained:
    """Both versions, fitted on the same 398 rows and judged on the same 171 others."""
    data = load_breast_cancer()
    # What a client can send is FP32; the sums of training are FP64.
    rows, truth = data.data.astype(np.float32).astype(np.float64), data.target
    seen, unseen, seen_truth, unseen_truth = train_test_split(
        rows, truth, test_size=0.3, random_state=0, stratify=truth
    )
    forest = clone(FOREST).fit(seen, seen_truth)
    logistic = clone(LOGISTIC).fit(seen, seen_truth)
    logistic[-1].coef_, logistic[-1].intercept_ = settle(logistic[-1].coef_), settle(logistic[-1].intercept_)

    batches = [unseen[:1], unseen[1:5], unseen[5:8]]
    return Trained(
        [
            Version(1, forest_graph(forest), classifier_cases(forest, batches)),
            Version(
                2,
                linear_classifier("breast_cancer", "Logistic regression on scaled features", *logistic),
                classifier_cases(logistic, batches),
            ),
        ],
        classes=[str(name) for name in data.target_names],
        reference=Reference([str(name).replace(" ", "_") for name in data.feature_names], seen),
        tables={
            "held-out": table(
                ["171 held-out rows", "accuracy", "log loss", "ROC AUC"],
                [
                    ["version 1, random forest", *scores(unseen_truth, forest.predict_proba(unseen))],
                    ["version 2, logistic regression", *scores(unseen_truth, logistic.predict_proba(unseen))],
                ],
            ),
            "cross-validated": cross_validated(rows, truth),
        },
    )


def scores(truth: np.ndarray, chances: np.ndarray) -> list[float]:
    """Accuracy, log loss and ROC AUC."""
    return [
        float(accuracy_score(truth, chances.argmax(axis=1))),
        float(log_loss(truth, chances)),
        float(roc_auc_score(truth, chances[:, 1])),
    ]


def cross_validated(rows: np.ndarray, truth: np.ndarray) -> str:
    """Both recipes on the same 50 folds, because 171 rows alone tell little about accuracy."""
    folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=10, random_state=0)
    first, second = [], []
    for seen, unseen in folds.split(rows, truth):
        for recipe, found in ((FOREST, first), (LOGISTIC, second)):
            fitted = clone(recipe).fit(rows[seen], truth[seen])
            found.append(scores(truth[unseen], fitted.predict_proba(rows[unseen])))
    first, second = np.array(first), np.array(second)
    better = [
        f"{int((second[:, i] * sign > first[:, i] * sign).sum())} better, "
        f"{int((second[:, i] == first[:, i]).sum())} equal"
        for i, sign in enumerate((1, -1, 1))
    ]
    return table(
        ["10 x 5-fold, mean", "accuracy", "log loss", "ROC AUC"],
        [
            ["version 1, random forest", *map(float, first.mean(axis=0))],
            ["version 2, logistic regression", *map(float, second.mean(axis=0))],
            ["version 2 in 50 folds", *better],
        ],
    )


def forest_graph(forest: RandomForestClassifier):
    """The forest as skl2onnx exports it, with a plain probabilities tensor instead of a list of maps."""
    model = to_onnx(
        forest,
        initial_types=[("input", FloatTensorType([None, 30]))],
        options={id(forest): {"zipmap": False}},
        target_opset={"": 17, "ai.onnx.ml": 3},
    )
    for info in [*model.graph.input, *model.graph.output]:
        info.type.tensor_type.shape.dim[0].dim_param = "N"
    return finish("breast_cancer", "Random forest of 100 trees", model.graph)
