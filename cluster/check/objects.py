"""Reading manifests, and finding every pod that they will make."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cluster.check.problem import Object, name_of

RAY_KINDS = ("RayJob", "RayCluster")
TEMPLATE_KINDS = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job")


@dataclass(frozen=True)
class PodTemplate:
    where: str  # Kind/name and the path of the template in it
    kind: str  # who makes pods of it: a Kubernetes kind, "head", "worker" or "submitter"
    metadata: Object
    spec: Object
    ray_start: Object  # rayStartParams of a head or worker
    claims: frozenset[str] = frozenset()  # volumes that a StatefulSet's volumeClaimTemplates add

    @property
    def is_ray(self) -> bool:
        return self.kind in ("head", "worker")

    def containers(self) -> Iterator[tuple[str, Object]]:
        for field in ("initContainers", "containers"):
            for index, container in enumerate(self.spec.get(field) or []):
                yield f"{self.where}.spec.{field}[{index}]", container


def rendered(folder: Path) -> list[Object]:
    """The objects of a kustomization as `kubectl apply -k` would send them; the files themselves where there is no kubectl.

    Raises OSError with what kubectl said when it cannot be rendered.
    """
    if not (folder / "kustomization.yaml").is_file() or not shutil.which("kubectl"):
        return load([folder])
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip())
    return parse(done.stdout)


def load(paths: list[Path]) -> list[Object]:
    """Every object of these YAML files, or of all that lie under a folder. Raises yaml.YAMLError and OSError."""
    files = [file for path in paths for file in (sorted(path.rglob("*.yaml")) if path.is_dir() else [path])]
    return [item for file in files for item in parse(file.read_text("utf-8"))]


def parse(text: str) -> list[Object]:
    """The objects of a YAML stream; kustomizations and patches are none."""
    documents = yaml.safe_load_all(text)
    return [d for d in documents if isinstance(d, dict) and d.get("kind") not in (None, "Kustomization", "Component")]


def templates(objects: list[Object]) -> Iterator[PodTemplate]:
    for item in objects:
        where, kind, spec = name_of(item), item.get("kind"), item.get("spec") or {}
        if kind == "Pod":
            yield PodTemplate(where, "Pod", item.get("metadata") or {}, spec, {})
        elif kind in TEMPLATE_KINDS:
            claims = frozenset(c["metadata"]["name"] for c in spec.get("volumeClaimTemplates") or [])
            yield replace(_template(f"{where} spec.template", kind, spec.get("template")), claims=claims)
        elif kind == "CronJob":
            job = (spec.get("jobTemplate") or {}).get("spec") or {}
            yield _template(f"{where} spec.jobTemplate.spec.template", "Job", job.get("template"))
        elif kind == "RayCluster":
            yield from _of_cluster(f"{where} spec", spec)
        elif kind == "RayJob":
            cluster = spec.get("rayClusterSpec")
            if cluster:
                yield from _of_cluster(f"{where} spec.rayClusterSpec", cluster)
            if spec.get("submissionMode", "K8sJobMode") == "K8sJobMode":
                yield _submitter(where, spec, cluster or {})


def cluster_specs(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """(where, cluster specification, the object it is in) of every Ray cluster that will be."""
    for item in objects:
        spec = item.get("spec") or {}
        if item.get("kind") == "RayCluster":
            yield f"{name_of(item)} spec", spec, item
        elif item.get("kind") == "RayJob" and spec.get("rayClusterSpec"):
            yield f"{name_of(item)} spec.rayClusterSpec", spec["rayClusterSpec"], item


def _of_cluster(where: str, spec: Object) -> Iterator[PodTemplate]:
    head = spec.get("headGroupSpec") or {}
    yield _template(f"{where}.headGroupSpec.template", "head", head.get("template"), head.get("rayStartParams"))
    for index, group in enumerate(spec.get("workerGroupSpecs") or []):
        path = f"{where}.workerGroupSpecs[{index}].template"
        yield _template(path, "worker", group.get("template"), group.get("rayStartParams"))


def _submitter(where: str, spec: Object, cluster: Object) -> PodTemplate:
    """The pod that runs `ray job submit`; without a template the operator makes one with no security context at all."""
    if spec.get("submitterPodTemplate"):
        return _template(f"{where} spec.submitterPodTemplate", "submitter", spec["submitterPodTemplate"])
    head = ((cluster.get("headGroupSpec") or {}).get("template") or {}).get("spec") or {}
    containers: list[Any] = head.get("containers") or [{}]
    default = {
        "name": "ray-job-submitter",
        "image": containers[0].get("image", ""),
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "200Mi"}},
    }
    template = {"spec": {"containers": [default], "restartPolicy": "Never"}}
    return _template(f"{where} spec.submitterPodTemplate (the operator's own)", "submitter", template)


def _template(where: str, kind: str, template: Object | None, ray_start: Object | None = None) -> PodTemplate:
    template = template or {}
    return PodTemplate(where, kind, template.get("metadata") or {}, template.get("spec") or {}, ray_start or {})
