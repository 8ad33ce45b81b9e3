"""Checks the objects of files against the schemas of Kubernetes, strictly, and prints them as JSON.

    kubernetes.py SCALED_OBJECT_SCHEMA FILE...

Strictly as `kubectl apply` does: a field that the schema does not know is an error. That the check finds mistakes is
checked first, with broken copies of each object.
"""

import copy
import json
import sys

import jsonschema
import kubernetes_validate
import yaml

from schemas import strict

# Versions of Kubernetes that are supported: the oldest of the schemas at hand that has all objects, and the newest.
VERSIONS = ["1.27", kubernetes_validate.latest_version()]


def errors(scaled, thing):
    """What is wrong with an object; nothing where it fits."""
    if thing["kind"] == "ScaledObject":
        return [f"{error.json_path}: {error.message}" for error in scaled.iter_errors(thing)]
    found = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(thing, version, strict=True)
        except jsonschema.ValidationError as error:
            found.append(f"{version}: {error.json_path}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError as error:
            found.append(f"{version}: {error.message}")
    return found


def paths(value, at=()):
    """Paths of all objects below this one."""
    if isinstance(value, dict):
        yield at
        for key, part in value.items():
            yield from paths(part, (*at, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from paths(part, (*at, index))


def free(at):
    """True for objects whose keys are anybody's words, or that only its controller looks into."""
    words = ("labels", "annotations", "matchLabels", "requests", "limits")
    return at[-1] in words or "metadata" in at or at == ("spec", "selector")


def main():
    schema, *files = sys.argv[1:]
    with open(schema) as file:
        schema = strict(json.load(file))
    jsonschema.Draft202012Validator.check_schema(schema)
    scaled = jsonschema.Draft202012Validator(schema)
    things = []
    for name in files:
        with open(name) as file:
            things += [thing for thing in yaml.safe_load_all(file) if thing]
    for thing in things:
        told = errors(scaled, thing)
        assert not told, f"{thing['kind']}: " + "\n".join(told)
        for at in paths(thing):
            if not at or free(at):
                continue
            broken = copy.deepcopy(thing)
            part = broken
            for key in at:
                part = part[key]
            part["misspelt"] = "1"
            assert errors(scaled, broken), f"{thing['kind']}: a misspelt field in {at} is not found"
    print(json.dumps(things))


main()
