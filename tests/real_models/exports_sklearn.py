"""Models of scikit-learn, trained and exported on the spot with fixed seeds by skl2onnx."""

import numpy as np
import onnx
import sklearn.calibration
import sklearn.cluster
import sklearn.compose
import sklearn.datasets
import sklearn.decomposition
import sklearn.discriminant_analysis
import sklearn.ensemble
import sklearn.feature_extraction.text
import sklearn.gaussian_process
import sklearn.impute
import sklearn.linear_model
import sklearn.multioutput
import sklearn.naive_bayes
import sklearn.neighbors
import sklearn.neural_network
import sklearn.pipeline
import sklearn.preprocessing
import sklearn.svm
import sklearn.tree
from skl2onnx import to_onnx
from skl2onnx.common._container import ModelComponentContainer
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType

from model import Model

FEATURES, CLASSES = sklearn.datasets.load_iris(return_X_y=True)
FEATURES = FEATURES.astype(np.float32)
TARGETS = FEATURES @ np.array([1.0, -0.5, 0.25, 2.0], np.float32)
COLOURS = ["red", "green", "blue"]
TEXTS = ["a good day", "a bad day", "good and bad", "nothing at all", "day after day", "good good good"]
SUBSET = {
    "column_transformer_strings",
    "forest",
    "k_means",
    "logistic_matrix",
    "logistic_zipmap",
    "logistic_zipmap_text",
    "mlp",
    "one_input_per_column",
    "scaler_svc",
    "tf_idf",
}


def export(folder, is_subset=False):
    """Writes every model, or those of the subset, below the folder."""
    models = []
    for name, make in sorted(RECIPES.items()):
        if not is_subset or name in SUBSET:
            file = folder / f"sklearn.{name}.onnx"
            proto, values = make()
            onnx.save(proto, file)
            models.append(Model(f"sklearn.{name}", file, "skl2onnx", values=values))
    return models


def _with_plain_attributes(add_node):
    """The converter hands numpy's values and truth values to attributes, which newer versions of onnx do not take."""

    def plain(value):
        if isinstance(value, (np.ndarray, np.generic)):
            return plain(value.tolist())
        if isinstance(value, bool):
            return int(value)
        return [plain(element) for element in value] if isinstance(value, list) else value

    def add(self, op_type, inputs, outputs, op_domain="", op_version=None, name=None, **attributes):
        attributes = {key: plain(value) for key, value in attributes.items()}
        return add_node(self, op_type, inputs, outputs, op_domain, op_version, name, **attributes)

    return add


ModelComponentContainer.add_node = _with_plain_attributes(ModelComponentContainer.add_node)


def _converted(estimator, types, values=None, **options):
    options.setdefault("target_opset", {"": 21, "ai.onnx.ml": 3})
    return to_onnx(estimator, initial_types=types, **options), values or {}


def _classifier(estimator, zipmap=False, kind=FloatTensorType, classes=CLASSES):
    fitted = estimator.fit(FEATURES, classes)
    options = {id(fitted): {"zipmap": zipmap}}
    return _converted(fitted, [("X", kind([None, 4]))], options=options)


def _regressor(estimator, kind=FloatTensorType):
    return _converted(estimator.fit(FEATURES, TARGETS), [("X", kind([None, 4]))])


def _transformer(estimator):
    return _converted(estimator.fit(FEATURES), [("X", FloatTensorType([None, 4]))])


def _logistic():
    return sklearn.linear_model.LogisticRegression(max_iter=500)


def _bare_k_neighbors():
    return _classifier(sklearn.neighbors.KNeighborsClassifier(3))


def _one_input_per_column():
    """A pipeline with 300 inputs `[n,1]`, as a data frame of 300 columns gives it."""
    columns = [f"f{number:03}" for number in range(300)]
    data = np.random.default_rng(1).standard_normal((60, 300)).astype(np.float32)
    scale = sklearn.compose.ColumnTransformer(
        [("scale", sklearn.preprocessing.StandardScaler(), list(range(300)))], remainder="drop"
    )
    pipeline = sklearn.pipeline.make_pipeline(scale, _logistic()).fit(data, (data[:, 0] > 0).astype(int))
    types = [(column, FloatTensorType([None, 1])) for column in columns]
    return _converted(pipeline, types, options={"zipmap": False})


def _column_transformer_strings():
    """Columns of texts and of numbers, one input each."""
    random = np.random.default_rng(2)
    colours, shapes = random.choice(COLOURS, 80), random.choice(["round", "square"], 80)
    table = np.array([colours, random.standard_normal(80), shapes], np.object_).T
    encode = sklearn.preprocessing.OneHotEncoder(handle_unknown="ignore")
    columns = sklearn.compose.ColumnTransformer(
        [("encode", encode, [0, 2]), ("scale", sklearn.preprocessing.StandardScaler(), [1])]
    )
    pipeline = sklearn.pipeline.make_pipeline(columns, _logistic())
    pipeline.fit(table, (colours == "red").astype(int))
    types = [
        ("colour", StringTensorType([None, 1])),
        ("size", FloatTensorType([None, 1])),
        ("shape", StringTensorType([None, 1])),
    ]
    values = {"colour": {"choices": [*COLOURS, "violet"]}, "shape": {"choices": ["round", "square", ""]}}
    return _converted(pipeline, types, values, options={"zipmap": False})


def _text(vectorizer, zipmap=False):
    pipeline = sklearn.pipeline.make_pipeline(vectorizer, _logistic())
    pipeline.fit(TEXTS, [1, 0, 1, 0, 0, 1])
    types = [("text", StringTensorType([None, 1]))]
    # Another locale than C is one that a machine may lack.
    options = {id(vectorizer): {"locale": "C"}, id(pipeline): {"zipmap": zipmap}}
    return _converted(pipeline, types, {"text": {"choices": [*TEXTS, "a day"]}}, options=options)


def _encoder(estimator, values=COLOURS, kind=StringTensorType):
    data = np.array([[value] for value in values] * 3)
    choices = {"choices": values}
    return _converted(estimator.fit(data), [("X", kind([None, 1]))], {"X": choices})


def _imputer():
    holes = FEATURES.copy()
    holes[::3, 1] = np.nan
    model = sklearn.impute.SimpleImputer().fit(holes)
    values = {"X": {"choices": [0.5, float("nan"), 2.0]}}
    return _converted(model, [("X", FloatTensorType([None, 4]))], values)


def _isolation_forest():
    model = sklearn.ensemble.IsolationForest(n_estimators=10, random_state=0).fit(FEATURES)
    return _converted(model, [("X", FloatTensorType([None, 4]))], target_opset={"": 21, "ai.onnx.ml": 3})


def _gaussian_process():
    kernel = sklearn.gaussian_process.kernels.RBF() + sklearn.gaussian_process.kernels.WhiteKernel()
    model = sklearn.gaussian_process.GaussianProcessRegressor(kernel, random_state=0)
    return _regressor(model, DoubleTensorType)


def _fixed_batch():
    """A batch that is declared as 1, although nothing in the graph needs that."""
    model = sklearn.linear_model.LinearRegression().fit(FEATURES, TARGETS)
    return _converted(model, [("X", FloatTensorType([1, 4]))])


def _multi_output():
    targets = np.stack([TARGETS, TARGETS * 2], axis=1)
    model = sklearn.multioutput.MultiOutputRegressor(sklearn.linear_model.Ridge()).fit(FEATURES, targets)
    return _converted(model, [("X", FloatTensorType([None, 4]))])


_ensemble, _linear, _preprocess = sklearn.ensemble, sklearn.linear_model, sklearn.preprocessing
_words = sklearn.feature_extraction.text
RECIPES = {
    "ada_boost": lambda: _classifier(_ensemble.AdaBoostClassifier(n_estimators=5, random_state=0)),
    "bagging": lambda: _classifier(_ensemble.BaggingClassifier(n_estimators=3, random_state=0)),
    "bernoulli_bayes": lambda: _classifier(sklearn.naive_bayes.BernoulliNB()),
    "binarizer": lambda: _transformer(_preprocess.Binarizer(threshold=0.1)),
    "calibrated": lambda: _classifier(sklearn.calibration.CalibratedClassifierCV(_linear.RidgeClassifier(), cv=3)),
    "column_transformer_strings": _column_transformer_strings,
    "count_vectorizer": lambda: _text(_words.CountVectorizer()),
    "decision_tree": lambda: _classifier(sklearn.tree.DecisionTreeClassifier(random_state=0)),
    "extra_trees": lambda: _regressor(_ensemble.ExtraTreesRegressor(5, random_state=0)),
    "fixed_batch": _fixed_batch,
    "forest": lambda: _classifier(_ensemble.RandomForestClassifier(10, random_state=0)),
    "forest_regressor": lambda: _regressor(_ensemble.RandomForestRegressor(10, random_state=0)),
    "gaussian_bayes": lambda: _classifier(sklearn.naive_bayes.GaussianNB()),
    "gaussian_process": _gaussian_process,
    "gradient_boosting": lambda: _classifier(_ensemble.GradientBoostingClassifier(n_estimators=5, random_state=0)),
    "hist_boosting": lambda: _classifier(_ensemble.HistGradientBoostingClassifier(max_iter=5, random_state=0)),
    "hist_boosting_regressor": lambda: _regressor(
        _ensemble.HistGradientBoostingRegressor(max_iter=5, random_state=0)
    ),
    "imputer": _imputer,
    "isolation_forest": _isolation_forest,
    "k_means": lambda: _transformer(sklearn.cluster.KMeans(3, n_init=1, random_state=0)),
    "k_neighbors": _bare_k_neighbors,
    "k_neighbors_regressor": lambda: _regressor(sklearn.neighbors.KNeighborsRegressor(3)),
    "lda": lambda: _classifier(sklearn.discriminant_analysis.LinearDiscriminantAnalysis()),
    "linear_double": lambda: _regressor(_linear.LinearRegression(), DoubleTensorType),
    "logistic_double": lambda: _classifier(_logistic(), kind=DoubleTensorType),
    "logistic_matrix": lambda: _classifier(_logistic()),
    "logistic_zipmap": lambda: _classifier(_logistic(), zipmap=True),
    "logistic_zipmap_columns": lambda: _classifier(_logistic(), zipmap="columns"),
    "logistic_zipmap_text": lambda: _classifier(_logistic(), zipmap=True, classes=np.array(COLOURS)[CLASSES]),
    "min_max": lambda: _transformer(_preprocess.MinMaxScaler()),
    "mlp": lambda: _classifier(sklearn.neural_network.MLPClassifier((8,), max_iter=50, random_state=0)),
    "multi_output": _multi_output,
    "normalizer": lambda: _transformer(_preprocess.Normalizer()),
    "one_hot_integers": lambda: _encoder(_preprocess.OneHotEncoder(), [1, 2, 3], Int64TensorType),
    "one_hot_strings": lambda: _encoder(_preprocess.OneHotEncoder()),
    "one_input_per_column": _one_input_per_column,
    "ordinal_strings": lambda: _encoder(_preprocess.OrdinalEncoder()),
    "pca": lambda: _transformer(sklearn.decomposition.PCA(2)),
    "polynomial": lambda: _transformer(_preprocess.PolynomialFeatures(2)),
    "power": lambda: _transformer(_preprocess.PowerTransformer()),
    "scaler_svc": lambda: _classifier_pipeline(sklearn.svm.SVC(probability=True, random_state=0)),
    "sgd": lambda: _classifier(_linear.SGDClassifier(random_state=0)),
    "svc": lambda: _classifier(sklearn.svm.SVC(random_state=0)),
    "svr": lambda: _regressor(sklearn.svm.SVR()),
    "tf_idf": lambda: _text(_words.TfidfVectorizer()),
    "tf_idf_zipmap": lambda: _text(_words.TfidfVectorizer(ngram_range=(1, 2)), zipmap=True),
    "voting": lambda: _classifier(
        _ensemble.VotingClassifier([("a", _logistic())], voting="soft", flatten_transform=False)
    ),
}


def _classifier_pipeline(estimator):
    return _classifier(sklearn.pipeline.make_pipeline(_preprocess.StandardScaler(), estimator))
