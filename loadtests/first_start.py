#!/usr/bin/env python3
"""Measures a first start: an empty state, many small models that nobody has proven yet.

    python3 loadtests/first_start.py                          1,000 variants of a small model
    python3 loadtests/first_start.py --models 100 --again 1   fewer, and a second start that remembers the proofs

Tells the time until the server is ready, and the CPU time of the server and of the processes that it started: on a
machine that others use, only the latter says anything. Then the time from SIGTERM to the end, without a connection.
"""

import argparse
import http.client
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time

from compare import PROJECT, machine

READY_SECONDS_MAX = 900


def spent(pid):
    """CPU seconds of a process: its own, and those of its children, whether they have ended or live."""
    ticks = os.sysconf("SC_CLK_TCK")

    def fields(folder):
        return (folder / "stat").read_text().rpartition(")")[2].split()

    user, system, *ended = (int(field) for field in fields(pathlib.Path(f"/proc/{pid}"))[11:15])
    live = 0
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            found = fields(folder)
        except OSError:
            continue
        if int(found[1]) == pid:
            live += sum(int(field) for field in found[11:15])
    return (user + system) / ticks, (sum(ended) + live) / ticks


def page(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def is_ready(port):
    try:
        return page(port, "/readyz")[0] == 200
    except OSError:
        return False


def phases(port):
    """Seconds that the parts of all loads took, by the server's own account."""
    text = page(port, "/metrics")[1]
    found = re.findall(r'^tidegate_load_duration_seconds_sum\{.*?phase="(\w+)".*?\} (\S+)$', text, re.MULTILINE)
    return ", ".join(f"{phase} {float(seconds):.1f} s" for phase, seconds in found)


def start(options, folder, name):
    library = PROJECT / "third_party" / "onnxruntime" / "libonnxruntime.so"
    environment = ({"ORT_DYLIB_PATH": str(library)} if library.exists() else {}) | dict(os.environ)
    environment |= {"TIDEGATE__STATE__PATH": str(folder / "state")}
    if options.workers:
        environment |= {"TIDEGATE__SERVER__WORKERS": str(options.workers)}
    addresses = ["--http", f"127.0.0.1:{options.port}", "--admin", f"127.0.0.1:{options.port + 1}"]
    command = [options.tidegate, "serve", "--repository", str(folder / "models"), *addresses]
    with open(folder / "log", "a") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    begin = time.monotonic()
    try:
        while not is_ready(options.port + 1):
            failed = '"not served' in (folder / "log").read_text()
            if failed or process.poll() is not None or time.monotonic() - begin > READY_SECONDS_MAX:
                raise SystemExit(f"the server does not get ready: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        took = time.monotonic() - begin
        own, children = spent(process.pid)
        each = 1000 / options.models
        print(
            f"{name}: {options.models} models are ready after {took:.1f} s; CPU time of the server {own:.1f} s, of its "
            f"processes {children:.1f} s: {(own + children) * each:.1f} ms a model"
        )
        print(f"  {phases(options.port + 1)}")
    finally:
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait()
        print(f"  ends {time.monotonic() - begin:.2f} s after SIGTERM, without a connection")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tidegate", default=str(PROJECT / "target" / "release" / "tidegate"))
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--again", type=int, default=0, help="starts after the first one, with its state")
    parser.add_argument("--workers", type=int, default=0, help="0 for as many as the server takes by itself")
    parser.add_argument("--port", type=int, default=18410)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = (PROJECT / "models" / "iris" / "1" / "model.onnx").read_bytes()
        for number in range(options.models):
            version = folder / "models" / f"department-{number}" / "1"
            version.mkdir(parents=True)
            # A last `doc_string` of its own: the same bytes would be proven once.
            name = f"department {number}".encode()
            (version / "model.onnx").write_bytes(model + b"\x32" + bytes([len(name)]) + name)
        for number in range(1 + options.again):
            start(options, folder, f"start {number + 1}" if number else "first start")


if __name__ == "__main__":
    main()
