"""What tests that compile a model share."""

import shutil
from collections.abc import Iterator

import jaxtyping
import pytest
import torch

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or " " in torch.__file__,
    reason="torch.compile on a CPU needs g++, and hands it paths with spaces unquoted",
)


@pytest.fixture(autouse=True)
def without_shape_checks() -> Iterator[None]:
    """The compiler cannot look into the checks that tests/shape_checks.py puts around every function."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    torch.compiler.reset()
