"""Kubernetes' own kinds, and the pods inside Ray objects, against the API's published schemas (kubernetes-validate)."""

from __future__ import annotations

from cluster.check.objects import PodTemplate
from cluster.check.problem import Object, Problem, Problems, name_of

KUBERNETES = "1.34"
OTHERS = ("ray.io", "kueue.x-k8s.io")


def check_kinds(objects: list[Object]) -> Problems:
    for item in objects:
        if str(item.get("apiVersion", "")).partition("/")[0] not in OTHERS:
            yield from _validate(name_of(item), item)


def check_pod_schema(pod: PodTemplate) -> Problems:
    spec = {"restartPolicy": "Always", **pod.spec}
    metadata = {**pod.metadata, "name": "pod"}
    yield from _validate(pod.where, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def _validate(where: str, item: Object) -> Problems:
    import kubernetes_validate

    try:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        path = ".".join(str(part) for part in error.path)
        yield Problem("schema", f"{where} {path}".strip(), str(error).splitlines()[0][:300])
    except kubernetes_validate.SchemaNotFoundError:
        yield Problem("schema", where, f"Kubernetes {KUBERNETES} knows no {item.get('apiVersion')} {item.get('kind')}")
