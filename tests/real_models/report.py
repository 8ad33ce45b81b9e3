"""What a run found, as a table for people or as JSON for programs."""

import dataclasses
import json

from comparing import BATCHES, FORMS

COLUMNS = ["state", "metadata"] + [f"{batch} {form}" for batch in BATCHES for form in FORMS]
HEADS = ["state", "metadata"] + [f"{batch} {form[:4]}" for batch in BATCHES for form in FORMS]


def show(results, stale, as_json):
    """Prints everything; the last line sums it up."""
    counts = _counts(results)
    if as_json:
        rows = [dataclasses.asdict(result) for result in results]
        print(json.dumps({"models": rows, "stale": stale, "counts": counts}, indent=1))
        return
    width = max((len(result.model) for result in results), default=5)
    print("  ".join([f"{'model':{width}}"] + [f"{head:8}" for head in HEADS]).rstrip())
    for result in results:
        cells = [f"{result.cells.get(column, ''):8}" for column in COLUMNS]
        print("  ".join([f"{result.model:{width}}", *cells]).rstrip())
    _show_lines("refused, and known", _refusals(results))
    _show_lines("wrong", [line for result in results for line in _faults(result)])
    _show_lines("rows of refusals.toml that nothing needs", stale)
    print("\n" + ", ".join(f"{count} {what}" for what, count in counts.items()))


def _refusals(results):
    """A line per reason, with the models."""
    models = {}
    for result in results:
        for refusal in result.refusals:
            if refusal.reason:
                models.setdefault(refusal.reason, {})[result.model] = None
    return [f"{reason} {', '.join(names)}" for reason, names in models.items()]


def _faults(result):
    """A line per fault; what is the same at several batches and in both forms is told once."""
    cases = {}
    for fault in result.faults:
        where, _, what = fault.partition(": ")
        cases.setdefault(what, []).append(where)
    return [f"{result.model}: {', '.join(where)}: {what}" for what, where in cases.items()]


def _show_lines(title, lines):
    if lines:
        print(f"\n{title}:")
        for line in lines:
            print(f"  {line}")


def _counts(results):
    wrong = sum(bool(result.faults) for result in results)
    served = sum(result.cells["state"] == "ready" and not result.faults for result in results)
    refused = len(results) - wrong - served
    return {"models": len(results), "served as the runtime": served, "refused": refused, "wrong": wrong}
