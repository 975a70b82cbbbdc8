"""How fast a run goes: tokens a second and, on a GPU whose peak is known, the share of it that true FLOPs use."""

from __future__ import annotations

import time

from crate_model.config import ModelConfig
from crate_model.flops import train_flops_per_token

# Dense 16-bit tensor-core peak in FLOP/s by what torch calls the GPU, the most specific name first. Never the figure "with
# sparsity". *Source:* NVIDIA's data sheets.
PEAKS = (
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("RTX 6000 Ada", 364e12),
    ("RTX A6000", 154.8e12),
    ("A40", 149.7e12),
    ("A10", 125e12),
    ("L4", 121e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71e12),
)


def peak_flops(gpu_name: str) -> float | None:
    """FLOP/s of one GPU at its best, or None for a GPU that is not in the table: a guess would be worse than nothing."""
    words = gpu_name.replace("-", " ").split()
    for name, peak in PEAKS:
        wanted = name.split()
        if any(words[i : i + len(wanted)] == wanted for i in range(len(words))):
            return peak
    return None


class Meter:
    """Speed between two readings; time spent on held-out losses and the like is left out by `skip`."""

    def __init__(self, model: ModelConfig, world_size: int, gpu_name: str | None) -> None:
        self._flops_per_token = train_flops_per_token(model)
        peak = peak_flops(gpu_name) if gpu_name else None
        self._peak = peak * world_size if peak else None
        self.skip(0)

    def skip(self, tokens: int) -> None:
        """Begin to measure now, at so many tokens seen."""
        self._tokens, self._since = tokens, time.perf_counter()

    def read(self, tokens: int) -> dict[str, float]:
        """`tokens_per_second` since the last reading, `flops_per_second`, and `mfu` where the peak is known."""
        seconds = time.perf_counter() - self._since
        speed = (tokens - self._tokens) / seconds if seconds > 0 else 0.0
        self.skip(tokens)
        values = {"tokens_per_second": speed, "flops_per_second": speed * self._flops_per_token}
        return values | ({"mfu": values["flops_per_second"] / self._peak} if self._peak else {})
