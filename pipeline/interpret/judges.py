"""From a configuration to its judge: which prompts, which explainer, which simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config import InterpretConfig, RuntimeConfig
from pipeline.errors import ConfigError
from pipeline.interpret.backends import Explainer, Simulator
from pipeline.interpret.budget import Budget
from pipeline.interpret.cache import JudgeCache
from pipeline.interpret.explaining import Explanations
from pipeline.interpret.llm_judge import LlmJudge
from pipeline.interpret.prompts.openai_original import OpenAIPrompts
from pipeline.interpret.prompts.own import OwnPrompts
from pipeline.interpret.prompts.prompt_set import PromptSet
from pipeline.interpret.simulating import Simulations

if TYPE_CHECKING:
    from pipeline.interpret.clients.http import Server
    from pipeline.interpret.clients.local_explainer import LocalExplainerSpec
    from pipeline.interpret.clients.local_simulator import LocalSimulatorSpec
    from pipeline.interpret.clients.vllm_explainer import VllmExplainerSpec


@dataclass(frozen=True)
class WorkerSpecs:
    """What has to run on workers of its own. None: nothing."""

    explainer: LocalExplainerSpec | VllmExplainerSpec | None
    simulator: LocalSimulatorSpec | None


StartWorkers = Callable[[WorkerSpecs], tuple[Explainer | None, Simulator | None]]


def in_this_process(specs: WorkerSpecs) -> tuple[Explainer | None, Simulator | None]:
    """Without Ray: for tests and benchmarks."""
    explainer = specs.explainer.make() if specs.explainer else None
    return explainer, specs.simulator.make() if specs.simulator else None


def prompt_set(config: InterpretConfig) -> PromptSet:
    return OwnPrompts() if config.prompt_set == "own" else OpenAIPrompts(raw_tokens=config.protocol == "paper")


def worker_specs(config: InterpretConfig, seed: int, runtime: RuntimeConfig) -> WorkerSpecs:
    from pipeline.interpret.clients.local_explainer import LocalExplainerSpec
    from pipeline.interpret.clients.local_model import LocalModel
    from pipeline.interpret.clients.local_simulator import LocalSimulatorSpec
    from pipeline.interpret.clients.vllm_explainer import VllmExplainerSpec

    model = LocalModel(config.explainer_model, config.explainer_revision, config.dtype)
    asked = (model, config.temperature, config.max_explanation_tokens, seed)
    explainer: LocalExplainerSpec | VllmExplainerSpec | None = None
    if config.explainer == "transformers":
        explainer = LocalExplainerSpec(*asked)
    if config.explainer == "vllm":
        explainer = VllmExplainerSpec(*asked, gpus=int(runtime.judge_gpus))
    if config.simulator_kind != "transformers":
        return WorkerSpecs(explainer, None)
    own = config.simulator_model or config.explainer not in ("transformers", "vllm")
    simulated_by = LocalModel(config.simulator_model, config.simulator_revision, config.dtype) if own else model
    paper = config.protocol == "paper"
    return WorkerSpecs(explainer, LocalSimulatorSpec(simulated_by, prompt_set(config), paper))


def make_judge(
    config: InterpretConfig,
    seed: int,
    runtime: RuntimeConfig,
    cache: JudgeCache,
    budget: Budget,
    token_strings: list[str],
    start: StartWorkers,
) -> LlmJudge:
    """The judge of a configuration that has a language model in it. Raises CrateError when one cannot be had."""
    prompts = prompt_set(config)
    explainer, simulator = start(worker_specs(config, seed, runtime))
    if config.explainer == "http":
        from pipeline.interpret.clients.http_explainer import HttpExplainer

        answers = (config.temperature, config.max_explanation_tokens, seed)
        server = judge_server(runtime)
        explainer = HttpExplainer(server, config.explainer_model, config.explainer_revision, *answers)
    simulator = simulator or _http_simulator(config, runtime, prompts, token_strings)
    raw = config.protocol == "paper"
    most = config.max_explanation_tokens
    explanations = None
    if explainer:
        account = budget.account(paid=config.explainer == "http")
        explanations = Explanations(explainer, prompts, cache, account, token_strings, most, raw)
    account = budget.account(paid=config.simulator_kind.startswith("http"))
    return LlmJudge(explanations, Simulations(simulator, prompts, cache, account, token_strings), token_strings)


def _http_simulator(
    config: InterpretConfig, runtime: RuntimeConfig, prompts: PromptSet, token_strings: list[str]
) -> Simulator:
    from pipeline.interpret.clients.http_simulator import HttpSimulator
    from pipeline.interpret.clients.number_simulator import NumberSimulator

    server = simulator_server(runtime)
    same = config.explainer == "http" and not runtime.judge_simulator_url
    name = config.simulator_model or (config.explainer_model if same else "")
    revision = config.simulator_revision or (config.explainer_revision if same else "")
    if config.simulator_kind == "http_numbers":
        return NumberSimulator(server, name, revision, token_strings)
    return HttpSimulator(server, name, revision, prompts, config.protocol == "paper", token_strings)


def judge_server(runtime: RuntimeConfig) -> Server:
    from pipeline.runtime import api_key

    return _server(runtime, runtime.judge_url, api_key())


def simulator_server(runtime: RuntimeConfig) -> Server:
    """Of its own, or the judge's. It is told the judge's key only where it is at the same origin."""
    from pipeline.interpret.clients.http import origin
    from pipeline.runtime import SIMULATOR_KEY, api_key

    if not runtime.judge_simulator_url:
        return judge_server(runtime)
    same = origin(runtime.judge_simulator_url) == origin(runtime.judge_url)
    key = api_key(SIMULATOR_KEY) or (api_key() if same else None)
    return _server(runtime, runtime.judge_simulator_url, key)


def _server(runtime: RuntimeConfig, url: str, key: str | None) -> Server:
    from pipeline.interpret.clients.http import Server, ServerSpec

    if not url:
        raise ConfigError(
            "a judge behind HTTP needs its address", fix="Set runtime.judge_url to an OpenAI-compatible endpoint's /v1."
        )
    return Server(ServerSpec(url, runtime.judge_concurrency, runtime.judge_timeout_seconds), key)
