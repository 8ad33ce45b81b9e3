"""Reads pages of metrics with the parsers of Prometheus' own Python client, both text formats."""

import sys
import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain


def page(address, accept):
    request = urllib.request.Request(f"http://{address}/metrics", headers={"accept": accept})
    with urllib.request.urlopen(request) as answer:
        return answer.headers["content-type"], answer.read().decode()


def samples(families):
    """Samples by name and labels; edges as numbers, which the formats spell differently."""
    found = {}
    for family in families:
        assert family.documentation, f"{family.name} says nothing about itself"
        for sample in family.samples:
            labels = {k: float(v) if k == "le" else v for k, v in sample.labels.items()}
            key = (sample.name, tuple(sorted(labels.items())))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


address = sys.argv[1]
kind, text = page(address, "text/plain")
assert kind == "text/plain; version=0.0.4; charset=utf-8", kind
ours = samples(plain(text))
kind, text = page(address, "application/openmetrics-text; version=1.0.0")
assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8", kind
assert text.endswith("# EOF\n")
theirs = samples(openmetrics(text))
assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
assert len(ours) > 40, ours
print(f"{len(ours)} series")
