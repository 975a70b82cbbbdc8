"""What all benchmarks share: a side measured in a process of its own, a verdict for each figure, one line in `results/` a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def in_new_process(*arguments: object, **environment: str) -> Any:
    """What the running benchmark prints last, as JSON, when started anew with `arguments`."""
    command = [sys.executable, "-W", "ignore", sys.argv[0], *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


class Verdicts:
    """Prints `RESULT <name> <value> <unit> target <bound> <word>` for each figure; `write` appends all to a file of results."""

    def __init__(self, name: str, *packages: str) -> None:
        self.path = ROOT / "benchmarks" / "results" / f"{name}.jsonl"
        self.host = host(packages)  # and the load before the run
        self.said: list[dict[str, Any]] = []

    def at_least(self, name: str, value: float, unit: str, bound: float) -> None:
        self._say(name, value, unit, f">= {bound:g}", value >= bound)

    def at_most(self, name: str, value: float, unit: str, bound: float) -> None:
        self._say(name, value, unit, f"<= {bound:g}", value <= bound)

    def between(self, name: str, value: float, unit: str, low: float, high: float) -> None:
        self._say(name, value, unit, f"{low:g} .. {high:g}", low <= value <= high)

    def measured(self, name: str, value: float, unit: str) -> None:
        self._say(name, value, unit, "", None)

    def not_run(self, name: str, unit: str, target: str, why: str) -> None:
        self.said.append({"name": name, "unit": unit, "target": target, "not run": why})
        print(f"RESULT {name} - {unit or '-'} target {target or '-'} not run: {why}", flush=True)

    def _say(self, name: str, value: float, unit: str, target: str, met: bool | None) -> None:
        self.said.append({"name": name, "value": value, "unit": unit, "target": target, "met": met})
        word = {True: "met", False: "missed", None: "measured"}[met]
        print(f"RESULT {name} {value:.4g} {unit or '-'} target {target or '-'} {word}", flush=True)

    def write(self, figures: dict[str, Any]) -> int:
        """Append the run; the program's exit status: 1 when a target was missed."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        command = " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]])
        line = {"time": now, "command": command, **self.host, "verdicts": self.said, "figures": figures}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return int(any(said.get("met") is False for said in self.said))


def host(packages: tuple[str, ...]) -> dict[str, Any]:
    from pipeline.this_machine import git_revision, processor_name

    versions = {name: metadata.version(name) for name in packages} | {"python": sys.version.split()[0]}
    facts = {"cpu": processor_name(), "cores": os.cpu_count(), "load": os.getloadavg()[0], "versions": versions}
    return facts | {"git": git_revision()}
