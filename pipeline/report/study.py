"""A sweep as the report sees it: its cells with their artifacts, and what varies between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pipeline.artifacts.artifact import Artifact
from pipeline.report.cells import ARCHITECTURES as ARCHITECTURES
from pipeline.report.cells import CHECKPOINT_KEY, IMPORTED_KEY, READING, SHAPE_KEYS, canonical_text
from pipeline.report.cells import TRAINING as TRAINING
from pipeline.report.cells import Cell as Cell
from pipeline.report.stage import ReportSettings
from pipeline.report.text import tokens_between

Rows = Sequence[dict[str, Any]]  # of a table
OF_A_SHAPE = ("model.n_head", IMPORTED_KEY)  # no news where each shape has its own
IMPORTED = "imported"  # instead of its folder, where a model is told apart from those that were trained here


@dataclass(frozen=True, eq=False)
class Study:
    settings: ReportSettings
    cells: tuple[Cell, ...]  # in reading order: architecture, variant, size, tokens, seed, and how it was measured
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)  # what is costly to work out and asked for often

    @property
    def name(self) -> str:
        return self.settings.name

    @cached_property
    def texts(self) -> dict[str, Artifact]:
        """The texts that the cells read, by the names of their steps."""
        return {cell.text: cell.tokens for cell in self.cells if cell.tokens}

    @property
    def unigram_entropy(self) -> float | None:
        """Of the val text that all cells share; None where they have several."""
        found = {cell.unigram_entropy for cell in self.cells}
        return found.pop() if len(found) == 1 else None

    @property
    def measured_entropy(self) -> float | None:
        """Of the very tokens that the models' losses are of; None where these differ, or `evaluate` did not measure all."""
        entropies = {
            cell.artifacts["evaluate"].summary["unigram_entropy"] if cell.measured_by == "evaluate" else None
            for cell in self.measured
        }
        return entropies.pop() if len(entropies) == 1 else None

    @cached_property
    def judges(self) -> list[str]:
        """Who explained and simulated, over all cells; shown wherever a score is."""
        found = [
            cell.artifacts["interpret"].summary.get("judge") for cell in self.cells if "interpret" in cell.artifacts
        ]
        return sorted({judge for judge in found if judge})

    @cached_property
    def protocols(self) -> list[str]:
        """How excerpts were drawn and judged: `corrected`, or `paper` with the published code's faults."""
        return sorted(
            {cell.artifacts["interpret"].summary["protocol"] for cell in self.cells if "interpret" in cell.artifacts}
        )

    def of(self, architecture: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.architecture == architecture]

    @cached_property
    def architectures(self) -> list[str]:
        return [name for name in ARCHITECTURES if self.of(name)]

    @cached_property
    def readings(self) -> list[dict[str, Any]]:
        """The different values of what varies beside shape and seed; most sweeps have one, the empty one."""
        found: list[dict[str, Any]] = []
        for cell in sorted(self.cells, key=lambda cell: not cell.is_last):
            if cell.reading_of_features not in found:
                found.append(cell.reading_of_features)
        return found

    @property
    def tokens_vary(self) -> bool:
        return len({cell.train_tokens for cell in self.models}) > 1

    @property
    def tokens_said(self) -> str:
        """How many tokens the models saw: `65.5k tokens`, `65.5k to 131k tokens`."""
        return tokens_said(self.trainings)

    @cached_property
    def models(self) -> list[Cell]:
        """The trained models, each at the end of its training, in the first of its cells: whose losses are compared."""
        first: dict[str, Cell] = {}
        for cell in self.cells:
            if cell.is_last:
                first.setdefault(cell.training_id, cell)
        return list(first.values())

    @cached_property
    def trainings(self) -> list[Cell]:
        """One cell of each trained model, whichever weights of it were read."""
        return list({cell.training_id: cell for cell in reversed(self.cells)}.values())[::-1]

    @property
    def epochs_said(self) -> str:
        """How often the models saw their text, where one saw it more than once."""
        epochs = sorted(cell.epochs for cell in self.models if cell.epochs is not None)
        if not epochs or epochs[-1] <= 1:
            return ""
        return (
            f" ({' to '.join(dict.fromkeys(f'{value:.3g}' for value in (epochs[0], epochs[-1])))} epochs of their text)"
        )

    @property
    def measured(self) -> list[Cell]:
        """The models that have a loss."""
        return [cell for cell in self.models if cell.val_loss is not None]

    @cached_property
    def earlier(self) -> list[Cell]:
        """Weights that were kept along the way of a training, each once."""
        found = {(cell.training_id, cell.train_tokens): cell for cell in reversed(self.cells) if not cell.is_last}
        return list(found.values())[::-1]

    def once(self, stage: str, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of a table without those that tell what `stage` made a second time, under another cell's name."""
        rows = list(rows)
        first: dict[str, str] = {}
        for name in sorted({row["cell"] for row in rows}, key=list(self.by_name).index):
            first.setdefault(self.by_name[name].made_of(stage), name)
        named = set(first.values())
        return [row for row in rows if row["cell"] in named]

    def of_models(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of a table that speak of a model at the end of its training."""
        return [row for row in rows if self.by_name[row["cell"]].is_last]

    @cached_property
    def by_name(self) -> dict[str, Cell]:
        return {cell.name: cell for cell in self.cells}

    @cached_property
    def depths(self) -> list[int]:
        return sorted({cell.model.n_layer for cell in self.cells})

    @property
    def has_replicas(self) -> bool:
        return len({cell.seed for cell in self.cells}) > 1


def tokens_said(cells: Iterable[Cell]) -> str:
    return tokens_between([cell.train_tokens for cell in cells])


def gather(settings: ReportSettings, inputs: Mapping[str, Artifact]) -> Study:
    """Sort the inputs into cells. Cells come in reading order, so that equal inputs give equal pages."""
    cells = []
    for outcome in settings.outcomes:
        prefix = f"{outcome.cell}/"
        artifacts = {name.removeprefix(prefix): made for name, made in inputs.items() if name.startswith(prefix)}
        told = (outcome.cell, outcome.settings, artifacts, dict(outcome.missing))
        cells.append(Cell(*told, text=outcome.tokens, tokens=inputs.get(outcome.tokens)))
    cells = [replace(cell, varying=varying) for cell, varying in zip(cells, _varying(cells), strict=True)]
    order, preferred = list(ARCHITECTURES), _preferred_measures(cells)
    cells.sort(
        key=lambda c: (
            *(order.index(c.architecture), str(c.variant), c.model.d_model, c.model.n_layer),
            *(c.train_tokens, c.seed, preferred.index(c.measure), c.name),
        )
    )
    return _with_loss_notes(Study(settings, tuple(cells)))


def _preferred_measures(cells: Iterable[Cell]) -> list[tuple[str | None, int]]:
    """The ways in which losses were measured: first what most models have, and of those what takes most of val."""
    models = Counter(measure for _, measure in {(cell.training_id, cell.measure) for cell in cells})
    stages = ("evaluate", "pretrain", None)
    return sorted(models, key=lambda m: (m[0] is None, -models[m], stages.index(m[0]), -(m[1] or float("inf"))))


def _with_loss_notes(study: Study) -> Study:
    """Where the losses of the models are not measured alike, their series say so, and are series of their own."""
    if len({cell.measure for cell in study.measured}) < 2:
        return study
    return replace(study, memo={}, cells=tuple(replace(cell, loss_note=cell.measure_said) for cell in study.cells))


def _varying(cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """For each cell, by dotted key, what differs between the models, their scores or their SAEs beside what the axes show.

    Keys that a cell does not use (another architecture's, an imported model's training) are not among its own.
    """
    own = [_used(cell) for cell in cells]
    keys = sorted({key for values in own for key in values} - {*SHAPE_KEYS, *OF_A_SHAPE})
    keys = [key for key in keys if len({canonical_text(values[key]) for values in own if key in values}) > 1]
    told = [{key: v[key] for key in keys if key in v and (key, v[key]) != (CHECKPOINT_KEY, "last")} for v in own]
    if len({cell.is_imported for cell in cells}) > 1:
        told = [v | {IMPORTED_KEY: IMPORTED} if cell.is_imported else v for v, cell in zip(told, cells, strict=True)]
    shapes = [(cell.model.n_layer, cell.model.d_model) for cell in cells]
    groups: dict[str, list[Any]] = {
        "model.d_model": [depth for depth, _ in shapes],
        "model.n_head": shapes,
        IMPORTED_KEY: [(cell.architecture, shape) for cell, shape in zip(cells, shapes, strict=True)],
    }
    for key, of in groups.items():
        values = [v.get(key) for v in own]
        if len({(group, value) for group, value in zip(of, values, strict=True)}) > len(set(of)):
            told = [v | {key: o[key]} if key in o else v for v, o in zip(told, own, strict=True)]
    yield from told


def _used(cell: Cell) -> dict[str, Any]:
    """What can change a cell's weights, its measured loss, its scores and its SAEs."""
    sections: tuple[str, ...] = ("tokens.", *READING, "evaluate.val_tokens")
    if cell.values.get("sae.expansions"):
        sections += ("sae.",)
    return cell.training | {key: value for key, value in cell.values.items() if key.startswith(sections)}
