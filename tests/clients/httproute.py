"""Checks a Gateway API HTTPRoute against the schema of its CRD, strictly, and prints it as JSON.

    httproute.py SCHEMA ROUTE

Strictly as API servers do for `kubectl apply`: a field that the schema does not know is an error. Rules in CEL are not
in the schema. That the check finds mistakes is checked first, with broken copies of the route.
"""

import copy
import json
import sys

import jsonschema
import yaml

from schemas import strict


def main():
    schema, route = sys.argv[1:]
    with open(schema) as file:
        schema = strict(json.load(file))
    with open(route) as file:
        route = yaml.safe_load(file)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)

    def broken(change):
        other = copy.deepcopy(route)
        change(other, other["spec"]["rules"][2]["backendRefs"][0])
        return other

    mistakes = [
        lambda route, backend: backend.update(weight="90"),
        lambda route, backend: backend.update(weight=-1),
        lambda route, backend: backend.update(wieght=90),
        lambda route, backend: backend.pop("name"),
        lambda route, backend: backend["filters"][0].update(type="UrlRewrite"),
        lambda route, backend: backend["filters"][0]["urlRewrite"]["path"].update(type="Full"),
        lambda route, backend: route["spec"].update(hostnames=["predict example"]),
        lambda route, backend: route.update(apiVersion="gateway.networking.k8s.io/v1alpha2"),
        lambda route, backend: route.pop("spec"),
    ]
    for number, mistake in enumerate(mistakes):
        assert not validator.is_valid(broken(mistake)), f"mistake {number} is not found"
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(route)]
    assert not errors, "\n".join(errors)
    print(json.dumps(route))


main()
