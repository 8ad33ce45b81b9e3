"""The table of refusals that are known and honest; see refusals.toml."""

import fnmatch
import tomllib
from pathlib import Path

TABLE = Path(__file__).with_name("refusals.toml")


class Refusals:
    """The rows of the table, and which of them a run has met."""

    def __init__(self, rows):
        self._rows = rows
        self._met = set()

    @classmethod
    def read(cls):
        """The table beside this file."""
        return cls(tomllib.loads(TABLE.read_text()).get("refusal", []))

    def judge(self, result):
        """Gives each refusal of a result its reason; one without a row becomes a fault."""
        for refusal in result.refusals:
            rows = [number for number, row in enumerate(self._rows) if _suits(row, result, refusal)]
            self._met.update((number, result.model) for number in rows)
            if not rows:
                result.faults.append(f"{refusal.when}: {refusal.message}")
                continue
            row = self._rows[rows[0]]
            refusal.reason = row["reason"]
            if row["because"] == "runtime" and result.runtime_loads:
                result.faults.append(f"{refusal.when}: {refusal.message}; but the runtime does load it")

    def stale(self, results, is_whole):
        """Rows, by model, that nothing needed; a model that is in no run is one, too, in a whole run."""
        known = {result.model for result in results}
        stale = []
        for number, row in enumerate(self._rows):
            for model in row["models"] if row["because"] != "machine" else ():
                if (number, model) not in self._met and (is_whole or model in known):
                    stale.append(f"{model}: {row['message']}")
        return stale


def _suits(row, result, refusal):
    return (
        result.model in row["models"]
        and fnmatch.fnmatch(refusal.when, row["when"])
        and row["message"] in refusal.message
    )
