"""Copies between host and GPU that neither waits for.

A copy from ordinary memory makes the host wait until the GPU has come that far, and so does a look at a result. While the host
waits it prepares nothing, and then the GPU has nothing to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """`array` on the device: at once on a CPU, in its turn on a GPU."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return tensor
    # A GPU copies from pinned memory by itself. Torch keeps that memory until the copy is done, and then uses it again.
    return tensor.pin_memory().to(device, non_blocking=True)


class Arriving:
    """A tensor's values on their way to the host: asked for now, to be looked at when the GPU has more to do behind them."""

    def __init__(self, tensor: Tensor) -> None:
        import torch

        self._values = tensor.to("cpu", non_blocking=True)  # into pinned memory
        self._event = None
        if tensor.device.type != "cpu":
            self._event = torch.cuda.Event()
            self._event.record()

    def numpy(self) -> np.ndarray:
        """The values; waits until they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.numpy()
