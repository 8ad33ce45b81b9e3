"""Negative or positive, from raw text: TF-IDF of words and word pairs, and logistic regression.

The corpus is fetched by its digest, read in memory and never written into this repository.
"""

import hashlib
import html
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from artifact import Case, Reference, Tensor, Trained, Version, constants, finish, settle, table, value_info
from onnx import helper, numpy_helper
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import make_pipeline

PACKAGE = "vaderSentiment"
RELEASE = "3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "models"

SOURCES = {"movie reviews": "movieReviewSnippets", "product reviews": "amazonReviewSnippets", "tweets": "tweets"}
CLASSES = ["negative", "positive"]
# People rated from -4 to 4; what is nearly neutral teaches nothing about the sign.
RATING_MIN = 0.3

# Words are runs of ASCII letters: then lower-casing needs no locale, and both sides agree on every byte.
WORD = r"[a-zA-Z']+"
TERMS = 3500
# The best of 1, 2 and 4 in 4-fold cross-validation inside the training part.
INVERSE_PENALTY = 2.0


def train() -> Trained:
    """One version, fitted on three quarters of the documents and judged on the rest."""
    texts, truth, source, document = corpus()
    split = GroupShuffleSplit(n_splits=1, test_size=0.25, random_state=0)
    seen, unseen = next(split.split(texts, truth, document))
    fitted = fit(texts[seen], truth[seen])

    chances = fitted.predict_proba(texts[unseen])[:, 1]
    rows = []
    for name in [*SOURCES, "all"]:
        mask = (source[unseen] == name) | (name == "all")
        answers, guesses = truth[unseen][mask], chances[mask]
        commonest = float(max(answers.mean(), 1 - answers.mean()))
        found = [accuracy_score(answers, guesses > 0.5), log_loss(answers, guesses), roc_auc_score(answers, guesses)]
        rows.append([name, f"{mask.sum():,}", *map(float, found), commonest])
    return Trained(
        [Version(1, graph(fitted), cases(fitted))],
        classes=CLASSES,
        reference=Reference(["text"], texts[seen]),
        tables={
            "held-out": table(["held-out texts", "rows", "accuracy", "log loss", "ROC AUC", "commonest class"], rows)
        },
    )


def fit(texts: np.ndarray, truth: np.ndarray):
    """Keeps the terms that weigh most in a first fit over all that occur three times, then fits again on these."""
    first = make_pipeline(vectorizer(min_df=3), logistic()).fit(texts, truth)
    weight = settle(first[-1].coef_[0], 4)
    names = first[0].get_feature_names_out()
    kept = sorted(range(len(names)), key=lambda i: (-abs(weight[i]), names[i]))[:TERMS]
    # Words before pairs: the order in which ONNX wants its pool.
    terms = sorted((names[i] for i in kept), key=lambda term: (term.count(" "), term))
    fitted = make_pipeline(vectorizer(vocabulary=terms), logistic()).fit(texts, truth)
    fitted[-1].coef_, fitted[-1].intercept_ = settle(fitted[-1].coef_, 4), settle(fitted[-1].intercept_, 4)
    return fitted


def vectorizer(**choice) -> TfidfVectorizer:
    return TfidfVectorizer(token_pattern=WORD, ngram_range=(1, 2), **choice)


def logistic() -> LogisticRegression:
    return LogisticRegression(C=INVERSE_PENALTY, solver="newton-cg", tol=1e-12)


def cases(fitted) -> list[Case]:
    """Golden cases in our own words, so that no text of the corpus is published here."""
    batches = [
        ["A warm, funny and wonderful film."],
        ["The battery died after a week. Terrible support!", "Works great, I love it :)", "NOT WORTH THE MONEY"],
        ["", "12345 ???", "Crème brûlée was perfect, the café is a delight", "boring\tand\nfar too long"],
    ]
    made = []
    for batch in batches:
        chances = fitted.predict_proba(batch)
        assert abs(chances[:, 0] - 0.5).min() > 0.01, "a golden label hangs on a near tie: choose other texts"
        label = np.array(CLASSES, dtype=object)[chances.argmax(axis=1)]
        outputs = [Tensor("label", "BYTES", label), Tensor("probabilities", "FP32", chances)]
        made.append(Case([Tensor("text", "BYTES", np.array(batch, dtype=object)[:, None])], outputs))
    return made


def graph(fitted):
    """The pipeline in ONNX, from raw text to class name.

    Written by hand because skl2onnx takes a pair of words for one long word here, and asks the host for the locale
    en_US.UTF-8, without which ONNX Runtime then refuses to load the model.
    """
    terms, weights = list(fitted[0].get_feature_names_out()), fitted[-1].coef_[0]
    words = [term for term in terms if " " not in term]
    pairs = [term.split(" ") for term in terms[len(words) :]]
    pool = words + [word for pair in pairs for word in pair]
    nodes = [
        helper.make_node("Reshape", ["text", "flat_shape"], ["flat"]),
        helper.make_node("StringNormalizer", ["flat"], ["lower"], case_change_action="LOWER", locale="C"),
        helper.make_node(
            "Tokenizer", ["lower"], ["words"],
            domain="com.microsoft", mark=0, mincharnum=1, pad_value="#", tokenexp=WORD,
        ),
        helper.make_node(
            "TfIdfVectorizer", ["words"], ["counts"],
            mode="TF", min_gram_length=1, max_gram_length=2, max_skip_count=0,
            pool_strings=pool, ngram_counts=[0, len(words)], ngram_indexes=list(range(len(terms))),
        ),
        helper.make_node("Mul", ["counts", "inverse_frequency"], ["weighted"]),
        helper.make_node("Normalizer", ["weighted"], ["features"], domain="ai.onnx.ml", norm="L2"),
        helper.make_node("Gemm", ["features", "weights", "bias"], ["scores"], transB=1),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
        helper.make_node("Gather", ["classes", "best"], ["label"], axis=0),
    ]  # fmt: skip
    half, bias = weights / 2, fitted[-1].intercept_[0] / 2
    initializers = constants(
        inverse_frequency=fitted[0].idf_[None], weights=np.vstack([-half, half]), bias=np.array([-bias, bias])
    )
    initializers.append(numpy_helper.from_array(np.array([-1]), "flat_shape"))
    initializers.append(helper.make_tensor("classes", 8, [2], [name.encode() for name in CLASSES]))
    inputs = [value_info("text", "BYTES", 1)]
    outputs = [value_info("label", "BYTES"), value_info("probabilities", "FP32", 2)]
    about = "Logistic regression on TF-IDF of words and word pairs"
    return finish("sentiment", about, helper.make_graph(nodes, "sentiment", inputs, outputs, initializers))


def corpus() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Texts, their class (0 or 1), the name of their source, and the document that they were cut from."""
    with tarfile.open(archive()) as outer:
        path = f"{PACKAGE}-{RELEASE}/additional_resources/hutto_ICWSM_2014.tar.gz"
        inner = io.BytesIO(outer.extractfile(path).read())
    rows = []
    with tarfile.open(fileobj=inner) as files:
        for source, file in SOURCES.items():
            content = files.extractfile(f"hutto_ICWSM_2014/{file}_GroundTruth.txt").read().decode()
            for line in content.splitlines():
                name, rating, text = line.split("\t", 2)
                if abs(float(rating)) >= RATING_MIN:
                    document = f"{source} {name.split('_')[0]}"
                    rows.append((html.unescape(text), int(float(rating) > 0), source, document))
    texts, truth, source, document = zip(*rows, strict=True)
    return np.array(texts, dtype=object), np.array(truth), np.array(source), np.array(document)


def archive() -> Path:
    """The package's source archive, from the cache or through pip, its digest checked either way."""
    path = CACHE / f"{PACKAGE}-{RELEASE}.tar.gz"
    if not path.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as aside:
            pin = Path(aside, "pin.txt")
            pin.write_text(f"{PACKAGE}=={RELEASE} --hash=sha256:{SHA256}\n")
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
            command += ["--no-build-isolation", "--require-hashes", "--dest", aside, "--requirement", str(pin)]
            if subprocess.run(command, check=False).returncode != 0:
                raise RuntimeError(f"pip could not fetch {PACKAGE} {RELEASE}: see above, or put its sdist at {path}")
            [fetched] = Path(aside).glob("*.tar.gz")
            os.replace(fetched, path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise RuntimeError(f"{path} has SHA-256 {found}, expected {SHA256}: delete it and run again")
    return path
