#!/usr/bin/env python3
"""Measures rollouts end to end: the real server, real requests, the default gates.

    python3 loadtests/rollouts.py --binary target/release/tidegate alike        the same file as both arms, 20 times
    python3 loadtests/rollouts.py --binary target/release/tidegate errors       1 % errors against 5 %, share 5 %, 20 times
    python3 loadtests/rollouts.py --binary target/release/tidegate throughput   with a split and all gates on against without

`alike` and `errors` print how each rollout ended, after how many requests of the canary, and how long after the decision
the last answer of the canary was read. `throughput` needs wrk and takes turns: the ratio is as good as `--twin` says.
"""

import argparse
import http.client
import json
import os
import pathlib
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

MODEL = "tried"


# A writer of ONNX's protobuf, just large enough for a table to pick from.


def varint(number):
    out = bytearray()
    number &= (1 << 64) - 1
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def number(field, value):
    return varint(field << 3) + varint(value)


def text(field, value):
    value = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(value)) + value


def declared(name):
    shape = text(1, text(2, "n"))
    return text(1, name) + text(2, text(1, number(1, 7) + text(2, shape)))


def picking(entries):
    """Gives the entry of a table that the input names; the engine refuses one beyond the end."""
    raw = b"".join(struct.pack("<q", value) for value in range(1, entries + 1))
    table = number(1, entries) + number(2, 7) + text(8, "table") + text(9, raw)
    node = text(1, "table") + text(1, "x") + text(2, "y") + text(4, "Gather")
    graph = text(1, node) + text(2, "g") + text(5, table) + text(11, declared("x")) + text(12, declared("y"))
    return number(1, 8) + text(7, graph) + text(8, text(1, "") + number(2, 17))


class Server:
    """A server over two versions of a model, of which the first serves."""

    def __init__(self, binary, baseline, candidate):
        self.home = tempfile.TemporaryDirectory()
        root = pathlib.Path(self.home.name)
        for version, model in (("1", baseline), ("2", candidate)):
            folder = root / "models" / MODEL / version
            folder.mkdir(parents=True)
            (folder / "model.onnx").write_bytes(model)
        environment = {**os.environ, "TIDEGATE__STATE__PATH": str(root / "state")}
        command = [binary, "serve", "--repository", str(root / "models"), "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        command += ["--log-format", "json"]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            said = json.loads(line)
            if said.get("message") == "ready" and "http" in said:
                self.http, self.admin_port = (int(said[name].rpartition(":")[2]) for name in ("http", "admin"))
                break
        else:
            sys.exit("the server did not get ready")
        threading.Thread(target=lambda: [None for _ in self.process.stdout], daemon=True).start()
        self.admin("POST", f"/api/v1/models/{MODEL}/rollback", {"version": 1})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.home.cleanup()

    def admin(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=60)
        connection.request(method, path, json.dumps(body) if body is not None else None, {"content-type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        if response.status >= 300:
            sys.exit(f"{method} {path}: {response.status} {answer}")
        return answer

    def start(self, policy):
        body = {"model": MODEL, "candidate": 2, "policy": policy}
        return self.admin("POST", "/api/v1/rollouts", body)["id"]


class Client(threading.Thread):
    """Asks with random numbers on one connection, one request after the other."""

    def __init__(self, server, seed, pause):
        super().__init__(daemon=True)
        self.socket = socket.create_connection(("127.0.0.1", server.http))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.random, self.pause = random.Random(seed), pause
        self.over, self.answers, self.lost, self.last_canary = False, 0, 0, 0.0

    def run(self):
        read = self.socket.makefile("rb")
        while not self.over:
            index = self.random.randrange(100)
            body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT64","data":[%d]}]}' % index
            head = b"POST /v2/models/tried/infer HTTP/1.1\r\nhost: l\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.socket.sendall(head + body)
            status, length, canary = read.readline(), 0, False
            while (line := read.readline()) != b"\r\n":
                name, _, value = line.partition(b":")
                if name == b"content-length":
                    length = int(value)
                canary |= name == b"x-tidegate-arm" and value.strip() == b"canary"
            read.read(length)
            self.answers += 1
            # A number that neither version takes is the client's own mistake, whoever says so.
            self.lost += b" 200 " not in status and not (b" 400 " in status and index >= 99)
            if canary:
                self.last_canary = time.time()
            if self.pause:
                time.sleep(self.pause)


def at(moment):
    import datetime

    return datetime.datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()


def run(options, baseline, candidate, policy, seed):
    with Server(options.binary, baseline, candidate) as server:
        clients = [Client(server, seed * 100 + index, options.pause) for index in range(options.clients)]
        for client in clients:
            client.start()
        begin = time.time()
        rollout = server.start(policy)
        while True:
            shown = server.admin("GET", f"/api/v1/rollouts/{rollout}")
            if shown["ended_at"] or time.time() - begin > options.seconds:
                break
            time.sleep(0.05)
        time.sleep(0.1)
        for client in clients:
            client.over = True
        for client in clients:
            client.join(5)
        late = max(client.last_canary for client in clients) - at(shown["ended_at"]) if shown["ended_at"] else None
        errors = next(gate for gate in shown["gates"] if gate["gate"] == "errors")
        return {
            "state": shown["state"],
            "gate": shown["gate"],
            "canary_requests": errors["candidate"]["requests"],
            "seconds": round(time.time() - begin, 2),
            "last_canary_ms": None if late is None else round(late * 1e3, 1),
            "answers": sum(client.answers for client in clients),
            "lost": sum(client.lost for client in clients),
        }


def ends(options, baseline, candidate, policy):
    found = []
    for index in range(options.runs):
        found.append(run(options, baseline, candidate, policy, index))
        print(json.dumps(found[-1]), flush=True)
    rolled = [one for one in found if one["state"] == "rolled_back"]
    print(f"{len(found)} rollouts, {len(rolled)} rolled back, {sum(one['lost'] for one in found)} of "
          f"{sum(one['answers'] for one in found)} answers lost")
    if rolled:
        requests = statistics.median(one["canary_requests"] for one in rolled)
        late = [one["last_canary_ms"] for one in rolled]
        print(f"median canary requests to rollback {requests:.0f}; last canary answer after the decision: "
              f"median {statistics.median(late)} ms, latest {max(late)} ms")


def throughput(options):
    script = "wrk.method='POST' wrk.body='{\"inputs\":[{\"name\":\"x\",\"shape\":[1],\"datatype\":\"INT64\",\"data\":[7]}]}'"
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file, Server(options.binary, picking(100), picking(100)) as server:
        file.write(script)
        file.flush()

        def load(seconds):
            command = ["wrk", "-t1", "-c8", f"-d{round(seconds)}s", "-s", file.name]
            command = ["taskset", "-c", options.client_core, *command] if options.client_core else command
            command.append(f"http://127.0.0.1:{server.http}/v2/models/{MODEL}/infer")
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            if "Non-2xx" in said:
                sys.exit(said)
            return float(next(line for line in said.splitlines() if line.startswith("Requests/sec")).split()[1])

        def cpu_seconds():
            # The name in the second field may hold spaces; what follows its closing bracket does not.
            fields = pathlib.Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        step = {"weight": 0.25, "min_duration": "1d", "max_duration": "2d"}
        ratios, costs = [], []
        for turn in range(options.runs):
            rates, cpu = {}, {}
            for side in ("without", "with") if turn % 2 == 0 else ("with", "without"):
                rollout = None
                if side == "with" and not options.twin:
                    body = {"model": MODEL, "candidate": 2, "force": True, "policy": {"steps": [step], "rollback_window": "0s"}}
                    rollout = server.admin("POST", "/api/v1/rollouts", body)["id"]
                load(1)
                before = cpu_seconds()
                rates[side] = load(options.seconds)
                cpu[side] = (cpu_seconds() - before) / (rates[side] * options.seconds)
                if rollout:
                    state = server.admin("POST", f"/api/v1/rollouts/{rollout}/abort", {})["state"]
                    assert state == "rolled_back", state
            ratios.append(rates["with"] / rates["without"])
            costs.append(cpu["with"] / cpu["without"])
            print(json.dumps({**rates, "ratio": round(ratios[-1], 4), "cpu_ratio": round(costs[-1], 4)}), flush=True)
        print(f"median ratio {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}; "
              f"CPU time per request {statistics.median(costs):.3f} times")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["alike", "errors", "throughput"])
    parser.add_argument("--binary", required=True)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0, help="seconds between the requests of a client")
    parser.add_argument("--seconds", type=float, default=60, help="of one rollout at most; of one measurement")
    parser.add_argument("--client-core", help="where wrk runs")
    parser.add_argument("--twin", action="store_true", help="measure without against without: the noise")
    options = parser.parse_args()
    base = picking(99)
    if options.what == "errors":
        step = {"weight": 0.05, "min_duration": "1h", "min_requests": 100000, "max_duration": "2h"}
        ends(options, base, picking(95), {"steps": [step]})
    elif options.what == "alike":
        steps = [{"weight": weight, "min_duration": "1s", "min_requests": 200} for weight in (0.05, 0.25)]
        ends(options, base, base, {"steps": steps, "rollback_window": "0s"})
    else:
        options.seconds = min(options.seconds, 5)
        throughput(options)


if __name__ == "__main__":
    main()
