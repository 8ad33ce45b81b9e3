"""Models of LightGBM, XGBoost and CatBoost, trained and exported on the spot with fixed seeds."""

import catboost
import lightgbm
import numpy as np
import onnx
import sklearn.datasets
import xgboost
from onnxmltools import convert_lightgbm, convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType

from model import Model

FEATURES, CLASSES = sklearn.datasets.load_iris(return_X_y=True)
FEATURES = FEATURES.astype(np.float32)
TARGETS = FEATURES @ np.array([1.0, -0.5, 0.25, 2.0], np.float32)


def export(folder):
    """Writes every model below the folder."""
    models = []
    for name, make in RECIPES.items():
        file = folder / f"{name}.onnx"
        make(file)
        models.append(Model(name, file, "its own export" if name.startswith("catboost") else "onnxmltools"))
    return models


def _lightgbm(estimator, targets, **options):
    fitted = estimator.set_params(n_estimators=5, verbose=-1, random_state=0, n_jobs=1).fit(FEATURES, targets)
    types = [("X", FloatTensorType([None, 4]))]
    return lambda file: onnx.save(convert_lightgbm(fitted, initial_types=types, target_opset=15, **options), file)


def _xgboost(estimator, targets):
    fitted = estimator.set_params(n_estimators=5, random_state=0, n_jobs=1).fit(FEATURES, targets)
    types = [("X", FloatTensorType([None, 4]))]
    return lambda file: onnx.save(convert_xgboost(fitted, initial_types=types, target_opset=15), file)


def _catboost(estimator, targets):
    fitted = estimator.set_params(iterations=5, depth=3, random_seed=0, thread_count=1, verbose=False)
    fitted.set_params(allow_writing_files=False).fit(FEATURES, targets)
    return lambda file: fitted.save_model(str(file), format="onnx")


RECIPES = {
    "lightgbm.binary": lambda file: _lightgbm(lightgbm.LGBMClassifier(), (CLASSES > 0).astype(int))(file),
    "lightgbm.matrix": lambda file: _lightgbm(lightgbm.LGBMClassifier(), CLASSES, zipmap=False)(file),
    "lightgbm.regressor": lambda file: _lightgbm(lightgbm.LGBMRegressor(), TARGETS)(file),
    "lightgbm.zipmap": lambda file: _lightgbm(lightgbm.LGBMClassifier(), CLASSES)(file),
    "xgboost.binary": lambda file: _xgboost(xgboost.XGBClassifier(), (CLASSES > 0).astype(int))(file),
    "xgboost.classifier": lambda file: _xgboost(xgboost.XGBClassifier(), CLASSES)(file),
    "xgboost.forest": lambda file: _xgboost(xgboost.XGBRFRegressor(), TARGETS)(file),
    "xgboost.regressor": lambda file: _xgboost(xgboost.XGBRegressor(), TARGETS)(file),
    "catboost.binary": lambda file: _catboost(catboost.CatBoostClassifier(), (CLASSES > 0).astype(int))(file),
    "catboost.classifier": lambda file: _catboost(catboost.CatBoostClassifier(), CLASSES)(file),
    "catboost.regressor": lambda file: _catboost(catboost.CatBoostRegressor(), TARGETS)(file),
}
