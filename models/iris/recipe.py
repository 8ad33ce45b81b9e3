"""Which of three irises, from four lengths: scaled logistic regression."""

import numpy as np
from artifact import Reference, Trained, Version, classifier_cases, linear_classifier, settle, table
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def train() -> Trained:
    """One version, fitted on 105 rows and judged on 45 others."""
    data = load_iris()
    # What a client can send is FP32; the sums of training are FP64.
    rows, truth = data.data.astype(np.float32).astype(np.float64), data.target
    seen, unseen, seen_truth, unseen_truth = train_test_split(
        rows, truth, test_size=0.3, random_state=0, stratify=truth
    )
    fitted = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky", tol=1e-8))
    fitted.fit(seen, seen_truth)
    fitted[-1].coef_, fitted[-1].intercept_ = settle(fitted[-1].coef_), settle(fitted[-1].intercept_)

    chances = fitted.predict_proba(unseen)
    found = [float(accuracy_score(unseen_truth, chances.argmax(axis=1))), float(log_loss(unseen_truth, chances))]
    graph = linear_classifier("iris", "Logistic regression on scaled lengths", *fitted)
    return Trained(
        [Version(1, graph, classifier_cases(fitted, [unseen[:1], unseen[1:4], unseen[4:12]]))],
        classes=[str(name) for name in data.target_names],
        reference=Reference([name.removesuffix(" (cm)").replace(" ", "_") for name in data.feature_names], seen),
        tables={"held-out": table(["45 held-out rows", "accuracy", "log loss"], [["version 1", *found]])},
    )
