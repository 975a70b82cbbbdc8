"""Every kernel against float64, beside plain torch in the same dtype: on shapes that no tile divides, and on the real ones."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F

from crate_model.ops import cross_entropy, reference
from crate_model.ops import ista as ista_op
from gpu.exactness import compare, poison, with_gradients
from gpu.interpreted import kernel_dtypes
from gpu.session import Evidence
from gpu.variants import VARIANTS, Variant

ETA, LAMBDA = 0.1, 0.1
ISTA_SHAPES = (  # rows, width, atoms, steps
    (37, 24, 56, 2),
    (4096, 768, 3072, 2),
    (1, 768, 3072, 2),
    (130, 72, 200, 3),
    (1000, 128, 512, 2),
    (5, 7, 33, 2),
    (257, 130, 514, 1),
    (3000, 768, 3072, 5),
)
TINY_ISTA_SHAPES = ((37, 24, 56, 2), (5, 7, 33, 3))
LOGITS = ((64, 50257), (300, 50304), (7, 4097), (3, 200), (9, 31), (9, 1))  # rows, words
SAE_VARIANTS = ("relu", "topk", "batchtopk", "jumprelu")


def run(evidence: Evidence) -> None:
    dtypes = kernel_dtypes(evidence)
    for dtype, shape in itertools.product(dtypes, evidence.pick(ISTA_SHAPES, TINY_ISTA_SHAPES)):
        evidence.attempt("ista", ista, dtype, *shape, needs=3)
    for dtype, shape, spread in itertools.product(dtypes, evidence.pick(LOGITS, LOGITS[-2:]), (1.0, 30.0)):
        evidence.attempt("cross_entropy_kernel", cross_entropy_kernel, dtype, *shape, spread, needs=2)
    for dtype, few_rows in itertools.product(dtypes, (False, True)):
        evidence.attempt("linear_cross_entropy", linear_cross_entropy, dtype, few_rows, needs=3)
    for variant in VARIANTS:
        evidence.attempt(variant.name, as_variant, variant, dtypes[0], needs=5)
    evidence.attempt("scan", scan, needs=8)
    for dtype, shape in itertools.product((torch.bfloat16, torch.float16), ((2, 12, 1024, 64), (3, 4, 1000, 32))):
        evidence.attempt("attention", attention, dtype, *evidence.pick(shape, (1, 2, 9, 8)), needs=2)
    for variant in SAE_VARIANTS:
        evidence.attempt("sae", sae, variant, needs=3)


def ista(evidence: Evidence, dtype: torch.dtype, n: int, d: int, n_atoms: int, n_steps: int, variant: str = "") -> None:
    """Synthesis and gradients; and for one small and one large shape what else must hold."""
    generator = torch.Generator().manual_seed(n + n_steps)
    z = torch.randn(n, d, generator=generator).to(evidence.device, dtype)
    atoms = ((torch.rand(n_atoms, d, generator=generator) * 2 - 1) * (6 / d) ** 0.5).to(evidence.device, dtype)
    gradient = torch.randn(n, d, generator=generator).to(evidence.device, dtype)

    def ours(z: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
        return ista_op.ista(z, atoms, ETA, LAMBDA, n_steps)

    def oracle(z: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
        return reference.ista_codes(z, atoms, ETA, LAMBDA, n_steps)[-1] @ atoms

    truth = with_gradients(oracle, [z.double(), atoms.double()], gradient.double())
    plain = with_gradients(oracle, [z, atoms], gradient)
    poison()
    found = with_gradients(ours, [z, atoms], gradient)
    about = {"shape": [n, d, n_atoms, n_steps], "variant": variant}
    compare(evidence, "ista", found, plain, truth, dtype, **about)
    if n not in (37, 4096):
        return
    together = ista_op.ista_codes(z, atoms, ETA, LAMBDA, n_steps)
    step_by_step = None  # as a tap between the steps makes it
    for _ in range(n_steps):
        step_by_step = ista_op.ista_codes(z, atoms, ETA, LAMBDA, 1, start=step_by_step)
    strided = torch.randn(d, n, generator=generator).to(evidence.device, dtype).T
    compare(
        evidence,
        "ista, not contiguous",
        [ours(strided, atoms)],
        [oracle(strided, atoms)],
        [oracle(strided.double(), atoms.double())],
        dtype,
        **about,
    )
    again = with_gradients(ours, [z, atoms], gradient)
    evidence.row(
        "ista, bits",
        ok=step_by_step is not None and torch.equal(step_by_step, together),
        dtype=str(dtype),
        **about,
        steps_one_by_one_are_the_same=step_by_step is not None and torch.equal(step_by_step, together),
        again_is_the_same=all(torch.equal(a, b) for a, b in zip(found, again, strict=True)),
        share_of_nonzero_codes=float((together != 0).double().mean()),
    )


def as_variant(evidence: Evidence, variant: Variant, dtype: torch.dtype) -> None:
    """The operations as a variant of the product computes them."""
    with variant.on():
        for shape in evidence.pick(ISTA_SHAPES, TINY_ISTA_SHAPES)[:2]:
            ista(evidence, dtype, *shape, variant.name)
        linear_cross_entropy(evidence, dtype, False, variant.name)


def cross_entropy_kernel(evidence: Evidence, dtype: torch.dtype, n: int, words: int, spread: float) -> None:
    """Losses and gradients of logits; a spread of 30 makes probabilities that underflow."""
    from crate_model.ops import cross_entropy_triton

    generator = torch.Generator().manual_seed(words)
    logits = (torch.randn(n, words, generator=generator) * spread).to(evidence.device, dtype)
    targets = torch.randint(words, (n,), generator=generator).to(evidence.device)

    def by_torch(values: torch.Tensor) -> list[torch.Tensor]:
        leaf = values.clone().requires_grad_()
        wide = leaf.to(torch.promote_types(leaf.dtype, torch.float32))
        losses = F.cross_entropy(wide, targets, reduction="none")
        losses.sum().backward()
        return [losses, leaf.grad] if leaf.grad is not None else []

    truth, plain = by_torch(logits.double()), by_torch(logits)
    losses = cross_entropy_triton.surprise_(logits, targets)  # and the gradient in the logits' place
    compare(evidence, "cross_entropy_kernel", [losses, logits], plain, truth, dtype, shape=[n, words], spread=spread)


def linear_cross_entropy(evidence: Evidence, dtype: torch.dtype, few_rows: bool, variant: str = "") -> None:
    """Head and loss in one, in chunks as large as the product's, and of a few rows."""
    n, d, words = evidence.pick((700, 128, 50304), (20, 16, 100))
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(n, d, generator=generator).to(evidence.device, dtype)
    weight = (torch.randn(words, d, generator=generator) * 0.1).to(evidence.device, dtype)
    targets = torch.randint(words, (n,), generator=generator).to(evidence.device)
    targets[::7] = -1  # ignored
    one = torch.ones((), device=evidence.device)

    def plain(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy((hidden @ weight.T).float(), targets, ignore_index=-1)

    exact = [hidden.double(), weight.double()]
    truth = with_gradients(lambda h, w: reference.linear_cross_entropy(h, w, targets), exact, one.double())
    in_torch = with_gradients(plain, [hidden, weight], one)
    whole = dict(cross_entropy.CHUNK_BYTES)
    if few_rows:
        cross_entropy.CHUNK_BYTES[evidence.device] = evidence.pick(100, 3) * words * hidden.element_size()
    try:
        poison()
        ours = with_gradients(lambda h, w: cross_entropy.linear_cross_entropy(h, w, targets), [hidden, weight], one)
        by_token = cross_entropy.token_losses(hidden, weight, targets)
        nothing = cross_entropy.linear_cross_entropy(hidden, weight, torch.full_like(targets, -1))
    finally:
        cross_entropy.CHUNK_BYTES.update(whole)
    about = {"few_rows_a_chunk": few_rows, "variant": variant}
    compare(evidence, "linear_cross_entropy", ours, in_torch, truth, dtype, **about)
    tokens = [
        F.cross_entropy(
            (h @ w.T).to(torch.promote_types(h.dtype, torch.float32)), targets, reduction="none", ignore_index=-1
        )
        for h, w in ((hidden, weight), exact)
    ]
    compare(evidence, "token_losses", [by_token], tokens[:1], tokens[1:], dtype, **about)
    evidence.row("no counted target gives NaN", ok=bool(nothing.isnan()), dtype=str(dtype))


def scan(evidence: Evidence) -> None:
    """The kernels that look at every activation, equal to the bit to the ones of a CPU (but for the sums)."""
    from scan_cases import OPENAI, SHAPES, TWELFTHS

    shapes = evidence.pick([*SHAPES, (8, 1024, 3072), (8, 1024, 512)], SHAPES[1:2])
    for shape, shares, signed in itertools.product(shapes, (OPENAI, TWELFTHS), (False, True)):
        evidence.attempt("scan", scan_of, shape, shares, signed, needs=2)


def scan_of(evidence: Evidence, shape: tuple[int, int, int], shares: tuple[float, ...], signed: bool) -> None:
    from scan_cases import activations

    from pipeline.activations import scan, scan_triton

    values = activations(shape, signed)
    others = activations((2, *shape[1:]), signed, seed=1).flatten(0, 1)
    counts, host_counts = scan.level_counts(others.to(evidence.device), signed), scan.level_counts(others, signed)
    for n_bins in (len(shares), len(shares) + 1):
        told = scan_arguments(values, host_counts, shares, signed, n_bins)
        host = scan.extremes(*told)  # compiled by numba for this CPU
        here = [tensor.to(evidence.device) for tensor in told]
        found = scan.Extremes(*scan_triton.extremes(*here))
        same = {name: torch.equal(getattr(found, name).cpu(), getattr(host, name)) for name in vars(host)}
        sums, host_sums = scan.Statistics(*scan_triton.statistics(here[0])), scan.statistics(values)
        same["maximum"] = torch.equal(sums.maximum.cpu(), host_sums.maximum)
        same["nonzero"] = torch.equal(sums.nonzero.cpu(), host_sums.nonzero)
        same["sums, to rounding"] = torch.allclose(sums.sums.cpu(), host_sums.sums, rtol=1e-11, atol=1e-8)
        same["counts"] = torch.equal(counts.cpu().long(), host_counts.long())
        evidence.row("scan", ok=all(same.values()), shape=shape, bins=n_bins, signed=signed, same=same)


def scan_arguments(
    values: torch.Tensor, counts: torch.Tensor, shares: tuple[float, ...], signed: bool, n_bins: int
) -> list[torch.Tensor]:
    """What `scan.extremes` is given: a fifth of the tokens is not allowed, and all of one row."""
    import numpy as np

    from pipeline.activations.priority import name_hashes, token_hashes
    from pipeline.activations.quantiles import bin_bounds, edge_keys

    n_rows, n_ctx, n_neurons = values.shape
    allowed = torch.rand((n_rows, n_ctx), generator=torch.Generator().manual_seed(2)) < 0.8
    if n_rows > 2:
        allowed[1] = False
    of_tokens = torch.from_numpy(token_hashes(0, 11 + np.arange(n_rows * n_ctx)).reshape(n_rows, n_ctx))
    of_neurons = torch.from_numpy(name_hashes(0, "site", n_neurons))
    edges = torch.from_numpy(edge_keys(counts.numpy(), shares, signed))
    return [values, allowed, of_tokens, of_neurons, bin_bounds(edges, n_bins)]


def attention(evidence: Evidence, dtype: torch.dtype, *shape: int) -> None:
    """torch's own fused attention with one tensor for query, key and value: (batch, heads, t, d_head)."""
    u = torch.randn(*shape, device=evidence.device).to(dtype)
    gradient = torch.randn_like(u)
    truth = with_gradients(lambda u: reference.causal_attention(u, u, u), [u.double()], gradient.double())
    plain = with_gradients(lambda u: reference.causal_attention(u, u, u), [u], gradient)
    ours = with_gradients(lambda u: F.scaled_dot_product_attention(u, u, u, is_causal=True), [u], gradient)
    compare(evidence, "attention", ours, plain, truth, dtype, shape=shape)


def sae(evidence: Evidence, variant: Any) -> None:
    """An autoencoder's gradients by hand, against autograd's in float64."""
    from crate_model.config import SAEConfig
    from crate_model.ops.sparse_autoencoder import gradients
    from crate_model.sae import SparseAutoencoder, loss

    d, n = evidence.pick((512, 4096), (16, 64))
    torch.manual_seed(0)
    autoencoder = SparseAutoencoder(SAEConfig(d, 4 * d, variant, 8)).to(evidence.device).train()
    exact = SparseAutoencoder(SAEConfig(d, 4 * d, variant, 8)).to(evidence.device).double().train()
    exact.load_state_dict({name: tensor.double() for name, tensor in autoencoder.state_dict().items()})
    v = torch.randn(n, d, device=evidence.device) / d**0.5
    ours = gradients(autoencoder, v, 1e-3).by_name
    names = [name for name, _ in exact.named_parameters() if name in ours]
    truth, plain = (_autograd(model, values, loss, names) for model, values in ((exact, v.double()), (autoencoder, v)))
    compare(evidence, "sae", [ours[name] for name in names], plain, truth, torch.float32, variant=variant)


def _autograd(model: torch.nn.Module, v: torch.Tensor, loss: Any, names: list[str]) -> list[torch.Tensor]:
    parameters = dict(model.named_parameters())
    return list(torch.autograd.grad(loss(model, v, 1e-3)[0].total, [parameters[name] for name in names]))
