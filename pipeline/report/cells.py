"""A cell as the report sees it: of which training it is, how its loss was measured, how its neurons were read.

Cells are one model where their training is the same, whatever follows it; replicas where their trainings differ in the seed
and in nothing else. Both are told from settings, so that a training that failed counts as what it was planned to be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from crate_model.config import ModelConfig
from crate_model.flops import ParameterCount, count_parameters, train_flops_per_token
from pipeline.artifacts.artifact import Artifact
from pipeline.naming import flat
from pipeline.report.text import amount, is_of_autoencoder

ARCHITECTURES = {"crate": "CRATE", "gpt2": "GPT-2"}
OWN_KEYS = {  # what one architecture alone has
    "crate": ("model.n_ista_steps", "model.step_size", "model.lambda_sparsity", "model.ista_residual"),
    "gpt2": ("model.bias", "model.activation"),
}
SHAPE_KEYS = ("model.architecture", "model.n_layer", "model.d_model")  # told by the axes
TOKENS_KEY = "pretrain.total_tokens"  # the other axis of a law: never a variant
MEASURING_KEYS = ("pretrain.eval_every_steps", "pretrain.eval_tokens", "pretrain.keep_log_spaced")  # change no weight
CHECKPOINT_KEY = "checkpoint_step"  # whose weights were read
IMPORTED_KEY = "pretrain.checkpoint"  # the folder of a model that was trained elsewhere
TRAINING, READING = ("model.", "pretrain.", "tokens."), ("activations.", "interpret.", CHECKPOINT_KEY)
FOLLOWS_FROM: dict[
    str, tuple[str, ...]
] = {  # the settings of each stage and of those before it, without the training's
    "pretrain": (),
    "evaluate": ("tokens.", CHECKPOINT_KEY, "evaluate."),
    "activations": ("tokens.", CHECKPOINT_KEY, "seed", "activations."),
    "interpret": ("tokens.", CHECKPOINT_KEY, "seed", "activations.", "interpret."),
    "sae": ("tokens.", CHECKPOINT_KEY, "seed", "sae."),
    "features": ("tokens.", CHECKPOINT_KEY, "seed", "sae.", "activations."),
    "interpret_features": ("tokens.", CHECKPOINT_KEY, "seed", "sae.", "activations.", "interpret."),
    "steer": ("tokens.", CHECKPOINT_KEY, "seed", "sae.", "activations.", "interpret.", "steer."),
}


@dataclass(frozen=True)
class Cell:
    """One cell of the sweep. `artifacts` by stage; `missing` says why a stage has none."""

    name: str
    settings: dict[str, Any]
    artifacts: dict[str, Artifact]
    missing: dict[str, str]
    text: str = "tokens"  # the step that made its text
    tokens: Artifact | None = None  # its text
    varying: dict[str, Any] = field(default_factory=dict)  # in what it differs from others, beside shape and seed
    loss_note: str = ""  # on what its loss was measured, where the compared losses differ in it

    @cached_property
    def model(self) -> ModelConfig:
        return ModelConfig(**self.settings["model"])

    @property
    def architecture(self) -> str:
        return str(self.settings["model"]["architecture"])

    @property
    def seed(self) -> int:
        return int(self.settings.get("seed", 0))

    @property
    def is_last(self) -> bool:
        """Whether this is the model that training ended with, and not weights kept along the way."""
        return self.settings.get(CHECKPOINT_KEY, "last") == "last"

    @property
    def is_imported(self) -> bool:
        """Whether it was trained elsewhere: its tokens are told, the rest of its training is not known."""
        return bool(self.settings.get("pretrain", {}).get("checkpoint"))

    @cached_property
    def values(self) -> dict[str, Any]:
        """All its settings by dotted key."""
        return flat(self.settings)

    @cached_property
    def training(self) -> dict[str, Any]:
        """All that decides its weights but the seed, by dotted key; of an imported model, its folder and its shape."""
        sections = ("model.", IMPORTED_KEY, TOKENS_KEY) if self.is_imported else TRAINING
        others = {key for architecture, keys in OWN_KEYS.items() for key in keys if architecture != self.architecture}
        found = {key: value for key, value in self.values.items() if key.startswith(sections)}
        found = {key: value for key, value in found.items() if key not in others and key not in MEASURING_KEYS}
        return found | {TOKENS_KEY: self._planned_tokens} if TOKENS_KEY in found else found

    @cached_property
    def training_id(self) -> str:
        """Equal for the cells of one trained model, and for those alone."""
        return canonical_text([self.training, None if self.is_imported else self.seed])

    @cached_property
    def replicated(self) -> str:
        """Equal for replicas: of trainings that differ in their seed at most."""
        return canonical_text(self.training)

    def made_of(self, stage: str, of_any_seed: bool = False) -> str:
        """Equal for cells that share what `stage` makes; with `of_any_seed`, for those of which it makes replicas."""
        own = {key: value for key, value in self.values.items() if key.startswith(FOLLOWS_FROM[stage])}
        if of_any_seed and not self.is_imported:
            own.pop("seed", None)
            return canonical_text([self.training, own])
        return canonical_text([self.training_id, own])

    @property
    def _planned_tokens(self) -> int:
        planned = self.settings["pretrain"]
        if self.is_imported:  # by no batches of ours
            return int(planned["total_tokens"])
        return planned["total_tokens"] // planned["batch_tokens"] * planned["batch_tokens"]

    @property
    def train_tokens(self) -> int:
        """Tokens seen in training: whole batches only."""
        if not self.is_last:
            return int(self.settings[CHECKPOINT_KEY]) * self.settings["pretrain"]["batch_tokens"]
        trained = self.artifacts.get("pretrain")
        known = trained.summary.get("train_tokens") if trained else None
        return known or self._planned_tokens

    @property
    def epochs(self) -> float | None:
        """How often it saw its text: above 1, tokens are repeated. None where the text is not known."""
        if self.tokens is None or self.is_imported:
            return None
        there = self.tokens.summary.get("train", {}).get("n_tokens")
        return self.train_tokens / there if there else None

    @cached_property
    def size(self) -> ParameterCount:
        return count_parameters(self.model)

    @property
    def train_flops(self) -> float:
        """True training FLOPs of the whole run."""
        return float(train_flops_per_token(self.model)) * self.train_tokens

    @property
    def measured_by(self) -> str | None:
        """The stage that measured its loss: `evaluate`, or the training's own evaluation without it. None: nothing did."""
        for stage in ("evaluate", "pretrain") if self.is_last else ("evaluate",):
            if stage in self.artifacts and self.artifacts[stage].summary.get("val_loss") is not None:
                return stage
        return None

    @property
    def val_loss(self) -> float | None:
        """Nats a token over the whole of what `evaluate` was told to measure; of the training's own evaluation without it."""
        return float(self.artifacts[self.measured_by].summary["val_loss"]) if self.measured_by else None

    @property
    def val_tokens(self) -> int:
        """On how many tokens of val its loss was asked for; 0: on all. Losses on other tokens are other measurements."""
        key = ("pretrain", "eval_tokens") if self.measured_by == "pretrain" else ("evaluate", "val_tokens")
        asked = int(self.settings.get(key[0], {}).get(key[1], 0))
        there = self.tokens.summary["val"]["n_tokens"] if self.tokens else asked + 1
        return asked if asked < there else 0

    @property
    def measure(self) -> tuple[str | None, int]:
        """How its loss was measured on its text: only losses that are equal in this, and of equal text, are compared."""
        return self.measured_by, self.val_tokens

    @cached_property
    def val_text(self) -> str:
        """Equal for cells whose losses are of the same validation text, whatever they were trained on."""
        files = self.tokens.manifest.files if self.tokens else ()
        return canonical_text([(f.name, f.sha256) for f in files if f.name.startswith("val/")] or self.text)

    @property
    def measure_said(self) -> str:
        tokens = f"{amount(self.val_tokens)} tokens of val" if self.val_tokens else "all of val"
        return f"loss on {tokens}" + (", measured in training" if self.measured_by == "pretrain" else "")

    @property
    def unigram_entropy(self) -> float | None:
        """Nats a token of val under its own token frequencies: what a model without context could reach."""
        value = self.tokens.summary.get("unigram_entropy") if self.tokens else None
        return None if value is None else float(value)

    @property
    def variant(self) -> dict[str, Any]:
        """What varies in training, beside shape, seed and tokens."""
        axes = (TOKENS_KEY, *SHAPE_KEYS)
        return {key: value for key, value in self.varying.items() if key.startswith(TRAINING) and key not in axes}

    @property
    def reading(self) -> dict[str, Any]:
        """That, the tokens where they vary, and how its neurons were read and judged."""
        return {key: value for key, value in self.varying.items() if key.startswith(TRAINING + READING)}

    @property
    def reading_of_features(self) -> dict[str, Any]:
        """That, and how the autoencoders were trained."""
        return {key: value for key, value in self.varying.items() if key.startswith((*TRAINING, *READING, "sae."))}

    @property
    def series(self) -> str:
        """What its loss is drawn with: architecture, and whatever else varies in training beside size, seed and tokens."""
        return self.named(self.variant, self.loss_note)

    @property
    def score_series(self) -> str:
        """What its scores are drawn with: the training tokens and the judge tell lines apart, too."""
        return self.named(self.reading)

    @property
    def feature_series(self) -> str:
        """What the scores and measures of its SAEs are drawn with."""
        return self.named(self.reading_of_features)

    def series_of(self, family: str) -> str:
        return self.feature_series if is_of_autoencoder(family) else self.score_series

    def named(self, values: Mapping[str, Any], note: str = "") -> str:
        """Its architecture, the `values` that tell it apart, and a note."""
        told = [f"{key.rpartition('.')[2]} {_shown(value)}" for key, value in values.items()]
        extra = ", ".join([*told, note] if note else told)
        return ARCHITECTURES[self.architecture] + (f" ({extra})" if extra else "")


def canonical_text(values: Any) -> str:
    return json.dumps(values, sort_keys=True)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
