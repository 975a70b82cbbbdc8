"""What the API server refuses in a pod and no schema sees. The KubeRay operator finds out only when it makes the pod.

*Source:* Kubernetes' own validation (`pkg/apis/core/validation`), read as its documentation states it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from cluster.check.objects import PodTemplate
from cluster.check.problem import Object, Problem, Problems
from cluster.check.quantity import parse_quantity

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
ENVIRONMENT_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
IMAGE = re.compile(
    r"(?:[a-zA-Z0-9.-]+(?::[0-9]+)?/)?[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
    r"(?P<tag>:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?P<digest>@sha256:[0-9a-f]{64})?"
)
RESTART_POLICIES = {
    "Job": ("Never", "OnFailure"),
    "Pod": ("Always", "Never", "OnFailure"),
    "submitter": ("Never", "OnFailure"),
}


def quantities(pod: PodTemplate) -> Problems:
    for where, resources in _resources(pod):
        for side in ("requests", "limits"):
            for name, amount in (resources.get(side) or {}).items():
                if parse_quantity(amount) is None:
                    yield Problem(
                        "quantity", f"{where}.{side}.{name}", f"{amount!r} is no quantity; 64Gi, 1500m and 8 are"
                    )
    for index, volume in enumerate(pod.spec.get("volumes") or []):
        size = (volume.get("emptyDir") or {}).get("sizeLimit")
        if size is not None and parse_quantity(size) is None:
            yield Problem("quantity", f"{pod.where}.spec.volumes[{index}]", f"{size!r} is no quantity; 64Gi is")


def requests_within_limits(pod: PodTemplate) -> Problems:
    for where, resources in _resources(pod):
        for name, limit in (resources.get("limits") or {}).items():
            asked, most = parse_quantity((resources.get("requests") or {}).get(name)), parse_quantity(limit)
            if asked is not None and most is not None and asked > most:
                yield Problem("request-over-limit", f"{where}.requests.{name}", f"{asked} is above its limit {most}")


def whole_devices(pod: PodTemplate) -> Problems:
    """GPUs and other extended resources: whole numbers, and a request equal to the limit."""
    for where, resources in _resources(pod):
        requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
        for name in sorted({n for n in (*requests, *limits) if "/" in n}):
            amount = parse_quantity(limits.get(name))
            if amount is None or amount != amount.to_integral_value():
                yield Problem(
                    "device", f"{where}.limits.{name}", f"{limits.get(name)!r}: devices come whole, in limits"
                )
            elif name in requests and parse_quantity(requests[name]) != amount:
                yield Problem("device", f"{where}.requests.{name}", f"{requests[name]} is not its limit {amount}")


def unique_keys(pod: PodTemplate) -> Problems:
    yield from _twice(f"{pod.where}.spec.volumes", [v.get("name") for v in pod.spec.get("volumes") or []])
    yield from _twice(f"{pod.where}.spec.containers", [c.get("name") for _, c in pod.containers()])
    for where, container in pod.containers():
        yield from _twice(f"{where}.env", [e.get("name") for e in container.get("env") or []])
        yield from _twice(f"{where}.volumeMounts", [m.get("mountPath") for m in container.get("volumeMounts") or []])
        ports = container.get("ports") or []
        yield from _twice(f"{where}.ports", [(p.get("containerPort"), p.get("protocol", "TCP")) for p in ports])


def mounts_have_volumes(pod: PodTemplate) -> Problems:
    volumes = {v.get("name") for v in pod.spec.get("volumes") or []} | pod.claims
    for where, container in pod.containers():
        for mount in container.get("volumeMounts") or []:
            if mount.get("name") not in volumes:
                yield Problem(
                    "mount-without-volume", f"{where}.volumeMounts", f"no volume is called {mount.get('name')!r}"
                )


def tolerations(pod: PodTemplate) -> Problems:
    for index, item in enumerate(pod.spec.get("tolerations") or []):
        where, operator = f"{pod.where}.spec.tolerations[{index}]", item.get("operator", "Equal")
        if item.get("effect") not in (None, "", "NoSchedule", "PreferNoSchedule", "NoExecute"):
            yield Problem("toleration", where, f"there is no effect {item['effect']!r}")
        if operator not in ("Equal", "Exists"):
            yield Problem("toleration", where, f"there is no operator {operator!r}")
        elif operator == "Exists" and item.get("value"):
            yield Problem("toleration", where, "Exists takes no value")
        elif operator == "Equal" and not item.get("key"):
            yield Problem("toleration", where, "without a key only Exists is allowed")


def restart_policy(pod: PodTemplate) -> Problems:
    policy = pod.spec.get("restartPolicy")
    allowed = ("Always", "OnFailure", "Never") if pod.is_ray else RESTART_POLICIES.get(pod.kind, ("Always",))
    if policy not in allowed and not (policy is None and "Always" in allowed):
        yield Problem(
            "restart-policy", f"{pod.where}.spec.restartPolicy", f"{policy} is not one of {', '.join(allowed)}"
        )


def environment(pod: PodTemplate) -> Problems:
    for where, container in pod.containers():
        for item in container.get("env") or []:
            name = item.get("name")
            if not isinstance(name, str) or not ENVIRONMENT_NAME.fullmatch(name):
                yield Problem("environment", f"{where}.env", f"{name!r} is no name of a variable")
            if "value" in item and "valueFrom" in item:
                yield Problem("environment", f"{where}.env.{name}", "has both value and valueFrom")
            if "value" in item and not isinstance(item["value"], str):
                yield Problem("environment", f"{where}.env.{name}", f"{item['value']!r} must be written in quotes")


def images(pod: PodTemplate) -> Problems:
    for where, container in pod.containers():
        image = container.get("image")
        found = IMAGE.fullmatch(image) if isinstance(image, str) else None
        if not found:
            yield Problem("image", f"{where}.image", f"{image!r} is no image name")
        elif not found["digest"] and found["tag"] in (None, ":latest"):
            yield Problem("image", f"{where}.image", f"{image} may be another image tomorrow; name a tag or a digest")


def names(pod: PodTemplate) -> Problems:
    for where, container in pod.containers():
        yield from _label(f"{where}.name", container.get("name"))
        for port in container.get("ports") or []:
            if "name" in port and not PORT_NAME.fullmatch(str(port["name"])):
                yield Problem(
                    "name", f"{where}.ports", f"{port['name']!r}: 15 lower-case letters, digits and dashes at most"
                )
    for index, volume in enumerate(pod.spec.get("volumes") or []):
        yield from _label(f"{pod.where}.spec.volumes[{index}].name", volume.get("name"))
    for key, value in (pod.metadata.get("labels") or {}).items():
        if not isinstance(value, str) or not LABEL_VALUE.fullmatch(value):
            yield Problem("name", f"{pod.where}.metadata.labels.{key}", f"{value!r} is no label value")


def memory_is_bounded(pod: PodTemplate) -> Problems:
    """A pod without a memory limit takes its node along; one without requests is the first to be evicted."""
    for where, resources in _resources(pod):
        for side, name in (("limits", "memory"), ("requests", "memory"), ("requests", "cpu")):
            if name not in (resources.get(side) or {}):
                yield Problem("unbounded", f"{where}.{side}", f"says no {name}")


def shared_memory_fits(pod: PodTemplate) -> Problems:
    """Ray's object store needs its size in /dev/shm, NCCL more, and both count against the container's memory."""
    if not pod.is_ray or not pod.spec.get("containers"):
        return
    container: Object = pod.spec["containers"][0]
    volumes = {v.get("name"): v.get("emptyDir") or {} for v in pod.spec.get("volumes") or []}
    mounts = {m.get("mountPath"): volumes.get(m.get("name"), {}) for m in container.get("volumeMounts") or []}
    shm = mounts.get("/dev/shm", {})
    size = parse_quantity(shm.get("sizeLimit"))
    limit = parse_quantity(((container.get("resources") or {}).get("limits") or {}).get("memory"))
    if shm.get("medium") != "Memory" or size is None:
        yield Problem("shared-memory", pod.where, "mounts no /dev/shm of medium Memory with a sizeLimit")
        return
    store = parse_quantity(pod.ray_start.get("object-store-memory"))
    if store is None or store * 5 / 4 > size:
        yield Problem(
            "shared-memory", pod.where, f"object-store-memory {store} needs a fifth more than itself in {size}"
        )
    if limit is not None and size * 2 > limit:
        yield Problem(
            "shared-memory", pod.where, f"/dev/shm of {size} leaves less than half of the memory limit {limit}"
        )


def scratch_is_writable(pod: PodTemplate) -> Problems:
    """Ray's session and all that Triton, torch.compile and DeepSpeed compile lie below /tmp, as the image's caches say."""
    if not pod.is_ray:
        return
    for where, container in pod.containers():
        mounts = {m.get("mountPath"): m for m in container.get("volumeMounts") or []}
        if "/tmp" not in mounts or mounts["/tmp"].get("readOnly"):
            yield Problem("scratch", f"{where}.volumeMounts", "no volume at /tmp that it may write: compilers need one")


RULES = (
    quantities,
    requests_within_limits,
    whole_devices,
    unique_keys,
    mounts_have_volumes,
    tolerations,
    restart_policy,
    environment,
    images,
    names,
    memory_is_bounded,
    shared_memory_fits,
    scratch_is_writable,
)


def check_pod(pod: PodTemplate) -> Problems:
    for rule in RULES:
        yield from rule(pod)


def _resources(pod: PodTemplate) -> Iterator[tuple[str, Object]]:
    for where, container in pod.containers():
        yield f"{where}.resources", container.get("resources") or {}


def _twice(where: str, keys: list[Any]) -> Problems:
    for key, count in Counter(keys).items():
        if count > 1:
            yield Problem("duplicate", where, f"{key!r} stands there {count} times")


def _label(where: str, name: Any) -> Problems:
    if not isinstance(name, str) or not DNS_LABEL.fullmatch(name):
        yield Problem("name", where, f"{name!r}: 63 lower-case letters, digits and dashes at most")
