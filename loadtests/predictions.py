#!/usr/bin/env python3
"""Measures what the table of predictions costs: throughput with a share of predictions written against without, in turns.

    python3 loadtests/predictions.py                             the perceptron, a tenth of its predictions
    python3 loadtests/predictions.py --case forest --sample 1    another model, all of them
    python3 loadtests/predictions.py --sample 0                  both without: how large the noise is

Two servers run all the time, one of them with the table, and are measured one right after the other, in an order that
alternates. A ratio is as good as the one that `--sample 0` gives in the same hour. Needs wrk.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import socket
import statistics
import sys
import tempfile
import types
import urllib.request

from compare import CASES, PROJECT, Server, check_same_answers, machine, measure, model_file, wrk_script


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def side(name, sample, home, options):
    """A server's name, command, cores, home and environment."""
    admin = free_port()
    command = [options.tidegate.resolve(), "serve", "--repository", home / "models"]
    command += ["--http", "127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"]
    environment = {
        "ORT_DYLIB_PATH": str(options.onnxruntime.resolve()),
        "TIDEGATE__STATE__PATH": str(home / f"state-{name}"),
        "TIDEGATE__PREDICTIONS__SAMPLE": str(sample),
        "TIDEGATE__PREDICTIONS__ROTATE_EVERY": "5s",
        **os.environ,
    }
    return admin, (name, command, None, home, environment)


def counters(admin):
    """Rows written and dropped, from the page of metrics."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=30).read().decode()
    found = re.findall(r"^tidegate_predictions_(recorded|dropped)_total\{.*\} (\d+)", page, re.MULTILINE)
    return {word: sum(int(count) for name, count in found if name == word) for word in ("recorded", "dropped")}


def main():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target"))
    lines = __doc__.splitlines()
    parser = argparse.ArgumentParser(
        description=lines[0], epilog="\n".join(lines[1:]), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--case", default="mlp", choices=[case.name for case in CASES])
    add("--sample", type=float, default=0.1, help="share of predictions that the second server writes")
    add("--rounds", type=int, default=10, help="measurements of each server")
    add("--seconds", type=int, default=3, help="length of one measurement")
    add("--connections", type=int, default=8)
    add("--tidegate", type=pathlib.Path, default=target / "release" / "tidegate")
    add("--onnxruntime", type=pathlib.Path, default=PROJECT / "third_party" / "onnxruntime" / "libonnxruntime.so")
    options = parser.parse_args()
    for file in (options.tidegate, options.onnxruntime):
        if not file.is_file():
            sys.exit(f"{file} is not there; `make loadtest` makes what is needed")

    case = next(case for case in CASES if case.name == options.case)
    how = types.SimpleNamespace(client_core_count=1, client_cores=None, warmup=1, seconds=options.seconds)
    with tempfile.TemporaryDirectory(prefix="tidegate-loadtest-") as folder, contextlib.ExitStack() as running:
        home = pathlib.Path(folder)
        place = home / "models" / case.model / "1"
        place.mkdir(parents=True)
        (place / "model.onnx").write_bytes(model_file(case.model).read_bytes())
        _, without = side("without", 0, home, options)
        admin, with_table = side("with", options.sample, home, options)
        servers = [running.enter_context(Server(*one)) for one in (without, with_table)]
        check_same_answers(servers, [case])
        script, found = wrk_script(case, home), {"without": [], "with": []}
        for index in range(options.rounds):
            for server in servers if index % 2 == 0 else servers[::-1]:
                found[server.name].append(measure(server, case, options.connections, script, how))
        rows = counters(admin)
    print(json.dumps(machine()))
    print(f"{case.name}, {options.connections} connections, sample {options.sample}: {rows}")
    for name, all_of_it in found.items():
        middle = {key: statistics.median(one[key] for one in all_of_it) for key in all_of_it[0]}
        print(f"{name:8}", "  ".join(f"{key} {value:.1f}" for key, value in middle.items()))
    pairs = zip(found["with"], found["without"])
    ratios = sorted(a["requests_per_second"] / b["requests_per_second"] for a, b in pairs)
    quarter = len(ratios) // 4
    print(f"requests a second with / without, by pair: median {statistics.median(ratios):.3f}, half of them in "
          f"[{ratios[quarter]:.3f}..{ratios[-quarter - 1]:.3f}]")


if __name__ == "__main__":
    main()
