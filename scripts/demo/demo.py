"""A canary that rolls itself back, in a terminal, within a minute.

    python3 scripts/demo/demo.py target/release/tidegate [REQUESTS_PER_SECOND]

Starts tidegate on free ports over a copy of the sample models, sends flowers to `iris` as clients would, puts a version
2 beside it that fails on long petals (`recipe.py`), and starts a rollout. Exit code 0: version 2 was rolled back by itself and
every client had its answer. Whatever it started and wrote is gone afterwards, also on Ctrl-C.

Not here: anything that needs more than Python's standard library.
"""

import http.client
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = 4
REQUESTS_PER_SECOND = 80
USERS = 20_000
READY_SECONDS = 30
TIMEOUT = "90s"

CONFIGURATION = """
[models.iris]
on_new_version = "hold"  # version 2 waits for the rollout
"""

# Short for a demonstration. The defaults take their time: `tidegate rollout plan iris` shows what they see and when.
POLICY = """
warmup_requests = 5
steps = [
    { weight = "2%", min_duration = "5s", min_requests = 10 },
    { weight = "10%", min_duration = "10s", min_requests = 100 },
    { weight = "25%", min_duration = "10s", min_requests = 100 },
]
# Version 2 computes a little more. It is to fall by its failures, whatever else this machine does.
gates.slow.min_difference = "50ms"
"""

# Mean and standard deviation of sepal length, sepal width, petal length and petal width in cm, by species, as Fisher
# measured them.
SPECIES = [
    [(5.01, 0.35), (3.43, 0.38), (1.46, 0.17), (0.25, 0.11)],
    [(5.94, 0.52), (2.77, 0.31), (4.26, 0.47), (1.33, 0.20)],
    [(6.59, 0.64), (2.97, 0.32), (5.55, 0.55), (2.03, 0.27)],
]


class Clients:
    """Sends flowers until it is told to stop, and counts what comes back."""

    def __init__(self, address, rate):
        self.address = address
        self.rate = rate
        self.answers = Counter()
        self.fallbacks = 0
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(number,)) for number in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def run(self, number):
        choices = random.Random(number)
        connection = http.client.HTTPConnection(self.address, timeout=10)
        due = time.monotonic()
        while not self.over.is_set():
            status, fell_back = self.send(connection, choices)
            with self.lock:
                self.answers[status] += 1
                self.fallbacks += fell_back
            due = max(due + choices.expovariate(self.rate / CLIENTS), time.monotonic() - 1)
            self.over.wait(max(0, due - time.monotonic()))

    @staticmethod
    def send(connection, choices):
        lengths = [round(max(0.1, choices.gauss(*length)), 1) for length in choices.choice(SPECIES)]
        tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": lengths}
        user = f"user-{choices.randrange(USERS)}"
        headers = {"content-type": "application/json", "x-tidegate-key": user}
        try:
            connection.request("POST", "/v2/models/iris/infer", json.dumps({"inputs": [tensor]}), headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.getheader("x-tidegate-fallback") is not None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return type(error).__name__, False

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join()


def serve(program, folder):
    """Starts the server and gives it with the addresses of its two planes."""
    (folder / "tidegate.toml").write_text(CONFIGURATION)
    command = [program, "serve", "--config", folder / "tidegate.toml", "--repository", folder / "models"]
    command += ["--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-format", "json"]
    environment = {**os.environ, "TIDEGATE__STATE__PATH": str(folder / "state")}
    log = open(folder / "log", "w+b")
    # A group of its own: Ctrl-C is for this script, which ends the server itself.
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and server.poll() is None:
        said = (folder / "log").read_text(errors="replace")
        ready = re.search(r'"http":"http://([^"]+)","admin":"http://([^"]+)"', said)
        if ready:
            return server, ready[1], ready[2]
        time.sleep(0.05)
    end(server)
    sys.exit(f"demo: the server did not start\n{(folder / 'log').read_text(errors='replace')}")


def end(server):
    if server is None or server.poll() is not None:
        return
    server.send_signal(signal.SIGINT)
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def get(address, path):
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def wait(condition, seconds, otherwise):
    """Waits until `condition()` is true; after so many seconds the demonstration ends with what `otherwise()` says."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            sys.exit(f"demo: {otherwise()}")
        time.sleep(0.1)


def state_of(admin, version):
    """The version's entry in the admin API, `None` until the server has seen it."""
    versions = get(admin, "/api/v1/models/iris").get("versions", [])
    return next((entry for entry in versions if entry["version"] == version), None)


def is_served(admin):
    """Whether version 1 answers; the demonstration ends where it never will."""
    version = state_of(admin, 1) or {}
    if version.get("state") == "UNAVAILABLE" and version["reason"]:
        sys.exit(f"demo: version 1 is not served: {version['reason']}")
    return version.get("state") == "READY"


def show(program, admin, *arguments):
    print(f"\n$ tidegate {' '.join(arguments)}", flush=True)
    return subprocess.run([program, *arguments, "--admin", admin], check=False).returncode


def demonstrate(program, folder, rate):
    """Returns the exit code."""
    shutil.copytree(ROOT / "models/iris", folder / "models/iris")
    (folder / "policy.toml").write_text(POLICY)
    server = clients = None
    try:
        server, http_address, admin = serve(program, folder)
        wait(lambda: is_served(admin), READY_SECONDS, lambda: "version 1 does not get ready")
        print(f"tidegate serves iris version 1, and {rate} flowers a second come in.")
        clients = Clients(http_address, rate)
        (folder / "models/iris/2").mkdir()
        shutil.copy(ROOT / "scripts/demo/candidate.onnx", folder / "models/iris/2/model.onnx")
        wait(lambda: state_of(admin, 2), READY_SECONDS, lambda: "the server did not notice version 2")
        # The plan goes by the traffic that was seen.
        wait(lambda: clients.answers[200] >= 3 * rate, READY_SECONDS,
             lambda: f"too few requests are answered: {dict(clients.answers)}; {rate} a second may be more than this "
                     "machine does")
        print("Version 2 was put beside it. It passes every check, and fails on flowers with long petals, about 1 of 16.")
        policy = str(folder / "policy.toml")
        if show(program, admin, "rollout", "start", "iris", "2", "--policy", policy) != 0:
            return 1
        code = show(program, admin, "rollout", "watch", "iris", "--wait", "--timeout", TIMEOUT)
        clients.stop()
        show(program, admin, "rollout", "show", "iris")
        answered = clients.answers.pop(200, 0)
        failed = sum(clients.answers.values())
        print(f"\n{answered:,} requests were answered and {failed:,} failed: where version 2 could not answer, "
              f"version 1 did, {clients.fallbacks:,} times.")
        if failed:
            print(f"demo: failures by kind: {dict(clients.answers)}", file=sys.stderr)
        if code != 1:
            print("demo: version 2 should have been rolled back, and was not", file=sys.stderr)
        return 0 if code == 1 and failed == 0 else 1
    finally:
        if clients:
            clients.stop()
        end(server)


def main():
    if len(sys.argv) not in (2, 3) or not all(rate.isdecimal() and int(rate) > 0 for rate in sys.argv[2:]):
        sys.exit("usage: demo.py PROGRAM [REQUESTS_PER_SECOND], for example demo.py target/release/tidegate; "
                 "`make demo` builds and runs it")
    program = str(Path(sys.argv[1]).resolve())
    rate = int(sys.argv[2]) if len(sys.argv) == 3 else REQUESTS_PER_SECOND
    # SIGTERM cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="tidegate-demo-") as folder:
        try:
            code = demonstrate(program, Path(folder), rate)
        except KeyboardInterrupt:
            print("\ndemo: stopped", file=sys.stderr)
            code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
