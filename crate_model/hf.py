"""A checkpoint folder is a Hugging Face folder: importing this module registers CRATE and our GPT-2 with transformers.

    import crate_model.hf
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
"""

from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from crate_model.checkpoint import MODEL_TYPE
from crate_model.config import ModelConfig
from crate_model.model import LanguageModel

END_OF_TEXT = 50256  # GPT-2's vocabulary begins and ends documents with it
FIELDS = [field.name for field in fields(ModelConfig)]


class CrateConfig(PreTrainedConfig):
    """transformers' view of a ModelConfig; it has the same fields under the same names."""

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_ctx",
    }

    def __post_init__(self, **kwargs: Any) -> None:
        known = {standard: ours for standard, ours in self.attribute_map.items() if standard in kwargs}
        kwargs = {known.get(name, name): value for name, value in kwargs.items()}
        model = ModelConfig(**{name: kwargs[name] for name in FIELDS if name in kwargs})
        special = END_OF_TEXT if model.vocab_size > END_OF_TEXT else None
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
    _no_split_modules = ["Block"]

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


AutoConfig.register(MODEL_TYPE, CrateConfig)
AutoModelForCausalLM.register(CrateConfig, CrateForCausalLM)
