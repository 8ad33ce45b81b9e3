#!/usr/bin/env python3
"""Sends outcomes of predictions to tidegate, with the standard library alone.

    feedback.py URL MODEL < outcomes.jsonl

Each line is an outcome, such as {"prediction_id": "...", "label": 1}: the id comes with each answer, in the header
`x-tidegate-prediction-id`. Lines are sent 1,000 at a time, and again where there was no answer: what was joined before
is told as `duplicate` and counts once. Ends with 1 if an outcome was not taken.
"""

import json
import sys
import time
import urllib.error
import urllib.request

BATCH = 1000
TRIES = 5


def send(url, model, outcomes):
    """Sends outcomes; gives a result for each."""
    body = json.dumps({"outcomes": outcomes}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v2/models/{model}/feedback", body, headers)
    for again in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)["results"]
        except urllib.error.HTTPError as refused:
            # 503 and 507 pass; what else is refused will be refused again.
            if refused.code not in (503, 507) or again == TRIES - 1:
                raise SystemExit(f"{refused.code}: {refused.read().decode()}") from None
        except OSError as lost:
            if again == TRIES - 1:
                raise SystemExit(f"no answer from {url}: {lost}") from None
        time.sleep(2**again)


def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    url, model = sys.argv[1].rstrip("/"), sys.argv[2]
    outcomes = [json.loads(line) for line in sys.stdin if line.strip()]
    counts = {}
    for first in range(0, len(outcomes), BATCH):
        batch = outcomes[first : first + BATCH]
        for outcome, result in zip(batch, send(url, model, batch)):
            counts[result["status"]] = counts.get(result["status"], 0) + 1
            if result["status"] not in ("joined", "duplicate"):
                print(outcome["prediction_id"], result["status"], result.get("detail", ""), file=sys.stderr)
    print(json.dumps(counts))
    return 0 if set(counts) <= {"joined", "duplicate"} else 1


if __name__ == "__main__":
    sys.exit(main())
