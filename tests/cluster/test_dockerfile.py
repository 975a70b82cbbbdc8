"""Faults planted into the image's recipe: the checker must name each, and find none in the recipe as it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.check.dockerfile import check_dockerfile
from tests.cluster.manifests import CLUSTER, ROOT

GXX = "install --yes --no-install-recommends g++"
IMAGE, GPU = (
    "COPY cluster/requirements-image.lock /opt/locks/\nSHELL",
    "COPY cluster/requirements-gpu.lock /opt/locks/\nSHELL",
)
FAULTS = {
    "no compiler": (GXX, "install --yes ca-certificates", "compiler", "cuda-deps"),
    "a compiler of C alone": (GXX, GXX.replace("g++", "gcc"), "compiler", "cuda-deps"),
    "CUDA's wheels in a flavour that has no compiler": (IMAGE, GPU, "compiler", "cpu-deps"),
    "a cache where no pod may write": ("=/tmp/triton", "=/app/triton", "scratch", "run"),
}


def recipe(folder: Path, text: str) -> Path:
    """A Dockerfile with the locks that it copies beside it."""
    shutil.copytree(CLUSTER, folder / "cluster", ignore=lambda _, names: [n for n in names if not n.endswith(".lock")])
    (folder / "Dockerfile").write_text(text)
    return folder / "Dockerfile"


def test_the_recipe_has_no_problem() -> None:
    assert list(check_dockerfile(ROOT / "Dockerfile")) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_by_its_rule(fault: str, tmp_path: Path) -> None:
    old, new, rule, stage = FAULTS[fault]
    text = (ROOT / "Dockerfile").read_text()
    assert old in text
    path = recipe(tmp_path, text.replace(old, new, 1))
    assert [(p.rule, p.where) for p in check_dockerfile(path)] == [(rule, f"Dockerfile {stage}")]


def test_a_compiler_of_the_stage_below_counts(tmp_path: Path) -> None:
    text = (ROOT / "Dockerfile").read_text().replace("AS cuda-deps\n", "AS tools\n")
    text = text.replace(
        "COPY cluster/requirements-gpu.lock", "FROM tools AS cuda-deps\nCOPY cluster/requirements-gpu.lock"
    )
    assert list(check_dockerfile(recipe(tmp_path, text))) == []


def test_the_command_judges_a_dockerfile_too(tmp_path: Path) -> None:
    path = recipe(tmp_path, (ROOT / "Dockerfile").read_text().replace(GXX, "install --yes ca-certificates"))
    command = [sys.executable, "-m", "cluster.check", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "an image's recipe, 1 problems" in done.stdout and "need g++ on the pods [compiler]" in done.stdout
