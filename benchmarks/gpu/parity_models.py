"""Both models whole, eager and compiled, in every precision that is trained in: loss and gradients against float64 on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from crate_model.config import ModelConfig
from crate_model.model import LanguageModel
from gpu import models
from gpu.exactness import compare
from gpu.models import ARCHITECTURES, Batch
from gpu.session import Evidence


def run(evidence: Evidence) -> None:
    for architecture in ARCHITECTURES:
        for case in (precisions, compiled_step, other_ways):
            evidence.attempt(f"{architecture} {case.__name__}", case, architecture, needs=10)


def shape(evidence: Evidence, architecture: Any) -> ModelConfig:
    if evidence.tiny:
        return ModelConfig(architecture, 2, 2, 32, 32, 97)
    return ModelConfig(architecture, 2, 4, 128, 256, 50304)


def batch_of(evidence: Evidence, config: ModelConfig) -> tuple[Batch, Batch]:
    """The same ids and targets on the CPU and on the device."""
    ids = torch.randint(config.vocab_size, (4, config.n_ctx + 1), generator=torch.Generator().manual_seed(1))
    here = ids.to(evidence.device)
    return (ids[:, :-1], ids[:, 1:]), (here[:, :-1], here[:, 1:])


def made(make: Callable[[ModelConfig, str], nn.Module], config: ModelConfig, device: str) -> nn.Module:
    """Ours or the plain one, with the weights that a CPU draws: a card would draw others."""
    return make(config, "cpu").to(device)


def truth_of(config: ModelConfig, batch: Batch) -> list[Tensor]:
    return loss_and_gradients(models.ours(config, "cpu").double(), batch)


def loss_and_gradients(model: nn.Module, batch: Batch, run: Any = None) -> list[Tensor]:
    """The loss and, in one vector, the gradients of all parameters in the order of crate_model's names."""
    model.zero_grad(set_to_none=True)
    loss = (model if run is None else run)(*batch)
    loss.backward()
    of_name = {our_name(name): parameter.grad for name, parameter in model.named_parameters()}
    gradients = [of_name[name] for name in sorted(of_name)]
    return [loss.detach().cpu(), torch.cat([g.flatten() for g in gradients if g is not None]).double().cpu()]


def our_name(name: str) -> str:
    """crate_model's name of a parameter that the plain CRATE calls otherwise."""
    renamed = {"wte.": "embed.tokens.", "wpe.": "embed.positions.", "ln_f.": "final_norm.", ".ln1.": ".attention_norm."}
    renamed |= {".ln2.": ".feedforward_norm.", ".u.": ".attention.shared.", ".w_o.": ".attention.out."}
    for theirs, ours in renamed.items():
        name = name.replace(theirs, ours)
    return name.removesuffix(".w") + ".feedforward.dictionary" if name.endswith(".w") else name


def precisions(evidence: Evidence, architecture: str) -> None:
    """Float32, bfloat16 weights, float16 weights (the loss alone: gradients want a loss scale), and bfloat16 autocast."""
    config = shape(evidence, architecture)
    on_cpu, batch = batch_of(evidence, config)
    truth = truth_of(config, on_cpu)
    dtypes = evidence.pick((torch.float32, torch.bfloat16, torch.float16), (torch.float32, torch.bfloat16))
    for dtype in dtypes:
        sides = [made(make, config, evidence.device).to(dtype) for make in (models.ours, models.plain)]
        ours, plain = (loss_and_gradients(model, batch) for model in sides)
        told = slice(1) if dtype == torch.float16 else slice(None)
        compare(evidence, "model", ours[told], plain[told], truth[told], dtype, architecture=architecture)
        if dtype == torch.bfloat16:
            again = loss_and_gradients(sides[0], batch)
            same = [torch.equal(a, b) for a, b in zip(ours, again, strict=True)]
            evidence.row("model, again", architecture=architecture, same_loss=same[0], same_gradients=same[1])
    with torch.autocast(evidence.device, torch.bfloat16):
        sides = [made(make, config, evidence.device) for make in (models.ours, models.plain)]
        ours, plain = (loss_and_gradients(model, batch) for model in sides)
    compare(evidence, "model, autocast", ours, plain, truth, torch.bfloat16, architecture=architecture)


def compiled_step(evidence: Evidence, architecture: str) -> None:
    """One graph for forward and backward, beside the eager model with the same weights; its gradients must not be lost."""
    config = shape(evidence, architecture)
    on_cpu, batch = batch_of(evidence, config)
    model = made(models.ours, config, evidence.device).bfloat16()
    eager = loss_and_gradients(model, batch)
    started = time.perf_counter()
    found = loss_and_gradients(model, batch, models.compiled(evidence, model))
    about = {"architecture": architecture, "compile_seconds": time.perf_counter() - started}
    compare(evidence, "model, compiled", found, eager, truth_of(config, on_cpu), torch.bfloat16, **about)


def other_ways(evidence: Evidence, architecture: str) -> None:
    """The held-out loss is the training loss; sampling with a cache gives what sampling without one gives."""
    config = shape(evidence, architecture)
    _, batch = batch_of(evidence, config)
    model = models.ours(config, evidence.device)
    difference = float(model.token_losses(*batch).mean()) - float(model(*batch).detach())
    evidence.row("held-out loss", ok=abs(difference) < 1e-5, architecture=architecture, difference=difference)
    prompt = batch[0][:2, : config.n_ctx // 2]
    same = torch.equal(model.generate(prompt, 8, temperature=0), _without_cache(model, prompt, 8))
    evidence.row("sampling with a cache", ok=same, architecture=architecture)


@torch.no_grad()
def _without_cache(model: LanguageModel, ids: Tensor, count: int) -> Tensor:
    for _ in range(count):
        ids = torch.cat((ids, model(ids)[:, -1].argmax(-1, keepdim=True)), 1)
    return ids
