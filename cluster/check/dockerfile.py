"""What no linter sees in the image's recipe: whether a running pod finds what it compiles with, and where it may write.

Triton compiles a C module on each node before its first kernel runs, and torch.compile C++. An NGC base brings compilers; a slim
base has none, and every 16-bit training step on its GPUs would fail or fall back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cluster.check.problem import Problem, Problems

CXX = re.compile(r"apt-get install\b[^&;|]*\s(g\+\+|clang|build-essential)(\s|$)")  # gcc alone compiles no C++
CUDA_WHEEL = re.compile(r"^(nvidia-|cuda-|triton==)", re.M)
CACHE = re.compile(r"\b([A-Z_]*(?:CACHE_DIR|EXTENSIONS_DIR))=(\S+)")
SCRATCH = "/tmp/"  # the one folder that every Ray pod mounts and may write, by the rule `scratch` of manifests


@dataclass
class Stage:
    """A stage with those that it is FROM: the base below them all, and their instructions in order."""

    name: str
    base: str
    instructions: list[str] = field(default_factory=list)


def check_dockerfile(path: Path) -> Problems:
    """`path`'s COPY sources are looked for beside it. Raises OSError when one is not there."""
    for stage in _stages(path.read_text("utf-8")):
        where = f"{path.name} {stage.name}"
        text = "\n".join(stage.instructions)
        if _is_flavour(stage) and _brings_cuda(stage, path.parent) and "slim" in stage.base and not CXX.search(text):
            what = f"CUDA wheels on {stage.base} without a C++ compiler: Triton and torch.compile need g++ on the pods"
            yield Problem("compiler", where, what)
        for name, folder in CACHE.findall("\n".join(i for i in stage.instructions if i.startswith("ENV "))):
            if not folder.startswith(SCRATCH):
                yield Problem("scratch", where, f"{name} is {folder}: pods may write below {SCRATCH} only")


def _is_flavour(stage: Stage) -> bool:
    """What `FROM ${FLAVOR}-deps` can take."""
    return stage.name.endswith("-deps")


def _brings_cuda(stage: Stage, root: Path) -> bool:
    """A lock that it copies names CUDA's wheels."""
    sources = [word for line in stage.instructions if line.startswith("COPY ") for word in line.split()[1:-1]]
    locks = [root / word for word in sources if word.endswith(".lock")]
    return any(CUDA_WHEEL.search(lock.read_text("utf-8")) for lock in locks)


def _stages(text: str) -> list[Stage]:
    stages: dict[str, Stage] = {}
    defaults: dict[str, str] = {}
    current: Stage | None = None
    for line in _instructions(text):
        keyword, _, rest = line.partition(" ")
        if keyword == "FROM":
            base, _, name = _resolved(rest, defaults).partition(" AS ")
            below = stages.get(base)
            current = Stage(name, below.base, [*below.instructions]) if below else Stage(name, base)
            stages[name] = current
        elif current:
            current.instructions.append(line)
        elif keyword == "ARG":  # before the first stage: what FROM may name
            name, _, value = rest.partition("=")
            defaults[name] = value
    return list(stages.values())


def _resolved(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: values.get(found[1], found[0]), text)


def _instructions(text: str) -> Iterator[str]:
    """One a line, with comments left out and continued lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", " ", lines).splitlines():
        if line.strip():
            yield line.strip()
