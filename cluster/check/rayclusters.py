"""What the KubeRay operator refuses in a Ray cluster although the API server lets it through.

*Source:* KubeRay v1.7.0, `ray-operator/controllers/ray/utils/validation.go`, with its default feature gates.
"""

from __future__ import annotations

import re
from typing import Any

from cluster.check.problem import Object, Problem, Problems

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LONGEST_CLUSTER_NAME = 53  # the longest service suffix must still fit into 63
TOKENS_SINCE, KUBERNETES_TOKENS_SINCE = (2, 52, 0), (2, 55, 0)
GATED = {"networkPolicy": "RayClusterNetworkPolicy", "tlsOptions": "RayClusterMTLS"}
GATED |= {"historyServerOptions": "RayClusterHistoryServer"}
RESOURCE_PARAMETERS = ("num-cpus", "num-gpus", "memory", "resources")


def name(where: str, name: Any, longest: int = LONGEST_CLUSTER_NAME) -> Problems:
    if not isinstance(name, str) or not DNS_1035.fullmatch(name):
        yield Problem("ray-name", where, f"{name!r} must start with a letter: lower-case letters, digits, dashes")
    elif len(name) > longest:
        yield Problem("ray-name", where, f"{name} has {len(name)} characters, {longest} are allowed")


def containers(where: str, spec: Object) -> Problems:
    for path, group in _groups(where, spec):
        if not _pod(group).get("containers"):
            yield Problem("ray-containers", path, "has no container")


def replicas(where: str, spec: Object) -> Problems:
    for path, group in _workers(where, spec):
        least, most, number = (group.get(field) for field in ("minReplicas", "maxReplicas", "replicas"))
        if not spec.get("enableInTreeAutoscaling") and (least is None or most is None):
            yield Problem("ray-replicas", path, "without autoscaling both minReplicas and maxReplicas must be set")
        elif isinstance(least, int) and isinstance(most, int) and not 0 <= least <= most:
            yield Problem("ray-replicas", path, f"minReplicas {least} and maxReplicas {most} are no range")
        elif isinstance(number, int) and not (least or 0) <= number <= (most if most is not None else number):
            yield Problem(
                "ray-replicas", path, f"replicas {number} is outside {least}..{most}; the operator would cut it"
            )


def start_parameters(where: str, spec: Object) -> Problems:
    for path, group in _groups(where, spec):
        parameters = group.get("rayStartParams") or {}
        if group.get("resources") and any(parameters.get(p) for p in RESOURCE_PARAMETERS):
            yield Problem("ray-resources", path, "states resources both in rayStartParams and in resources")
        if "labels" in parameters:
            yield Problem("ray-labels", path, "rayStartParams.labels is refused; use the group's labels")


def token_auth(where: str, spec: Object) -> Problems:
    auth, version = spec.get("authOptions") or {}, _version(spec.get("rayVersion"))
    if auth.get("mode") == "token" and (version is None or version < TOKENS_SINCE):
        yield Problem("ray-token", where, f"token mode needs rayVersion 2.52.0 or newer, not {spec.get('rayVersion')}")
    if auth.get("enableK8sTokenAuth"):
        if auth.get("mode") != "token":
            yield Problem("ray-token", where, "enableK8sTokenAuth needs mode: token")
        if auth.get("secretName"):
            yield Problem("ray-token", where, "enableK8sTokenAuth and secretName exclude each other")
        if version is None or version < KUBERNETES_TOKENS_SINCE:
            yield Problem(
                "ray-token", where, f"enableK8sTokenAuth needs rayVersion 2.55.0, not {spec.get('rayVersion')}"
            )


def redis(where: str, spec: Object) -> Problems:
    """Fault tolerance of the control store is set in one place, or not at all."""
    variables = {item.get("name") for item in _first_container(spec).get("env") or []}
    options = spec.get("gcsFaultToleranceOptions")
    parameters = (spec.get("headGroupSpec") or {}).get("rayStartParams") or {}
    forbidden = {"RAY_REDIS_ADDRESS"} | ({"REDIS_PASSWORD"} if options is not None else set())
    for variable in sorted((variables & forbidden) | (variables & {"REDIS_USERNAME"})):
        yield Problem("ray-redis", where, f"{variable} is set on the head; use gcsFaultToleranceOptions")
    for parameter in ("redis-password", "redis-username"):
        if parameters.get(parameter) and (options is not None or parameter == "redis-username"):
            yield Problem("ray-redis", where, f"rayStartParams.{parameter} is refused; use gcsFaultToleranceOptions")


def autoscaling(where: str, spec: Object) -> Problems:
    scales = bool(spec.get("enableInTreeAutoscaling"))
    for item in _first_container(spec).get("env") or []:
        if item.get("name") == "RAY_enable_autoscaler_v2" and not scales and str(item.get("value")) in ("1", "true"):
            yield Problem(
                "ray-autoscaling", where, "RAY_enable_autoscaler_v2 is set and enableInTreeAutoscaling is not"
            )
    for path, group in _groups(where, spec):
        if scales and _pod(group).get("restartPolicy") not in (None, "Never"):
            yield Problem("ray-autoscaling", path, "an autoscaled pod's restartPolicy must be Never")
        if scales and group.get("suspend"):
            yield Problem("ray-autoscaling", path, "an autoscaled group cannot be suspended")


def feature_gates(where: str, spec: Object) -> Problems:
    for field, gate in GATED.items():
        if field in spec:
            yield Problem("ray-gate", f"{where}.{field}", f"needs the operator's feature gate {gate}, off by default")
    if (spec.get("gcsFaultToleranceOptions") or {}).get("backend") == "rocksdb":
        yield Problem("ray-gate", where, "backend rocksdb needs the gate GCSFaultToleranceEmbeddedStorage")


RULES = (containers, replicas, start_parameters, token_auth, redis, autoscaling, feature_gates)


def check_cluster(where: str, spec: Object) -> Problems:
    for rule in RULES:
        yield from rule(where, spec)


def _version(text: Any) -> tuple[int, ...] | None:
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", str(text or ""))
    return tuple(int(part) for part in found.groups()) if found else None


def _groups(where: str, spec: Object) -> list[tuple[str, Object]]:
    return [(f"{where}.headGroupSpec", spec.get("headGroupSpec") or {}), *_workers(where, spec)]


def _workers(where: str, spec: Object) -> list[tuple[str, Object]]:
    return [(f"{where}.workerGroupSpecs[{i}]", group) for i, group in enumerate(spec.get("workerGroupSpecs") or [])]


def _pod(group: Object) -> Object:
    return (group.get("template") or {}).get("spec") or {}


def _first_container(spec: Object) -> Object:
    return (_pod(spec.get("headGroupSpec") or {}).get("containers") or [{}])[0]
