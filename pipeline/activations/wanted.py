"""How many excerpts a neuron gets, and where their randomness comes from."""

from dataclasses import dataclass

SPARE = (
    2  # candidates held for each random or quantile excerpt of `corrected`: some fall away because their row is taken
)


@dataclass(frozen=True)
class Wanted:
    top: int
    random: int
    per_quantile: int
    seed: int
