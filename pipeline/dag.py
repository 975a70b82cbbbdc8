"""The table of contents: every stage in order, and the steps that a configuration asks for.

A step is a stage at one cell. Its fingerprint follows from its settings and its inputs' fingerprints, so the whole plan is
known before anything runs: what is kept, what is made, and why.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crate_model.flops import train_flops_per_token
from pipeline.activations.stage import ACTIVATIONS, FEATURES
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.store import Store
from pipeline.config import Config
from pipeline.config_grid import points
from pipeline.config_load import Cell, LoadedConfig
from pipeline.errors import ArtifactError, ConfigError
from pipeline.evaluate.stage import STAGE as EVALUATE
from pipeline.interpret.stage import INTERPRET, INTERPRET_FEATURES
from pipeline.naming import flat, names_of
from pipeline.pretrain.stage import STAGE as PRETRAIN
from pipeline.report.stage import STAGE as REPORT
from pipeline.report.stage import Outcome, ReportSettings
from pipeline.sae.stage import STAGE as SAE
from pipeline.stage import Stage, canonical
from pipeline.steer.stage import STAGE as STEER
from pipeline.tokens.stage import STAGE as TOKENS

STAGES: tuple[Stage, ...] = (
    TOKENS,
    PRETRAIN,
    EVALUATE,
    ACTIVATIONS,
    SAE,
    FEATURES,
    INTERPRET,
    INTERPRET_FEATURES,
    STEER,
    REPORT,
)


@dataclass(frozen=True)
class Step:
    """One stage at one cell, or one text for all cells that read it. `inputs` maps the stages it reads to their steps' names."""

    name: str  # "tokens" (where cells differ in it "tokens-val_fraction0.1"), "crate-1l/pretrain"
    stage: Stage
    cell: str  # empty for steps of the whole sweep
    settings: Any
    inputs: dict[str, str]
    fingerprint: str
    input_fingerprints: dict[str, str]
    outside: dict[str, str] = field(default_factory=dict)  # digests of what it reads beside its inputs

    @property
    def recipe(self) -> dict[str, Any]:
        """What the manifest says of identity."""
        return self.stage.recipe(self.settings, self.input_fingerprints, self.outside)


@dataclass(frozen=True)
class Plan:
    """The steps in an order in which every input comes first, without the report, which depends on how they end."""

    name: str
    loaded: LoadedConfig
    cells: tuple[Cell, ...]  # largest first
    steps: dict[str, Step]
    texts: dict[str, str]  # cell -> the tokens step that it reads

    def config_of(self, step: Step) -> Config:
        """The configuration that a step is of; of a text, that of the first cell that reads it."""
        return next(c.config for c in self.cells if step.name == self.texts[c.name] or step.cell == c.name)

    @property
    def points_told(self) -> str:
        """A sentence where the grid has more points than there are cells; else nothing."""
        n_points = len(list(points(self.loaded.config.grid)))
        same = "differ from others only in what their models do not use, or in nothing"
        return f"{n_points - len(self.cells)} of the grid's {n_points} points {same}" * (n_points > len(self.cells))

    @property
    def models_told(self) -> str:
        """How many models are trained, and in how many cells where cells share one."""
        trained = {step.fingerprint for step in self.steps.values() if step.stage is PRETRAIN}
        n_models, n_cells = len(trained) or len(self.cells), len(self.cells)
        return f"{n_models} model{'s' if n_models > 1 else ''}" + (f" in {n_cells} cells" if n_cells > n_models else "")

    @property
    def made_by(self) -> dict[str, str]:
        """For each step, the first one with its fingerprint, which makes the artifact of both."""
        first: dict[str, str] = {}
        return {name: first.setdefault(step.fingerprint, name) for name, step in self.steps.items()}

    def of_cell(self, cell: str) -> list[Step]:
        return [step for step in self.steps.values() if step.cell == cell]


def plan(loaded: LoadedConfig, until: str = REPORT.name) -> Plan:
    """The steps of every cell up to the stage `until`, cells with the most training FLOPs first.

    Raises ConfigError when there is no such stage.
    """
    cells = sorted(loaded.cells(), key=lambda cell: (-training_flops(cell), cell.name))
    names = [stage.name for stage in STAGES]
    if until not in names:
        raise ConfigError(f"there is no stage {until!r}", fix=f"The stages, in their order: {', '.join(names)}.")
    stages = STAGES[: names.index(until) + 1]
    texts, steps = _texts(cells), {}  # type: dict[str, str], dict[str, Step]
    for cell in cells:
        if texts[cell.name] not in steps:
            _add(steps, TOKENS, cell, texts)
    for cell in cells:
        for stage in stages:
            if stage.scope == "cell" and stage.needed(cell.config):
                _add(steps, stage, cell, texts)
    return Plan(loaded.config.name, loaded, tuple(cells), steps, texts)


def _texts(cells: Sequence[Cell]) -> dict[str, str]:
    """The name of the tokens step that each cell reads: `tokens`, or one for each text that a grid asks for."""
    wanted = {cell.name: canonical(TOKENS.settings_of(cell.config)) for cell in cells}
    distinct = list({json.dumps(settings): settings for settings in wanted.values()}.values())
    names = names_of([TOKENS.name] * len(distinct), [flat(settings) for settings in distinct])
    return {cell: names[distinct.index(settings)] for cell, settings in wanted.items()}


def training_flops(cell: Cell) -> float:
    """Of the training that is to be done here: none for an imported model."""
    if cell.config.pretrain.checkpoint:
        return 0.0
    return train_flops_per_token(cell.config.model) * cell.config.pretrain.tokens_seen


def step_name(stage: str, cell: str) -> str:
    return f"{cell}/{stage}"


def stage_in(step: str) -> str:
    """The stage in a step's name: `crate-1l/pretrain` -> pretrain, `tokens-val_fraction0.1` -> tokens."""
    return step.rpartition("/")[2].partition("-")[0]


def _add(steps: dict[str, Step], stage: Stage, cell: Cell, texts: Mapping[str, str]) -> None:
    """Add a stage at a cell, or the text that the cell reads."""
    text = texts[cell.name]
    needed = {other.name for other in STAGES if other.needed(cell.config)}  # the inputs are without the others
    inputs = {
        read: text if read == TOKENS.name else step_name(read, cell.name) for read in stage.reads if read in needed
    }
    settings = stage.settings_of(cell.config)
    outside = stage.outside(settings)
    fingerprints = {read: steps[name].fingerprint for read, name in inputs.items()}
    fingerprint = stage.recipe(settings, fingerprints, outside)["fingerprint"]
    name, of_cell = (text, "") if stage is TOKENS else (step_name(stage.name, cell.name), cell.name)
    steps[name] = Step(name, stage, of_cell, settings, inputs, fingerprint, fingerprints, outside)


def report_step(whole: Plan, made: Mapping[str, Artifact], missing: Mapping[str, str]) -> Step:
    """The report over what was made; `missing` gives the reason for every step that was not."""
    outcomes = tuple(
        Outcome(
            cell.name,
            cell.config.of_results,
            {s.stage.name: missing[s.name] for s in whole.of_cell(cell.name) if s.name in missing},
            whole.texts[cell.name],
        )
        for cell in sorted(whole.cells, key=lambda cell: cell.name)
    )
    settings = ReportSettings(whole.name, whole.loaded.config.report, outcomes)
    fingerprints = {name: artifact.fingerprint for name, artifact in sorted(made.items())}
    fingerprint = REPORT.fingerprint(settings, fingerprints)
    return Step("report", REPORT, "", settings, {name: name for name in fingerprints}, fingerprint, fingerprints)


def kept(whole: Plan, store: Store) -> dict[str, Artifact]:
    """The planned artifacts that the store has already."""
    found = {name: store.find(step.stage.name, step.fingerprint) for name, step in whole.steps.items()}
    return {name: artifact for name, artifact in found.items() if artifact is not None}


def why_made(step: Step, store: Store) -> str:
    """Why a step is not kept: nothing like it yet, or what in its recipe differs from the nearest one there is."""
    try:
        recipes = [artifact.manifest for artifact in store.all_of(step.stage.name)]
    except ArtifactError as error:  # perhaps another run's: it stops no plan
        return f"not made yet, or not like this: {error.what}"
    if not recipes:
        return "not made yet"
    own = step.recipe
    differences = [_differences(own, dataclasses.asdict(manifest)) for manifest in recipes]
    return "differs in " + ", ".join(min(differences, key=len)[:3])


def _differences(own: dict[str, Any], other: dict[str, Any], above: str = "") -> list[str]:
    """Dotted keys of settings, inputs, what lies outside, and version at which two recipes differ."""
    keys = ("settings", "inputs", "outside", "version") if not above else tuple(own.keys() | other.keys())
    found = []
    for key in sorted(keys):
        mine, theirs = own.get(key), other.get(key)
        if mine == theirs:
            continue
        name = f"{above}.{key}" if above else key
        if isinstance(mine, dict) and isinstance(theirs, dict):
            found += _differences(mine, theirs, name)
        else:
            found.append(name.removeprefix("settings."))
    return found
