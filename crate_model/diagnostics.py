"""What a white-box layer does: how far it compresses its tokens, and how sparse its codes are. Cheap enough to log in training.

*Source:* Yu et al., "White-Box Transformers via Sparse Rate Reduction" (2023): attention lowers the coding rate R^c of the tokens
under the layer's subspaces, the ISTA step makes them sparse.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crate_model import taps
from crate_model.model import LanguageModel

PRECISION = 0.5  # epsilon of the coding rate, the source's value


@dataclass(frozen=True)
class LayerDiagnostics:
    """coding_rate_before, coding_rate: R^c in nats a token, before and after the layer's attention; None for GPT-2, which has
    no such subspaces. fraction_nonzero: share of the layer's neurons, over all tokens, that are not zero."""

    layer: int
    coding_rate_before: float | None
    coding_rate: float | None
    fraction_nonzero: float


def coding_rate(projected: Float[Tensor, "... d_model"], n_head: int, epsilon: float = PRECISION) -> Float[Tensor, ""]:
    """R^c = sum over heads of 1/2 log det(I + p / (N epsilon^2) u_k^T u_k), in nats; u_k (N, p) are the tokens in subspace k.

    `projected` holds the N tokens' coordinates in all subspaces side by side, p = d_model / n_head each.
    """
    tokens = projected.detach().flatten(0, -2).double()
    heads = tokens.unflatten(-1, (n_head, -1)).transpose(0, 1)  # (head, N, p)
    n_tokens, width = heads.shape[1:]
    gram = heads.transpose(1, 2) @ heads * (width / (n_tokens * epsilon**2))
    identity = torch.eye(width, dtype=gram.dtype, device=gram.device)
    return 0.5 * torch.linalg.slogdet(identity + gram).logabsdet.sum()


def fraction_nonzero(code: Float[Tensor, "... d_code"]) -> Float[Tensor, ""]:
    """Share of the entries that are not exactly zero."""
    return (code != 0).double().mean()


@torch.no_grad()
def diagnose(
    model: LanguageModel, ids: Int[Tensor, "batch t"], real: Bool[Tensor, "batch t"] | None = None
) -> list[LayerDiagnostics]:
    """Both figures for every layer, from one forward pass over `ids`. Where `real` is False an id is padding at the end of a
    row, which no real one looks at, and is not counted."""
    crate = model.config.architecture == "crate"
    layers = range(model.config.n_layer)
    wanted = [f"blocks.{layer}.code" for layer in layers]
    if crate:
        wanted += [f"blocks.{layer}.{name}" for layer in layers for name in ("attention_shared", "residual_mid")]
    with taps.read(model, wanted) as found:
        model.hidden(ids)
    values = {name: value.flatten(0, 1) if real is None else value[real] for name, value in found.items()}
    results = []
    blocks: Iterable[Any] = model.blocks
    for layer, block in enumerate(blocks):
        before = after = None
        if crate:
            compressed = block.attention.shared(block.attention_norm(values[f"blocks.{layer}.residual_mid"]))
            before = coding_rate(values[f"blocks.{layer}.attention_shared"], model.config.n_head).item()
            after = coding_rate(compressed, model.config.n_head).item()
        nonzero = fraction_nonzero(values[f"blocks.{layer}.code"]).item()
        results.append(LayerDiagnostics(layer, before, after, nonzero))
    return results
