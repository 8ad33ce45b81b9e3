#!/usr/bin/env python3
"""Measures what watching costs: drift detection, remembering predictions, the access log, traces; each against none.

    python3 loadtests/monitoring.py                    30 features and 3 outputs; 6 turns of 1 s for 3 servers of 4 kinds
    python3 loadtests/monitoring.py --turns 20         closer
    python3 loadtests/monitoring.py --modes off,watch  only these: nothing, and the access log of all requests, one trace
                                                       in a hundred and a scrape of the metrics each second

Each server has one worker, and one core for all its threads; wrk has another, and sends rows of values that the model's
training had. wrk's core never sleeps: a process that runs where nothing else would keeps it awake. Otherwise a server
pays for waking wrk, the more often the slower it is, so that each cost shows twice in the ratio; `--client-sleeps`
shows that. Servers are stopped (SIGSTOP) while another one has its turn, which begins with two seconds that are not
measured: in these drift finds how many rows come. In the warm-up the memory of predictions is filled and drift's
references are learned. Servers of one kind differ by 5 % and more from start to start, so that each kind has several,
and the mean of their rates counts. The error is the standard error of that, by how far servers of a kind differ;
`off,off2` shows what noise is left.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import random
import re
import signal
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
# So large that it is not renamed all the time, so small that eight servers of each kind leave room on the disk.
LOG = {"TIDEGATE__LOGS__ACCESS": "access.log", "TIDEGATE__LOGS__ACCESS_BYTES": "256MiB"}
NOWHERE = {"TIDEGATE__LOGS__ACCESS": "/dev/null"}
# The port of discarded bytes, where nobody listens: spans are made, sent for, dropped and counted.
TRACES = {"TIDEGATE__TRACING__SAMPLE": "0.01", "TIDEGATE__TRACING__OTLP": "http://127.0.0.1:9"}
MODES = {
    "off": OFF,
    "off2": OFF,
    "drift": NO_FEEDBACK,
    "feedback": NO_DRIFT,
    "both": {},
    "log": OFF | LOG,
    "traces": OFF | TRACES,
    "watch": OFF | LOG | TRACES,
    # Without the memory of predictions; the same with a line for one request in ten.
    "seen": NO_FEEDBACK | LOG | TRACES,
    "sampled": NO_FEEDBACK | LOG | TRACES | {"TIDEGATE__LOGS__ACCESS_SAMPLE": "0.1"},
    "all": LOG | TRACES,
    # Lines are made and go nowhere: what the disk costs is not in it.
    "null": OFF | LOG | NOWHERE,
    "seen-null": NO_FEEDBACK | LOG | TRACES | NOWHERE,
}
SCRAPED = ("watch", "seen", "sampled", "all", "seen-null")
REQUESTS = 256
# Seconds of requests before a turn is measured.
LEAD = 2
SCRIPT = """local requests, at = {}, 0
request = function()
  if at == 0 then
    for body in io.lines("%s") do
      requests[#requests + 1] = wrk.format("POST", nil, {["Content-Type"] = "application/json"}, body)
    end
  end
  at = at %% #requests + 1
  return requests[at]
end
"""
# Whatever else has work on the core runs first; it ends with whoever started it, however that ends.
SPIN = """import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1000000):
        pass
"""


def script(folder):
    """Requests for wrk: rows of values that the model's training had, so that bins fill as they do in service."""
    features = json.loads((PROJECT / "models" / MODEL / "1" / "profile.json").read_text())["features"]
    draw = random.Random(7)
    rows = [[draw.choice(feature["sample"]) for feature in features] for _ in range(REQUESTS)]
    inputs = [{"inputs": [{"name": "input", "shape": [1, len(row)], "datatype": "FP32", "data": row}]} for row in rows]
    bodies = folder / "bodies"
    bodies.write_text("".join(json.dumps(body, separators=(",", ":")) + "\n" for body in inputs))
    path = folder / "requests.lua"
    path.write_text(SCRIPT % bodies)
    return path


class Server:
    def __init__(self, mode, options, folder, port):
        self.mode, self.port = mode, port
        own = folder / str(port)
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

    def rest(self):
        """Takes no time on the core until the next turn."""
        self.process.send_signal(signal.SIGSTOP)

    def turn(self, options, requests, seconds):
        """Requests a second, and nanoseconds per request of the worker and of all other threads."""
        self.process.send_signal(signal.SIGCONT)
        # Drift looks once a second, and finds in the first how many rows come.
        self.load(options, requests, LEAD)
        measured = self.load(options, requests, seconds)
        self.rest()
        return measured

    def load(self, options, requests, seconds):
        """The same of one run of the client, without a pause before or after it."""
        before = self.cpu()
        url = f"http://127.0.0.1:{self.port}/v2/models/{MODEL}/infer"
        wrk = ["taskset", "-c", options.client_core, "wrk", "-t1", "-c16", f"-d{seconds}s", "-s", requests, url]
        with subprocess.Popen(wrk, stdout=subprocess.PIPE, text=True) as client:
            for _ in range(seconds if self.mode in SCRAPED else 0):
                time.sleep(0.5)
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port + 50}/metrics") as page:
                    page.read()
                time.sleep(0.4)
            told = client.stdout.read()
        if "Non-2xx" in told or "Socket errors" in told:
            sys.exit(told)
        after = self.cpu()
        count = int(re.search(r"(\d+) requests in", told)[1])
        spent = {name: (after[name] - before.get(name, 0)) / count for name in after}
        worker = spent.pop("worker-0")
        return [float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1]), worker, sum(spent.values())]


@contextlib.contextmanager
def awake(core):
    """Keeps a core from sleeping."""
    with subprocess.Popen([sys.executable, "-c", SPIN, str(core)]) as spinner:
        try:
            yield
        finally:
            spinner.kill()


def spread(rates):
    """The standard error of the mean of some servers' rates, as a share of it."""
    means = [statistics.mean(own) for own in rates]
    return statistics.stdev(means) / len(means) ** 0.5 / statistics.mean(means) if len(means) > 1 else math.nan


def main():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tidegate", type=pathlib.Path, default=target / "release" / "tidegate")
    parser.add_argument("--modes", default="off,drift,feedback,both", help="the first is what the others are compared with")
    parser.add_argument("--servers", type=int, default=3, help="of each kind")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=1, help="of each server in a turn")
    parser.add_argument("--warm-up", type=int, default=14, metavar="SECONDS")
    parser.add_argument("--core", default="0")
    parser.add_argument("--client-core", default="1")
    parser.add_argument("--client-sleeps", action="store_true", help="let wrk's core sleep while wrk waits")
    parser.add_argument("--port", type=int, default=9100)
    options = parser.parse_args()
    modes = options.modes.split(",")
    print(machine())
    # Who scrapes is somewhere else, too.
    os.sched_setaffinity(0, {int(options.client_core)})
    awakening = contextlib.nullcontext() if options.client_sleeps else awake(options.client_core)
    with tempfile.TemporaryDirectory() as folder, awakening:
        folder = pathlib.Path(folder)
        requests = script(folder)
        kinds = [mode for _ in range(options.servers) for mode in modes]
        servers = [Server(mode, options, folder, options.port + at) for at, mode in enumerate(kinds)]
        try:
            time.sleep(8)
            for server in servers:
                server.rest()
            for server in servers:
                server.turn(options, requests, options.warm_up)
            turns = {mode: [] for mode in modes}
            rates = {server: [] for server in servers}
            for turn in range(options.turns):
                measured = {mode: [] for mode in modes}
                for server in servers if turn % 2 == 0 else servers[::-1]:
                    measured[server.mode].append(server.turn(options, requests, options.seconds))
                    rates[server].append(measured[server.mode][-1][0])
                for mode, each in measured.items():
                    turns[mode].append([statistics.mean(column) for column in zip(*each)])
        finally:
            for server in servers:
                server.process.send_signal(signal.SIGCONT)
                server.process.terminate()
                server.process.wait()
    print(f"{'':10}{'requests/s':>12}{'ratio':>8}{'error':>8}{'(least to most)':>18}{'worker':>10}{'others':>10}  per request")
    own_errors = {mode: spread([rates[server] for server in servers if server.mode == mode]) for mode in modes}
    for mode in modes:
        rate, worker, others = (statistics.median(column) for column in zip(*turns[mode]))
        ratios = [mine[0] / first[0] for mine, first in zip(turns[mode], turns[modes[0]])]
        error = 0 if mode == modes[0] else math.hypot(own_errors[mode], own_errors[modes[0]])
        between = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{mode:10}{rate:12.0f}{statistics.mean(ratios):8.3f}{error:8.3f}{between:>18}{worker:7.0f} ns{others:7.0f} ns")


if __name__ == "__main__":
    main()
