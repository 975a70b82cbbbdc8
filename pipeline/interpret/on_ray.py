"""Interpretation on Ray: a task a site for the offline judge, actors for local language models. No arithmetic here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.artifacts.artifact import Artifact
from pipeline.errors import CrateError
from pipeline.interpret.reading import Site
from pipeline.progress import Progress
from pipeline.runtime import has_gpu
from pipeline.stage import Context

if TYPE_CHECKING:
    from pipeline.interpret.backends import Explainer, Simulation, SimulationRequest, Simulator, Text
    from pipeline.interpret.judges import WorkerSpecs
    from pipeline.interpret.layer import SiteScores
    from pipeline.interpret.prompts.prompt_set import Message
    from pipeline.interpret.stage import Settings

Item = TypeVar("Item")
UNDER_WAY = 2  # requests an actor: one that it works on, one that waits
VLLM_PROMPTS = 256  # handed to vLLM at once


def score_sites_offline(
    settings: Settings, tokens: Artifact, records: Artifact, sites: Sequence[Site], progress: Progress
) -> list[SiteScores]:
    """The token table's scores of all sites, in their order; `progress` counts neurons."""
    import ray

    from pipeline.interpret.offline import score_offline

    task = ray.remote(num_cpus=1, max_retries=2)(score_offline)
    pending = {task.remote(settings, tokens, records, site): site for site in sites}
    results: dict[str, SiteScores] = {}
    done = 0
    while pending:
        (ref,), _ = ray.wait(list(pending), num_returns=1)
        site = pending.pop(ref)
        results[site.name] = _get(ref)
        done += len(results[site.name].neurons) // max(1, len(results[site.name].rows))
        progress.update(done)
    return [results[site.name] for site in sites]


class Worker:
    """Lives in an actor; makes its models when first asked about them."""

    def __init__(self, specs: WorkerSpecs, threads: int) -> None:
        self.specs, self.threads = specs, threads
        self.made: dict[str, Any] = {}

    def _get(self, role: str) -> Any:
        if role not in self.made:
            import torch

            torch.set_num_threads(self.threads)
            self.made[role] = getattr(self.specs, role).make()
        return self.made[role]

    def facts(self, role: str) -> dict[str, Any]:
        model = self._get(role)
        return {"model": model.model, "identity": model.identity}

    def explain(self, prompts: list[tuple[Message, ...]]) -> list[Text]:
        return [reply for _, reply in sorted(self._get("explainer").explain(prompts))]

    def simulate(self, request: SimulationRequest) -> Simulation:
        return self._get("simulator").one(request)


class Workers:
    """Starts the actors of a step's judge; they end with the step."""

    def __init__(self, context: Context) -> None:
        self.runtime = context.runtime
        self.actors: list[Any] = []

    def start(self, specs: WorkerSpecs) -> tuple[Explainer | None, Simulator | None]:
        """The explainer and the simulator that the specs ask for. They share workers, but for vLLM, which shares no GPU."""
        from pipeline.interpret.clients.vllm_explainer import VllmExplainerSpec
        from pipeline.interpret.judges import WorkerSpecs as Specs

        if isinstance(specs.explainer, VllmExplainerSpec):
            by_vllm = RayExplainer(*self._pool(Specs(specs.explainer, None), "explainer"), VLLM_PROMPTS)
            return by_vllm, self.start(Specs(None, specs.simulator))[1]
        role = "explainer" if specs.explainer else "simulator"
        if not specs.explainer and not specs.simulator:
            return None, None
        pool, facts = self._pool(specs, role)
        explainer = RayExplainer(pool, facts, 1) if specs.explainer else None
        if not specs.simulator:
            return explainer, None
        return explainer, RaySimulator(pool, facts if role == "simulator" else _get(pool[0].facts.remote("simulator")))

    def _pool(self, specs: WorkerSpecs, role: str) -> tuple[list[Any], dict[str, Any]]:
        import ray

        threads = max(1, self.runtime.threads_per_worker)
        room = {"num_gpus": self.runtime.judge_gpus} if has_gpu() else {"num_cpus": threads}
        options: dict[str, Any] = room | {"max_restarts": self.runtime.max_failures, "max_task_retries": -1}
        count = self.runtime.judge_workers or max(1, self.runtime.workers_per_cell)
        actor: Any = ray.remote(**options)(Worker)
        pool = [actor.remote(specs, threads) for _ in range(count)]
        self.actors += pool
        return pool, _get(pool[0].facts.remote(role))

    def stop(self) -> None:
        import ray

        for actor in self.actors:
            ray.kill(actor)


@dataclass(frozen=True)
class RayExplainer:
    pool: list[Any]
    facts: dict[str, Any]
    together: int

    @property
    def model(self) -> str:
        return self.facts["model"]

    @property
    def identity(self) -> str:
        return self.facts["identity"]

    def explain(self, prompts: Iterable[tuple[Message, ...]]) -> Iterator[tuple[int, Text]]:
        groups = _grouped(prompts, self.together)
        for number, texts in _each(self.pool, lambda actor, group: actor.explain.remote(group), groups):
            yield from ((number * self.together + index, text) for index, text in enumerate(texts))


@dataclass(frozen=True)
class RaySimulator:
    pool: list[Any]
    facts: dict[str, Any]
    metric_suffix: str = ""
    excerpts_a_request: int = 1 << 20

    @property
    def model(self) -> str:
        return self.facts["model"]

    @property
    def identity(self) -> str:
        return self.facts["identity"]

    def most_tokens_out(self, request: SimulationRequest) -> int:
        return 0

    def simulate(self, requests: Iterable[SimulationRequest]) -> Iterator[tuple[int, Simulation]]:
        return _each(self.pool, lambda actor, request: actor.simulate.remote(request), requests)


def _grouped(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    left = iter(items)
    while group := list(islice(left, count)):
        yield group


def _each(pool: list[Any], call: Callable[[Any, Item], Any], items: Iterable[Item]) -> Iterator[tuple[int, Any]]:
    """Each item's index and result as they end; an item goes to the worker that has least to do."""
    import ray

    under_way: dict[Any, tuple[int, int]] = {}  # reference -> item, worker
    load = [0] * len(pool)
    left = enumerate(items)
    while True:
        while min(load) < UNDER_WAY and (drawn := next(left, None)):
            worker = load.index(min(load))
            under_way[call(pool[worker], drawn[1])] = drawn[0], worker
            load[worker] += 1
        if not under_way:
            return
        (ref,), _ = ray.wait(list(under_way), num_returns=1)
        index, worker = under_way.pop(ref)
        load[worker] -= 1
        yield index, _get(ref)


def _get(ref: Any) -> Any:
    """A result, or the worker's own error in place of Ray's wrapping."""
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, CrateError) else error) from error
