"""What one step takes: how many GPUs and cores, how long, and which of its parts makes it so long."""

from __future__ import annotations

from dataclasses import dataclass

from crate_model.flops import count_parameters, forward_flops_per_token, train_flops_per_token
from pipeline.activations.job import shards_of
from pipeline.artifacts.records import quantile_bins
from pipeline.artifacts.saes import tap_width
from pipeline.config import Config
from pipeline.forecast.machine import Machine, Rates
from pipeline.forecast.room import part_bytes
from pipeline.interpret.excerpts import needed_selections
from pipeline.interpret.limits import scorable
from pipeline.sae.planned import planned_sites


@dataclass(frozen=True)
class Work:
    """`gpus` and `cores` are held for `seconds`; `bound` names what the time goes into."""

    gpus: float
    cores: float
    seconds: float
    bound: str


@dataclass(frozen=True)
class Costs:
    """Seconds of every stage of a cell, by name of the stage, on `machine` with `workers` trainers a cell."""

    machine: Machine
    rates: Rates
    workers: int
    gpus_per_worker: float

    def of(self, stage: str, config: Config) -> Work:
        return getattr(self, f"_{stage}")(config)

    def _tokens(self, config: Config) -> Work:
        text = config.tokens.expected_text_bytes
        read = text / 3 / self.machine.store_read  # compressed to about a third
        files = _files(config)
        cores = min(self.machine.cores, files)
        encode = text / self.rates.bytes_per_token / self.rates.tokens_per_core_second / cores
        seal = 2 * text / self.rates.bytes_per_token / self.rates.seal_bytes_per_second  # two bytes a token
        parts = {"reading the store": read, "files: one core each" if cores == files else "encoding": encode}
        bound = max((parts | {"sealing on one node": seal}).items(), key=lambda part: part[1])[0]
        return Work(0, cores, self.rates.stage_start_seconds + max(parts.values()) + seal, bound)

    def _pretrain(self, config: Config) -> Work:
        recipe, model = config.pretrain, config.model
        if recipe.checkpoint:
            return Work(0, 0, self.rates.stage_start_seconds, "an imported model")
        gpus = self.workers * self.gpus_per_worker
        busy = min(gpus, recipe.batch_tokens / model.n_ctx)  # more GPUs than windows in a batch have nothing to do
        compute = recipe.batch_tokens * train_flops_per_token(model) / self._flops(busy, self.rates.train_utilisation)
        bytes_a_step = (
            2 * (gpus - 1) / gpus * self.rates.gradient_bytes * count_parameters(model).total if gpus > 1 else 0
        )
        exposed = max(0.0, bytes_a_step / self.machine.bus(gpus) - self.rates.overlap * compute)
        step = max(compute + exposed, self.rates.step_floor_seconds)
        steps = recipe.total_tokens // recipe.batch_tokens
        measured = (steps // recipe.eval_every_steps if recipe.eval_every_steps else 0) + 1
        forward = measured * recipe.eval_tokens * self._forward(config, gpus)
        bound = (
            "step latency" if step > compute + exposed else "gradients on the wire" if exposed > compute else "compute"
        )
        bound = "windows in a batch" if busy < gpus and bound == "compute" else bound
        return Work(gpus, self.workers, self.rates.trainer_start_seconds + steps * step + forward, bound)

    def _evaluate(self, config: Config) -> Work:
        tokens = config.evaluate.val_tokens or self._val_tokens(config)
        return self._one_gpu(tokens * self._forward(config, self.gpus_per_worker))

    def _activations(self, config: Config) -> Work:
        layers = config.activations.layers
        n_layer = config.model.n_layer if layers == "all" else len(layers)
        return self._records(config, n_layer * tap_width(config.model, config.activations.tap))

    def _records(self, config: Config, neurons: int, flops_a_token: float = 0.0) -> Work:
        """Of so many neurons, which take `flops_a_token` beside a forward pass. GPUs are reckoned as held to the end."""
        tokens, shards = read_tokens(config), self._shards(config)
        readers = min(self.workers, shards)
        gpus = readers * self.gpus_per_worker
        reading = tokens * self._forward(config, gpus) / self.rates.extraction_share
        reading += tokens * flops_a_token / self._flops(gpus, self.rates.forward_utilisation)
        joining = shards * part_bytes(config.activations, neurons) / self.rates.records_bytes_per_second
        bound = "forward passes" if reading > joining else "putting parts together"
        return Work(gpus, readers, self.rates.stage_start_seconds + reading + joining, bound)

    def _shards(self, config: Config) -> int:
        read = config.activations
        return shards_of(max(read.tokens, read.tokens_short), self.workers, on_gpu=self.machine.gpus > 0)

    def _features(self, config: Config) -> Work:
        sites = planned_sites(config.sae, config.model)
        encode = sum(2 * tap_width(config.model, site.tap) ** 2 * site.expansion for site in sites)
        return self._records(config, sum(tap_width(config.model, s.tap) * s.expansion for s in sites), encode)

    def _sae(self, config: Config) -> Work:
        sites = planned_sites(config.sae, config.model)
        gpus = min(self.workers, len(sites)) * self.gpus_per_worker
        # encode and decode, forward and backward; the language model runs once for all the sites of a group
        flops = sum(12 * tap_width(config.model, site.tap) ** 2 * site.expansion for site in sites)
        groups = min(self.workers, len(sites))
        seconds = config.sae.total_tokens * flops / self._flops(gpus, self.rates.train_utilisation)
        language_model = config.sae.total_tokens * self._forward(config, gpus / groups)
        bound = "autoencoders" if seconds > language_model else "forward passes"
        return Work(gpus, groups, self.rates.stage_start_seconds + seconds + language_model, bound)

    def _interpret(self, config: Config) -> Work:
        return self._scored(config, config.model.n_layer, config.model.d_code)

    def _interpret_features(self, config: Config) -> Work:
        sites = planned_sites(config.sae, config.model)
        return self._scored(config, len(sites), max(tap_width(config.model, s.tap) * s.expansion for s in sites))

    def _scored(self, config: Config, sites: int, neurons_a_site: int) -> Work:
        settings = config.interpret
        neurons = sites * min(neurons_a_site, settings.neurons_per_layer or neurons_a_site)
        if settings.simulator_kind == "token_table":
            cores = min(self.machine.cores, sites)
            seconds = neurons / self.rates.offline_neurons_per_core_second / cores
            return Work(0, cores, self.rates.stage_start_seconds + seconds, "the token table")
        explanations, passes = judge_calls(config, neurons)
        if settings.simulator_kind.startswith("http"):
            seconds = (explanations + passes) * self.rates.judge_answer_seconds / config.runtime.judge_concurrency
            return Work(0, 1, self.rates.stage_start_seconds + seconds, "the endpoint's answers")
        flops = passes * self.rates.judge_flops_per_pass + explanations * self.rates.judge_flops_per_explanation
        gpus = min(self.machine.gpus, self.workers * max(1.0, self.gpus_per_worker))
        seconds = flops / self._flops(gpus, self.rates.forward_utilisation)
        return Work(gpus, self.workers, self.rates.stage_start_seconds + seconds, "judge calls")

    def _steer(self, config: Config) -> Work:
        return self._one_gpu(self.rates.stage_start_seconds)

    def _one_gpu(self, seconds: float) -> Work:
        gpu = min(1.0, self.gpus_per_worker) if self.machine.gpus else 0.0
        return Work(gpu, 1, self.rates.stage_start_seconds + seconds, "one worker")

    def _forward(self, config: Config, gpus: float) -> float:
        """Seconds a token."""
        return forward_flops_per_token(config.model) / self._flops(gpus, self.rates.forward_utilisation)

    def _flops(self, gpus: float, utilisation: float) -> float:
        return max(gpus, 1e-9) * self.machine.peak_flops * utilisation

    def _val_tokens(self, config: Config) -> float:
        return config.tokens.expected_text_bytes / self.rates.bytes_per_token * self.rates.pile_val_share


def read_tokens(config: Config) -> int:
    """Tokens that go through the model for records: the text, and before it, for the quantiles of both widths, a part or all."""
    settings = config.activations
    text = max(settings.tokens, settings.tokens_short)
    return text + (text if settings.protocol == "paper" else min(text, 2 * settings.quantile_tokens))


def judge_calls(config: Config, neurons: int) -> tuple[int, int]:
    """(explanations, simulator passes) of so many neurons: an excerpt is simulated once a neuron."""
    selections = needed_selections(scorable(config))
    passes = sum(
        pick.part(quantile_bins(config.activations.protocol, selection.long), 1).asked
        for selection in selections
        for pick in selection.score
    )
    return neurons * len(selections), neurons * passes


def _files(config: Config) -> int:
    """Sources: one core reads one. The Pile has thirty train files beside val and test."""
    named = len(config.tokens.train) + len(config.tokens.val) + len(config.tokens.test)
    return 32 if any("*" in name for name in config.tokens.train) else max(1, named)
