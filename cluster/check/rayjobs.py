"""What the KubeRay operator refuses in a RayJob although the API server lets it through.

*Source:* KubeRay v1.7.0, `ray-operator/controllers/ray/utils/validation.go`, with its default feature gates.
"""

from __future__ import annotations

from collections import defaultdict

import yaml

from cluster.check.problem import Object, Problem, Problems, name_of

LONGEST_JOB_NAME = 47  # six characters are added to name its cluster
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")


def one_cluster(where: str, spec: Object) -> Problems:
    if bool(spec.get("rayClusterSpec")) == bool(spec.get("clusterSelector")):
        yield Problem("rayjob-cluster", where, "needs either rayClusterSpec or clusterSelector, and not both")
    selector = spec.get("clusterSelector")
    if selector and not selector.get("ray.io/cluster"):
        yield Problem("rayjob-cluster", where, "clusterSelector names no ray.io/cluster")


def submission_mode(where: str, spec: Object) -> Problems:
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in MODES:
        yield Problem("rayjob-mode", where, f"there is no submissionMode {mode!r}; there are {', '.join(MODES)}")
    if mode == "SidecarMode":
        for field in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if spec.get(field):
                yield Problem("rayjob-mode", f"{where}.{field}", "SidecarMode allows none")
        head = ((spec.get("rayClusterSpec") or {}).get("headGroupSpec") or {}).get("template") or {}
        if (head.get("spec") or {}).get("restartPolicy") not in (None, "Never"):
            yield Problem("rayjob-mode", where, "SidecarMode wants the head's restartPolicy Never")


def end_of_life(where: str, spec: Object) -> Problems:
    for field in ("ttlSecondsAfterFinished", "suspend"):
        if spec.get(field) and not spec.get("shutdownAfterJobFinishes"):
            yield Problem("rayjob-end", f"{where}.{field}", "needs shutdownAfterJobFinishes: true")
    if spec.get("suspend") and spec.get("clusterSelector"):
        yield Problem("rayjob-end", f"{where}.suspend", "excludes clusterSelector")
    for field, least in (("activeDeadlineSeconds", 1), ("preRunningDeadlineSeconds", 1), ("backoffLimit", 0)):
        if isinstance(spec.get(field), int) and spec[field] < least:
            yield Problem("rayjob-end", f"{where}.{field}", f"{spec[field]} is below {least}")
    if isinstance(spec.get("ttlSecondsAfterFinished"), int) and spec["ttlSecondsAfterFinished"] < 0:
        yield Problem("rayjob-end", f"{where}.ttlSecondsAfterFinished", "is negative")


def retries(where: str, spec: Object) -> Problems:
    if (spec.get("backoffLimit") or 0) > 0:
        if spec.get("clusterSelector"):
            yield Problem("rayjob-retries", where, "backoffLimit excludes clusterSelector: a retry makes a new cluster")
        if spec.get("submissionMode") == "InteractiveMode":
            yield Problem("rayjob-retries", where, "backoffLimit excludes InteractiveMode")


def deletion(where: str, spec: Object) -> Problems:
    strategy = spec.get("deletionStrategy")
    if strategy is None:
        return
    rules = strategy.get("deletionRules") or []
    policies = [rule.get("policy") for rule in rules]
    policies += [(strategy.get(field) or {}).get("policy") for field in ("onSuccess", "onFailure")]
    if rules and spec.get("shutdownAfterJobFinishes"):
        yield Problem("rayjob-deletion", where, "deletionRules excludes shutdownAfterJobFinishes")
    if spec.get("shutdownAfterJobFinishes") and "DeleteNone" in policies and not rules:
        yield Problem("rayjob-deletion", where, "DeleteNone contradicts shutdownAfterJobFinishes")
    if "DeleteWorkers" in policies and (spec.get("rayClusterSpec") or {}).get("enableInTreeAutoscaling"):
        yield Problem("rayjob-deletion", where, "DeleteWorkers excludes autoscaling")
    if spec.get("clusterSelector") and set(policies) & {"DeleteWorkers", "DeleteCluster"}:
        yield Problem("rayjob-deletion", where, "a selected cluster is not this job's to delete")
    yield from _deletion_order(where, rules)


def _deletion_order(where: str, rules: list[Object]) -> Problems:
    delays: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for rule in rules:
        condition = rule.get("condition") or {}
        status = condition.get("jobStatus") or condition.get("jobDeploymentStatus") or "?"
        if rule.get("policy") in delays[status]:
            yield Problem("rayjob-deletion", where, f"two rules {rule.get('policy')} on {status}")
        delays[status][str(rule.get("policy"))] = condition.get("ttlSeconds", 0)
    for status, found in delays.items():
        ordered = [found[policy] for policy in DELETION_ORDER if policy in found]
        if ordered != sorted(ordered):
            yield Problem("rayjob-deletion", where, f"on {status} the order must be {', '.join(DELETION_ORDER)}")


def runtime_environment(where: str, spec: Object) -> Problems:
    text = spec.get("runtimeEnvYAML")
    try:
        parsed = yaml.safe_load(text) if text else {}
    except yaml.YAMLError as error:
        yield Problem("rayjob-runtime-env", where, f"runtimeEnvYAML is no YAML: {str(error).splitlines()[0]}")
        return
    if not isinstance(parsed, dict):
        yield Problem("rayjob-runtime-env", where, "runtimeEnvYAML is no mapping")
    elif parsed.get("env_vars"):
        yield Problem(
            "rayjob-runtime-env", where, "env_vars are shown to all in the dashboard; use envFrom in the pods"
        )


def kubernetes_tokens(where: str, spec: Object) -> Problems:
    if ((spec.get("rayClusterSpec") or {}).get("authOptions") or {}).get("enableK8sTokenAuth"):
        yield Problem("ray-token", where, "a RayJob cannot use enableK8sTokenAuth")


RULES = (one_cluster, submission_mode, end_of_life, retries, deletion, runtime_environment, kubernetes_tokens)


def check_job(item: Object) -> Problems:
    where, spec = f"{name_of(item)} spec", item.get("spec") or {}
    for rule in RULES:
        yield from rule(where, spec)
