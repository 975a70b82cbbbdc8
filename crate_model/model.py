"""The language model: embeddings, blocks, tied head, loss. Both architectures are this class; two parts of a block differ."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from crate_model.attention import CausalAttention, SharedProjectionAttention
from crate_model.cache import GrowingCache, KeyValueCache
from crate_model.config import ModelConfig
from crate_model.feedforward import Perceptron, SparseCoding
from crate_model.layers import Embedding
from crate_model.ops import cross_entropy, precision

INIT_STD = 0.02  # of every embedding and linear weight; output projections get it over sqrt(2 n_layer). Source: crate-lm, nanoGPT


class Block(nn.Module):
    """Attention with a residual, then the feed-forward part, which sees the stream itself and decides about a residual."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        crate = config.architecture == "crate"
        norm_bias = crate or config.bias
        self.attention_norm = nn.LayerNorm(config.d_model, bias=norm_bias)
        self.attention: SharedProjectionAttention | CausalAttention = (
            SharedProjectionAttention(config, layer) if crate else CausalAttention(config, layer)
        )
        self.residual_mid = nn.Identity()  # a place for taps
        self.feedforward_norm = nn.LayerNorm(config.d_model, bias=norm_bias)
        self.feedforward: SparseCoding | Perceptron = SparseCoding(config) if crate else Perceptron(config)

    def forward(
        self,
        x: Float[Tensor, "batch t d_model"],
        cache: KeyValueCache | None = None,
        mask: Bool[Tensor, "batch 1 t seen"] | None = None,
    ) -> Float[Tensor, "batch t d_model"]:
        x = self.residual_mid(x + self.attention(self.attention_norm(x), cache, mask))
        return self.feedforward(self.feedforward_norm(x), x)

    def taps(self) -> dict[str, nn.Module]:
        """The block's named points, in the order of the computation; see `crate_model.taps`."""
        before = {"attention_norm": self.attention_norm, **self.attention.taps(), "residual_mid": self.residual_mid}
        return {**before, "feedforward_norm": self.feedforward_norm, **self.feedforward.taps(), "out": self}


class LanguageModel(nn.Module):
    """CRATE or GPT-2 by `config.architecture`, freshly initialised from torch's global generator.

    *Source:* Bai & Ma, CPAL 2025, and its published modules (see docs/models.md for the maths and every deviation).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.d_model, bias=config.architecture == "crate" or config.bias)
        self.reset_parameters()

    def forward(
        self, ids: Int[Tensor, "batch t"], targets: Int[Tensor, "batch t"] | None = None
    ) -> Float[Tensor, "batch t vocab"] | Float[Tensor, ""]:
        """Logits at every position; or, given targets (-1: ignored), their mean cross entropy in nats without the logits."""
        hidden = self.hidden(ids)
        if targets is None:
            return self.head(hidden)
        return cross_entropy.linear_cross_entropy(hidden.flatten(0, 1), self.embed.tokens.weight, targets.flatten())

    def hidden(
        self,
        ids: Int[Tensor, "batch t"],
        cache: KeyValueCache | None = None,
        attended: Bool[Tensor, "batch seen"] | None = None,
    ) -> Float[Tensor, "batch t d_model"]:
        """The stream after the final LayerNorm. `cache` holds earlier positions; `attended` marks real tokens among all seen.

        Raises ValueError when the cached and the new positions together exceed n_ctx.
        """
        past = 0 if cache is None else cache.get_seq_length()
        if past + ids.shape[1] > self.config.n_ctx:
            raise ValueError(
                f"{past + ids.shape[1]} positions, but n_ctx is {self.config.n_ctx}: crop the input to its last n_ctx tokens"
            )
        positions = torch.arange(past, past + ids.shape[1], device=ids.device)[None]
        mask = None
        if attended is not None and not bool(attended.all()):
            positions = (attended.long().cumsum(-1) - 1).clamp_min(0)[:, past:]
            mask = _mask(attended, ids.shape[1])
        x = self.embed(ids, positions)
        for block in self.blocks:
            x = block(x, cache, mask)
        return self.final_norm(x)

    def head(self, hidden: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        """Logits through the tied token table."""
        return precision.linear(*precision.autocast(hidden, self.embed.tokens.weight))

    def token_losses(self, ids: Int[Tensor, "batch t"], targets: Int[Tensor, "batch t"]) -> Float[Tensor, "batch t"]:
        """Cross entropy of every position in nats, float32, 0 where the target is -1; no gradients, no logits tensor."""
        with torch.no_grad():
            hidden = self.hidden(ids)
            losses = cross_entropy.token_losses(hidden.flatten(0, 1), self.embed.tokens.weight, targets.flatten())
        return losses.unflatten(0, targets.shape)

    @torch.no_grad()
    def generate(
        self,
        ids: Int[Tensor, "batch t"],
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "batch total"]:
        """`ids` followed by `max_new_tokens` sampled ones; temperature 0 takes the likeliest. Sees the last n_ctx tokens."""
        cache: KeyValueCache | None = GrowingCache()
        new = ids[:, -self.config.n_ctx :]
        for _ in range(max_new_tokens):
            if cache is None or cache.get_seq_length() + new.shape[1] > self.config.n_ctx:
                cache, new = None, ids[:, -self.config.n_ctx :]  # every position has moved: nothing cached is valid
            logits = self.head(self.hidden(new, cache)[:, -1])
            new = _sample(logits, temperature, top_k, generator)
            ids = torch.cat((ids, new), dim=1)
        return ids

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as the paper's code does. *Source:* crate-lm: normal(0, 0.02) but for the Kaiming-uniform dictionary."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            elif name.endswith("dictionary"):
                nn.init.kaiming_uniform_(parameter)
            else:
                projects_out = name.endswith(("attention.out.weight", "feedforward.down.weight"))
                parameter.normal_(0.0, INIT_STD / math.sqrt(2 * self.config.n_layer) if projects_out else INIT_STD)


def _mask(attended: Tensor, t: int) -> Tensor:
    """(batch, 1, t, seen): which seen positions each of the last t may look at. A padded position sees itself, to stay finite."""
    seen = attended.shape[1]
    causal = torch.ones(t, seen, dtype=torch.bool, device=attended.device).tril(seen - t)
    itself = torch.eye(seen, dtype=torch.bool, device=attended.device)[seen - t :]
    return ((causal & attended[:, None, :]) | itself)[:, None]


def _sample(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k is not None:
        smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)
