#!/usr/bin/env python3
"""Measures what a shadow costs those who are answered: latencies with all requests copied against without, in turns.

    python3 loadtests/shadow.py                              the perceptron at 300 requests a second
    python3 loadtests/shadow.py --case forest --rate 1000    another model, another rate
    python3 loadtests/shadow.py --share 0                    copies nothing: how large the noise is

One server is asked at a fixed rate on one connection; each latency counts from the moment that the request was due,
so that waiting behind a slow answer is part of it. Every turn the split changes: no shadow, a shadow, none, and so on.
The first answers of a turn are left out. A ratio is as good as the one that `--share 0` gives in the same hour.
"""

import argparse
import http.client
import json
import os
import pathlib
import socket
import statistics
import sys
import tempfile
import time

from compare import CASES, PROJECT, Server, machine, model_file, request_of


def quantile(values, q):
    return sorted(values)[min(int(q * len(values)), len(values) - 1)] * 1e6


def admin(port, method, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, "/api/v1/models/m/traffic", body)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    if response.status != 200:
        sys.exit(f"the split was answered with {response.status}: {text[:500]!r}")
    return json.loads(text)


def split(shadows):
    return json.dumps({"arms": [{"name": "baseline", "version": 1, "weight": 1}], "shadow": shadows})


def request_bytes(case):
    body, headers = request_of(case, 1)
    lines = ["POST /v2/models/m/infer HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def ask(client, request):
    """Sends a request and reads its answer to the end."""
    client.sendall(request)
    answer = client.recv(65536)
    while b"\r\n\r\n" not in answer:
        answer += client.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        sys.exit(f"answered with {head[:200]!r}")
    fields = (line.partition(b":") for line in head.lower().split(b"\r\n"))
    missing = next(int(value) for name, _, value in fields if name == b"content-length") - len(body)
    while missing > 0:
        missing -= len(client.recv(65536))


def turn(client, request, rate, seconds):
    """Latencies of one turn in seconds."""
    taken, begin = [], time.perf_counter() + 0.01
    for index in range(int(rate * seconds)):
        due = begin + index / rate
        wait = due - time.perf_counter()
        if wait > 0.0002:
            time.sleep(wait - 0.0002)
        while time.perf_counter() < due:
            pass
        ask(client, request)
        taken.append(time.perf_counter() - due)
    return taken[len(taken) // 10 :]


def main():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target"))
    lines = __doc__.splitlines()
    parser = argparse.ArgumentParser(
        description=lines[0], epilog="\n".join(lines[1:]), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--case", default="mlp", choices=[case.name for case in CASES])
    add("--rate", type=float, default=300, help="requests a second")
    add("--turns", type=int, default=60, help="half of them with the shadow")
    add("--seconds", type=float, default=1, help="length of one turn")
    add("--share", type=float, default=1, help="share of requests that is copied in every other turn")
    add("--tidegate", type=pathlib.Path, default=target / "release" / "tidegate")
    add("--onnxruntime", type=pathlib.Path, default=PROJECT / "third_party" / "onnxruntime" / "libonnxruntime.so")
    options = parser.parse_args()
    if not options.tidegate.is_file():
        sys.exit(f"{options.tidegate} is not there; `cargo build --release` makes it")

    case = next(case for case in CASES if case.name == options.case)
    with tempfile.TemporaryDirectory(prefix="tidegate-loadtest-") as folder:
        home = pathlib.Path(folder)
        for version in "12":
            place = home / "models" / "m" / version
            place.mkdir(parents=True)
            (place / "model.onnx").write_bytes(model_file(case.model).read_bytes())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [options.tidegate.resolve(), "serve", "--repository", home / "models"]
        command += ["--http", "127.0.0.1:{port}", "--admin", f"127.0.0.1:{port}"]
        environment = {"ORT_DYLIB_PATH": str(options.onnxruntime), **os.environ}
        with Server("tidegate", command, None, home, environment) as server:
            measure(options, server.port, port, request_bytes(case))


def measure(options, data_port, admin_port, request):
    sides = {"without": [], "with": []}
    seen = {}
    with socket.create_connection(("127.0.0.1", data_port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for index in range(options.turns):
            side = ["without", "with"][index % 2]
            shadows = [{"version": 2, "share": options.share}] if side == "with" else []
            admin(admin_port, "PUT", split(shadows))
            sides[side].append(turn(client, request, options.rate, options.seconds))
            seen = next(iter(admin(admin_port, "GET")["shadow"]), seen)
    print(json.dumps(machine()))
    print(f"copies run {seen['requests']}, dropped {seen['dropped']}, disagreements {seen['disagreements']}")
    for name, turns in sides.items():
        values = [value for turn in turns for value in turn]
        p50, p99 = quantile(values, 0.5), quantile(values, 0.99)
        by_turn = statistics.median(quantile(turn, 0.99) for turn in turns)
        print(f"{name:8}  p50 {p50:8.1f} us  p99 {p99:8.1f} us  p99 of the median turn {by_turn:8.1f} us")
    pairs = zip(sides["with"], sides["without"])
    ratios = sorted(quantile(a, 0.99) / quantile(b, 0.99) for a, b in pairs)
    quarter = len(ratios) // 4
    print(f"p99 with / without, by pair of turns: median {statistics.median(ratios):.3f}, half of them in "
          f"[{ratios[quarter]:.3f}..{ratios[-quarter - 1]:.3f}]")


if __name__ == "__main__":
    main()
