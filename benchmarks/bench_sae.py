"""Training six sparse autoencoders at once against one after the other, and the memory it takes.

    python benchmarks/bench_sae.py [--quick]

Six: widths 1x and 4x on the neurons of each layer of a three-layer CRATE (d=128, context 1024, vocabulary 50,304). Yardstick: a
plain loop written from the published recipe. For each autoencoder it runs the language model over all tokens, as the published
model does without targets (all layers, logits of the last position only), stores that layer's activations, shuffles them, and
trains with torch's autograd and Adam. Ours: one stream of activations for all six. Both take turns, each in a process of its
own. A second yardstick, which asks the model for the logits of every position, is told beside the first and decides nothing.

Both in float32. Ours once more with `sae.matmul_precision: medium`, that is TF32 on a GPU, and bfloat16 factors on a processor
that multiplies them; its last loss is told over that of float32.

On a GPU, where there is one: both sides there with 64 times the tokens, each once with a few of them before the clock starts,
and memory is the GPU's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from verdicts import ROOT, Verdicts, in_new_process

sys.path.insert(0, str(ROOT / "tests"))
N_LAYER, N_CTX, WIDTHS, BATCH, ROWS = 3, 1024, (1, 4), 4096, 4
BUFFER = 2 * BATCH  # filled more than once with --quick, too: its first filling is the cheapest in memory
TOKENS = {"cpu": 2**16, "cuda": 2**22}
QUICK_TOKENS = {"cpu": 2**14, "cuda": 2**20}


def the_device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def clock(device: Any) -> float:
    """Seconds, when all that was queued on the device is done."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def world(folder: Path, n_tokens: int) -> tuple[Any, Any, Any]:
    """The model, freshly initialised, a train split, and the device on which the model is."""
    import torch
    import training_world

    from crate_model.config import ModelConfig
    from crate_model.model import LanguageModel
    from pipeline.artifacts.store import Store
    from pipeline.artifacts.tokens import TokenSplit

    store = Store(folder / "store")
    tokens = store.find("tokens", "7" * 32) or training_world.make_tokens(store, n_train=n_tokens + N_CTX + 1)
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(n_layer=N_LAYER, n_head=4, d_model=128, n_ctx=N_CTX)).eval()
    device = the_device()
    return model.to(device), TokenSplit(tokens, "train"), device


def plain(folder: Path, n_tokens: int, all_logits: bool = False) -> dict[str, float]:
    """One autoencoder after the other, each on stored activations."""
    import torch

    model, split, device = world(folder, n_tokens)
    torch.optim.Adam([torch.zeros(())])  # the first one made imports torch's compiler, which is no part of a training
    started = clock(device)
    last = 0.0
    for layer in range(N_LAYER):
        for width in WIDTHS:
            last = plain_training(stored(model, split, layer, n_tokens, all_logits), width)
    return report(device, started, n_tokens, last)


def stored(model: Any, split: Any, layer: int, n_tokens: int, all_logits: bool) -> Any:
    """All activations (n_tokens, d_code) of a layer."""
    import torch

    found: list[Any] = []
    code = model.blocks[layer].feedforward.code
    handle = code.register_forward_hook(lambda _module, _inputs, value: found.append(value.flatten(0, 1)))
    with torch.no_grad():
        for first in range(0, n_tokens // N_CTX, ROWS):
            ids = torch.from_numpy(split.windows(range(first, first + ROWS), N_CTX)[:, :-1].copy())
            hidden = model.hidden(ids.to(model.embed.tokens.weight.device))
            model.head(hidden if all_logits else hidden[:, -1:])
    handle.remove()
    return torch.cat(found)


def plain_training(activations: Any, width: int) -> float:
    """The published recipe in plain torch; returns the last loss."""
    import torch

    n, d = activations.shape
    torch.manual_seed(0)
    with activations.device:
        W_enc = torch.nn.init.kaiming_uniform_(torch.empty(d, width * d)).requires_grad_()
        W_dec = torch.nn.init.kaiming_uniform_(torch.empty(width * d, d))
        W_dec = (W_dec / W_dec.norm(dim=1, keepdim=True)).requires_grad_()
        b_enc, b_dec = torch.zeros(width * d, requires_grad=True), torch.zeros(d, requires_grad=True)
        fired = torch.zeros(width * d, dtype=torch.long)
        order = torch.randperm(n)
    optimizer = torch.optim.Adam([W_enc, b_enc, W_dec, b_dec], lr=4e-5)
    for first in range(0, n, BATCH):
        v = activations[order[first : first + BATCH]]
        f = torch.relu((v - b_dec) @ W_enc + b_enc)
        v_hat = f @ W_dec + b_dec
        loss = ((v_hat - v).pow(2) / v.norm(dim=-1, keepdim=True)).mean() + 8e-5 * f.abs().sum(dim=-1).mean()
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            along = (W_dec.grad * W_dec).sum(dim=1, keepdim=True)
            W_dec.grad -= along * W_dec
            optimizer.step()
            W_dec /= W_dec.norm(dim=1, keepdim=True) + 1e-6
            fired += (f > 0).sum(dim=0)
    return loss.item()


def ours(folder: Path, n_tokens: int, precision: str = "highest") -> dict[str, float]:
    """All six on one stream, as the stage trains them."""
    from pipeline.config import SAEConfigSection
    from pipeline.sae.loop import train_group
    from pipeline.sae.planned import planned_sites
    from pipeline.sae.watcher import Watcher

    model, split, device = world(folder, n_tokens)
    settings = SAEConfigSection(
        expansions=WIDTHS,
        total_tokens=n_tokens,
        batch_tokens=BATCH,
        buffer_tokens=BUFFER,
        batch_rows=ROWS,
        resample_steps=(),
        matmul_precision=precision,
    )
    sites = planned_sites(settings, model.config)
    started = clock(device)
    group = train_group(model, split, sites, settings, 0, device, Watcher(folder / "states", 10**9))
    return report(device, started, n_tokens, group.curves[-1]["loss"])


def report(device: Any, started: float, n_tokens: int, last_loss: float) -> dict[str, float]:
    import torch

    from pipeline.this_machine import peak_rss_bytes

    seconds = clock(device) - started
    trained = n_tokens * N_LAYER * len(WIDTHS)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss_bytes()
    return {"tokens_per_second": trained / seconds, "peak_bytes": peak, "last_loss": last_loss}


SIDES = {
    "plain": plain,
    "plain_all_logits": lambda folder, n: plain(folder, n, True),
    "ours": ours,
    "ours_medium": lambda folder, n: ours(folder, n, "medium"),
}


def warmed_up(side: str, folder: Path, n_tokens: int) -> dict[str, float]:
    """The side's figures; on a GPU after a short run that loads the kernels and is forgotten."""
    import torch

    if the_device().type == "cuda":
        with tempfile.TemporaryDirectory() as other:
            SIDES[side](Path(other), 4 * BATCH)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return SIDES[side](folder, n_tokens)


def one_side(side: str, n_tokens: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        figures = in_new_process("--side", side, folder, n_tokens)
    told = f"{figures['tokens_per_second']:.0f} tokens/s, peak {figures['peak_bytes'] / 2**20:.0f} MiB"
    print(f"  {side}, {n_tokens} tokens: {told}, last loss {figures['last_loss']:.5f}", flush=True)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the tokens, one round instead of three")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, folder, n_tokens = arguments.side
        print(json.dumps(warmed_up(side, Path(folder), int(n_tokens))))
        return 0
    device = the_device()
    n_tokens, rounds = (QUICK_TOKENS[device.type], 1) if arguments.quick else (TOKENS[device.type], 3)
    verdicts = Verdicts("sae", "torch", "numpy")
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for round_number in range(rounds):
        for side, done in runs.items():
            if side != "plain_all_logits" or round_number == 0:
                done.append(one_side(side, n_tokens))
    longer = one_side("ours", 2 * n_tokens)
    growth = longer["peak_bytes"] / median(run["peak_bytes"] for run in runs["ours"])
    verdicts.at_least("six_saes_at_once", speed_ratio(runs["ours"], runs["plain"]), "x", 3)
    verdicts.at_least("six_saes_at_once_medium", speed_ratio(runs["ours_medium"], runs["plain"]), "x", 3)
    loss = median(run["last_loss"] for run in runs["ours_medium"]) / median(run["last_loss"] for run in runs["ours"])
    verdicts.measured("loss_medium_over_float32", loss, "x")
    verdicts.measured("same_vs_every_positions_logits", speed_ratio(runs["ours"][:1], runs["plain_all_logits"]), "x")
    verdicts.at_most("peak_memory_at_twice_the_tokens", growth, "x", 1.05)
    return verdicts.write({"device": name(device), "n_tokens": n_tokens, "runs": runs, "longer": longer})


def speed_ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    return median(a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    sys.exit(main())
