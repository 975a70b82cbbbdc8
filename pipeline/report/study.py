"""A sweep as the report sees it: its cells with their artifacts, and what varies between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from crate_model.config import ModelConfig
from crate_model.flops import ParameterCount, count_parameters, train_flops_per_token
from pipeline.artifacts.store import Artifact
from pipeline.naming import flat
from pipeline.report.stage import ReportSettings

Rows = Sequence[dict[str, Any]]  # of a table
ARCHITECTURES = {"crate": "CRATE", "gpt2": "GPT-2"}
SHAPE_KEYS = (
    "model.architecture",
    "model.n_layer",
    "model.d_model",
    "model.n_head",
    "seed",
)  # told by the axes and replicas
TOKENS_KEY = "pretrain.total_tokens"  # the other axis of a law: never a variant
MEASURING_KEYS = ("pretrain.eval_every_steps", "pretrain.eval_tokens", "pretrain.keep_log_spaced")  # change no weight
CHECKPOINT_KEY = "checkpoint_step"  # whose weights were read
IMPORTED_KEY = "pretrain.checkpoint"  # where each model came from: never a variant
TRAINING, READING = ("model.", "pretrain.", "tokens."), ("activations.", "interpret.", CHECKPOINT_KEY)


@dataclass(frozen=True)
class Cell:
    """One model of the sweep. `artifacts` by stage; `missing` says why a stage has none."""

    name: str
    settings: dict[str, Any]
    artifacts: dict[str, Artifact]
    missing: dict[str, str]
    variant: dict[str, Any] = field(default_factory=dict)  # what varies in training, beside shape, seed and tokens
    reading: dict[str, Any] = field(default_factory=dict)  # that, the tokens where they vary, and how it was judged
    text: str = "tokens"  # the step that made its text
    tokens: Artifact | None = None  # its text

    @cached_property
    def model(self) -> ModelConfig:
        return ModelConfig(**self.settings["model"])

    @property
    def architecture(self) -> str:
        return self.model.architecture

    @property
    def seed(self) -> int:
        return int(self.settings.get("seed", 0))

    @property
    def is_last(self) -> bool:
        """Whether this is the model that training ended with, and not weights kept along the way."""
        return self.settings.get(CHECKPOINT_KEY, "last") == "last"

    @property
    def train_tokens(self) -> int:
        """Tokens seen in training: whole batches only."""
        planned = self.settings["pretrain"]
        if not self.is_last:
            return int(self.settings[CHECKPOINT_KEY]) * planned["batch_tokens"]
        trained = self.artifacts.get("pretrain")
        known = trained.summary.get("train_tokens") if trained else None
        return known or planned["total_tokens"] // planned["batch_tokens"] * planned["batch_tokens"]

    @cached_property
    def size(self) -> ParameterCount:
        return count_parameters(self.model)

    @property
    def train_flops(self) -> float:
        """True training FLOPs of the whole run."""
        return float(train_flops_per_token(self.model)) * self.train_tokens

    @property
    def val_loss(self) -> float | None:
        """Nats a token over the whole of what `evaluate` was told to measure; of the training's own evaluation without it."""
        for stage in ("evaluate", "pretrain") if self.is_last else ("evaluate",):
            if stage in self.artifacts and self.artifacts[stage].summary.get("val_loss") is not None:
                return float(self.artifacts[stage].summary["val_loss"])
        return None

    @property
    def unigram_entropy(self) -> float | None:
        """Nats a token of val under its own token frequencies: what a model without context could reach."""
        value = self.tokens.summary.get("unigram_entropy") if self.tokens else None
        return None if value is None else float(value)

    @property
    def series(self) -> str:
        """What its loss is drawn with: architecture, and whatever else varies in training beside size, seed and tokens."""
        return self._named(self.variant)

    @property
    def score_series(self) -> str:
        """What its scores are drawn with: the training tokens and the judge tell lines apart, too."""
        return self._named(self.reading)

    def _named(self, values: Mapping[str, Any]) -> str:
        extra = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in values.items())
        return ARCHITECTURES[self.architecture] + (f" ({extra})" if extra else "")


@dataclass(frozen=True, eq=False)
class Study:
    settings: ReportSettings
    cells: tuple[Cell, ...]  # in reading order: architecture, variant, size, seed
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
            if cell.reading not in found:
                found.append(cell.reading)
        return found

    @property
    def tokens_vary(self) -> bool:
        return len({cell.train_tokens for cell in self.models}) > 1

    @cached_property
    def models(self) -> list[Cell]:
        """The cells whose training is at its end: whose losses are compared. The others are earlier weights of such."""
        return [cell for cell in self.cells if cell.is_last]

    def of_models(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of a table that speak of such cells."""
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


def gather(settings: ReportSettings, inputs: Mapping[str, Artifact]) -> Study:
    """Sort the inputs into cells. Cells come in reading order, so that equal inputs give equal pages."""
    varying = _varying_keys([outcome.settings for outcome in settings.outcomes])
    cells = []
    for outcome in settings.outcomes:
        prefix = f"{outcome.cell}/"
        artifacts = {name.removeprefix(prefix): made for name, made in inputs.items() if name.startswith(prefix)}
        values = flat(outcome.settings)
        reading = {key: values.get(key) for key in varying}
        if reading.get(CHECKPOINT_KEY) == "last":
            del reading[CHECKPOINT_KEY]
        variant = {key: value for key, value in reading.items() if key.startswith(TRAINING) and key != TOKENS_KEY}
        told = (outcome.cell, outcome.settings, artifacts, dict(outcome.missing), variant, reading)
        cells.append(Cell(*told, text=outcome.tokens, tokens=inputs.get(outcome.tokens)))
    order = list(ARCHITECTURES)
    cells.sort(
        key=lambda c: (
            *(order.index(c.architecture), str(c.variant), c.model.d_model, c.model.n_layer),
            *(c.train_tokens, c.seed, c.name),
        )
    )
    return Study(settings, tuple(cells))


def _varying_keys(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Dotted keys in which the models or their scores differ, beside those that the axes show.

    Keys that follow from the architecture are no news. What autoencoders, steering and the report are told changes no model.
    """
    all_values = [flat(values) for values in settings]
    keys = sorted({key for values in all_values for key in values} - {*SHAPE_KEYS, *MEASURING_KEYS, IMPORTED_KEY})
    keys = [key for key in keys if key.startswith(TRAINING + READING)]
    found = []
    for key in keys:
        by_architecture: dict[Any, set[str]] = {}
        for values in all_values:
            by_architecture.setdefault(values.get("model.architecture"), set()).add(repr(values.get(key)))
        if any(len(texts) > 1 for texts in by_architecture.values()):
            found.append(key)
    return found
