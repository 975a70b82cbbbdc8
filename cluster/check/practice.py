"""What neither Kubernetes nor the operator refuses and still loses a sweep, a week or a cluster."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.check.objects import PodTemplate, cluster_specs, templates
from cluster.check.problem import Object, Problem, Problems, name_of

QUEUE = "kueue.x-k8s.io/queue-name"


def check_practice(objects: list[Object]) -> Problems:
    for where, spec, item in cluster_specs(objects):
        yield from _asks_for_a_token(where, spec)
        yield from _head_does_no_work(where, spec)
        yield from _workers_are_fixed(where, spec)
        yield from _one_image(item)
        yield from _gpus_are_said_once(where, spec)
        yield from _queue_can_count(where, spec, item)
    for item in objects:
        if item.get("kind") == "RayJob":
            yield from _driver_reserves_nothing(item)
            yield from _job_ends(item)
        if item.get("kind") == "PodDisruptionBudget":
            yield from _budget_is_one_that_counts(item)


def _asks_for_a_token(where: str, spec: Object) -> Problems:
    if (spec.get("authOptions") or {}).get("mode") != "token":
        yield Problem("token", where, "authOptions.mode must be token: who reaches the dashboard can run code")


def _head_does_no_work(where: str, spec: Object) -> Problems:
    head = spec.get("headGroupSpec") or {}
    if str((head.get("rayStartParams") or {}).get("num-cpus")) != "0":
        yield Problem("head", where, 'the head needs rayStartParams num-cpus: "0": work there can kill the driver')
    pod = (head.get("template") or {}).get("spec") or {}
    affinity = ((pod.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    keys = {
        e.get("key") for term in affinity.get("nodeSelectorTerms") or [] for e in term.get("matchExpressions") or []
    }
    if not any("spot" in str(key) or "capacity" in str(key).lower() for key in keys):
        yield Problem("head", where, "nothing keeps the head off spot nodes; losing it loses the job")


def _workers_are_fixed(where: str, spec: Object) -> Problems:
    if spec.get("enableInTreeAutoscaling"):
        yield Problem("fixed-workers", where, "autoscaling changes the world size in mid-training; use fixed workers")
    for index, group in enumerate(spec.get("workerGroupSpecs") or []):
        if len({group.get("replicas"), group.get("minReplicas"), group.get("maxReplicas")}) > 1:
            yield Problem(
                "fixed-workers", f"{where}.workerGroupSpecs[{index}]", "replicas, minReplicas and maxReplicas differ"
            )


def _one_image(item: Object) -> Problems:
    found = {c.get("image") for pod in _ray_pods(item) for _, c in pod.containers()}
    if len(found) > 1:
        yield Problem(
            "one-image", name_of(item), f"several images, {', '.join(sorted(map(str, found)))}: Ray wants one"
        )


def _gpus_are_said_once(where: str, spec: Object) -> Problems:
    for index, group in enumerate(spec.get("workerGroupSpecs") or []):
        if "num-gpus" in (group.get("rayStartParams") or {}):
            yield Problem(
                "gpus", f"{where}.workerGroupSpecs[{index}]", "num-gpus repeats the limit; Ray reads the limit"
            )
        pod = (group.get("template") or {}).get("spec") or {}
        wants = any(
            "nvidia.com/gpu" in ((c.get("resources") or {}).get("limits") or {}) for c in pod.get("containers") or []
        )
        tolerated = {t.get("key") for t in pod.get("tolerations") or []}
        if wants and "nvidia.com/gpu" not in tolerated:
            yield Problem(
                "gpus", f"{where}.workerGroupSpecs[{index}]", "GPU nodes are tainted; tolerate nvidia.com/gpu"
            )


def _queue_can_count(where: str, spec: Object, item: Object) -> Problems:
    if QUEUE not in ((item.get("metadata") or {}).get("labels") or {}):
        return
    if item.get("kind") == "RayJob" and not (item.get("spec") or {}).get("shutdownAfterJobFinishes"):
        yield Problem("queue", name_of(item), "Kueue admits only jobs with shutdownAfterJobFinishes: true")
    if spec.get("enableInTreeAutoscaling"):
        yield Problem("queue", where, "Kueue holds quota for the declared size; no autoscaling")


def _driver_reserves_nothing(item: Object) -> Problems:
    spec = item.get("spec") or {}
    for field in ("entrypointNumCpus", "entrypointNumGpus", "entrypointResources"):
        if spec.get(field):
            yield Problem(
                "driver", f"{name_of(item)} spec.{field}", "moves the driver to a worker, and it dies with it"
            )


def _job_ends(item: Object) -> Problems:
    spec = item.get("spec") or {}
    if not spec.get("shutdownAfterJobFinishes") and not spec.get("deletionStrategy"):
        yield Problem(
            "job-ends", name_of(item), "shutdownAfterJobFinishes: true, or its GPUs stay taken when it is done"
        )
    if "preRunningDeadlineSeconds" not in spec:
        yield Problem(
            "job-ends", name_of(item), "without preRunningDeadlineSeconds it waits for missing nodes for ever"
        )
    if spec.get("backoffLimit", 0) > 20:
        yield Problem(
            "job-ends", name_of(item), f"backoffLimit {spec['backoffLimit']}: a broken sweep would start that often"
        )


def _budget_is_one_that_counts(item: Object) -> Problems:
    spec = item.get("spec") or {}
    labels = (spec.get("selector") or {}).get("matchLabels") or {}
    if any(key.startswith("ray.io/") for key in labels) and not isinstance(spec.get("minAvailable"), int):
        what = "Ray pods have no controller with a scale subresource: only an integer minAvailable is honoured"
        yield Problem("budget", name_of(item), what)


def _ray_pods(item: Object) -> Iterator[PodTemplate]:
    return templates([item])
