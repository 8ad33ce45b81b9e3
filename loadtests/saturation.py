#!/usr/bin/env python3
"""Raises the load until requests are late, and says what a real Prometheus made of the server's saturation meanwhile.

    python3 loadtests/saturation.py                       4 minutes, from a tenth of what one worker can do to more
    python3 loadtests/saturation.py --objective-runs 30   an objective of 30 times the time of a run, instead of 10

Arrivals are random (Poisson) and wait for nobody: a latency is counted from when a request was due, so that waiting
anywhere counts. Each step of the load lasts as long. The queries are those that deploy/kubernetes/keda.yaml and the
alert TidegateSaturated use. Needs Debian's prometheus; the server has one core and the clients another.
"""

import argparse
import asyncio
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

from compare import PROJECT, machine

MODEL = "rounds"
QUERIES = {
    "saturation": "tidegate_saturation_ratio",
    "over a minute": "sum(avg_over_time(tidegate_saturation_ratio[1m]))",
}
PROMETHEUS = """global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs: [{job_name: tidegate, static_configs: [{targets: ['127.0.0.1:%d']}]}]
"""


def request(rounds):
    """A request for a run of so many rounds."""
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [rounds]}
    body = json.dumps({"inputs": [tensor]}).encode()
    return f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: tidegate\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Clients:
    """Connections that are opened as they are needed."""

    def __init__(self, port):
        self.port, self.idle = port, []

    async def ask(self, body):
        reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        answer = await reader.readexactly(int(length.split(b":")[1]))
        self.idle.append((reader, writer))
        return int(head.split()[1]), answer

    async def must(self, body):
        status, answer = await self.ask(body)
        if status != 200:
            sys.exit(f"{status}: {answer[:500]}")

    async def due(self, body, at, latencies):
        await self.must(body)
        latencies.append((at, time.monotonic() - at))


async def capacity(clients, body, seconds=3):
    """Requests a second that one worker answers, two asked for at any time."""
    end, count = time.monotonic() + seconds, 0

    async def keep_asking():
        nonlocal count
        while time.monotonic() < end:
            await clients.must(body)
            count += 1

    await asyncio.gather(keep_asking(), keep_asking())
    return count / seconds


async def rise(clients, body, rates, seconds):
    """Latencies by the time that a request was due, for each of the rates, one after another."""
    steps, at = [], time.monotonic()
    for rate in rates:
        latencies, waiting, end = [], [], at + seconds
        while at < end:
            at += random.expovariate(rate)
            await asyncio.sleep(max(0, at - time.monotonic()))
            waiting.append(asyncio.create_task(clients.due(body, at, latencies)))
        steps.append((time.time(), waiting, latencies))
    for _, waiting, _ in steps:
        await asyncio.gather(*waiting)
    return [(ended, sorted(late for _, late in latencies)) for ended, _, latencies in steps]


def value(port, query, at):
    """What Prometheus answers to a query about this time."""
    form = urllib.parse.urlencode({"query": query, "time": at})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{form}") as answer:
        found = json.load(answer)["data"]["result"]
    return float(found[0]["value"][1]) if found else float("nan")


def measure(options, folder):
    body, clients = request(options.rounds), Clients(options.port)
    prometheus = folder / "prometheus.yml"
    prometheus.write_text(PROMETHEUS % (options.port + 1))
    library = PROJECT / "third_party" / "onnxruntime" / "libonnxruntime.so"
    environment = {"ORT_DYLIB_PATH": str(library)} | dict(os.environ) | {"TIDEGATE__SERVER__WORKERS": "1", "TIDEGATE__STATE__PATH": str(folder / "state")}
    addresses = ["--http", f"127.0.0.1:{options.port}", "--admin", f"127.0.0.1:{options.port + 1}"]
    command = ["taskset", "-c", options.core, options.tidegate, "serve", "--repository", PROJECT / "loadtests" / "models", *addresses]
    running = []

    def start(command, name, **more):
        with open(folder / name, "w") as log:
            running.append(subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, **more))

    try:
        # How fast a run is, a first server tells; the objective is said to the second.
        start(command, "first", env=environment)
        time.sleep(5)
        most = asyncio.run(capacity(Clients(options.port), body))
        running[0].terminate()
        running.pop().wait()
        objective = round(1000 * options.objective_runs / most) / 1000
        environment["TIDEGATE__METRICS__OBJECTIVES"] = f"{1000 * objective:.0f}ms"
        start(command, "server", env=environment)
        start(["prometheus", f"--config.file={prometheus}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{options.port + 2}"], "prometheus")
        time.sleep(8)
        if running[0].poll() is not None:
            sys.exit((folder / "server").read_text())
        rates = [most * (at + 1) / options.steps * options.up_to for at in range(options.steps)]
        steps = asyncio.run(rise(clients, body, rates, options.seconds))
        time.sleep(2)
        print(f"a run takes {1000 / most:.2f} ms; the objective of the 99th percentile is {1000 * objective:.1f} ms")
        print(f"{'load':>6}{'p50 ms':>9}{'p99 ms':>9}" + "".join(f"{name:>15}" for name in QUERIES))
        first = {}
        for at, (rate, (ended, latencies)) in enumerate(zip(rates, steps, strict=True)):
            quantile = lambda share: latencies[int(share * (len(latencies) - 1))]  # noqa: E731
            numbers = [value(options.port + 2, query, ended) for query in QUERIES.values()]
            if quantile(0.99) > objective:
                first.setdefault("late", at)
            for name, number in zip(QUERIES, numbers):
                if number > 0.8:
                    first.setdefault(name, at)
            print(f"{rate / most:6.0%}{1000 * quantile(0.5):9.2f}{1000 * quantile(0.99):9.2f}" + "".join(f"{number:15.2f}" for number in numbers))
        print("first step where the 99th percentile missed the objective: " + str(first.get("late", 0) + 1 if "late" in first else "none"))
        for name in QUERIES:
            print(f"first step where {name} was above 0.8: " + str(first[name] + 1 if name in first else "none"))
    finally:
        for process in running:
            process.terminate()
            process.wait()


def main():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tidegate", type=pathlib.Path, default=target / "release" / "tidegate")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=20, help="of each step")
    parser.add_argument("--up-to", type=float, default=1.05, help="load of the last step, as a share of what the worker can do")
    parser.add_argument("--rounds", type=int, default=4000, help="of a run, each about 1 us")
    parser.add_argument("--objective-runs", type=float, default=10, help="the objective, as so many times the time of a run")
    parser.add_argument("--core", default="0")
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=9300)
    options = parser.parse_args()
    random.seed(options.seed)
    os.sched_setaffinity(0, {options.client_core})
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        measure(options, pathlib.Path(folder))


if __name__ == "__main__":
    main()
