"""What an edit does to the next word: tokens promoted and suppressed, curves over doses, nothing where nothing is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crate_model import taps
from crate_model.model import LanguageModel
from crate_model.sae import spliced
from pipeline.errors import ConfigError
from pipeline.steer.edits import Edit, Unit, editing

N_TOKENS = 50257  # rows of the token table that are tokens; the padding above them is never shown


@torch.no_grad()
def logits_of(model: LanguageModel, ids: Tensor, edit: Edit | None = None) -> Tensor:
    """Float32 logits (batch, t, tokens) of ids (batch, t), with `edit` made if there is one; padding rows are left out.

    Raises ConfigError when the edit drives them out of the range of numbers.
    """
    n_tokens = min(N_TOKENS, model.config.vocab_size)
    if edit is None:
        return model(ids)[..., :n_tokens].float()
    with editing(model, edit):
        logits = model(ids)[..., :n_tokens].float()
    if not bool(logits.isfinite().all()):
        unit = f"{'feature' if edit.unit.sae else 'neuron'} {edit.unit.index} of {edit.unit.site}"
        raise ConfigError(f"with {unit} edited so far, the logits are no numbers", fix="Give the edit a smaller value.")
    return logits


@dataclass(frozen=True)
class TokenChange:
    """One token's prediction before and after an edit."""

    kind: str  # promoted, suppressed, likely
    rank: int
    token: int
    logit_before: float
    logit_after: float
    probability_before: float
    probability_after: float


def token_changes(before: Tensor, after: Tensor, top: int) -> list[TokenChange]:
    """The `top` tokens by rise of logit, by fall of logit, and by probability after; before, after: logits (tokens,)."""
    change = after - before
    p_before, p_after = before.softmax(-1), after.softmax(-1)
    ranked = {"promoted": change, "suppressed": -change, "likely": after}
    top = min(top, len(change))
    return [
        TokenChange(
            kind,
            rank,
            token,
            before[token].item(),
            after[token].item(),
            p_before[token].item(),
            p_after[token].item(),
        )
        for kind, score in ranked.items()
        for rank, token in enumerate(score.topk(top).indices.tolist())
    ]


def kl_divergence(before: Tensor, after: Tensor) -> Tensor:
    """KL(before || after) in nats of logits (..., tokens)."""
    p = before.double().log_softmax(-1)
    return (p.exp() * (p - after.double().log_softmax(-1))).sum(-1)


def promoted_tokens(model: LanguageModel, ids: Tensor, plain: Tensor, edit: Edit, top: int) -> Tensor:
    """The `top` tokens whose logits an edit raises most at the end of prompts ids (n, t), in their mean; plain (n, t, tokens)."""
    rise = (logits_of(model, ids, edit)[:, -1] - plain[:, -1]).mean(dim=0)
    return rise.topk(min(top, len(rise))).indices


def dose_rows(
    model: LanguageModel,
    ids: Tensor,
    plain: Tensor,
    edit: Edit,
    units: Sequence[tuple[str, Unit]],
    doses: Sequence[float],
    top: int,
    others: Tensor,
) -> list[dict[str, Any]]:
    """Rows of DOSE_SCHEMA without the edit's own columns: every unit (role, unit) at every multiple of the edit's value.

    All doses of a unit are one batch. The tokens watched are the unit's own, chosen on other prompts, `others` (n, t). Tokens
    chosen on the prompt where they are measured would be promoted there by construction; and those that one unit promotes are
    promoted more by it than by another whatever it is, so that a control, too, is measured by its own. ids (1, t); plain: logits
    (1, t, tokens).
    """
    plain_others = logits_of(model, others)
    values = torch.tensor([[dose * float(edit.value)] for dose in doses])
    rows = []
    for role, unit in units:
        watched = promoted_tokens(model, others, plain_others, Edit(unit, edit.how, edit.value), top)
        steered = logits_of(model, ids.expand(len(doses), -1), Edit(unit, edit.how, values, edit.positions))
        kl = kl_divergence(plain, steered).mean(dim=1)
        change = steered[:, -1] - plain[:, -1]
        relative = change[:, watched].mean(dim=1) - change.mean(dim=1)
        probability = steered[:, -1].softmax(-1)[:, watched].sum(dim=1)
        rows += [
            {
                "role": role,
                "neuron": unit.index,
                "dose": dose,
                "value": values[i].item(),
                "kl": kl[i].item(),
                "logit_change": relative[i].item(),
                "probability": probability[i].item(),
            }
            for i, dose in enumerate(doses)
        ]
    return rows


@torch.no_grad()
def lossless_row(model: LanguageModel, ids: Tensor, plain: Tensor, unit: Unit) -> dict[str, Any]:
    """Clamp a unit, at every position, to the value it has there: a row of LOSSLESS_SCHEMA."""
    with taps.read(model, [unit.point]) as values:
        model.hidden(ids)
    activations = values[unit.point].float()
    own = activations[..., unit.index] if unit.sae is None else unit.sae.encode(activations)[..., unit.index]
    after = logits_of(model, ids, Edit(unit, "clamp", own))
    what = "clamp" if unit.sae is None else "delta" if unit.keep_error else "splice"
    return _lossless(unit.site, unit.layer, unit.index, what, plain, after)


def splice_row(model: LanguageModel, ids: Tensor, plain: Tensor, unit: Unit) -> dict[str, Any]:
    """The whole layer through the unit's autoencoder, nothing edited: a row of LOSSLESS_SCHEMA."""
    if unit.sae is None:
        raise ValueError("a neuron has no autoencoder to splice in")
    with spliced(model, unit.point, unit.sae):
        after = logits_of(model, ids)
    return _lossless(unit.site, unit.layer, None, "splice", plain, after)


def _lossless(site: str, layer: int, neuron: int | None, what: str, plain: Tensor, after: Tensor) -> dict[str, Any]:
    return {
        "site": site,
        "layer": layer,
        "neuron": neuron,
        "what": what,
        "max_logit_change": (after - plain).abs().max().item(),
        "kl": kl_divergence(plain, after).mean().item(),
    }
