#!/usr/bin/env python3
"""Measures tidegate against the floor: same model, same requests, same machine, turn and turn about.

    make loadtest                                       everything, with the defaults
    python3 loadtests/compare.py --case mlp --pin 0:1   one case, server on core 0, client on core 1
    python3 loadtests/compare.py --twin                 the floor against itself: how large the noise is

Both servers are started anew in each round, and each case measures one right after the other, in an order that
alternates from round to round. Before anything is measured, both must answer the same requests with the same
predictions. Needs wrk. loadtests/README.md says how to read the figures.
"""

import argparse
import contextlib
import dataclasses
import datetime
import fnmatch
import http.client
import json
import math
import os
import pathlib
import platform
import random
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

HOME = pathlib.Path(__file__).resolve().parent
PROJECT = HOME.parent
IMAGE = (1, 3, 224, 224)
READY_SECONDS_MAX = 60


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of request to one model."""

    name: str
    model: str
    input: str
    shape: tuple
    binary: bool = False
    connections: tuple = (1, 8, 64)
    by_default: bool = True


CASES = [
    Case("forest", "breast_cancer", "input", (1, 30)),
    Case("mlp", "mlp", "x", (1, 20)),
    Case("imgmean-json", "imgmean", "x", IMAGE, connections=(8,)),
    Case("imgmean-binary", "imgmean", "x", IMAGE, binary=True, connections=(8,)),
    Case("imgnet-json", "imgnet", "x", IMAGE, connections=(8,), by_default=False),
    Case("imgnet-binary", "imgnet", "x", IMAGE, binary=True, connections=(8,), by_default=False),
]


def model_file(name):
    """The file of a model, out of the load tests' own or the sample models; of the latter the forest."""
    own = HOME / "models" / name / "1" / "model.onnx"
    if own.is_file():
        return own
    versions = sorted((PROJECT / "models" / name).glob("*/model.onnx"))
    return next((file for file in versions if b"TreeEnsemble" in file.read_bytes()), None)


def request_of(case, seed):
    """The body and headers of one request; equal seeds give equal requests."""
    values = random.Random(seed)
    count = math.prod(case.shape)
    if case.name == "forest":  # features of very different magnitudes
        numbers = [float(f"{values.lognormvariate(1, 2):.4g}") for _ in range(count)]
    else:
        numbers = [round(values.gauss(0, 1), 4) for _ in range(count)]
    tensor = {"name": case.input, "shape": case.shape, "datatype": "FP32"}
    if not case.binary:
        text = json.dumps({"inputs": [tensor | {"data": numbers}]}, separators=(",", ":"))
        return text.encode(), {"Content-Type": "application/json"}
    packed = struct.pack(f"<{count}f", *numbers)
    tensor["parameters"] = {"binary_data_size": len(packed)}
    whole = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    text = json.dumps(whole, separators=(",", ":")).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    return text + packed, headers


def predictions_of(body, json_bytes):
    """{output: (datatype, shape, values)} of a response, JSON or binary."""
    formats = {"FP32": "f", "FP64": "d", "INT64": "q", "INT32": "i"}
    head, tail = body[:json_bytes], body[json_bytes:] if json_bytes else b""
    found = {}
    for output in json.loads(head)["outputs"]:
        values = output.get("data")
        if values is None:
            size = output["parameters"]["binary_data_size"]
            letter = formats[output["datatype"]]
            values = struct.unpack(f"<{size // struct.calcsize(letter)}{letter}", tail[:size])
            tail = tail[size:]
        found[output["name"]] = (output["datatype"], output["shape"], list(values))
    return found


def same_predictions(a, b):
    def close(x, y):
        return x == y or math.isclose(x, y, rel_tol=1e-5, abs_tol=1e-6)

    return a.keys() == b.keys() and all(
        a[name][:2] == b[name][:2]
        and len(a[name][2]) == len(b[name][2])
        and all(map(close, a[name][2], b[name][2]))
        for name in a
    )


class Server:
    """A server under test, started on a free port; stops when the `with` block ends."""

    def __init__(self, name, command, cores, home, environment):
        self.name = name
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.command = on_cores(cores, [str(part).replace("{port}", str(self.port)) for part in command])
        self.log = pathlib.Path(home) / f"{name}.log"
        self.home, self.environment = home, environment

    def __enter__(self):
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.home, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + READY_SECONDS_MAX
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.ask("GET", "/v2/health/ready")[0] == 200:
                    return self
            time.sleep(0.05)
        self.__exit__()
        ended = f"ended with code {self.process.returncode}" if self.process.returncode >= 0 else "did not get ready"
        sys.exit(f"{self.name} {ended}; it was started as\n  {' '.join(self.command)}\nand said\n{self.last_words()}")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_words(self):
        return self.log.read_text(errors="replace")[-2000:]

    def ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read(), response.headers

    def predict(self, case, seed):
        body, headers = request_of(case, seed)
        status, answer, received = self.ask("POST", f"/v2/models/{case.model}/infer", body, headers)
        if status != 200:
            sys.exit(f"{self.name} answered {case.name} with {status}: {answer[:500]!r}")
        length = received.get("Inference-Header-Content-Length")
        return predictions_of(answer, int(length) if length else None)

    def cpu_seconds(self):
        # The name in the second field may hold spaces; what follows its closing bracket does not.
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def on_cores(cores, command):
    return ["taskset", "-c", cores, *command] if cores else command


def check_same_answers(servers, cases):
    """Ends the program unless both servers predict the same, and different things for different inputs."""
    for case in cases:
        seen = []
        for seed in range(2 if case.shape == IMAGE else 16):
            first, second = (server.predict(case, seed) for server in servers)
            if not same_predictions(first, second):
                sys.exit(f"{case.name}: predictions differ for seed {seed}: {first} and {second}")
            seen.append(first)
        if all(same_predictions(seen[0], other) for other in seen[1:]):
            sys.exit(f"{case.name}: every input gets the same prediction, so that agreement proves nothing")


WRK_SCRIPT = """
local file = assert(io.open("{body}", "rb"))
wrk.method, wrk.body = "POST", file:read("*all")
file:close()
{headers}
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\\nresult {{"requests":%d,"us":%d,"p50_us":%d,"p99_us":%d,"failed":%d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


def wrk_script(case, home):
    body, headers = request_of(case, seed=1)
    (home / f"{case.name}.body").write_bytes(body)
    script = home / f"{case.name}.lua"
    lines = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items())
    script.write_text(WRK_SCRIPT.format(body=home / f"{case.name}.body", headers=lines))
    return script


def measure(server, case, connections, script, options):
    """One measurement: requests per second, latency in us, the server's CPU time per request in us."""
    threads = min(connections, options.client_core_count)
    url = f"http://127.0.0.1:{server.port}/v2/models/{case.model}/infer"

    def load(seconds):
        command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script), url]
        run = subprocess.run(on_cores(options.client_cores, command), capture_output=True, text=True)
        for line in run.stdout.splitlines():
            if line.startswith("result "):
                return json.loads(line.removeprefix("result "))
        sys.exit(f"wrk failed on {server.name}, {case.name}: {run.stdout}{run.stderr}\n{server.last_words()}")

    load(options.warmup)
    before = server.cpu_seconds()
    result = load(options.seconds)
    cpu = server.cpu_seconds() - before
    if result["failed"] or not result["requests"]:
        sys.exit(f"{server.name}, {case.name} at {connections}: {result['failed']} of {result['requests']} failed")
    return {
        "requests_per_second": result["requests"] / result["us"] * 1e6,
        "cpu_us_per_request": cpu / result["requests"] * 1e6,
        "p50_us": result["p50_us"],
        "p99_us": result["p99_us"],
    }


def run_rounds(options, cases, sides, home):
    """{(case, connections): {side: [measurement of each round]}}"""
    results = {}
    scripts = {case: wrk_script(case, home) for case in cases}
    for index in range(options.rounds):
        with contextlib.ExitStack() as running:
            servers = [running.enter_context(Server(*side)) for side in sides]
            check_same_answers(servers, cases)
            turns = servers if index % 2 == 0 else servers[::-1]
            for case in cases:
                for connections in options.connections or case.connections:
                    point = results.setdefault((case.name, connections), {side[0]: [] for side in sides})
                    for server in turns:
                        figures = measure(server, case, connections, scripts[case], options)
                        point[server.name].append(figures)
                        print(
                            f"round {index + 1}/{options.rounds}  {case.name} c{connections}  {server.name}: "
                            f"{figures['requests_per_second']:.0f} req/s, {figures['cpu_us_per_request']:.1f} us CPU",
                            file=sys.stderr,
                        )
    return results


def summarise(results, sides):
    """One dictionary per point: medians and ranges of both sides, and the ratio of the medians."""
    floor, subject = (side[0] for side in sides)
    report = []
    for (case, connections), rounds in results.items():
        point = {"case": case, "connections": connections}
        for name in (floor, subject):
            point[name] = {}
            for key in rounds[name][0]:
                values = [figures[key] for figures in rounds[name]]
                point[name][key] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        rate, cost = "requests_per_second", "cpu_us_per_request"
        pairs = [b[rate] / a[rate] for a, b in zip(rounds[floor], rounds[subject])]
        point["throughput_ratio"] = {
            "of_medians": point[subject][rate]["median"] / point[floor][rate]["median"],
            "min": min(pairs),
            "max": max(pairs),
        }
        point["cpu_ratio_of_medians"] = point[subject][cost]["median"] / max(point[floor][cost]["median"], 1e-9)
        report.append(point)
    return report


def table(report, sides):
    floor, subject = (side[0] for side in sides)

    def spread(figure, digits=0):
        return f"{figure['median']:.{digits}f} [{figure['min']:.{digits}f}..{figure['max']:.{digits}f}]"

    rows = [["case", "conns", f"{floor} req/s", f"{subject} req/s", "ratio [pairs]", "CPU us/req", "p50 us", "p99 us"]]
    for point in report:
        a, b, ratio = point[floor], point[subject], point["throughput_ratio"]

        def both(key, digits=0):
            return f"{a[key]['median']:.{digits}f} -> {b[key]['median']:.{digits}f}"

        rows.append(
            [
                point["case"],
                str(point["connections"]),
                spread(a["requests_per_second"]),
                spread(b["requests_per_second"]),
                f"{ratio['of_medians']:.2f} [{ratio['min']:.2f}..{ratio['max']:.2f}]",
                both("cpu_us_per_request", 1),
                both("p50_us"),
                both("p99_us"),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def machine():
    with open("/proc/cpuinfo") as lines:
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    git = subprocess.run(["git", "-C", PROJECT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "commit": git.stdout.strip(),
        "at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def core_count(cores):
    """How many cores a list such as `0,2-3` names; all that this process may use for None."""
    if cores is None:
        return len(os.sched_getaffinity(0))
    ranges = [part.split("-") for part in cores.split(",")]
    return sum(int(part[-1]) - int(part[0]) + 1 for part in ranges)


def parse_options():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target"))
    library = PROJECT / "third_party" / "onnxruntime" / "libonnxruntime.so"
    lines = __doc__.splitlines()
    parser = argparse.ArgumentParser(
        description=lines[0], epilog="\n".join(lines[1:]), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--case", action="append", metavar="NAME", help=f"a case or pattern: {', '.join(c.name for c in CASES)}")
    add("--connections", type=lambda text: [int(n) for n in text.split(",")], help="such as 1,8,64; default by case")
    add("--rounds", type=int, default=5)
    add("--seconds", type=int, default=3, help="length of one measurement")
    add("--warmup", type=int, default=1, help="seconds of load before each measurement")
    add("--workers", type=int, help="of each server; default: one per core that it may use")
    add("--pin", metavar="SERVER:CLIENT", help="cores of the servers and of wrk, such as 0:1; default: they share all")
    add("--twin", action="store_true", help="measure the floor against itself instead of tidegate")
    add("--tidegate", type=pathlib.Path, default=target / "release" / "tidegate")
    add("--tidegate-option", action="append", default=[], metavar="OPTION", help="one more for `tidegate serve`")
    add("--floor", type=pathlib.Path, default=target / "floor" / "release" / "floor")
    add("--onnxruntime", type=pathlib.Path, default=pathlib.Path(os.environ.get("ORT_DYLIB_PATH", library)))
    add("--json", type=pathlib.Path, metavar="FILE", help="write the report here as well")
    options = parser.parse_args()

    options.server_cores, options.client_cores = None, None
    if options.pin:
        options.server_cores, _, options.client_cores = options.pin.partition(":")
    options.client_core_count = core_count(options.client_cores)
    options.workers = options.workers or core_count(options.server_cores)
    return options


def check_tools(options):
    files = [options.floor, options.onnxruntime] + ([] if options.twin else [options.tidegate])
    for file in files:
        if not file.is_file():
            sys.exit(f"{file} is not there; `make loadtest` builds what is needed")
    for tool in ["wrk"] + (["taskset"] if options.pin else []):
        if not shutil.which(tool):
            sys.exit(f"{tool} is not installed (Debian: apt-get install wrk util-linux)")


def chosen_cases(options):
    def wanted(case):
        if not options.case:
            return case.by_default
        return any(fnmatch.fnmatch(case.name, wish) for wish in options.case)

    chosen = [case for case in CASES if wanted(case)]
    if not chosen:
        sys.exit(f"no case is named {options.case}; there are {', '.join(case.name for case in CASES)}")
    for case in chosen:
        if model_file(case.model) is None:
            sys.exit(f"{case.name}: models/{case.model} holds no forest; leave it out with --case")
    return chosen


def lay_out(cases, home):
    """A repository with the models of the cases, in the layout that tidegate serves."""
    repository = home / "models"
    for name in {case.model for case in cases}:
        version = repository / name / "1"
        version.mkdir(parents=True)
        shutil.copyfile(model_file(name), version / "model.onnx")
    return repository


def sides_of(options, repository, home):
    """What `Server` takes, for the floor and for what is measured against it."""
    floor = [options.floor.resolve(), "--onnxruntime", options.onnxruntime.resolve(), "--port", "{port}"]
    floor += ["--workers", options.workers]
    for model in sorted(repository.iterdir()):
        floor += ["--model", f"{model.name}={model / '1' / 'model.onnx'}"]
    sides = [("floor", floor, options.server_cores, home, dict(os.environ))]
    if options.twin:
        return [*sides, ("twin", *sides[0][1:])]
    tidegate = [options.tidegate.resolve(), "serve", "--repository", repository]
    tidegate += ["--http", "127.0.0.1:{port}", "--admin", "127.0.0.1:0", *options.tidegate_option]
    environment = os.environ | {
        "ORT_DYLIB_PATH": str(options.onnxruntime.resolve()),
        "TIDEGATE__SERVER__WORKERS": str(options.workers),
    }
    return [*sides, ("tidegate", tidegate, options.server_cores, home, environment)]


def main():
    options = parse_options()
    check_tools(options)
    cases = chosen_cases(options)
    host = machine()
    with tempfile.TemporaryDirectory(prefix="tidegate-loadtest-") as folder:
        home = pathlib.Path(folder)
        sides = sides_of(options, lay_out(cases, home), home)
        results = run_rounds(options, cases, sides, home)
    report = summarise(results, sides)
    place = "servers and wrk share all cores: ratios lean towards 1, see --pin"
    if options.pin:
        place = f"servers on core {options.server_cores}, wrk on core {options.client_cores}"
    settings = {name: getattr(options, name) for name in ("rounds", "seconds", "warmup", "workers", "pin")}
    print(table(report, sides))
    print(f"\n{options.rounds} rounds of {options.seconds} s, {options.workers} worker(s) each; {place}")
    print(f"{host['cores']} cores, {host['processor']}; load average before: {host['load_average_before']}")
    if options.json:
        whole = {"machine": host, "settings": settings, "points": report}
        options.json.write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
