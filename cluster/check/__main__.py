"""Check manifests without a cluster: `python -m cluster.check cluster/overlays/cpu --around cluster/setup`.

Takes kustomizations (rendered where there is kubectl), YAML files, folders, `-` for what is piped in, or a Dockerfile. One line
a problem, exit code 1 when there is any. KubeRay's CRDs are checked too where --crds or KUBERAY_CRD_DIR names their folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import yaml

from cluster.check.builtin import check_kinds, check_pod_schema
from cluster.check.dockerfile import check_dockerfile
from cluster.check.objects import PodTemplate, load, parse, rendered, templates
from cluster.check.pods import check_pod
from cluster.check.practice import check_practice
from cluster.check.problem import Object, Problem, Problems, name_of
from cluster.check.rayclusters import check_cluster
from cluster.check.rayclusters import name as check_name
from cluster.check.rayjobs import LONGEST_JOB_NAME, check_job
from cluster.check.references import check_references
from cluster.check.schema import check_against_crds
from cluster.check.security import check_exposure, check_pod_security, check_secrets, check_tokens_and_links


def check(objects: list[Object], around: list[Object] | None = None, crds: Path | None = None) -> list[Problem]:
    """Every problem of these objects. `around` is what is applied before them; None leaves references unchecked."""
    return list(dict.fromkeys(_all(objects, around, crds)))


def _all(objects: list[Object], around: list[Object] | None, crds: Path | None) -> Problems:
    yield from check_kinds(objects)
    if crds:
        yield from check_against_crds(objects, crds)
    for item in objects:
        yield from _told(name_of(item), _of_object(item))
    yield from _told("pods", (problem for pod in templates(objects) for problem in _of_pod(pod)))
    yield from _told("practice", check_practice(objects))
    if around is not None:
        yield from _told("references", check_references(objects, around))


def _told(where: str, problems: Problems) -> Problems:
    """Something of the wrong shape, a word where a list belongs, is a problem like any other."""
    try:
        yield from problems
    except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:
        yield Problem("shape", where, f"is not built as its kind is: {error}")


def _of_object(item: Object) -> Problems:
    yield from check_secrets(item)
    yield from check_exposure(item)
    name, spec = (item.get("metadata") or {}).get("name"), item.get("spec") or {}
    if item.get("kind") == "RayCluster":
        yield from check_name(name_of(item), name)
        yield from check_cluster(f"{name_of(item)} spec", spec)
    if item.get("kind") == "RayJob":
        yield from check_name(name_of(item), name, LONGEST_JOB_NAME)
        yield from check_job(item)
        if spec.get("rayClusterSpec"):
            yield from check_cluster(f"{name_of(item)} spec.rayClusterSpec", spec["rayClusterSpec"])


def _of_pod(pod: PodTemplate) -> Problems:
    yield from check_pod_schema(pod)
    yield from check_pod(pod)
    yield from check_pod_security(pod)
    yield from check_tokens_and_links(pod)


def _judged(path: str, around: list[Object] | None, crds: Path | None) -> tuple[str, list[Problem]]:
    """What lies at `path`, counted, and its problems."""
    if Path(path).name == "Dockerfile":
        return "an image's recipe", list(check_dockerfile(Path(path)))
    objects = parse(sys.stdin.read()) if path == "-" else rendered(Path(path))
    counted = f"{len(objects)} objects, {len(list(templates(objects)))} pod templates"
    return counted, check(objects, around, crds)


def main() -> int:
    parser = argparse.ArgumentParser(prog="cluster.check", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "paths", nargs="+", help="kustomizations, YAML files, folders of them, - for what is piped in, or a Dockerfile"
    )
    parser.add_argument(
        "--around", nargs="*", type=Path, help="what is applied before: references are checked against it"
    )
    parser.add_argument("--crds", type=Path, default=os.environ.get("KUBERAY_CRD_DIR") or None)
    options = parser.parse_args()
    around = load(options.around) if options.around is not None else None
    n_bad = 0
    for path in options.paths:
        what, problems = _judged(path, around, options.crds)
        n_bad += len(problems)
        print(f"{path}: {what}, {len(problems)} problems")
        for problem in problems:
            print(f"  {problem}")
    print(
        "KubeRay's schemas "
        + (f"of {options.crds} checked" if options.crds else "not checked: KUBERAY_CRD_DIR is not set")
    )
    return 1 if n_bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (yaml.YAMLError, OSError) as error:
        sys.exit(f"error: {error}")
