"""One model, served and run by the runtime beside: what agrees, what is refused, what is wrong."""

from dataclasses import dataclass, field

import numpy as np

import inputs
import published
from gateway import DATATYPES, WITHOUT_JSON, Refused
from reference import Reference

BATCHES = (1, 5, 0)
FORMS = ("json", "binary")


@dataclass
class Refusal:
    """Something that the gateway would not do although the runtime does: `when` is `load` or `batch N form`."""

    when: str
    message: str
    reason: str | None = None


@dataclass
class Result:
    """What came of one model; each cell of `cells` is short, such as `same` or `400`."""

    model: str
    source: str
    cells: dict = field(default_factory=dict)
    refusals: list = field(default_factory=list)
    faults: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    runtime_loads: bool = True


def compare(model, gateway, state):
    """A `Result`: metadata and answers of a model that is served, or its refusal."""
    result = Result(model.name, model.source)
    with Reference(model) as reference:
        signature = reference.signature()
        is_served = state.get("state") == "READY"
        result.cells["state"] = "ready" if is_served else "refused"
        if not is_served:
            result.refusals.append(Refusal("load", state.get("reason") or "not in the index"))
        if isinstance(signature, str):
            _unloadable(result, signature, is_served)
        elif is_served:
            _metadata(result, gateway, *signature)
            _answers(model, result, gateway, reference, *signature)
    return result


def _unloadable(result, why, is_served):
    result.runtime_loads = False
    if is_served:
        result.faults.append(f"is served, and the runtime does not load it: {why}")
    else:
        result.notes.append(f"the runtime does not load it either: {why}")


def _metadata(result, gateway, given, answered):
    served = gateway.metadata(result.model)
    before = len(result.faults)
    for side, tensors in (("inputs", given), ("outputs", answered)):
        described = {tensor["name"]: tensor for tensor in served[side]}
        expected = {tensor.name: tensor for tensor in tensors}
        if missing := [name for name in expected if name not in described and not expected[name].is_optional]:
            result.faults.append(f"metadata: no {side} {missing}")
        if strange := [name for name in described if name not in expected]:
            result.faults.append(f"metadata: {side} {strange} are none of the model's")
        for name in expected.keys() & described.keys():
            _same_tensor(result, side, expected[name], described[name])
    result.cells["metadata"] = "same" if len(result.faults) == before else "WRONG"


def _same_tensor(result, side, expected, described):
    datatype = DATATYPES.get(expected.kind, (expected.kind,))[0]
    if described["datatype"] != datatype:
        result.faults.append(f"metadata: {side} `{expected.name}` is {described['datatype']}, not {datatype}")
    if expected.shape is None:
        result.notes.append(f"{side} `{expected.name}` of no declared rank is described as {described['shape']}")
        return
    shape = [dim if isinstance(dim, int) and dim >= 0 else -1 for dim in expected.shape]
    if described["shape"] != shape:
        result.faults.append(f"metadata: {side} `{expected.name}` has shape {described['shape']}, not {shape}")


def _answers(model, result, gateway, reference, given, answered):
    recorded = published.recorded_inputs(model) if model.recorded else None
    has_answered = False
    for batch in BATCHES:
        try:
            values = _inputs_of(model, recorded, given, batch)
        except inputs.Unsuitable as error:
            result.faults.append(f"no inputs can be made: {error}")
            return
        expected = reference.run(values)
        has_answered |= expected.outputs is not None
        for form in FORMS:
            cell = _ask(model, result, gateway, given, answered, values, expected, (batch, form))
            result.cells[f"{batch} {form}"] = cell
            if cell == "ENDED":
                return
    if not has_answered:
        result.faults.append(f"the runtime itself answers no batch: these inputs do not suit: {expected.error}")


def _inputs_of(model, recorded, given, batch):
    if recorded is None:
        return inputs.make(model, given, batch)
    return recorded if batch == 1 else inputs.rebatched(recorded, batch)


def _ask(model, result, gateway, given, answered, values, expected, case):
    """Asks in one form and compares; gives the cell of the table."""
    batch, form = case
    if form == "json" and any(DATATYPES.get(t.kind, ("",))[0] in WITHOUT_JSON for t in [*given, *answered]):
        return "-"
    try:
        outputs = gateway.infer(result.model, given, values, binary=form == "binary")
    except Refused as error:
        return _refused(result, expected, error, f"batch {batch} {form}")
    except OSError as error:
        result.faults.append(f"batch {batch} {form}: no answer ({error!r}); the runtime: {_word(expected)}")
        return "ENDED" if not gateway.is_running() else "WRONG"
    except (ValueError, KeyError) as error:
        result.faults.append(f"batch {batch} {form}: an answer that cannot be read: {error!r}")
        return "WRONG"
    if expected.outputs is None:
        result.faults.append(f"batch {batch} {form}: answered, where the runtime says {_word(expected)}")
        return "WRONG"
    differences = _differences(model, expected.outputs, outputs)
    result.faults += [f"batch {batch} {form}: {difference}" for difference in differences]
    return "WRONG" if differences else "same"


def _refused(result, expected, error, when):
    if expected.outputs is None:
        if not 400 <= error.status < 500:
            result.faults.append(f"{when}: {error}, not a 4xx; the runtime: {_word(expected)}")
            return "WRONG"
        return f"{error.status}"
    result.refusals.append(Refusal(when, str(error)))
    return f"{error.status}!"


def _word(expected):
    return expected.error[:300] if expected.error else "answers"


def _differences(model, expected, actual):
    if expected.keys() != actual.keys():
        return [f"outputs {sorted(actual)}, not {sorted(expected)}"]
    return list(filter(None, (_difference(model, name, expected[name], actual[name]) for name in expected)))


def _difference(model, name, expected, actual):
    expected = np.asarray(expected)
    if expected.dtype.kind in "OUS":
        expected = expected.astype(np.object_)
    if expected.shape != actual.shape:
        return f"`{name}` has shape {actual.shape}, not {expected.shape}"
    if expected.dtype != actual.dtype:
        return f"`{name}` is {actual.dtype}, not {expected.dtype}"
    if expected.dtype.kind == "f":
        if np.allclose(actual, expected, rtol=model.tolerance, atol=model.tolerance, equal_nan=True):
            return None
        wide = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
        return f"`{name}` differs by up to {np.nanmax(wide, initial=0):.3g} ({np.isnan(actual).sum()} are no numbers)"
    return None if np.array_equal(expected, actual) else f"`{name}` differs"
