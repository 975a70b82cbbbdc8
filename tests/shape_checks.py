"""Every call of crate_model in tests is held to its jaxtyping signature: dtypes, and dimensions that must agree by name."""

from __future__ import annotations

import sys

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# Not `config`, which has no shapes and refuses bad values in its own words, nor `hf`, whose configuration is a dataclass of
# transformers' making.
CHECKED = (
    "attention", "cache", "checkpoint", "diagnostics", "feedforward", "flops", "import_checkpoint", "layers", "model", "ops",
    "sae", "taps",
)  # fmt: skip

as_checkers_read_it = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand for a float


def switch_on() -> None:
    """Check what is imported from now on."""
    modules = [f"crate_model.{module}" for module in CHECKED]
    assert not sys.modules.keys() & set(modules), "imported before they could be checked"
    install_import_hook(modules, "tests.shape_checks.as_checkers_read_it")
