"""What a GPU would wait for while a shard is read, and how much is launched: both as little as if the model had one layer."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from crate_model.ops import precision
from pipeline.activations import reservoir, scan
from pipeline.activations.extract import Extractor, count_pilot_part
from pipeline.activations.job import Job, plan_job
from pipeline.artifacts.store import Store
from tests.unit import activation_cases as cases
from tests.unit.pretend_gpu import DEVICE, PretendedGPU, pretended_gpu

LAUNCHES_A_BATCH = {"corrected": 180, "paper": 40}  # beside the forward pass, of both widths of excerpts
N_BATCHES = 10


@dataclass
class Reading:
    waits: list[list[str]]  # of each batch but the first
    launches: list[int]  # likewise, but for the forward pass's
    queued_behind: list[int]  # each event that was waited for
    forward_launches: int


def job(store: Store, n_layer: int = 2, **changes: Any) -> Job:
    inputs = {"tokens": cases.tokens_artifact(store, 1400), "pretrain": cases.model_artifact(store, n_layer=n_layer)}
    asked = cases.settings(tokens=1280, tokens_short=896, quantile_tokens=512, **changes)
    return plan_job(asked, inputs, cases.context(store))


def read_on_a_gpu(work: Job) -> Reading:
    with pretended_gpu() as gpu, pytest.MonkeyPatch.context() as patch:
        for room in (scan, reservoir):
            patch.setattr(room, "_kernels", lambda _: kernels(gpu))
        patch.setattr(precision, "why_no_triton", lambda: "")
        extractor, marks = Extractor(work, DEVICE), []
        extractor.read_shard(0, lambda _: marks.append((gpu.waits.copy(), gpu.launches)))
        queued_behind, launches = gpu.queued_behind.copy(), gpu.launches
        list(extractor.reader.read(torch.zeros((4, 32), dtype=torch.long)))
        forward = gpu.launches - launches
    steps = list(itertools.pairwise(marks))
    waits = [sorted((after[0] - before[0]).elements()) for before, after in steps]
    return Reading(waits, [after[1] - before[1] - forward for before, after in steps], queued_behind, forward)


def kernels(gpu: PretendedGPU) -> SimpleNamespace:
    """In the place of Triton's: what they do, and a launch each."""
    forms = {
        "extremes": lambda *a: vars(scan.plain_extremes(*a)).values(),
        "statistics": lambda *a: vars(scan.plain_statistics(*a)).values(),
        "count_levels": lambda counts, values, signed: counts.add_(scan.level_counts(values, signed)),
        "keep": reservoir.plain_keep,
        "keep_tokens": reservoir.plain_keep_tokens,
    }
    return SimpleNamespace(**{name: gpu.as_one_launch(form) for name, form in forms.items()})


@pytest.mark.parametrize("protocol", ["corrected", "paper"])
def test_a_batch_waits_for_nothing_and_its_layers_share_their_launches(protocol, tmp_path):
    two, four = (read_on_a_gpu(job(Store(tmp_path / str(n)), n, protocol=protocol)) for n in (2, 4))
    for reading in (two, four):
        assert reading.waits == [[]] * (N_BATCHES - 1)
        # The moments come a batch late: the host looks at them when a batch is queued behind them, but for the last's.
        assert len(reading.queued_behind) == N_BATCHES
        assert min(reading.queued_behind[:-1]) > LAUNCHES_A_BATCH[protocol] / 2
        assert max(reading.launches) <= LAUNCHES_A_BATCH[protocol]
    assert max(b - a for a, b in zip(two.launches, four.launches, strict=True)) <= 2, (
        "one a layer puts it beside the others"
    )


@pytest.mark.parametrize("protocol", ["corrected", "paper"])
def test_what_is_read_there_is_what_a_cpu_reads(protocol, tmp_path):
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        read_on_a_gpu(there := job(Store(tmp_path / "gpu"), protocol=protocol))
        Extractor(here := job(Store(tmp_path / "cpu"), protocol=protocol)).read_shard(0)
    found, expected = (load_file(work.shard_file(0)) for work in (there, here))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        excerpts = name.removesuffix("keys") + "activations"
        if name.endswith("/keys"):  # in whatever places
            orders = found[name].argsort(-1), tensor.argsort(-1)
            assert torch.equal(found[name].gather(-1, orders[0]), tensor.gather(-1, orders[1]))
            in_order = [
                part[excerpts].gather(2, order[..., None].expand_as(part[excerpts]))
                for part, order in zip((found, expected), orders, strict=True)
            ]
            assert torch.equal(*in_order)
        elif "moments" in name:
            torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-10)
        elif not name.endswith("/activations"):
            assert torch.equal(found[name], tensor)


def test_measuring_the_quantiles_waits_but_for_the_counts(tmp_path):
    work = job(Store(tmp_path))
    counted = []
    for device in (DEVICE, torch.device("cpu")):
        with pretended_gpu() as gpu:
            extractor = Extractor(work, device)
            gpu.waits.clear()
            count_pilot_part(work, extractor.corpus, extractor.reader, 0)
        assert sum(gpu.waits.values()) == (2 * 2 if device == DEVICE else 0)  # layers and widths, after all batches
        counted.append(load_file(work.pilot_file(0)))
    there, here = counted
    assert there.keys() == here.keys()
    # Attention is another routine there: an activation may be on the other side of a level's edge.
    assert all((there[name] - counts).abs().sum() <= 2 for name, counts in here.items())
