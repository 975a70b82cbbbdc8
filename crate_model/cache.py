"""What generation remembers of earlier positions. The interface is transformers' `Cache`, so its caches fit here too."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable  # shape checks in tests look at it
class KeyValueCache(Protocol):
    """Grows by the new positions' keys and values, (batch, head, t, d_head), and returns all seen so far."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]: ...

    def get_seq_length(self, layer_idx: int = 0) -> int: ...


class GrowingCache:
    """Keys and values of every layer, concatenated; where they are one tensor (CRATE) it is kept once."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        shared = key_states is value_states
        if layer_idx in self._layers:
            old_keys, old_values = self._layers[layer_idx]
            key_states = torch.cat((old_keys, key_states), dim=-2)
            value_states = key_states if shared else torch.cat((old_values, value_states), dim=-2)
        self._layers[layer_idx] = (key_states, value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._layers[layer_idx][0].shape[-2] if layer_idx in self._layers else 0
