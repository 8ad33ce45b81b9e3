#!/usr/bin/env python3
"""Measures what metrics cost beside the path: bytes of a page, time of a scrape, its stall of the path, idle CPU.

    python3 loadtests/pages.py                          2,000 models of which 20 are asked, then 1,000 that all are
    python3 loadtests/pages.py --models 200 --asked 100 less

The first server has `--models` models with little traffic: pages in each format, and its CPU time over `--idle` seconds
in which nobody asks, then as long with a scrape each 5 s; before it, for comparison, that of a process that only wakes.
The second one has `--asked` models that have all answered: the time of 30 scrapes in each format, and the latency of
requests in turns, with a scrape each second and with none. Needs wrk for the last of these.
"""

import argparse
import gzip
import http.client
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from compare import PROJECT, machine

FORMATS = {
    "text": "text/plain;version=0.0.4",
    "OpenMetrics": "application/openmetrics-text;version=1.0.0",
    "protobuf": "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
}
BODY = '{"inputs":[{"name":"input","shape":[1,4],"datatype":"FP32","data":[5.1,3.5,1.4,0.2]}]}'
REQUEST = f"wrk.method = 'POST'\nwrk.headers['Content-Type'] = 'application/json'\nwrk.body = '{BODY}'\n"
LOADED_SECONDS_MAX = 900
# On a machine whose memory is taken and given back by a host, a wake after a second costs more than after a moment.
SLEEPER = """import time
begin = time.thread_time()
for _ in range(20):
    time.sleep(1)
print((time.thread_time() - begin) / 20 * 100)
"""


class Server:
    """A server of so many copies of a small model."""

    def __init__(self, options, folder, models):
        self.port = options.port
        repository = folder / "models"
        for number in range(models):
            version = repository / f"department-{number}" / "1"
            version.mkdir(parents=True)
            shutil.copy(PROJECT / "models" / "iris" / "1" / "model.onnx", version)
        library = PROJECT / "third_party" / "onnxruntime" / "libonnxruntime.so"
        environment = {"ORT_DYLIB_PATH": str(library)} | dict(os.environ)
        environment |= {"TIDEGATE__STATE__PATH": str(folder / "state"), "TIDEGATE__SERVER__WORKERS": options.workers}
        addresses = ["--http", f"127.0.0.1:{self.port}", "--admin", f"127.0.0.1:{self.port + 1}"]
        with open(folder / "log", "w") as log:
            command = [options.tidegate, "serve", "--repository", str(repository), *addresses]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        begin = time.monotonic()
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() - begin > LOADED_SECONDS_MAX:
                raise SystemExit(f"the server does not get ready: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.2)
        print(f"{models} models are loaded after {time.monotonic() - begin:.0f} s")
        self.connect()

    def connect(self):
        """Begins new connections: those that nobody uses for a minute are closed."""
        self.data = http.client.HTTPConnection("127.0.0.1", self.port)
        self.admin = http.client.HTTPConnection("127.0.0.1", self.port + 1)

    def is_ready(self):
        try:
            probe = http.client.HTTPConnection("127.0.0.1", self.port + 1, timeout=10)
            probe.request("GET", "/readyz")
            return probe.getresponse().status == 200
        except OSError:
            return False

    def ask(self, number):
        self.data.request("POST", f"/v2/models/department-{number}/infer", BODY, {"Content-Type": "application/json"})
        answer = self.data.getresponse()
        answer.read()
        assert answer.status == 200, f"{answer.status} from department-{number}"

    def scrape(self, accept, encoding="identity"):
        """The page, and the seconds that it took."""
        begin = time.monotonic()
        self.admin.request("GET", "/metrics", headers={"Accept": accept, "Accept-Encoding": encoding})
        answer = self.admin.getresponse()
        page = answer.read()
        took = time.monotonic() - begin
        assert answer.status == 200
        return page, took

    def cpu(self, seconds, scrapes_every=None):
        """Share of one core that the process takes for so long, in percent."""

        def spent():
            # Nanoseconds on a core, of each thread: clock ticks are too coarse for an idle process.
            threads = pathlib.Path(f"/proc/{self.process.pid}/task").iterdir()
            return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads)

        before, begin = spent(), time.monotonic()
        while (left := begin + seconds - time.monotonic()) > 0:
            if scrapes_every:
                self.scrape(FORMATS["protobuf"], "gzip")
            time.sleep(min(left, scrapes_every or left))
        return (spent() - before) / (time.monotonic() - begin) / 1e9 * 100

    def end(self):
        self.process.terminate()
        self.process.wait()


def sizes(server):
    for name, accept in FORMATS.items():
        page, _ = server.scrape(accept)
        packed, _ = server.scrape(accept, "gzip")
        assert len(gzip.decompress(packed)) > 0
        print(f"  {name:12}{len(page) / 1024:9.0f} KiB{len(packed) / 1024:9.0f} KiB with gzip")


def idle(options):
    with tempfile.TemporaryDirectory() as folder:
        server = Server(options, pathlib.Path(folder), options.models)
        try:
            for number in range(0, options.models, max(1, options.models // 20)):
                server.ask(number)
            print(f"pages of {options.models} models, of which 20 were asked")
            sizes(server)
            time.sleep(options.settle)
            sleeper = subprocess.run([sys.executable, "-c", SLEEPER], capture_output=True, text=True, check=True)
            print(f"a process that does nothing but wake once a second: {float(sleeper.stdout):.2f} % of one core")
            # The system takes a minute to make large pages of small ones, until which memory costs more to reach.
            print(f"CPU of one core while nobody asks, at first: {server.cpu(options.idle):.2f} %")
            print(f"later on: {server.cpu(options.idle):.2f} %")
            server.connect()
            print(f"the same with a scrape each 5 s: {server.cpu(options.idle, 5):.2f} %")
        finally:
            server.end()


def latency(server, script, seconds):
    """Milliseconds: the median, the 99th percentile and the slowest; and requests a second."""
    url = f"http://127.0.0.1:{server.port}/v2/models/department-7/infer"
    wrk = ["wrk", "-t1", "-c4", "--latency", f"-d{seconds}s", "-s", script, url]
    told = subprocess.run(wrk, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in told and "Socket errors" not in told, told
    units = {"us": 1e-3, "ms": 1.0, "s": 1e3}

    def milliseconds(pattern):
        number, unit = re.search(pattern + r"\s+([\d.]+)(us|ms|s)", told).groups()
        return float(number) * units[unit]

    slowest = re.search(r"Latency\s+\S+\s+\S+\s+([\d.]+)(us|ms|s)", told).groups()
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1])
    return milliseconds("50%"), milliseconds("99%"), float(slowest[0]) * units[slowest[1]], rate


def stall(server, options, folder):
    script = folder / "request.lua"
    script.write_text(REQUEST)
    latency(server, script, 3)
    turns = {"none": [], "each second": []}
    for turn in range(options.turns):
        for kind in list(turns)[:: 1 if turn % 2 == 0 else -1]:
            is_over = threading.Event()

            def scrapes():
                while not is_over.wait(1):
                    server.scrape(FORMATS["protobuf"], "gzip")

            scraper = threading.Thread(target=scrapes)
            if kind != "none":
                scraper.start()
            turns[kind].append(latency(server, script, options.seconds))
            is_over.set()
            if kind != "none":
                scraper.join()
    print(f"{'scrapes':14}{'requests/s':>12}{'p50':>10}{'p99':>10}{'slowest':>10}   median of {options.turns} turns")
    for kind, measured in turns.items():
        p50, p99, slowest, rate = (statistics.median(column) for column in zip(*measured))
        print(f"{kind:14}{rate:12.0f}{p50:7.3f} ms{p99:7.3f} ms{slowest:7.2f} ms")


def busy(options):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        server = Server(options, folder, options.asked)
        try:
            for number in range(options.asked):
                server.ask(number)
            print(f"pages of {options.asked} models that were all asked")
            sizes(server)
            for name, accept in FORMATS.items():
                for encoding in ("identity", "gzip"):
                    took = [server.scrape(accept, encoding)[1] * 1e3 for _ in range(30)]
                    print(f"  {name:12}{encoding:10} median {statistics.median(took):6.1f} ms, slowest {max(took):6.1f} ms")
            if shutil.which("wrk"):
                stall(server, options, folder)
        finally:
            server.end()


def main():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tidegate", type=pathlib.Path, default=target / "release" / "tidegate")
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--asked", type=int, default=1000)
    # Several passes over the repository, which are a third of what an idle server does, and a minute apart.
    parser.add_argument("--idle", type=int, default=120, metavar="SECONDS")
    parser.add_argument("--settle", type=int, default=15, metavar="SECONDS", help="before the idle server is measured")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=5, help="of a turn")
    parser.add_argument("--workers", default="1")
    parser.add_argument("--port", type=int, default=9200)
    options = parser.parse_args()
    print(machine())
    idle(options)
    busy(options)


if __name__ == "__main__":
    main()
