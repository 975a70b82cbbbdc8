"""The shapes of the nets, as frozen dataclasses. *Source:* Bai & Ma, CPAL 2025, PMLR 280:810-836, and its code."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class ModelConfig:
    """CRATE or GPT-2. The defaults are the paper's CRATE-B (12L); the paper's own values stand beside each field.

    Raises ValueError for a combination that is no model.
    """

    # Inside a strict pydantic tree, keys that are no fields are refused; the dataclass itself needs no pydantic.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    architecture: Literal["crate", "gpt2"] = "crate"
    n_layer: int = 12  # blocks; the paper trains 1, 2, 3 (d=128) and 6, 12 (d=768)
    n_head: int = 12  # attention heads; 4 at d=128, 12 at d=768
    d_model: int = 768  # width of the residual stream; 128 or 768
    n_ctx: int = 1024  # longest sequence in tokens, the size of the position table
    vocab_size: int = 50304  # rows of the token table; GPT-2's 50257 padded to a multiple of 64
    # Options of CRATE, expansion also of GPT-2. *Source* of each default: the released crate_overcomplete.py, where all five
    # are constants of the block; tests/parity/test_golden_model.py holds our model with them to its numbers.
    expansion: int = 4  # neurons per layer over d_model, the paper's overcompleteness n = 4
    n_ista_steps: int = 2  # unrolled sparse-coding steps (CRATE); the paper's t = 2
    step_size: float = 0.1  # the ISTA step, the paper's eta (CRATE); stable while eta * sigma_max(dictionary)^2 < 2
    lambda_sparsity: float = 0.1  # the paper's lambda (CRATE); each step subtracts step_size * lambda_sparsity = 0.01
    ista_residual: bool = False  # add the stream around ISTA (CRATE); the paper has no such skip
    bias: bool = False  # biases in every Linear and LayerNorm (GPT-2 only); False gives the paper's parameter table
    # Of the MLP (GPT-2 only): the paper's baseline has relu, OpenAI's GPT-2 gelu (the tanh form), nanoGPT gelu_erf.
    activation: Literal["relu", "gelu", "gelu_erf"] = "relu"

    @property
    def d_code(self) -> int:
        """Neurons per layer: the width of the sparse code (CRATE) or of the MLP's hidden layer (GPT-2)."""
        return self.expansion * self.d_model

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_head

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "d_model", "n_ctx", "vocab_size", "expansion", "n_ista_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give a whole number of at least 1")
        if self.architecture not in ("crate", "gpt2"):
            raise ValueError(f"architecture is {self.architecture!r}: choose 'crate' or 'gpt2'")
        if self.activation not in ("relu", "gelu", "gelu_erf"):
            raise ValueError(f"activation is {self.activation!r}: choose 'relu', 'gelu' or 'gelu_erf'")
        if self.d_model % self.n_head:
            raise ValueError(
                f"d_model {self.d_model} does not divide into {self.n_head} heads: choose n_head that divides d_model"
            )
        if self.architecture == "crate":
            self._check_crate()
        else:
            self._check_gpt2()

    def _check_crate(self) -> None:
        if self.bias or self.activation != "relu":
            name = "bias" if self.bias else "activation"
            raise ValueError(
                f"{name} has no meaning for CRATE, whose form is fixed: remove it, or set architecture: gpt2"
            )
        if not (math.isfinite(self.step_size) and self.step_size > 0):
            raise ValueError(f"step_size is {self.step_size}: give a positive number (the paper uses 0.1)")
        if not (math.isfinite(self.lambda_sparsity) and self.lambda_sparsity >= 0):
            raise ValueError(
                f"lambda_sparsity is {self.lambda_sparsity}: give a number of at least 0 (the paper uses 0.1)"
            )

    def _check_gpt2(self) -> None:
        crate_only = {"n_ista_steps": 2, "step_size": 0.1, "lambda_sparsity": 0.1, "ista_residual": False}
        changed = [name for name, default in crate_only.items() if getattr(self, name) != default]
        if changed:
            raise ValueError(f"{', '.join(changed)} only shape(s) CRATE: remove, or set architecture: crate")


@dataclass(frozen=True)
class SAEConfig:
    """The shape of one sparse autoencoder. Raises ValueError for a combination that is none."""

    d_in: int  # width of the tap it reads; the paper's is d_code = 512
    d_sae: int  # features; the paper's are 1, 4 or 16 times d_in
    variant: Literal["relu", "topk", "batchtopk", "jumprelu"] = "relu"  # the paper's is relu with an L1 penalty
    k: int = 32  # active features a token (topk) or on average (batchtopk); not used by the others

    def __post_init__(self) -> None:
        for name in ("d_in", "d_sae", "k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give a whole number of at least 1")
        if self.variant not in ("relu", "topk", "batchtopk", "jumprelu"):
            raise ValueError(f"variant is {self.variant!r}: choose 'relu', 'topk', 'batchtopk' or 'jumprelu'")
        if self.variant in ("topk", "batchtopk") and self.k > self.d_sae:
            raise ValueError(f"k {self.k} is more than the {self.d_sae} features there are: choose a smaller k")
