"""The Triton kernel of ISTA under Triton's interpreter, run by test_ista.py with TRITON_INTERPRET=1."""

import pytest
import torch
from test_ista import ETA, LAMBDA, gradients, inputs, oracle

from crate_model.ops import ista as op
from crate_model.ops import ista_triton


@pytest.fixture(autouse=True, params=[False, True], ids=["a tile a program", "persistent"])
def small_tiles_on_a_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"TILE_M": 16, "TILE_N": 32, "TILE_K": 16, "GROUP_M": 2, "PERSISTENT_TILE_N": 64}
    for name, size in sizes.items():
        monkeypatch.setattr(ista_triton, name, size)
    monkeypatch.setattr(ista_triton, "PERSISTENT", request.param)
    monkeypatch.setattr(ista_triton, "_multiprocessors", lambda: 3)
    monkeypatch.setattr(op, "_kernels", lambda _tensor: ista_triton)


@pytest.mark.parametrize("n_steps", [1, 2, 3])
@pytest.mark.parametrize("shape", [(37, 24, 56), (16, 16, 32), (5, 7, 33), (50, 40, 1), (40, 16, 200)], ids=str)
def test_forward_and_backward(shape: tuple[int, int, int], n_steps: int) -> None:
    z, dictionary, gradient = inputs(torch.float32, *shape)
    ours = gradients(lambda z, w: op.ista(z, w, ETA, LAMBDA, n_steps), z, dictionary, gradient)
    theirs = gradients(lambda z, w: oracle(z, w, n_steps), z, dictionary, gradient)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_codes_from_a_start() -> None:
    """What runs when a tap looks between the steps: same bits as the steps together."""
    z, dictionary, _ = inputs(torch.float32)
    code = op.ista_codes(z, dictionary, ETA, LAMBDA, 1)
    code = op.ista_codes(z, dictionary, ETA, LAMBDA, 1, start=code)
    assert torch.equal(code, op.ista_codes(z, dictionary, ETA, LAMBDA, 2))
