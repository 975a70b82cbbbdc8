"""The yardstick and the oracle: CRATE as its equations are written, in plain torch, with nothing clever.

Five dictionary products a layer (z W^T is computed in both ISTA steps), full float32 logits, torch's own autograd. Attention is
torch's fused one, as in the published code. It shares no code with crate_model and holds the weights of a LanguageModel by name.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainBlock(nn.Module):
    def __init__(self, d: int, n_head: int, expansion: int = 4) -> None:
        super().__init__()
        self.n_head = n_head
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.u = nn.Linear(d, d, bias=False)
        self.w_o = nn.Linear(d, d)
        self.w = nn.Parameter(torch.empty(expansion * d, d))

    def attention(self, x: Tensor) -> Tensor:
        batch, t, d = x.shape
        u = self.u(x).view(batch, t, self.n_head, d // self.n_head).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(u, u, u, is_causal=True)
        return self.w_o(mixed.transpose(1, 2).contiguous().view(batch, t, d))

    def ista(self, z: Tensor, eta: float = 0.1, lam: float = 0.1) -> Tensor:
        code = F.relu(eta * F.linear(z, self.w) - eta * lam)
        gram = F.linear(F.linear(code, self.w.t()), self.w)
        code = F.relu(code + eta * (F.linear(z, self.w) - gram) - eta * lam)
        return F.linear(code, self.w.t())

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln1(x))
        return self.ista(self.ln2(x))


class PlainCrate(nn.Module):
    """forward(ids (B, T), targets (B, T)) -> mean cross entropy in nats."""

    def __init__(self, n_layer: int, n_head: int, d: int, n_ctx: int, vocab_size: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, d), nn.Embedding(n_ctx, d)
        self.blocks = nn.ModuleList(PlainBlock(d, n_head) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(d)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1)

    @torch.no_grad()
    def take_weights(self, model: nn.Module) -> "PlainCrate":
        """Copy the weights of a crate_model LanguageModel, which keeps its parameters in the same order."""
        ours = dict(model.named_parameters())
        names = {"ln1": "attention_norm", "ln2": "feedforward_norm", "u": "attention.shared", "w_o": "attention.out"}
        for name, parameter in self.named_parameters():
            name = name.replace("wte", "embed.tokens").replace("wpe", "embed.positions").replace("ln_f", "final_norm")
            parts = name.split(".")
            if parts[0] == "blocks":
                parts[2] = "feedforward.dictionary" if parts[2] == "w" else names[parts[2]]
            parameter.copy_(ours[".".join(parts)])
        return self
