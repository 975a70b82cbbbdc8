"""The one door every room has.

A stage makes one artifact from its settings and the artifacts it reads. Its `settings` are the part of the configuration
that can change a bit of the result; they, and nothing else, are handed to `run` and enter the fingerprint. The `context`
holds what must not matter: where things are stored, how many workers there are, who watches.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import fingerprint_of
from pipeline.artifacts.store import Store
from pipeline.config import Config, RuntimeConfig
from pipeline.errors import ResourceError
from pipeline.progress import Progress
from pipeline.tracking import TrackerSpec

STOP_NOTE = "stop"
ASK_EVERY_SECONDS = 1.0
_stop_answers: dict[str, tuple[float, bool]] = {}  # run -> (when it was last asked, the answer); one a process
Summary = dict[str, Any]  # small JSON facts of an artifact (counts, final losses); kept in its manifest


@dataclass(frozen=True)
class Context:
    """All that a stage may use and that must not change its result. Picklable: it travels to Ray workers."""

    store: Store
    runtime: RuntimeConfig
    run_name: str
    step_name: str  # e.g. "crate-1l/pretrain"
    fingerprint: str
    tracker: TrackerSpec

    @property
    def scratch(self) -> Path:
        """Kept from one attempt to the next until the artifact is published: resume state, finished shards.

        Write a file there under another name and rename it, then call `keep` on it.
        """
        return self.store.scratch_folder(self.fingerprint)

    def keep(self, path: Path) -> None:
        """Make a finished file or folder in `scratch` survive the loss of this node. May take as long as an upload."""
        self.store.keep(self.fingerprint, path)

    def bring(self, path: Path) -> None:
        """Have a file or folder in `scratch` that another node kept."""
        self.store.bring(self.fingerprint, path)

    def stop_requested(self) -> bool:
        """Whether a person or the cluster asked this sweep to stop: save what is done, and leave. Cheap enough for every step."""
        now = time.monotonic()
        asked, answer = _stop_answers.get(self.run_name, (-ASK_EVERY_SECONDS, False))
        if now - asked >= ASK_EVERY_SECONDS:
            answer = self.store.read_note(self.run_name, STOP_NOTE) is not None
            _stop_answers[self.run_name] = (now, answer)
        return answer

    def progress(self, total: float, unit: str) -> Progress:
        """A progress line for this step; `total` in `unit`s."""
        return Progress(self.store, self.run_name, self.step_name, total, unit, self.fingerprint)


@dataclass(frozen=True)
class Stage:
    """A kind of step. *name* is also the artifact's kind and folder.

    `run(settings, inputs, out_folder, context) -> Summary` gets an empty folder and fills it; the DAG writes the manifest
    last and publishes the folder in one rename. `version` is raised whenever the code would give other bits.
    """

    name: str
    version: int
    scope: Literal["sweep", "cell"]
    reads: tuple[str, ...]  # stages whose artifacts it needs, by name; the inputs of `run` have the same keys
    settings: type  # a frozen dataclass whose fields are names of Config's sections
    run: Callable[[Any, Mapping[str, Artifact], Path, Context], Summary]
    needed: Callable[[Config], bool] = lambda config: True  # False: this cell has no such step
    computes: bool = (
        False  # True: `run` itself computes, on a CPU (and a GPU where there is one); False: it starts workers
    )
    check: Callable[[Config], Sequence[str] | None] = (
        lambda config: (())
    )  # raises ConfigError for what would fail after hours of a cell's other steps; returns what is to be known before them
    outside: Callable[[Any], dict[str, str]] = lambda settings: {}
    # digests by name of what decides bits and is neither a setting nor an artifact: what the settings name by a place

    def settings_of(self, config: Config) -> Any:
        """The settings of this stage, cut out of the whole configuration by field name."""
        return self.settings(**{field.name: getattr(config, field.name) for field in dataclasses.fields(self.settings)})

    def recipe(
        self, settings: Any, inputs: Mapping[str, str], outside: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """What a manifest says of identity, with the fingerprint. `inputs` are fingerprints by stage.

        `outside` is what `self.outside` says of the settings; without it, it is asked here.
        """
        found = {"stage": self.name, "version": self.version, "settings": canonical(settings), "inputs": dict(inputs)}
        found["outside"] = dict(self.outside(settings) if outside is None else outside)
        return found | {"fingerprint": fingerprint_of(found)}

    def fingerprint(self, settings: Any, inputs: Mapping[str, str]) -> str:
        """Of the artifact that these make."""
        return self.recipe(settings, inputs)["fingerprint"]

    def check_outside(self, settings: Any, planned: Mapping[str, str]) -> None:
        """Raises ResourceError where something outside is not what the plan was made with: another node, or meanwhile."""
        for name, digest in self.outside(settings).items():
            if digest != planned.get(name):
                raise ResourceError(
                    f"{self.name}: {name} is not here what it was where the sweep was planned "
                    f"({digest[:12]}, not {planned.get(name, 'nothing')[:12]})",
                    fix="Use the same Python, packages and files on every node, and run again.",
                )


def canonical(settings: Any) -> Any:
    """Settings as plain JSON values, so that equal settings have equal bytes whatever their Python types."""
    return TypeAdapter(type(settings)).dump_python(settings, mode="json")
