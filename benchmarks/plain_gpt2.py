"""The yardstick for GPT-2: the model as nanoGPT and most others write it, in plain torch, with nothing clever.

One product for query, key and value, torch's fused attention, the whole tensor of logits in float32, torch's own autograd. It
shares no code with crate_model, and its parameters have the names of crate_model's, so that the weights of one load into the
other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, d: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, t, d = x.shape
        parts = self.qkv(x).split(d, dim=2)
        query, key, value = (part.view(batch, t, self.n_head, d // self.n_head).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).contiguous().view(batch, t, d))


class Perceptron(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


class Block(nn.Module):
    def __init__(self, d: int, n_head: int) -> None:
        super().__init__()
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(d, bias=False), nn.LayerNorm(d, bias=False)
        self.attention, self.feedforward = Attention(d, n_head), Perceptron(d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feedforward(self.feedforward_norm(x))


class PlainGPT2(nn.Module):
    """forward(ids (B, T), targets (B, T)) -> mean cross entropy in nats; -1 among the targets is ignored."""

    def __init__(self, n_layer: int, n_head: int, d: int, n_ctx: int, vocab_size: int) -> None:
        super().__init__()
        tables = {"tokens": nn.Embedding(vocab_size, d), "positions": nn.Embedding(n_ctx, d)}
        self.embed = nn.ModuleDict(tables)
        self.blocks = nn.ModuleList(Block(d, n_head) for _ in range(n_layer))
        self.final_norm = nn.LayerNorm(d, bias=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.embed["tokens"](ids) + self.embed["positions"](torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.final_norm(x), self.embed["tokens"].weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1)
