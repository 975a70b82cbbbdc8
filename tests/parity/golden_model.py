"""Golden arrays made by running the published modules, and our model holding the same weights."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from crate_model.config import ModelConfig
from crate_model.model import LanguageModel

DATA = Path(__file__).parent.parent / "data"
CASES = [("crate", "A"), ("crate", "B"), ("gpt2", "A"), ("gpt2", "B"), ("gpt2", "C")]  # C: with biases

OURS = {  # the published name of a parameter inside a block -> ours
    "ln1_gain": "attention_norm.weight",
    "ln1_bias": "attention_norm.bias",
    "U": "attention.shared.weight",
    "W_qkv": "attention.qkv.weight",
    "b_qkv": "attention.qkv.bias",
    "W_o": "attention.out.weight",
    "b_o": "attention.out.bias",
    "ln2_gain": "feedforward_norm.weight",
    "ln2_bias": "feedforward_norm.bias",
    "W_dict": "feedforward.dictionary",
    "W_in": "feedforward.up.weight",
    "b_in": "feedforward.up.bias",
    "W_out": "feedforward.down.weight",
    "b_out": "feedforward.down.bias",
}
TOP = {
    "wte": "embed.tokens.weight",
    "wpe": "embed.positions.weight",
    "lnf_gain": "final_norm.weight",
    "lnf_bias": "final_norm.bias",
}


@cache
def arrays(architecture: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{architecture}_official_golden.npz") as file:
        return {name: file[name] for name in file.files}


class Golden:
    """One parameter set of one architecture: `golden["logits"]` is an array, `golden.model()` ours with its weights."""

    def __init__(self, architecture: str, tag: str) -> None:
        self.architecture, self.tag = architecture, tag
        d, n_head, n_layer, vocab, n_ctx = (int(n) for n in arrays(architecture)["config/d_h_L_V_T"])
        self.config = ModelConfig(architecture, n_layer, n_head, d, n_ctx, vocab, bias=tag == "C")

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(arrays(self.architecture)[f"{self.tag}/{name}"].copy())

    def shared(self, name: str) -> np.ndarray:
        """What all parameter sets of the architecture have in common."""
        return arrays(self.architecture)[name]

    def names(self, folder: str) -> list[str]:
        start = f"{self.tag}/{folder}/"
        return [name.removeprefix(start) for name in arrays(self.architecture) if name.startswith(start)]

    def strings(self, name: str) -> set[str]:
        return {str(item) for item in arrays(self.architecture)[f"{self.tag}/{name}"]}

    def numbers(self, name: str) -> list[float]:
        return self[name].tolist()

    def model(self, dtype: torch.dtype = torch.float32) -> LanguageModel:
        model = LanguageModel(self.config)
        model.load_state_dict({our_name(name): self[f"param/{name}"] for name in self.names("param")})
        return model.to(dtype).eval()


def our_name(published: str) -> str:
    """`block1/W_dict` -> `blocks.1.feedforward.dictionary`."""
    if published in TOP:
        return TOP[published]
    block, name = published.split("/")
    return f"blocks.{block.removeprefix('block')}.{OURS[name]}"
