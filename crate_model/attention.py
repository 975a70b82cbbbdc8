"""Two causal attentions of one signature: CRATE's, with one shared projection for query, key and value, and GPT-2's."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crate_model.cache import KeyValueCache
from crate_model.config import ModelConfig
from crate_model.layers import Linear
from crate_model.ops import precision

Stream = Float[Tensor, "batch t d_model"]
Mask = Bool[Tensor, "batch 1 t seen"]


class SharedProjectionAttention(nn.Module):
    """Multi-head subspace self-attention (MSSA): u = x U^T serves as query, key and value. *Source:* Bai & Ma 2025, section 2."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.n_head = layer, config.n_head
        self.shared = Linear(config.d_model, config.d_model, bias=False)
        self.mix = nn.Identity()  # a place for taps: the heads' outputs side by side
        self.out = Linear(config.d_model, config.d_model, bias=True)

    def forward(self, x: Stream, cache: KeyValueCache | None = None, mask: Mask | None = None) -> Stream:
        shared = _heads(self.shared(x), self.n_head)
        mixed = _attend(shared, shared, shared, self.layer, cache, mask)
        return self.out(self.mix(mixed))

    def taps(self) -> dict[str, nn.Module]:
        return {"attention_shared": self.shared, "attention_mix": self.mix, "attention_out": self.out}


class CausalAttention(nn.Module):
    """GPT-2's attention: separate query, key and value, stacked in that order in one matrix."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.n_head = layer, config.n_head
        self.qkv = Linear(config.d_model, 3 * config.d_model, bias=config.bias)
        self.mix = nn.Identity()
        self.out = Linear(config.d_model, config.d_model, bias=config.bias)

    def forward(self, x: Stream, cache: KeyValueCache | None = None, mask: Mask | None = None) -> Stream:
        query, key, value = (_heads(part, self.n_head) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = _attend(query, key, value, self.layer, cache, mask)
        return self.out(self.mix(mixed))

    def taps(self) -> dict[str, nn.Module]:
        return {"qkv": self.qkv, "attention_mix": self.mix, "attention_out": self.out}


def _heads(x: Tensor, n_head: int) -> Tensor:
    """(batch, t, d_model) -> (batch, head, t, d_head), a view."""
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, layer: int, cache: KeyValueCache | None, mask: Mask | None
) -> Tensor:
    """Causal attention over the positions seen so far -> (batch, t, d_model)."""
    if cache is not None:
        key, value = cache.update(key, value, layer)
    t, seen = query.shape[-2], key.shape[-2]
    if mask is None and 1 < t < seen:  # several new positions after cached ones: causal, shifted
        mask = torch.ones(t, seen, dtype=torch.bool, device=query.device).tril(seen - t)
    dtype, causal = query.dtype, mask is None and t == seen
    if precision.widens(query):
        query, key, value = query.float(), key.float(), value.float()
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    return mixed.to(dtype).transpose(1, 2).flatten(-2)
