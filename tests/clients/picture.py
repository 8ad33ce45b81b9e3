"""Draws dashboards with the data of a Prometheus, as Grafana would lay them out, and says which panels have none.

    picture.py PROMETHEUS SECONDS OUT MODEL DASHBOARD...

Asks each panel's queries over the last so many seconds and writes OUT/<dashboard>.svg. Prints one JSON object: the titles
of panels without data, by dashboard. The pictures are for people who look at a change where there is no Grafana.
"""

import html
import json
import math
import pathlib
import sys
import time
import urllib.parse
import urllib.request

WIDTH, UNIT, GAP = 1440, 38, 8
COLOURS = ["#3274d9", "#e0752d", "#37872d", "#c4162a", "#8f3bb8", "#b8860b", "#0a8a8a", "#6e6e6e"]
STYLE = "text{font:12px system-ui,sans-serif;fill:#333}.title{font-weight:600}.row{font-size:15px;font-weight:600}.big{font-size:26px}"


def asked(expression, model):
    """A query with what Grafana puts in for its variables."""
    for name, value in {"$__rate_interval": "10s", "$__interval": "5s", "$instance": ".*", "$version": "1", "$model": model}.items():
        expression = expression.replace(name, value)
    return expression


def series(prometheus, expression, seconds):
    """Each series: its labels, and its numbers by time."""
    now = time.time()
    form = urllib.parse.urlencode({"query": expression, "start": now - seconds, "end": now, "step": max(1, seconds / 200)})
    with urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{form}") as answer:
        found = json.load(answer)["data"]["result"]
    points = [(one["metric"], [(at, float(value)) for at, value in one["values"]]) for one in found]
    return [(labels, [(at, value) for at, value in line if math.isfinite(value)]) for labels, line in points]


def name(target, labels):
    """What the legend calls a series."""
    text = target.get("legendFormat") or ", ".join(f"{key}={value}" for key, value in labels.items() if key != "__name__")
    for key, value in labels.items():
        text = text.replace("{{" + key + "}}", value)
    return text.replace("{{", "").replace("}}", "") or target.get("expr", "")[:40]


def written(value):
    """A number in at most seven characters."""
    return f"{value:.4g}"


def draw(panel, lines, out, top):
    """Draws a panel with its lines: `(name, points)`."""
    place = panel["gridPos"]
    x, y = place["x"] * WIDTH / 24 + GAP / 2, place["y"] * UNIT + top
    width, height = place["w"] * WIDTH / 24 - GAP, place["h"] * UNIT - GAP
    text = lambda at_x, at_y, words, kind="": out.append(f'<text x="{at_x:.0f}" y="{at_y:.0f}" class="{kind}">{html.escape(words)}</text>')  # noqa: E731
    out.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" fill="#fff" stroke="#ddd"/>')
    text(x + 8, y + 18, panel["title"], "title")
    if not lines:
        text(x + 8, y + 44, "no data")
        return
    if panel["type"] != "timeseries":
        for at, (label, points) in enumerate(lines[: int((height - 40) / 18)]):
            big = panel["type"] == "stat" and len(lines) == 1
            text(x + 8, y + (58 if big else 42 + 18 * at), written(points[-1][1]) + ("" if big else f"  {label}"), "big" if big else "")
        return
    values = [value for _, points in lines for _, value in points]
    times = [at for _, points in lines for at, _ in points]
    low, high = min(0, *values), max(0, *values)
    high = high if high > low else 1
    left, right, bottom, ceiling = x + 56, x + width - 8, y + height - 24, y + 30
    for share in (0, 0.5, 1):
        level = bottom - share * (bottom - ceiling)
        out.append(f'<path d="M{left:.0f} {level:.0f}H{right:.0f}" stroke="#eee"/>')
        text(x + 6, level + 4, written(low + share * (high - low)))
    span = max(times) - min(times) or 1
    for at, (label, points) in enumerate(lines[:8]):
        path = "L".join(f"{left + (when - min(times)) / span * (right - left):.1f} {bottom - (value - low) / (high - low) * (bottom - ceiling):.1f}" for when, value in points)
        # A round cap shows a single point.
        out.append(f'<path d="M{path}h0" fill="none" stroke="{COLOURS[at]}" stroke-width="2" stroke-linecap="round"/>')
        if at < 4:
            column = (right - left) / min(4, len(lines))
            out.append(f'<rect x="{left + at * column:.0f}" y="{y + height - 16:.0f}" width="8" height="8" fill="{COLOURS[at]}"/>')
            text(left + at * column + 12, y + height - 8, label[: int(column / 7)])


def main():
    prometheus, seconds, folder, model, *files = sys.argv[1:]
    empty = {}
    for file in map(pathlib.Path, files):
        dashboard = json.loads(file.read_text())
        out, height = [], 0
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            height = max(height, (place["y"] + place["h"]) * UNIT)
            if panel["type"] == "row":
                out.append(f'<text x="8" y="{place["y"] * UNIT + 66}" class="row">{html.escape(panel["title"])}</text>')
                continue
            lines = [
                (name(target, labels), points)
                for target in panel["targets"]
                for labels, points in series(prometheus, asked(target["expr"], model), float(seconds))
                if points
            ]
            if not lines:
                empty.setdefault(file.stem, []).append(panel["title"])
            draw(panel, lines, out, 40)
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height + 48}"><style>{STYLE}</style><rect width="100%" height="100%" fill="#f4f5f5"/>'
        title = f'<text x="8" y="24" class="row">{html.escape(dashboard["title"])}</text>'
        (pathlib.Path(folder) / f"{file.stem}.svg").write_text("\n".join([head, title, *out, "</svg>\n"]))
    print(json.dumps(empty))


main()
