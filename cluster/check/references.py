"""Names that must exist: what a pod asks for and nobody offers keeps it in ContainerCreating for ever."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.check.objects import PodTemplate, templates
from cluster.check.problem import Object, Problem, Problems

MADE_BY_HAND = {("Secret", "crate-secrets"), ("Secret", "mlflow-secrets")}  # cluster/README.md says how

VOLUMES = (
    ("configMap", "ConfigMap", "name"),
    ("secret", "Secret", "secretName"),
    ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
)


def check_references(objects: list[Object], around: list[Object]) -> Problems:
    """`around` holds what is applied before: the namespace's own objects."""
    there = {
        (item.get("kind"), (item.get("metadata") or {}).get("name")) for item in [*objects, *around]
    } | MADE_BY_HAND
    for pod in templates(objects):
        for kind, name in sorted(set(_wanted(pod))):
            if (kind, name) not in there:
                yield Problem("reference", pod.where, f"asks for {kind} {name}, which nothing here makes")


def _wanted(pod: PodTemplate) -> Iterator[tuple[str, str]]:
    if account := pod.spec.get("serviceAccountName"):
        yield "ServiceAccount", account
    if priority := pod.spec.get("priorityClassName"):
        yield "PriorityClass", priority
    for volume in pod.spec.get("volumes") or []:
        for field, kind, key in VOLUMES:
            if field in volume and not volume[field].get("optional"):
                yield kind, volume[field].get(key)
    for _, container in pod.containers():
        for source in container.get("envFrom") or []:
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if field in source and not source[field].get("optional"):
                    yield kind, source[field].get("name")
        for item in container.get("env") or []:
            for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                found = (item.get("valueFrom") or {}).get(field)
                if found and not found.get("optional"):
                    yield kind, found.get("name")
