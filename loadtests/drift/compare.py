#!/usr/bin/env python3
"""tidegate's drift detectors, river's and alibi-detect's on the same streams, at equal run length.

Each library runs in an environment of its own (`make loadtest-drift` makes them), so this program runs several times:

    compare.py streams DIR          makes the streams of the protocol (needs scikit-learn) and of one feature
    compare.py river DIR            runs river on them
    compare.py alibi DIR            runs alibi-detect on them
    compare.py tidegate DIR BINARY  runs tidegate's detectors, through the program of this folder
    compare.py report DIR DOCS      writes DOCS/drift.md's section "Measured" and its plots

All streams follow from seeds. `--quick` makes few of them, to see that everything runs.
"""

import argparse
import json
import math
import pathlib
import subprocess
import time

import numpy as np

# --- one feature -----------------------------------------------------------------------------------------------------

BEFORE, AFTER, REFERENCE = 1000, 4000, 10_000


def normal(mean=0.0, deviation=1.0):
    return lambda rng, n: rng.normal(mean, deviation, n)


def bits(share):
    return lambda rng, n: (rng.random(n) < share).astype(float)


def heavy(mean=0.0):
    return lambda rng, n: mean + rng.standard_t(3, n) / math.sqrt(3)


def exponential(scale=1.0):
    return lambda rng, n: rng.exponential(scale, n)


def polluted(share):
    def draw(rng, n):
        return np.where(rng.random(n) < share, 3.0, rng.normal(0, 1, n))

    return draw


CHANGES = {
    "mean +.25": (normal(), normal(0.25), "number"),
    "mean +.5": (normal(), normal(0.5), "number"),
    "mean +1": (normal(), normal(1.0), "number"),
    "sd 1.5": (normal(), normal(0, 1.5), "number"),
    "share .2 to .3": (bits(0.2), bits(0.3), "category"),
    "mean +.35": (normal(), normal(0.35), "number"),
    "mean +.7": (normal(), normal(0.7), "number"),
    "sd .7": (normal(), normal(0, 0.7), "number"),
    "t3, mean +.4 sd": (heavy(), heavy(0.4), "number"),
    "exponential x1.4": (exponential(), exponential(1.4), "number"),
    "10 % become 3": (normal(), polluted(0.1), "number"),
}


def stream(change, run):
    """A reference and a stream whose distribution changes after BEFORE values."""
    before, after, _ = CHANGES[change]
    rng = np.random.default_rng([list(CHANGES).index(change), run])
    return before(rng, REFERENCE), np.concatenate([before(rng, BEFORE), after(rng, AFTER)])


# --- the protocol ----------------------------------------------------------------------------------------------------

LENGTH, SAMPLE, LATEST, WIDTH, SKIPPED = 4000, 1000, 600, 400, 0.75
KINDS = ("feature permutation", "feature filtering", "class prior", "label swap")
MODES = ("abrupt", "gradual")


def pool(name):
    from sklearn import datasets

    data = getattr(datasets, "load_" + name)()
    x, y = data.data.astype(float), data.target
    if name == "diabetes":
        y = (y > np.median(y)).astype(int)
    if name == "digits":
        # Pixels that are always empty say nothing.
        x = x[:, x.std(axis=0) > 0.5]
    return x, y


def protocol_stream(x, y, model, kind, mode, rng):
    """Rows drawn from the pool, of which those after the change are drawn from a changed pool.

    Gradual: the chance of a changed row rises from 0 to 1 over WIDTH rows.
    """
    change = int(rng.integers(int(0.3 * LENGTH), int(0.7 * LENGTH)))
    rows = rng.integers(0, len(x), SAMPLE + LENGTH)
    after = np.arange(LENGTH) - change
    chance = np.clip(after / WIDTH, 0, 1) if mode == "gradual" else (after >= 0).astype(float)
    changed = np.concatenate([np.zeros(SAMPLE, bool), rng.random(LENGTH) < chance])
    features, labels = None, None
    if kind in ("feature filtering", "class prior"):
        if kind == "class prior":
            skipped = y == rng.choice(np.unique(y))
        else:
            feature = rng.integers(0, x.shape[1])
            skipped = x[:, feature] > np.median(x[:, feature])
        weights = np.where(skipped, 1 - SKIPPED, 1.0)
        rows = np.where(changed, rng.choice(len(x), len(rows), p=weights / weights.sum()), rows)
    features, labels = x[rows].copy(), y[rows].copy()
    if kind == "feature permutation":
        features[changed] = features[changed][:, rng.permutation(x.shape[1])]
    elif kind == "label swap":
        a, b = rng.choice(np.unique(y), 2, replace=False)
        swapped = labels.copy()
        swapped[labels == a], swapped[labels == b] = b, a
        labels = np.where(changed, swapped, labels)
    errors = (model.predict(features) != labels).astype(float)
    return change, features, errors


def make_streams(folder, trials):
    from sklearn.ensemble import RandomForestClassifier

    index = []
    for number, name in enumerate(("breast_cancer", "wine", "diabetes", "digits")):
        x, y = pool(name)
        rng = np.random.default_rng(number)
        order = rng.permutation(len(x))
        train, rest = order[: len(x) // 2], order[len(x) // 2 :]
        model = RandomForestClassifier(50, random_state=0).fit(x[train], y[train])
        x, y = x[rest], y[rest]
        for kind_number, kind in enumerate(KINDS):
            for mode in MODES:
                for trial in range(trials):
                    seed = [number, kind_number, MODES.index(mode), trial]
                    change, features, errors = protocol_stream(
                        x, y, model, kind, mode, np.random.default_rng(seed)
                    )
                    path = f"{name}-{kind_number}-{mode}-{trial}"
                    if kind != "label swap":
                        features.astype("<f8").tofile(folder / (path + ".rows"))
                    errors.astype("<f8").tofile(folder / (path + ".errors"))
                    index.append(
                        {
                            "data": name,
                            "kind": kind,
                            "mode": mode,
                            "path": path,
                            "features": x.shape[1],
                            "change": change,
                        }
                    )
    (folder / "index.json").write_text(json.dumps(index))


def read_rows(folder, entry, what):
    values = np.fromfile(folder / f"{entry['path']}.{what}", "<f8")
    width = entry["features"] if what == "rows" else 1
    return np.split(values.reshape(-1, width), [SAMPLE])


def protocol_cases(folder):
    """Streams with what is watched: the features, or the errors of a model that was trained before."""
    for entry in json.loads((folder / "index.json").read_text()):
        for what in ("rows", "errors"):
            if (folder / f"{entry['path']}.{what}").exists() and not (
                what == "errors" and entry["kind"].startswith("feature")
            ):
                yield entry, what


def standardised(reference, values):
    deviation = reference.std(axis=0)
    return (values - reference.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)


# --- river -----------------------------------------------------------------------------------------------------------


def river_detectors():
    from river import drift

    return {
        "ADWIN": (lambda: drift.ADWIN(), 0),
        "ADWIN, clock 1": (lambda: drift.ADWIN(clock=1), 0),
        "Page-Hinkley": (lambda: drift.PageHinkley(), 0),
        "KSWIN": (lambda: drift.KSWIN(seed=1), 25),
    }


def first_alarm(detector, values):
    """Rows from the change to the first alarm; None where one came before it."""
    for row, value in enumerate(values):
        detector.update(float(value))
        if detector.drift_detected:
            return row + 1 - BEFORE if row >= BEFORE else None
    return math.inf


def summary(delays, seconds, values):
    delays = [delay for delay in delays if delay is not None]
    missed = sum(map(math.isinf, delays))
    cut = [min(delay, AFTER) for delay in delays]
    return {
        "runs": len(delays),
        "missed": missed / max(len(delays), 1),
        "mean": float(np.mean(cut)) if cut else None,
        "error": float(np.std(cut, ddof=1) / math.sqrt(len(cut))) if len(cut) > 1 else None,
        "us": 1e6 * seconds / max(values, 1),
    }


def run_river(folder, runs):
    out = {"delays": {}, "run_length": {}, "protocol": {}}
    for name, (make, few) in river_detectors().items():
        count = min(runs, few or runs)
        for change in CHANGES:
            if few and change not in ("mean +.5", "mean +1", "sd 1.5", "share .2 to .3"):
                continue
            began, values, delays = time.perf_counter(), 0, []
            for run in range(count):
                _, series = stream(change, run)
                delays.append(first_alarm(make(), series))
                delay = delays[-1]
                values += len(series) if delay is not None and math.isinf(delay) else BEFORE + (delay or 0)
            seconds = time.perf_counter() - began
            out["delays"].setdefault(name, {})[change] = summary(delays, seconds, values)
        out["run_length"][name] = river_run_length(make, {"KSWIN": 60_000, "Page-Hinkley": 200_000}.get(name, 3_000_000), runs)
        print("river", name, flush=True)
    out["protocol"] = river_protocol(folder)
    return out


def river_run_length(make, values, runs):
    """Values without a change, and the alarms among them: each begins a new run."""
    values = max(values * runs // 100, 2000)
    rng, detector, alarms = np.random.default_rng(99), make(), 0
    for _ in range(values // 1000):
        for value in rng.normal(0, 1, 1000):
            detector.update(float(value))
            alarms += detector.drift_detected
    return {"values": values // 1000 * 1000, "alarms": alarms}


def river_grid(what):
    from river import drift

    grid = {
        "river ADWIN": [
            (f"delta {delta:g}, clock {clock}", lambda delta=delta, clock=clock: drift.ADWIN(delta=delta, clock=clock))
            for delta in (2e-3, 2e-4, 2e-5)
            for clock in (1, 32)
        ],
        "river Page-Hinkley": [
            (f"delta {delta:g}, threshold {high:g}", lambda delta=delta, high=high: drift.PageHinkley(delta=delta, threshold=high))
            for delta, high in ((0.005, 50), (0.1, 20), (0.1, 50), (0.25, 10), (0.25, 20))
        ],
    }
    if what == "errors":
        grid["river DDM"] = [
            (f"drift {high:g}", lambda high=high: drift.binary.DDM(drift_threshold=high)) for high in (3, 4, 5)
        ]
        grid["river HDDM_A"] = [
            (f"confidence {level:g}", lambda level=level: drift.binary.HDDMA(drift_confidence=level))
            for level in (1e-3, 1e-4, 1e-5)
        ]
        grid["river HDDM_W"] = [
            (f"confidence {level:g}", lambda level=level: drift.binary.HDDMW(drift_confidence=level))
            for level in (1e-3, 1e-5, 1e-7)
        ]
    return grid


def river_protocol(folder):
    out = []
    for entry, what in protocol_cases(folder):
        reference, rows = read_rows(folder, entry, what)
        if what == "rows":
            rows = standardised(reference, rows)
        for name, settings in river_grid(what).items():
            for setting, make in settings:
                detectors = [make() for _ in range(rows.shape[1])]
                alarms = []
                as_bool = what == "errors" and not name.endswith(("ADWIN", "Hinkley"))
                # What has no reference may first look at its rows, as all others do.
                for number, row in enumerate(np.concatenate([standardised(reference, reference) if what == "rows" else reference, rows]).tolist()):
                    fired = False
                    for detector, value in zip(detectors, row):
                        detector.update(bool(value) if as_bool else value)
                        fired |= detector.drift_detected
                    if fired and number >= SAMPLE:
                        alarms.append(number - SAMPLE + 1)
                        detectors = [make() for _ in detectors]
                out.append(result(entry, what, name, setting, alarms))
    return out


def result(entry, what, name, setting, alarms):
    """What counts of the alarms: those before the change, and the first one in time after it."""
    change = entry["change"]
    early = sum(alarm <= change for alarm in alarms)
    hit = next((alarm - change for alarm in alarms if change < alarm <= change + LATEST), None)
    return {
        **{key: entry[key] for key in ("data", "kind", "mode")},
        "what": what,
        "detector": name,
        "setting": setting,
        "false": early,
        "delay": hit,
    }


# --- alibi-detect ----------------------------------------------------------------------------------------------------


REFERENCES = 8


def run_alibi(folder, runs):
    """Each reference costs seconds of bootstraps, so that streams share eight of them (and their thresholds)."""
    from alibi_detect.cd import CVMDriftOnline, FETDriftOnline

    settings = {"ert": 200, "window_sizes": [20, 50], "n_bootstraps": 10_000, "verbose": False}
    families = {
        "CVMDriftOnline": (
            ("mean +.25", "mean +.5", "mean +1", "sd 1.5", "mean +.35", "mean +.7", "sd .7", "10 % become 3"),
            lambda reference: CVMDriftOnline(reference[:300], **settings),
            float,
        ),
        "FETDriftOnline": (
            ("share .2 to .3",),
            lambda reference: FETDriftOnline(reference[:300].astype(int), alternative="greater", **settings),
            int,
        ),
    }
    out = {"delays": {}, "run_length": {}}
    for name, (changes, make, cast) in families.items():
        before = CHANGES[changes[0]][0]
        detectors = []
        for number in range(REFERENCES):
            np.random.seed(number)
            detectors.append(make(before(np.random.default_rng([88, number]), 300)))
        lengths = []
        for run in range(2 * runs):
            values = before(np.random.default_rng([77, run]), 4000)
            lengths.append(alibi_first(detectors[run % REFERENCES], values, cast)[0])
        lengths = [min(length, 4000) for length in lengths]
        out["run_length"][name] = {"values": int(sum(lengths)), "alarms": len(lengths)}
        for change in changes:
            delays, seconds, values = [], 0.0, 0
            for run in range(runs):
                _, series = stream(change, run)
                detector = detectors[run % REFERENCES]
                first, took = alibi_first(detector, series[BEFORE - 60 :], cast)
                seconds, values = seconds + took, values + min(first, AFTER + 60)
                delays.append(None if first <= 60 else first - 60)
            out["delays"].setdefault(name, {})[change] = summary(delays, seconds, values)
        print("alibi", name, flush=True)
    out["protocol"] = alibi_protocol(folder)
    return out


def alibi_first(detector, values, cast):
    """The first value with an alarm, counted from 1, and the seconds that it took."""
    detector.reset_state()
    began = time.perf_counter()
    for row, value in enumerate(values):
        if detector.predict(cast(value))["data"]["is_drift"]:
            return row + 1, time.perf_counter() - began
    return math.inf, time.perf_counter() - began


def alibi_protocol(folder):
    """Windows of rows before KSDrift; errors before FETDriftOnline. Not all streams: a window of 52 features takes a
    tenth of a second, and bootstraps take many.

    CVMDriftOnline would need 10 bootstraps for each feature and value of the run length: hours for 30 features.
    """
    from alibi_detect.cd import FETDriftOnline, KSDrift

    out = []
    for entry, what in protocol_cases(folder):
        trial = int(entry["path"].rsplit("-", 1)[1])
        if trial >= (2 if what == "errors" else 3 if entry["data"] == "digits" else 8):
            continue
        reference, rows = read_rows(folder, entry, what)
        if what == "rows":
            for window in (100, 200):
                for p_value in (0.05, 0.005):
                    detector = KSDrift(reference, p_val=p_value, alternative="two-sided")
                    alarms = [
                        end
                        for end in range(window, LENGTH + 1, window)
                        if detector.predict(rows[end - window : end])["data"]["is_drift"]
                    ]
                    setting = f"windows of {window}, p {p_value}"
                    out.append(result(entry, what, "alibi KSDrift", setting, alarms))
        else:
            np.random.seed(1)
            bits = reference.ravel().astype(int)
            if bits.min() == bits.max():
                # A reference without an error, or with nothing else: it refuses.
                continue
            detector = FETDriftOnline(
                bits,
                ert=2000,
                window_sizes=[50, 200],
                n_bootstraps=20_000,
                alternative="greater",
                verbose=False,
            )
            alarms = []
            for number, row in enumerate(rows.ravel().astype(int).tolist()):
                if detector.predict(row)["data"]["is_drift"]:
                    alarms.append(number + 1)
                    detector.reset_state()
                if number > entry["change"] + LATEST:
                    break
            out.append(result(entry, what, "alibi FETDriftOnline", "ert 2000", alarms))
    return out


# --- tidegate --------------------------------------------------------------------------------------------------------

# Evidence at which the run length is that of the other detector: measured, as tidegate's exceeds what is promised.
EQUAL = {
    "ADWIN, clock 1": {"tolerance 0": 280_000, "tolerance .02": 70_000},
    "ADWIN": {"tolerance 0": 700_000, "tolerance .02": 170_000},
    "Page-Hinkley": {"tolerance 0": 740, "tolerance .02": 300},
    "KSWIN": {"tolerance 0": 400, "tolerance .02": 180},
    "CVMDriftOnline": {"tolerance 0": 140, "tolerance .02": 77},
    "FETDriftOnline": {"tolerance 0": 150, "tolerance .02": 85},
}
SETTINGS = {"tolerance 0": "{}:2:0", "tolerance .02": "{}:2:.02"}


def detect(binary, kind, features, reference, settings, files):
    """Alarms of each file under each setting."""
    command = [binary, "detect", kind, str(features), str(reference), ",".join(settings), *map(str, files)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    return [lines[at : at + len(settings)] for at in range(0, len(lines), len(settings))]


def run_tidegate(folder, runs, binary):
    out = {"delays": {}, "run_length": {}, "protocol": []}
    settings = [
        (name, label, SETTINGS[label].format(threshold))
        for name, thresholds in EQUAL.items()
        for label, threshold in thresholds.items()
    ]
    for name, label, setting in settings:
        kind = "category" if name == "FETDriftOnline" else "number"
        count = runs // 4 if name.startswith("ADWIN") else 4 * runs
        command = [binary, "length", kind, str(REFERENCE), str(count), setting]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        mean, error = map(float, done.stdout.split())
        out["run_length"][f"{name}: {label}"] = {"mean": mean, "error": error, "runs": count}
        print("tidegate", name, label, mean, flush=True)
    for change, (_, _, kind) in CHANGES.items():
        path = folder / "one.rows"
        delays = {(name, label): [] for name, label, _ in settings}
        for run in range(runs):
            reference, series = stream(change, run)
            # Those with a reference start 60 values before the change.
            np.concatenate([reference, series[BEFORE - 60 :]]).astype("<f8").tofile(path)
            (alarms,) = detect(binary, kind, 1, REFERENCE, [text for *_, text in settings], [path])
            for (name, label, _), rows in zip(settings, alarms):
                first = next(iter(rows), math.inf)
                delays[name, label].append(None if first <= 60 else first - 60)
        for (name, label), values in delays.items():
            out["delays"].setdefault(f"{name}: {label}", {})[change] = summary(values, 0, 0)
        print("tidegate", change, flush=True)
    grid = [f"{threshold}:2:{tolerance}" for threshold in (300, 1000, 3000, 10_000) for tolerance in (0, 0.02)]
    for entry, what in protocol_cases(folder):
        path = folder / f"{entry['path']}.{what}"
        features = entry["features"] if what == "rows" else 1
        kind = "number" if what == "rows" else "category"
        (alarms,) = detect(binary, kind, features, SAMPLE, grid, [path])
        for setting, rows in zip(grid, alarms):
            threshold, _, tolerance = setting.split(":")
            name = f"A {threshold}, tolerance {tolerance}"
            out["protocol"].append(result(entry, what, "tidegate", name, rows))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("streams", "river", "alibi", "tidegate", "report"))
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    runs, trials = (4, 1) if options.quick else (100, 8)
    if options.what == "streams":
        make_streams(options.folder, trials)
    elif options.what == "report":
        import report

        report.write(options.folder, pathlib.Path(options.rest[0]))
    else:
        run = {"river": run_river, "alibi": run_alibi, "tidegate": run_tidegate}[options.what]
        found = run(options.folder, runs, *options.rest)
        (options.folder / f"{options.what}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
