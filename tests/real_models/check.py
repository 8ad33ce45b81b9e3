"""Proves that real models are served as the runtime itself would answer, or refused for a reason that is known.

    python tests/real_models/check.py --gateway target/release/tidegate --cache .cache/real-models

Each model is served by the gateway and run by Python's onnxruntime beside it. Compared are the metadata, and the
answers to seeded random inputs in JSON and in the binary extension at batches of 0, 1 and 5. What the runtime refuses
the gateway must refuse with a 4xx. Any other refusal needs a row in refusals.toml, and a row that nothing needs any
more is an error, too. Exits 1 where anything is wrong. Both sides run the library of Python's package, unless
ORT_DYLIB_PATH names another for the gateway.
"""

import argparse
import contextlib
import fnmatch
import logging
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import onnxruntime

import comparing
import published
import report
from gateway import Gateway
from refusals import Refusals


def main():
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="real-models-") as scratch:
        scratch = Path(scratch)
        models = [model for model in _quietly(collect, arguments, scratch) if _is_wanted(model, arguments.only)]
        results = check(models, arguments, scratch)
    refusals = Refusals.read()
    for result in results:
        refusals.judge(result)
    stale = [] if arguments.only else refusals.stale(results, is_whole=not arguments.subset)
    report.show(results, stale, arguments.json)
    sys.exit(1 if stale or any(result.faults for result in results) else 0)


def collect(arguments, scratch):
    """Every model of the run: the subset needs no download."""
    import exports_sklearn

    if arguments.subset:
        models = published.archived(None, None, only={"silero-vad"})
        models += published.test_data(small=True) + published.datasets()
        return models + exports_sklearn.export(scratch, is_subset=True)
    import exports_boosted
    import exports_derived
    import exports_torch

    unpacked = arguments.cache / "unpacked"
    unpacked.mkdir(parents=True, exist_ok=True)
    models = published.archived(arguments.cache, unpacked) + published.test_data() + published.datasets()
    models += exports_sklearn.export(scratch) + exports_boosted.export(scratch)
    return models + exports_torch.kept() + exports_derived.export(scratch)


def check(models, arguments, scratch):
    """A `Result` per model."""
    repository = scratch / "repository"
    for model in models:
        _put(model, repository)
    environment = {"TIDEGATE__LIMITS__BODY": "256MiB", "TIDEGATE__LIMITS__INPUTS": arguments.inputs}
    environment["ORT_DYLIB_PATH"] = os.environ.get("ORT_DYLIB_PATH") or _library()
    results = []
    with Gateway(arguments.gateway, repository, scratch / "state", arguments.patience, _set(environment)) as gateway:
        states = gateway.states()
        for number, model in enumerate(models, 1):
            if sys.stderr.isatty():
                print(f"\r\x1b[K{number}/{len(models)} {model.name}", end="", file=sys.stderr)
            results.append(comparing.compare(model, gateway, states.get(model.name, {})))
            if not gateway.is_running():
                results[-1].faults.append("the gateway ended: " + "".join(gateway.said[-3:]))
                gateway.start()
                states = gateway.states()
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    return results


def _quietly(make, *arguments):
    """What exporters print and warn of is no part of the report."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(sys.stderr):
        return make(*arguments)


def _library():
    """The library of Python's own package, so that both sides run the same."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    return str(next(folder.glob("libonnxruntime.so.*")))


def _set(environment):
    return {name: value for name, value in environment.items() if value}


def _put(model, repository):
    version = repository / model.name / "1"
    version.mkdir(parents=True)
    shutil.copyfile(model.file, version / "model.onnx")
    for file in model.beside:
        shutil.copyfile(file, version / file.name)


def _is_wanted(model, patterns):
    return not patterns or any(fnmatch.fnmatch(model.name, pattern) for pattern in patterns)


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gateway", required=True, help="the program under test")
    parser.add_argument("--cache", type=Path, default=Path(".cache/real-models"), help="where archives are kept")
    parser.add_argument("--subset", action="store_true", help="only models that need no download; half a minute")
    parser.add_argument("--only", action="append", help="only models with such a name, a pattern; may be repeated")
    parser.add_argument("--inputs", help="limits.inputs of the gateway, if not its default")
    parser.add_argument("--patience", type=float, default=900, help="seconds that loading all models may take")
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
