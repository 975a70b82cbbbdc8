"""What the product could do otherwise, by constants of its modules: held to float64 (stage `parity`) and timed in a whole step.

To try one more, add a line to VARIANTS.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from gpu import models
from gpu.models import ROWS, model_config, random_batch
from gpu.session import Evidence
from gpu.switches import constants
from gpu.train import measured


@dataclass(frozen=True)
class Variant:
    """Constants of a module that are set otherwise than the product sets them."""

    name: str
    module: str
    constants: Mapping[str, Any]

    def on(self) -> AbstractContextManager[None]:
        """Within, they are set. Raises AttributeError for a constant that the module does not have."""
        return constants(importlib.import_module(self.module), **self.constants)


VARIANTS = (
    Variant("ISTA in tiles of 256 columns", "crate_model.ops.ista_triton", {"TILE_N": 256}),
    Variant("ISTA's persistent kernel", "crate_model.ops.ista_triton", {"PERSISTENT": True}),
    Variant(
        "logits 512 MiB at a time", "crate_model.ops.cross_entropy", {"CHUNK_BYTES": {"cpu": 2**29, "cuda": 2**29}}
    ),
)


def run(evidence: Evidence) -> None:
    for how in evidence.pick(("eager", "compiled"), ("eager",)):
        for variant in VARIANTS:
            needs = 20 if how == "compiled" else 5  # no cache was filled for these
            evidence.attempt(f"{variant.name}, {how}", step, variant, how, needs=needs)


def step(evidence: Evidence, variant: Variant, how: str) -> None:
    """CRATE-B's step, to be read beside that of the stage `train`."""
    config = model_config(evidence, "crate", "B")
    model = models.ours(config, evidence.device).bfloat16()
    batch = random_batch(config, evidence.pick(ROWS, 2), evidence.device)
    told = {"side": "ours", "architecture": "crate", "size": "B", "how": how, "weights": "bf16"}
    with variant.on():  # a compiler puts the constants into its graph in the first step
        run = models.compiled(evidence, model) if how == "compiled" else model
        measured(evidence, config, model, run, batch, told | {"variant": variant.name})
