"""A checkpoint folder is a Hugging Face folder: importing this module registers CRATE and our GPT-2 with transformers.

import crate_model.hf
model = transformers.AutoModelForCausalLM.from_pretrained(folder)
"""

from dataclasses import asdict, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from crate_model.checkpoint import MODEL_TYPE
from crate_model.config import ModelConfig
from crate_model.model import LanguageModel
from crate_model.published_names import our_name

END_OF_TEXT = 50256  # GPT-2's vocabulary begins and ends documents with it
FIELDS = [field.name for field in fields(ModelConfig)]


class CrateConfig(PreTrainedConfig):
    """transformers' view of a ModelConfig; it has the same fields under the same names."""

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_ctx",
    }

    def __post_init__(self, **kwargs: Any) -> None:
        known = {standard: ours for standard, ours in self.attribute_map.items() if standard in kwargs}
        kwargs = {known.get(name, name): value for name, value in kwargs.items()}
        model = ModelConfig(**{name: kwargs[name] for name in FIELDS if name in kwargs})
        special = _end_of_text(model)
        super().__post_init__(**{"bos_token_id": special, "eos_token_id": special, **kwargs, **asdict(model)})

    def to_model_config(self) -> ModelConfig:
        """The ModelConfig with these values. Raises ValueError where they make no model."""
        return ModelConfig(**{name: getattr(self, name) for name in FIELDS})


class CrateForCausalLM(PreTrainedModel, GenerationMixin):
    """A LanguageModel with transformers' calling convention; the head is the token table, so there is no weight to tie."""

    config_class = CrateConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: CrateConfig) -> None:
        super().__init__(config)
        self.model = LanguageModel(config.to_model_config())
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed.tokens

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (batch, t, vocab), and the loss when `labels` are given (shifted inside, -100 ignored: transformers' ways).

        `attention_mask` (batch, seen) marks real tokens with 1; positions count real tokens only.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        attended = None if attention_mask is None else attention_mask.bool()
        hidden = self.model.hidden(input_ids, past_key_values, attended)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.head(hidden[:, kept])
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values if use_cache else None)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Give the weights a checkpoint lacks their own initial distribution."""
        if not isinstance(module, LanguageModel):
            return
        fresh = LanguageModel(module.config).state_dict()
        for name, parameter in module.named_parameters():
            if not getattr(parameter, "_is_hf_initialized", False):
                parameter.copy_(fresh[name])


def from_gpt2(theirs: GPT2LMHeadModel) -> LanguageModel:
    """Our GPT-2 with the weights of transformers' one, in its dtype. Raises ValueError for a variant we do not have."""
    config = theirs.config
    activations: dict[str, Any] = {"relu": "relu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf"}
    expansion, rest = divmod(config.n_inner or 4 * config.n_embd, config.n_embd)
    usual_scale = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx
    usual = usual_scale and config.layer_norm_epsilon == 1e-5 and config.tie_word_embeddings
    if config.activation_function not in activations or rest or not usual:
        raise ValueError(
            "this GPT-2 differs in activation, width, attention scale, epsilon or tying: it has no equal here"
        )
    model = LanguageModel(
        ModelConfig(
            architecture="gpt2",
            n_layer=config.n_layer,
            n_head=config.n_head,
            d_model=config.n_embd,
            n_ctx=config.n_positions,
            vocab_size=config.vocab_size,
            expansion=expansion,
            bias=True,
            activation=activations[config.activation_function],
        )
    )
    weights = {our_name(name, "gpt2") or name: _turned(name, tensor) for name, tensor in theirs.named_parameters()}
    model.to(theirs.dtype).load_state_dict(weights)
    return model.eval()


def to_gpt2(model: LanguageModel) -> GPT2LMHeadModel:
    """transformers' GPT-2 with our weights; where ours has no biases, theirs are zero. Raises ValueError for CRATE."""
    config = model.config
    if config.architecture != "gpt2":
        raise ValueError("only architecture gpt2 converts to GPT2LMHeadModel: CRATE is a CrateForCausalLM")
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.n_ctx,
            n_embd=config.d_model,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_inner=config.d_code,
            activation_function={"relu": "relu", "gelu": "gelu_new", "gelu_erf": "gelu"}[config.activation],
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=_end_of_text(config),
            eos_token_id=_end_of_text(config),
        )
    )
    ours = {name: tensor.detach() for name, tensor in model.named_parameters()}
    for name, parameter in theirs.named_parameters():
        tensor = ours.get(our_name(name, "gpt2") or name)
        parameter.data = torch.zeros_like(parameter) if tensor is None else _turned(name, tensor).clone()
    theirs.tie_weights()
    return theirs.eval()


def _turned(name: str, tensor: Tensor) -> Tensor:
    """transformers' GPT-2 keeps the matrices of its linear layers (in, out), ours are (out, in)."""
    return tensor.T if ".c_" in name and tensor.ndim == 2 else tensor


def _end_of_text(config: ModelConfig | GPT2Config) -> int | None:
    return END_OF_TEXT if config.vocab_size > END_OF_TEXT else None


AutoConfig.register(MODEL_TYPE, CrateConfig)
AutoModelForCausalLM.register(CrateConfig, CrateForCausalLM)
