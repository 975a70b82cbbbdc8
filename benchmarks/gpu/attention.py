"""The large models' eager step under each of torch's attention kernels, and under its own choice."""

from __future__ import annotations

from gpu import models
from gpu.environment import BACKENDS, attention_by
from gpu.models import ARCHITECTURES, ROWS, model_config, random_batch
from gpu.session import Evidence
from gpu.train import measured


def run(evidence: Evidence) -> None:
    for architecture in ARCHITECTURES:
        for backend in BACKENDS:
            evidence.attempt(f"{architecture} by {backend}", by_backend, architecture, backend, needs=4)


def by_backend(evidence: Evidence, architecture: str, backend: str) -> None:
    if evidence.tiny and backend not in ("default", "flash"):
        return evidence.left_out(f"{architecture} by {backend}", "a CPU has no such kernel")
    config = model_config(evidence, architecture, "B")
    model = models.ours(config, evidence.device).bfloat16()
    batch = random_batch(config, evidence.pick(ROWS, 2), evidence.device)
    told = {"side": "ours", "architecture": architecture, "size": "B", "how": f"eager, attention by {backend}"}
    with attention_by(backend):
        measured(evidence, config, model, model, batch, told | {"weights": "bf16"})
