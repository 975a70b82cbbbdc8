"""Ray objects against KubeRay's own CRDs, as an API server would: structure, unknown fields, list keys, CEL rules.

The CRDs (`ray.io_rayjobs.yaml` and its like, also gzipped) are KubeRay's and lie wherever KUBERAY_CRD_DIR says.
"""

from __future__ import annotations

import functools
import gzip
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError, validators

from cluster.check.problem import Object, Problem, Problems, name_of

GROUP = "ray.io"


def check_against_crds(objects: list[Object], folder: Path) -> Problems:
    """Problems of every object of group ray.io. Raises FileNotFoundError when the folder holds no CRD of its kind."""
    for item in objects:
        group, _, version = str(item.get("apiVersion", "")).partition("/")
        if group == GROUP:
            validator = _validator(str(item["kind"]), version, folder)
            for error in validator.iter_errors(item):
                yield from _told(name_of(item), error)


@functools.cache
def _validator(kind: str, version: str, folder: Path) -> Any:
    for path in sorted(folder.glob(f"{GROUP}_*.yaml*")):
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text("utf-8")
        crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if crd["spec"]["names"]["kind"] == kind:
            for offered in crd["spec"]["versions"]:
                if offered["name"] == version:
                    return _Validator(_closed(offered["schema"]["openAPIV3Schema"]))
    raise FileNotFoundError(f"{folder} holds no {GROUP} CRD of {kind} {version}")


def _closed(schema: Any, root: bool = True) -> Any:
    """OpenAPI v3 to JSON schema: an object with named properties has no others; `nullable` is a type."""
    if isinstance(schema, list):
        return [_closed(item, False) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed_part(key, value) for key, value in schema.items()}
    if "properties" in closed and not {"additionalProperties", "x-kubernetes-preserve-unknown-fields"} & set(closed):
        closed["additionalProperties"] = False
    if root:
        closed["properties"] |= {"metadata": {"type": "object"}, "status": {}}
    if closed.pop("nullable", False) and isinstance(closed.get("type"), str):
        closed["type"] = [closed["type"], "null"]
    return closed


def _closed_part(key: str, value: Any) -> Any:
    """Under `properties` the keys are names of fields, not words of the schema language."""
    if key == "properties":
        return {name: _closed(schema, False) for name, schema in value.items()}
    return (
        _closed(value, False) if key in ("items", "additionalProperties", "anyOf", "allOf", "oneOf", "not") else value
    )


def _list_keys(_: Any, keys: list[str], items: Any, schema: Object) -> Iterator[ValidationError]:
    if not isinstance(items, list) or schema.get("x-kubernetes-list-type") != "map":
        return
    defaults = {k: (schema["items"]["properties"].get(k) or {}).get("default") for k in keys}
    found = [tuple(i.get(k, defaults[k]) for k in keys) for i in items if isinstance(i, dict)]
    for values, count in Counter(map(str, found)).items():
        if count > 1:
            yield ValidationError(f"{values} stands there {count} times; {', '.join(keys)} must be unique")


def _cel_rules(_: Any, rules: list[Object], value: Any, schema: Object) -> Iterator[ValidationError]:
    import cel

    for rule in rules:
        if "oldSelf" in rule["rule"]:  # about changes; a file is no change
            continue
        if cel.evaluate(rule["rule"], {"self": value}) is not True:
            yield ValidationError(rule.get("message", rule["rule"]))


def _bounded_integer(_: Any, form: str, value: Any, schema: Object) -> Iterator[ValidationError]:
    if (
        form in ("int32", "int64")
        and isinstance(value, int)
        and not -(2 ** (int(form[3:]) - 1)) <= value < 2 ** (int(form[3:]) - 1)
    ):
        yield ValidationError(f"{value} is no {form}")


_Validator = validators.extend(
    Draft202012Validator,
    {"x-kubernetes-list-map-keys": _list_keys, "x-kubernetes-validations": _cel_rules, "format": _bounded_integer},
)


def _told(where: str, error: ValidationError) -> Problems:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    what = error.message if len(error.message) < 200 else f"{error.message[:100]} ... {error.message[-90:]}"
    yield Problem("crd", f"{where} {path.lstrip('.')}", what)
