"""Trains every sample model, proves it, and writes it where `tidegate serve` finds it.

    python models/train.py                 train and write all
    python models/train.py digits iris     only these
    python models/train.py --check         train aside and compare with what is here; exit 1 if anything differs
    python models/train.py --tidegate FILE make profiles with this program [default: the one that was built last]

Each model directory has a `recipe.py`. A model is only written when ONNX Runtime loads it and gives the golden outputs.
"""

import argparse
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Before NumPy is loaded: one set of kernels and one order of summing, on every x86-64 machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if platform.machine().lower() in ("x86_64", "amd64"):
    os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")
# A __pycache__ in here would look like a model.
sys.dont_write_bytecode = True

try:
    import numpy as np
    import onnxruntime
    from artifact import TOLERANCE, Trained, Version
except ImportError as error:
    sys.exit(f"error: {error}\nInstall what the recipes need:  uv pip install -r models/requirements.txt")

ROOT = Path(__file__).resolve().parent
MODEL_BYTES_MAX = 130_000
# Numbers of each feature that a profile holds: enough for tests, and small enough to be committed.
SAMPLE_ROWS = 500


class Unproven(Exception):
    """A trained model that must not be published, and why."""


def main() -> int:
    names = sorted(path.parent.name for path in ROOT.glob("*/recipe.py"))
    parser = argparse.ArgumentParser(description="Train and prove the sample models.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"one or more of: {', '.join(names)} (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing; compare with the files that are here")
    parser.add_argument("--tidegate", type=Path, metavar="FILE", default=built(), help="the program that makes profiles")
    options = parser.parse_args()
    if options.tidegate is None:
        parser.error("profiles are made by tidegate: build it (cargo build --release), or name it with --tidegate")
    unknown = set(options.models) - set(names)
    if unknown:
        parser.error(f"no recipe for {', '.join(sorted(unknown))}; there is one for: {', '.join(names)}")

    differing = []
    for name in options.models or names:
        try:
            differing += publish(name, options.tidegate, options.check)
        except (Unproven, RuntimeError, OSError) as error:
            print(f"\nerror: {name}: {error}", file=sys.stderr)
            return 2
    if differing and options.check:
        print("\nThese files differ from what training gives:", *differing, sep="\n  models/", file=sys.stderr)
        print("Run `python models/train.py` and commit the result, or undo the change.", file=sys.stderr)
        return 1
    print("\nAll as committed." if options.check else f"\nDone; {len(differing) or 'no'} file(s) changed.")
    return 0


def built() -> Path | None:
    """The program that cargo built last, or one that is installed."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT.parent / "target"))
    there = [path for kind in ("release", "debug") if (path := target / kind / "tidegate").is_file()]
    found = max(there, key=lambda path: path.stat().st_mtime, default=None) or shutil.which("tidegate")
    return Path(found) if found else None


def publish(name: str, program: Path, check: bool) -> list[str]:
    """Trains one model, proves it, and writes or compares its files; gives the paths of those that differed."""
    print(f"{name}: training ...", end="", flush=True)
    started = time.monotonic()
    trained = recipe(name).train()
    print(f"\r{name}: trained in {time.monotonic() - started:.1f} s")
    for version in trained.versions:
        off = prove(version)
        content = version.model()
        digest = hashlib.sha256(content).hexdigest()
        print(f"  version {version.number}  {len(content) / 1000:6.1f} kB  sha256 {digest[:16]}  golden within {off:.1e}")

    profile = profiled(name, trained, program)
    profiles = {f"{version.number}/profile.json": profile for version in trained.versions}
    differing = []
    for path, content in {**trained.files(name), **profiles, **with_tables(name, trained)}.items():
        file = ROOT / name / path
        if file.is_file() and file.read_bytes() == content:
            continue
        differing.append(f"{name}/{path}")
        if not check:
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
    return differing


def recipe(name: str):
    """The module `<name>/recipe.py`."""
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", ROOT / name / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prove(version: Version) -> float:
    """Runs the golden cases through ONNX Runtime and gives the largest difference from them."""
    content = version.model()
    if len(content) > MODEL_BYTES_MAX:
        raise Unproven(f"version {version.number} has {len(content)} bytes, more than {MODEL_BYTES_MAX}")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    largest = 0.0
    for number, case in enumerate(version.cases, start=1):
        answers = session.run([t.name for t in case.outputs], {t.name: t.as_array() for t in case.inputs})
        for wanted, got in zip(case.outputs, answers, strict=True):
            place = f"version {version.number}, golden case {number}, output {wanted.name}"
            expected = wanted.as_array()
            if got.shape != expected.shape or got.dtype != expected.dtype:
                found, right = f"{got.dtype}{list(got.shape)}", f"{expected.dtype}{list(expected.shape)}"
                raise Unproven(f"{place}: ONNX Runtime gives {found}, training gave {right}")
            if wanted.datatype != "FP32":
                agree = np.array_equal(got, expected)
            else:
                agree = np.allclose(got, expected, rtol=TOLERANCE["relative"], atol=TOLERANCE["absolute"])
                largest = max(largest, float(abs(got - expected).max()))
            if not agree:
                raise Unproven(f"{place}: ONNX Runtime gives {got.tolist()}, training gave {expected.tolist()}")
    return largest


def profiled(name: str, trained: Trained, program: Path) -> bytes:
    """The profile of the rows that were trained on."""
    with tempfile.TemporaryDirectory() as aside:
        data, profile = Path(aside, f"{name}.csv"), Path(aside, "profile.json")
        data.write_bytes(trained.reference.csv())
        command = [program, "profile", data, "--output", profile, "--sample-rows", str(SAMPLE_ROWS), "--json"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise Unproven(f"{program} makes no profile: {made.stderr.strip()}")
        content = profile.read_bytes()
    print(f"  profile    {len(content) / 1000:6.1f} kB  of {len(trained.reference.rows)} rows")
    return content


def with_tables(name: str, trained: Trained) -> dict[str, bytes]:
    """The model's README with the measured figures in their places."""
    text = (ROOT / name / "README.md").read_text()
    for title, rows in trained.tables.items():
        block = re.compile(f"(<!-- {title} -->\n).*?(<!-- /{title} -->)", re.DOTALL)
        if not block.search(text):
            raise Unproven(f"README.md has no place for its table: add `<!-- {title} -->` and `<!-- /{title} -->`")
        text = block.sub(lambda found, rows=rows: f"{found[1]}{rows}\n{found[2]}", text)
    return {"README.md": text.encode()}


if __name__ == "__main__":
    sys.exit(main())
