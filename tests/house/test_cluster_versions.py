"""One version of each thing, said in several places: pyproject, locks, Dockerfile and manifests must say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from cluster.check.objects import load
from tests.cluster.manifests import CLUSTER, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", d).groups() for d in PROJECT["dependencies"])  # type: ignore[union-attr]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def _argument(name: str) -> set[str]:
    return set(re.findall(rf'^ARG {name}="?([^"\n]*)"?$', DOCKERFILE, re.M))


def _locked(path: Path) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", path.read_text(), re.M)
    return {name.lower().replace("_", "-"): version for name, version in found}


@pytest.mark.parametrize(("argument", "package"), [("TORCH_VERSION", "torch"), ("DEEPSPEED_VERSION", "deepspeed")])
def test_the_dockerfile_builds_the_pinned_version(argument: str, package: str) -> None:
    assert _argument(argument) == {PINS[package]}


def test_make_sets_up_the_pinned_torch() -> None:
    assert f"\nTORCH := torch=={PINS['torch']}\n" in (ROOT / "Makefile").read_text()


def test_the_image_and_the_project_have_one_version() -> None:
    assert _argument("VERSION") == {PROJECT["version"]}
    assert f"newTag: {PROJECT['version']}" in (CLUSTER / "site" / "kustomization.yaml").read_text()
    (sweep,) = load([CLUSTER / "base" / "sweep.yaml"])
    images = set(re.findall(r"'image': '([^']+)'", str(sweep)))
    assert images == {f"crate-scaling:{PROJECT['version']}"}


def test_the_manifests_name_the_pinned_ray() -> None:
    (sweep,) = load([CLUSTER / "base" / "sweep.yaml"])
    assert sweep["spec"]["rayClusterSpec"]["rayVersion"] == PINS["ray"]


def test_client_and_server_have_one_mlflow() -> None:
    assert _locked(CLUSTER / "mlflow" / "requirements.txt")["mlflow"] == PINS["mlflow"]
    assert f"newTag: {PINS['mlflow']}" in (CLUSTER / "mlflow" / "kustomization.yaml").read_text()
    assert f"crate-mlflow:{PINS['mlflow']}" in (CLUSTER / "mlflow" / "server.yaml").read_text()


@pytest.mark.parametrize("name", ["requirements-image.lock", "requirements-gpu.lock"])
def test_the_locks_hold_every_pin(name: str) -> None:
    locked = _locked(CLUSTER / name)
    whole = name == "requirements-gpu.lock"
    pins = {n.lower().replace("_", "-"): v for n, v in PINS.items() if whole or n != "torch"}
    assert {n: locked.get(n) for n in pins} == pins


def test_the_image_s_lock_never_brings_torch_or_a_test_tool() -> None:
    """The base's torch, built by NVIDIA with its NCCL and apex, must stay."""
    locked = set(_locked(CLUSTER / "requirements-image.lock"))
    assert not {n for n in locked if re.match(r"torch|triton|nvidia-|cuda-", n)}
    assert not locked & {"pytest", "moto", "ruff", "mypy", "hypothesis"}


def test_nobody_asks_the_package_registry_for_apex() -> None:
    """There it is the name of an unrelated package; NVIDIA's comes with the base image."""
    files = [ROOT / "pyproject.toml", ROOT / "requirements.lock", *CLUSTER.glob("requirements*")]
    assert not [path.name for path in files if re.search(r'^\s*"?apex\b\s*[=<>"\[]', path.read_text(), re.M)]
    assert not re.search(r"pip install[^\n]*\bapex\b", DOCKERFILE)


def test_the_image_s_python_is_one_the_project_allows() -> None:
    (python,) = re.findall(r"^ARG CPU_BASE_IMAGE=python:(\d+\.\d+)", DOCKERFILE, re.M)
    low, high = re.fullmatch(r">=(\d+\.\d+),<(\d+\.\d+)", PROJECT["requires-python"]).groups()  # type: ignore[union-attr]
    assert tuple(map(int, low.split("."))) <= tuple(map(int, python.split("."))) < tuple(map(int, high.split(".")))
