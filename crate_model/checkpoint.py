"""A checkpoint is a Hugging Face folder: config.json and model.safetensors. Written and read here without transformers."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import init
from torch.overrides import TorchFunctionMode

from crate_model.config import ModelConfig
from crate_model.model import LanguageModel

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
MODEL_TYPE = "crate_lm"  # both architectures: the field `architecture` tells them apart
HF_CLASS = "CrateForCausalLM"
PREFIX = "model."  # the language model is the attribute `model` of the transformers class


def save_checkpoint(model: LanguageModel, folder: Path | str) -> None:
    """Write `model` to `folder` (made if missing); the tied head is stored once, as the token table."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    dtype = str(model.embed.tokens.weight.dtype).removeprefix("torch.")
    description = {"architectures": [HF_CLASS], "model_type": MODEL_TYPE, "dtype": dtype, **asdict(model.config)}
    (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n")
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_checkpoint(
    folder: Path | str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> LanguageModel:
    """The model in `folder`, in evaluation mode, in the dtype it was stored in unless `dtype` is given.

    Raises ValueError when the folder is no checkpoint of this package, or its weights do not fit its config.
    """
    folder = Path(folder)
    config = load_config(folder)
    with torch.device("meta"), _NoInitialValues():
        model = LanguageModel(config)
    try:
        weights = load_file(folder / WEIGHTS_FILE, device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} is broken ({error}): copy or write it anew") from error
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    if dtype is not None:
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    _check_fit(model, weights, folder)
    model.load_state_dict(weights, assign=True)
    return model.eval()


class _NoInitialValues(TorchFunctionMode):
    """Modules built under it get shapes alone. To fill a tensor that has none, torch would import its compiler: 1.5 s."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (init.normal_, init.uniform_, init.kaiming_uniform_, torch.Tensor.normal_):
            return None
        return func(*args, **(kwargs or {}))


def load_config(folder: Path | str) -> ModelConfig:
    """The ModelConfig of the checkpoint in `folder`. Raises ValueError when it is no checkpoint of this package."""
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: give a checkpoint folder (config.json + model.safetensors)")
    try:
        description = json.loads((folder / CONFIG_FILE).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / CONFIG_FILE} is not JSON ({error}): write it anew") from error
    if description.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{folder / CONFIG_FILE} says model_type {description.get('model_type')!r}, not {MODEL_TYPE!r}: "
            "load it with transformers, or convert it first (crate_model.hf.from_gpt2)"
        )
    return ModelConfig(
        **{field.name: description[field.name] for field in fields(ModelConfig) if field.name in description}
    )


def _check_fit(model: LanguageModel, weights: dict[str, torch.Tensor], folder: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        details = ", ".join(
            f"{name} is {found.get(name, 'missing')}, not {expected.get(name, 'a weight')}" for name in wrong[:3]
        )
        raise ValueError(
            f"{folder / WEIGHTS_FILE} does not fit its config.json ({len(wrong)} tensors: {details}): write it anew"
        )
