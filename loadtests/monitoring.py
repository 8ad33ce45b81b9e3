#!/usr/bin/env python3
"""Measures what watching costs: drift detection, remembering predictions, the access log, traces; each against none.

    python3 loadtests/monitoring.py                    30 features and 3 outputs, 6 turns of 2 s for each of 4 servers
    python3 loadtests/monitoring.py --turns 20         closer
    python3 loadtests/monitoring.py --modes off,watch  only these: nothing, and the access log of all requests, one trace
                                                       in a hundred and a scrape of the metrics each second

Each server has one worker, and one core for all its threads; wrk has another. The model's memory of predictions is
filled first. The noise of a shared machine is that of `off` between two runs; servers differ, too, by where their
memory happens to lie, so run it in another order of `--modes` as well.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

from compare import PROJECT, machine

MODEL = "breast_cancer"
NO_DRIFT = {"TIDEGATE__DRIFT__ENABLED": "false"}
NO_FEEDBACK = {f"TIDEGATE__MODELS__{MODEL}__FEEDBACK": '{"enabled":false}'}
OFF = NO_DRIFT | NO_FEEDBACK
LOG = {"TIDEGATE__LOGS__ACCESS": "access.log", "TIDEGATE__LOGS__ACCESS_BYTES": "64MiB"}
# The port of discarded bytes, where nobody listens: spans are made, sent for, dropped and counted.
TRACES = {"TIDEGATE__TRACING__SAMPLE": "0.01", "TIDEGATE__TRACING__OTLP": "http://127.0.0.1:9"}
MODES = {
    "off": OFF,
    "drift": NO_FEEDBACK,
    "feedback": NO_DRIFT,
    "both": {},
    "log": OFF | LOG,
    "traces": OFF | TRACES,
    "watch": OFF | LOG | TRACES,
    "all": LOG | TRACES,
}
SCRAPED = ("watch", "all")
REQUEST = """wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"inputs":[{"name":"input","shape":[1,30],"datatype":"FP32","data":[%s]}]}'
""" % ",".join(["1.5"] * 30)


class Server:
    def __init__(self, mode, options, folder, port):
        self.mode, self.port = mode, port
        own = folder / mode
        own.mkdir()
        library = PROJECT / "third_party" / "onnxruntime" / "libonnxruntime.so"
        environment = dict({"ORT_DYLIB_PATH": str(library)} | dict(os.environ), **MODES[mode], TIDEGATE__STATE__PATH=str(own / "state"), TIDEGATE__SERVER__WORKERS="1")
        addresses = ["--http", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{port + 50}"]
        command = [options.tidegate.resolve(), "serve", "--repository", str(PROJECT / "models"), *addresses]
        with open(own / "log", "w") as log:
            self.process = subprocess.Popen(["taskset", "-c", options.core, *command], env=environment, stdout=log, stderr=log, cwd=own)

    def cpu(self):
        """Nanoseconds on the core so far, by the name of the thread."""
        spent = {}
        for thread in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            name = (thread / "comm").read_text().strip()
            spent[name] = spent.get(name, 0) + int((thread / "schedstat").read_text().split()[0])
        return spent

    def turn(self, options, script, seconds):
        """Requests a second, and nanoseconds per request of the worker and of the thread that joins outcomes."""
        before = self.cpu()
        url = f"http://127.0.0.1:{self.port}/v2/models/{MODEL}/infer"
        wrk = ["taskset", "-c", options.client_core, "wrk", "-t1", "-c16", f"-d{seconds}s", "-s", script, url]
        with subprocess.Popen(wrk, stdout=subprocess.PIPE, text=True) as client:
            while self.mode in SCRAPED and client.poll() is None:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port + 50}/metrics") as page:
                    page.read()
                time.sleep(1)
            told = client.stdout.read()
        if "Non-2xx" in told or "Socket errors" in told:
            sys.exit(told)
        after = self.cpu()
        count = int(re.search(r"(\d+) requests in", told)[1])
        spent = [(after[name] - before.get(name, 0)) / count if name in after else 0 for name in ("worker-0", "feedback")]
        return [float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1]), *spent]


def main():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tidegate", type=pathlib.Path, default=target / "release" / "tidegate")
    parser.add_argument("--modes", default="off,drift,feedback,both", help="the first is what the others are compared with")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=14, metavar="SECONDS")
    parser.add_argument("--core", default="0")
    parser.add_argument("--client-core", default="1")
    parser.add_argument("--port", type=int, default=9100)
    options = parser.parse_args()
    modes = options.modes.split(",")
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        script = folder / "request.lua"
        script.write_text(REQUEST)
        servers = {mode: Server(mode, options, folder, options.port + at) for at, mode in enumerate(modes)}
        try:
            time.sleep(8)
            for server in servers.values():
                server.turn(options, script, options.warm_up)
            turns = {mode: [] for mode in modes}
            for turn in range(options.turns):
                for mode in modes if turn % 2 == 0 else modes[::-1]:
                    turns[mode].append(servers[mode].turn(options, script, options.seconds))
        finally:
            for server in servers.values():
                server.process.terminate()
                server.process.wait()
    print(f"{'':10}{'requests/s':>12}{'ratio':>8}{'(least to most)':>18}{'worker':>10}{'joiner':>10}  per request")
    for mode in modes:
        rate, worker, joiner = (statistics.median(column) for column in zip(*turns[mode]))
        ratios = [mine[0] / first[0] for mine, first in zip(turns[mode], turns[modes[0]])]
        between = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{mode:10}{rate:12.0f}{statistics.median(ratios):8.3f}{between:>18}{worker:7.0f} ns{joiner:7.0f} ns")


if __name__ == "__main__":
    main()
