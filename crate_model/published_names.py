"""Names of weights elsewhere: crate-lm's and nanoGPT's checkpoints, and transformers' GPT-2, which shares nanoGPT's names.

*Source:* github.com/crate-lm/crate-lm (crate_overcomplete.py, gpt.py) and transformers' GPT2LMHeadModel.
"""

from typing import Literal

TOP = {
    "transformer.wte": "embed.tokens",
    "transformer.wpe": "embed.positions",
    "transformer.ln_f": "final_norm",
}
BLOCK = {
    "crate": {
        "prenorm_1": "attention_norm",
        "attn.c_attn": "attention.shared",
        "attn.c_proj": "attention.out",
        "prenorm_2": "feedforward_norm",
        "ista.weight": "feedforward.dictionary",
    },
    "gpt2": {
        "ln_1": "attention_norm",
        "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.out",
        "ln_2": "feedforward_norm",
        "mlp.c_fc": "feedforward.up",
        "mlp.c_proj": "feedforward.down",
    },
}


def our_name(published: str, architecture: Literal["crate", "gpt2"]) -> str | None:
    """`transformer.h.3.ista.weight` -> `blocks.3.feedforward.dictionary`; None for a name that is no weight of the model."""
    if published.startswith("transformer.h."):
        layer, _, name = published.removeprefix("transformer.h.").partition(".")
        ours = _translate(name, BLOCK[architecture])
        return ours and f"blocks.{layer}.{ours}"
    return _translate(published, TOP)


def _translate(name: str, table: dict[str, str]) -> str | None:
    if name in table:
        return table[name]
    module, _, kind = name.rpartition(".")
    return f"{table[module]}.{kind}" if module in table and kind in ("weight", "bias") else None
