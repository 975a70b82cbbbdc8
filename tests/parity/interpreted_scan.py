"""The Triton kernels that scan activations, under Triton's interpreter (test_triton_kernels.py)."""

import pytest

from pipeline.activations import scan_triton
from tests.unit.scan_cases import OPENAI, SHAPES, TWELFTHS, same_as_plain


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shares", [OPENAI, TWELFTHS], ids=["openai", "anthropic"])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_kernels_on_a_gpu(shape, shares, signed):
    same_as_plain(scan_triton, shape, signed, shares)
