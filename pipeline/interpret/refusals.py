"""What a judge refused: nothing of it is remembered, so it is asked again, at the end of the step and by the next run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import ClientError

if TYPE_CHECKING:
    from pipeline.interpret.layer import SiteScores

PAUSES_SECONDS = (1.0, 5.0, 20.0)  # before each round in which what was refused is asked again
HOPELESS = 64  # prompts refused and none ever answered: no round will help
FIX = (
    "Run again: answered calls are kept, and only what was refused is asked. Where the neurons may go without a score, raise "
    "interpret.max_refused."
)


@dataclass
class Refusals:
    """Of one judge in one round."""

    answered: int = 0  # prompts, those included whose answer was remembered
    refused: int = 0
    why: str = ""  # in the judge's words, the last time

    def add(self, why: str) -> None:
        self.refused += 1
        self.why = why or self.why

    def begin_again(self) -> None:
        self.answered = self.refused = 0


def check_hope(of_judges: Sequence[Refusals]) -> None:
    """Raises ClientError where a judge has refused whatever it was asked."""
    for judge in of_judges:
        if judge.refused >= HOPELESS and not judge.answered:
            raise ClientError(f"the judge refused all of the first {judge.refused} prompts: {judge.why}", fix=FIX)


def told_of(scored: Sequence[SiteScores], of_judges: Sequence[Refusals], most: float) -> list[str]:
    """What a person is to know of refusals that stayed.

    Raises ClientError where they leave more than the share `most` of the neurons without a score of a metric.
    """
    if not (calls := sum(judge.refused for judge in of_judges)):
        return []
    why = next(judge.why for judge in of_judges if judge.refused)
    counts: dict[str, list[int]] = {}
    for metric, row in (pair for site in scored for pair in site.rows.items()):
        refused, neurons = counts.get(metric, [0, 0])
        counts[metric] = [refused + row["n_refused"], neurons + row["n_neurons"]]
    refused, neurons = max(counts.values(), key=lambda pair: pair[0] / max(1, pair[1]))
    said = f"the judge refused {refused} of {neurons} neurons, also when asked {len(PAUSES_SECONDS)} times more: {why}"
    if refused > most * neurons:
        raise ClientError(said, fix=FIX)
    if not refused:
        return [f"the judge refused {calls} prompts of control experiments: the nulls stand on fewer neurons: {why}"]
    return [f"{said}. They have no score."]
