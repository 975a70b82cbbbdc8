"""Sparse autoencoders to and from SAELens folders (`cfg.json`, `sae_weights.safetensors`), without sae_lens itself.

*Source:* the files that sae-lens 6 writes, and the fields that versions 3 to 5 wrote instead. A batch top-k autoencoder is,
there as here, a JumpReLU with one threshold once it is trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from crate_model.sae import SparseAutoencoder

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
THEIR_POINTS = {"mlp.hook_post": "code", "hook_resid_post": "out", "hook_resid_mid": "residual_mid"}


def export_saelens(sae: SparseAutoencoder, point: str, folder: Path, model_name: str = "") -> None:
    """Write `sae`, which reads the tap `point`, so that `sae_lens.SAE.load_from_disk(folder)` gives equal features."""
    import torch
    from safetensors.torch import save_file

    config, variant = sae.config, sae.config.variant
    architecture = {"relu": "standard", "topk": "topk"}.get(variant, "jumprelu")
    weights = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if variant == "jumprelu":
        weights["threshold"] = sae.log_threshold.exp()
    if variant == "batchtopk":
        weights["threshold"] = torch.full((config.d_sae,), float(sae.threshold))
    fields: dict[str, Any] = {
        "architecture": architecture,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": point, "model_name": model_name},
    }
    if variant == "topk":
        fields |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    save_file({name: tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)


def import_saelens(folder: Path) -> tuple[SparseAutoencoder, str]:
    """The autoencoder in a SAELens folder and the tap it reads, by our name. Raises ConfigError for what has no equal here."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from crate_model.config import SAEConfig
    from crate_model.sae import sae_from_tensors

    try:
        fields = json.loads((folder / CONFIG).read_text("utf-8"))
        weights = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
        variant, k = _variant(fields, folder)
        tensors = _ours(fields, weights, variant)
        return sae_from_tensors(SAEConfig(fields["d_in"], fields["d_sae"], variant, k), tensors), _point(fields)  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        told = f"{folder} holds no SAELens autoencoder: {type(error).__name__}: {error}"
        raise ConfigError(
            told, fix=f"Give a folder with {CONFIG} and {WEIGHTS}, as sae.save_model writes it."
        ) from error


def _variant(fields: Mapping[str, Any], folder: Path) -> tuple[str, int]:
    """Our variant and k. Raises ConfigError for architectures and options that change what the weights mean."""
    architecture = fields.get("architecture", "standard")
    activation = fields.get("activation_fn_str", fields.get("activation_fn", "relu"))
    if architecture == "standard" and activation == "topk":
        architecture = "topk"
    known = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu"}
    unlike = {
        f"architecture {architecture!r}": architecture not in known,
        f"normalize_activations {fields.get('normalize_activations')!r}": fields.get("normalize_activations", "none")
        not in ("none", None),
        "rescale_acts_by_decoder_norm": bool(fields.get("rescale_acts_by_decoder_norm")),
        f"reshape_activations {fields.get('reshape_activations')!r}": fields.get("reshape_activations", "none")
        not in ("none", None),
    }
    found = [name for name, is_unlike in unlike.items() if is_unlike]
    if found:
        raise ConfigError(
            f"the autoencoder in {folder} has {', '.join(found)}, which has no equal here",
            fix="In sae_lens, fold norms and scales into its weights (fold_W_dec_norm, fold_activation_norm_scaling_factor) "
            "and save it again.",
        )
    k = fields.get("k", fields.get("activation_fn_kwargs", {}).get("k", 1))
    return known[architecture], int(k)


def _ours(fields: Mapping[str, Any], weights: Mapping[str, Tensor], variant: str) -> dict[str, Tensor]:
    tensors = {name: weights[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if not fields.get("apply_b_dec_to_input", True):  # ours always subtracts b_dec: give back what that takes
        tensors["b_enc"] = tensors["b_enc"] + tensors["b_dec"] @ tensors["W_enc"]
    if variant == "jumprelu":
        tensors["log_threshold"] = weights["threshold"].clamp_min(0).log()
    return tensors


def _point(fields: Mapping[str, Any]) -> str:
    """The tap by our name, e.g. blocks.3.mlp.hook_post -> blocks.3.code; names that are not TransformerLens's stay."""
    name = (fields.get("metadata") or {}).get("hook_name") or fields.get("hook_name") or ""
    prefix, _, rest = name.partition(".")
    layer, _, hook = rest.partition(".")
    return f"{prefix}.{layer}.{THEIR_POINTS[hook]}" if hook in THEIR_POINTS else name
