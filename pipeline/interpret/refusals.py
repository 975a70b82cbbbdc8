"""What a judge refused: nothing of it is remembered, so it is asked again, at the end of the step and by the next run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import ClientError

if TYPE_CHECKING:
    from pipeline.interpret.layer import SiteScores

PAUSES_SECONDS = (1.0, 5.0, 20.0)  # before each round in which what was refused is asked again
MOST_CONTROLS = 0.5  # share of the controls that may stay refused: on fewer, the nulls are no floor
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

    Raises ClientError where they leave more than the share `most` of the neurons without a score of a metric, or more than
    MOST_CONTROLS (or `most`, where that is more) of the controls without a reply.
    """
    if not any(judge.refused for judge in of_judges):
        return []
    why = next(judge.why for judge in of_judges if judge.refused)
    refused, neurons = _worst(scored, "n_refused", "n_neurons")
    bare, controls = _worst(scored, "n_controls_refused", "n_controls")
    again = f"also when asked {len(PAUSES_SECONDS)} times more: {why}"
    said = f"the judge refused {refused} of {neurons} neurons, {again}"
    if refused > most * neurons:
        raise ClientError(said, fix=FIX)
    nulls = f"the judge refused the controls of {bare} of {controls} neurons, {again}"
    if bare > max(most, MOST_CONTROLS) * controls:
        raise ClientError(nulls, fix=FIX)
    sentences = [f"{said}. They have no score."] if refused else []
    return sentences + ([f"{nulls}. The nulls stand on the others."] if bare else [])


def _worst(scored: Sequence[SiteScores], refused: str, of: str) -> tuple[int, int]:
    """These two counts of the metric that has the largest share of refusals."""
    counts: dict[str, tuple[int, int]] = {}
    for metric, row in (pair for site in scored for pair in site.rows.items()):
        before = counts.get(metric, (0, 0))
        counts[metric] = before[0] + row[refused], before[1] + row[of]
    return max(counts.values(), key=lambda pair: pair[0] / max(1, pair[1]))
