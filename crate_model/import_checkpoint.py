"""The authors' checkpoints: a crate-lm or nanoGPT file becomes a checkpoint folder, proved by its own weights' logits."""

import pickle
import shutil
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from crate_model.checkpoint import WEIGHTS_FILE, load_checkpoint, save_checkpoint
from crate_model.config import ModelConfig
from crate_model.feedforward import ACTIVATIONS
from crate_model.model import LanguageModel
from crate_model.ops.reference import causal_attention, ista_codes
from crate_model.published_names import our_name

PREFIXES = ("_orig_mod.", "module.")  # of torch.compile and DistributedDataParallel
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
# What torch.load raises for bytes that are no file of its own, or no longer one.
UNREADABLE = (
    pickle.UnpicklingError, struct.error, RuntimeError, EOFError,
    ValueError, LookupError, TypeError, AttributeError, AssertionError,
)  # fmt: skip
TOLERANCE = 1e-4  # largest difference of a logit, float32, between the published equations and the reloaded model


def import_checkpoint(
    path: Path | str,
    folder: Path | str,
    activation: Literal["relu", "gelu", "gelu_erf"] = "relu",
    tokenizer: Path | str | None = None,
) -> ModelConfig:
    """Read the checkpoint file at `path`, write it to `folder`, reload it and compare logits; returns the model's config.

    `activation` is the GPT-2 MLP's, which such a file does not say: crate-lm's baseline has "relu", nanoGPT "gelu_erf".
    `tokenizer` is a folder whose tokenizer files are copied beside the weights. Raises ValueError when the file is no such
    checkpoint, when its weights do not fit its own `model_args`, or when the reloaded model disagrees with them.
    """
    arguments, weights = _read(Path(path))
    config = _config(arguments, weights, activation)
    model = LanguageModel(config)
    _load(model, weights, Path(path))
    files = [] if tokenizer is None else _tokenizer_files(Path(tokenizer))
    save_checkpoint(model, folder)
    for file in files:
        shutil.copyfile(file, Path(folder) / file.name)
    difference = _difference(weights, load_checkpoint(folder))
    if not difference <= TOLERANCE:
        (Path(folder) / WEIGHTS_FILE).unlink()
        raise ValueError(f"{path}: logits after reloading differ by {difference:.2g} from the file's: report this file")
    return config


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    expected = "give a file saved by crate-lm's or nanoGPT's training, a dict with `model` and `model_args`"
    if not path.is_file():
        raise ValueError(f"{path} is no file: {expected}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols nobody ever had
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        first_line = str(error).split("\n", 1)[0]
        raise ValueError(f"{path} cannot be read as a checkpoint ({first_line}): {expected}") from error
    if not isinstance(content, Mapping) or not {"model", "model_args"} <= content.keys():
        raise ValueError(f"{path} holds no `model` and `model_args`: {expected}")
    weights, arguments = content["model"], content["model_args"]
    if not isinstance(weights, Mapping) or not isinstance(arguments, Mapping):
        raise ValueError(f"{path}: its `model` or `model_args` is no dict: {expected}")
    if foreign := [str(name) for name, value in weights.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{path}: `model` holds what is no tensor ({', '.join(foreign[:4])}): {expected}")
    return arguments, {_without_prefixes(str(name)): tensor.float() for name, tensor in weights.items()}


def _without_prefixes(name: str) -> str:
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def _config(
    arguments: Mapping[str, Any], weights: Mapping[str, Tensor], activation: Literal["relu", "gelu", "gelu_erf"]
) -> ModelConfig:
    wanted = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    missing = [name for name in wanted if not (isinstance(arguments.get(name), int) and arguments[name] > 0)]
    if missing:
        raise ValueError(
            f"model_args of the checkpoint lack a positive {', '.join(missing)}: this is no crate-lm or nanoGPT file"
        )
    n_layer, n_head, d_model, n_ctx, vocab_size = (arguments[name] for name in wanted)
    dictionary = weights.get("transformer.h.0.ista.weight")
    if dictionary is None:
        bias = "transformer.ln_f.bias" in weights
        return ModelConfig("gpt2", n_layer, n_head, d_model, n_ctx, vocab_size, bias=bias, activation=activation)
    if dictionary.shape[0] == d_model:
        raise ValueError("the checkpoint has a complete dictionary: only CRATE with an overcomplete one is supported")
    return ModelConfig("crate", n_layer, n_head, d_model, n_ctx, vocab_size, expansion=dictionary.shape[0] // d_model)


def _load(model: LanguageModel, weights: Mapping[str, Tensor], path: Path) -> None:
    table = weights.get("transformer.wte.weight")
    if table is not None and not torch.equal(weights.get("lm_head.weight", table), table):
        raise ValueError(f"{path} has a head that is not tied to its token table: such a model is not supported")
    translated, unknown = {}, []
    for name, tensor in weights.items():
        if ours := our_name(name, model.config.architecture):
            translated[ours] = tensor
        elif name != "lm_head.weight" and not name.endswith(("attn.bias", "attn.masked_bias")):  # causal masks
            unknown.append(name)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong = [name for name in expected if name not in translated or translated[name].shape != expected[name]]
    wrong += unknown + [name for name in translated if name not in expected]
    if wrong:
        raise ValueError(
            f"{path}: weights do not fit its model_args ({', '.join(wrong[:4])}): the file is damaged or foreign"
        )
    model.load_state_dict(translated)


def _tokenizer_files(source: Path) -> list[Path]:
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise ValueError(
            f"{source} has no tokenizer files: give a folder with tokenizer.json, or vocab.json and merges.txt"
        )
    return found


@torch.no_grad()
def _difference(weights: Mapping[str, Tensor], model: LanguageModel) -> float:
    """The largest absolute difference of a logit between the file's own equations and `model`."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (1, min(64, config.n_ctx)), generator=generator)
    return (published_logits(weights, config, ids) - model(ids)).abs().max().item()


def published_logits(weights: Mapping[str, Tensor], config: ModelConfig, ids: Tensor) -> Tensor:
    """The published forward pass on the file's own weights by their own names: what our model is held against."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (config.n_head, -1)).transpose(1, 2)

    crate = config.architecture == "crate"
    x = weights["transformer.wte.weight"][ids] + weights["transformer.wpe.weight"][: ids.shape[1]]
    for layer in range(config.n_layer):
        name = f"transformer.h.{layer}"
        projected = linear(norm(x, f"{name}.prenorm_1" if crate else f"{name}.ln_1"), f"{name}.attn.c_attn")
        query, key, value = [projected] * 3 if crate else projected.chunk(3, dim=-1)
        mixed = causal_attention(heads(query), heads(key), heads(value)).transpose(1, 2).flatten(-2)
        x = x + linear(mixed, f"{name}.attn.c_proj")
        if crate:
            dictionary = weights[f"{name}.ista.weight"]
            x = ista_codes(norm(x, f"{name}.prenorm_2"), dictionary, 0.1, 0.1, 2)[-1] @ dictionary
        else:
            hidden = linear(norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc")
            x = x + linear(ACTIVATIONS[config.activation](hidden), f"{name}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ weights["transformer.wte.weight"].T
