#!/usr/bin/env python3
"""Streams real rows through the real server: millions that are like the reference, then some that are not.

    python3 loadtests/drift/rows.py --binary target/release/tidegate --rows 10000000

`models/breast_cancer` version 1 has a profile of the 398 rows that its forest was trained on. Rows drawn from these, with
replacement, must raise no page alarm, however many; the 171 rows that were held out, drawn likewise, show how far data of
the same origin may differ from 398 rows; and rows of malignant tumours alone, a clinic of another kind, must raise one.
Needs numpy and scikit-learn. The promise is set to one false alarm an hour, as a run is minutes long, and tolerance to 0
with `--tolerance 0`.
"""

import argparse
import http.client
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROWS = 100


class Server:
    """The server over the sample model, with its addresses."""

    def __init__(self, binary, folder, settings):
        models = folder / "models"
        shutil.copytree(ROOT / "models/breast_cancer", models / "breast_cancer")
        shutil.rmtree(models / "breast_cancer/2")
        environment = dict(os.environ, TIDEGATE__STATE__PATH=str(folder / "state"), **settings)
        listen = ["--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-format", "json"]
        command = [binary, "serve", "--repository", str(models), *listen]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            ready = re.search(r'"http":"http://([^"]+)","admin":"http://([^"]+)"', line)
            if ready:
                self.http = http.client.HTTPConnection(ready[1])
                self.admin = http.client.HTTPConnection(ready[2])
                return
        sys.exit("the server ended before it was ready")

    def infer(self, rows):
        body = rows.astype("<f4").tobytes()
        head = json.dumps({
            "inputs": [{"name": "input", "shape": list(rows.shape), "datatype": "FP32",
                        "parameters": {"binary_data_size": len(body)}}],
            "parameters": {"binary_data_output": True},
        }).encode()
        headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
        self.http.request("POST", "/v2/models/breast_cancer/infer", head + body, headers)
        answer = self.http.getresponse()
        said = answer.read()
        assert answer.status == 200, said

    def drift(self):
        self.admin.request("GET", "/api/v1/models/breast_cancer/drift")
        return json.load(self.admin.getresponse())


def pages(report):
    return [alarm for alarm in report["alarms"] if alarm["tier"] == "page"]


def stream(server, pool, count, draw, until_alarm=False):
    """Sends rows drawn from a pool; gives the rows sent, and the page when it ended."""
    before, seen = len(pages(server.drift())), time.monotonic()
    for sent in range(ROWS, count + ROWS, ROWS):
        server.infer(pool[draw.integers(0, len(pool), ROWS)])
        if time.monotonic() - seen > 0.5:
            seen, report = time.monotonic(), server.drift()
            print(f"\r{sent:>10} rows, log_m {report['log_m']:8.2f} of {report['log_m_threshold']:.2f}", end="", file=sys.stderr)
            if until_alarm and len(pages(report)) > before:
                return sent, report
    print(file=sys.stderr)
    return count, server.drift()


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--binary", required=True)
    options.add_argument("--rows", type=int, default=10_000_000)
    options.add_argument("--tolerance")
    options.add_argument("--false-alarm-every", default="1h")
    asked = options.parse_args()
    data = load_breast_cancer()
    seen, unseen, _, unseen_truth = train_test_split(
        data.data.astype(np.float32), data.target, test_size=0.3, random_state=0, stratify=data.target
    )
    settings = {
        "TIDEGATE__DRIFT__FALSE_ALARM_EVERY": asked.false_alarm_every,
        "TIDEGATE__DRIFT__COOLDOWN": "1s",
    }
    if asked.tolerance:
        settings["TIDEGATE__DRIFT__TOLERANCE"] = asked.tolerance
    draw = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(prefix="tidegate-rows-") as folder:
        server = Server(asked.binary, pathlib.Path(folder), settings)
        begin = time.monotonic()
        _, report = stream(server, seen, asked.rows, draw)
        took = time.monotonic() - begin
        print(f"{asked.rows} rows of the reference's own in {took:.0f} s: {len(pages(report))} page alarms")
        named = [(alarm["feature"], alarm["kind"]) for alarm in pages(report)]
        assert not named, named
        malignant = unseen[unseen_truth == 0]
        sent, report = stream(server, malignant, 1_000_000, draw, until_alarm=True)
        alarms = sorted(pages(report), key=lambda alarm: -alarm["js"])
        assert alarms, "rows of malignant tumours alone raised no alarm"
        print(f"malignant tumours alone: an alarm within {sent} rows, {len(alarms)} features named")
        for alarm in alarms[:5]:
            print(f"  {alarm['feature']}: {alarm['kind']}, PSI {alarm['psi']:.2f}, JS {alarm['js']:.2f}")
        server.process.terminate()


if __name__ == "__main__":
    main()
