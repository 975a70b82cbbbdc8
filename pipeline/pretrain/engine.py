"""DeepSpeed behind five verbs: accumulate, step, validate, full_state, restore. Only this file and `optimizers.py` know it.

The engine is driven in its unmanaged mode: the caller owns the accumulation boundary, scales the loss and sets the rate,
so one step means the same at every ZeRO stage, world size and micro-batch.
"""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from crate_model.config import ModelConfig
from crate_model.flops import count_parameters
from pipeline.config import PretrainConfig, RuntimeConfig
from pipeline.errors import ConfigError
from pipeline.pretrain import compiling, optimizers
from pipeline.pretrain.batches import MicroBatch
from pipeline.pretrain.op_builds import import_deepspeed
from pipeline.pretrain.resume import PARTS, Tensors

if TYPE_CHECKING:
    from crate_model.model import LanguageModel

SMALL_MODEL, LARGE_MODEL = 124_500_000, 1_500_000_000  # parameters: GPT-2 B is the largest of the small ones


def zero_stage(runtime: RuntimeConfig, model: ModelConfig, precision: str) -> int:
    """The ZeRO stage to use. Raises ConfigError for a stage that cannot keep float32 master weights.

    Small models gain nothing from sharding gradients or weights; half precision needs stage 1 for its master weights.
    """
    if runtime.zero_stage == "auto":
        n_params = count_parameters(model).total
        if n_params <= SMALL_MODEL:
            return 0 if precision == "fp32" and not runtime.offload_optimizer else 1
        return 2 if n_params <= LARGE_MODEL else 3
    if runtime.zero_stage == 0 and (precision != "fp32" or runtime.offload_optimizer):
        why = "offload_optimizer" if precision == "fp32" else f"precision {precision}"
        raise ConfigError(
            f"runtime.zero_stage 0 does not go with {why}: it would keep no sharded float32 master weights",
            fix="Set it to 1, 2, 3 or auto.",
        )
    return runtime.zero_stage


def check_precision(precision: str, device: torch.device) -> None:
    """Raises ConfigError for one that this device does not train in."""
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "pretrain.precision fp16 needs a GPU: DeepSpeed does not train in it on a CPU",
            fix="Set pretrain.precision to bf16 or fp32.",
        )


class Engine:
    """A model in training on this process's device. Every process of the job builds one and calls the same verbs."""

    def __init__(
        self,
        model: LanguageModel,
        config: PretrainConfig,
        runtime: RuntimeConfig,
        device: torch.device,
        micro_batch: int,
        accumulation: int,
        optimizer: str,
    ) -> None:
        deepspeed = import_deepspeed()
        self.device, self.config = device, config
        self.stage = zero_stage(runtime, model.config, config.precision)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        model.to(device)
        if runtime.activation_checkpointing:
            _recompute_blocks(model)
        wanted = device.type == "cuda" if runtime.compile == "auto" else runtime.compile
        self.not_compiled = compiling.why_not(self.stage, device) if wanted else ""
        self.compiled = wanted and not self.not_compiled
        self.base = optimizers.build(optimizer, optimizers.parameter_groups(model, config.weight_decay), config)
        settings = _deepspeed_settings(config, runtime, self.stage, device, micro_batch, accumulation)
        self._linear = torch.nn.functional.linear  # ZeRO 3 puts its own in the place of torch's, for the whole process
        with contextlib.redirect_stdout(io.StringIO()):  # it prints memory tables
            self._engine, *_ = deepspeed.initialize(model=model, optimizer=self.base, config=settings)
        self.model: LanguageModel = self._engine.module
        self._buffers: dict[str, Tensors] = {}  # of `full_state`
        self._refuse: Callable[[float], bool] | None = None
        self._norm = torch.tensor(float("nan"))
        self.refused = False
        self._make_moments()
        self._guard_optimizer()

    def compile_like_eager(self, batch: MicroBatch) -> None:
        """Compile the model, if it is to be compiled and its gradients on `batch` stay what they are uncompiled; `not_compiled`
        says why it runs as it is after all. Collective: every worker calls it, before the first step.

        The forward method alone is compiled: DeepSpeed's hooks around it would split the graph.
        """
        if not self.compiled:
            return
        self.model.train()
        inputs, targets = self._inputs_and_targets(batch)
        forward, why = compiling.compiled_like_eager(self.model, inputs, targets, self.config.precision)
        if self.anywhere(bool(why)):
            self.compiled, self.not_compiled = (
                False,
                why or "on another worker its gradients are not the uncompiled ones",
            )
        else:
            self.model.forward = forward  # type: ignore[method-assign]

    # ---- one step -------------------------------------------------------------------------------------------------

    def accumulate(self, micro_batches: Iterable[MicroBatch]) -> torch.Tensor:
        """Forward and backward over a step's micro-batches. Returns this worker's part of the loss, on the device: its mean
        over the workers is the mean over all the batch's targets."""
        self._engine.train()
        total = torch.zeros((), device=self.device)
        for batch in micro_batches:
            loss = self._engine(*self._inputs_and_targets(batch))
            self._engine.backward(loss * batch.weight, scale_wrt_gas=False)
            total += loss.detach().float() * batch.weight
        return total

    def _inputs_and_targets(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.as_tensor(batch.windows).to(self.device, non_blocking=True)
        targets = tokens[:, 1:]
        if 0 < batch.n_counted < len(tokens):
            targets = targets.clone()
            targets[batch.n_counted :] = -1
        return tokens[:, :-1], targets

    def step(self, learning_rate: float, refuse: Callable[[float], bool] | None = None) -> torch.Tensor:
        """Reduce, clip and update; returns the global gradient norm before clipping, a scalar that still lies on the device.

        `refuse` is asked with the norm, and where it says yes nothing is updated and `refused` is set. Inf means that
        float16 overflowed or a gradient was not finite: nothing was updated either.
        """
        self._refuse, self.refused = refuse, False
        for group in self.base.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        if self.stage:
            self._norm = torch.as_tensor(self._engine.get_global_grad_norm(), device=self.device)
        return self._norm

    def _guard_optimizer(self) -> None:
        """Put a door before the optimizer's own step: all of DeepSpeed's wrappers call it once the norm is known.

        A GPU stands still while the host reads the norm, so it is read only where somebody asks: in 16 bits DeepSpeed itself
        lets no norm pass that is not finite.
        """
        update = self.base.step

        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.stage == 0:
                parameters = [p for p in self.model.parameters() if p.grad is not None]
                self._norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)
            if self._refuse is not None or self.config.precision == "fp32":
                norm = float(self._engine.optimizer._global_grad_norm if self.stage else self._norm)
                if not np.isfinite(norm):
                    return None
                if self._refuse is not None and self._refuse(norm):
                    self.refused = True
                    return None
            return update(*args, **kwargs)

        self.base.step = guarded  # type: ignore[method-assign]

    # ---- looking on -----------------------------------------------------------------------------------------------

    def whole_model(self) -> LanguageModel:
        """The model for reading, in evaluation mode. Where its weights are sharded, a whole copy: gather it, use it, drop it."""
        self.model.eval()
        if self.stage < 3:
            return self.model
        import deepspeed

        copy = type(self.model)(self.model.config).to(self.device)
        with deepspeed.zero.GatheredParameters(list(self.model.parameters())), torch.no_grad():
            for ours, theirs in zip(copy.parameters(), self.model.parameters(), strict=True):
                ours.data = theirs.data.clone()
        return copy.eval()

    def mean(self, values: torch.Tensor) -> NDArray[np.float64]:
        """The mean over workers of equally long vectors, on every worker."""
        return self.sum(values) / self.world_size

    def sum(self, values: torch.Tensor) -> NDArray[np.float64]:
        total = values.detach().to(self.device, torch.float64, copy=True)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total.cpu().numpy()

    def anywhere(self, flag: bool) -> bool:
        """Whether the flag is set on any worker."""
        return bool(self.sum(torch.tensor([float(flag)]))[0]) if self.world_size > 1 else flag

    # ---- whole state ----------------------------------------------------------------------------------------------

    def full_state(self) -> dict[str, Tensors]:
        """Master weights and both moments, full, float32, on the CPU, by the parameters' names; empty but on rank 0.

        The next call overwrites them: memory that is new each time would cost more than the copying.
        """
        for name, parameter in self.model.named_parameters():
            for part in PARTS:
                tensor = self._full(parameter, part)
                if self.rank == 0:
                    self._buffer(part, name).copy_(tensor.detach().reshape(self.shapes[name]), non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return {part: dict(tensors) for part, tensors in self._buffers.items()}

    def _buffer(self, part: str, name: str) -> torch.Tensor:
        of_part = self._buffers.setdefault(part, {})
        if name not in of_part:
            of_part[name] = torch.empty(self.shapes[name], pin_memory=self.device.type == "cuda")
        return of_part[name]

    def _full(self, parameter: torch.nn.Parameter, part: str) -> torch.Tensor:
        if self.stage == 0:
            return parameter if part == "weights" else self.base.state[parameter][part]
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if part == "weights":
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, part)

    def restore(self, tensors: dict[str, Tensors], updates: int, loss_scale: float = 0.0) -> None:
        """Take on master weights and moments after so many updates. The model must have been built with the same weights."""
        for name, parameter in self.model.named_parameters():
            for part in PARTS:
                self._set(parameter, part, tensors[part][name].to(self.device))
        optimizers.set_updates(self.base, updates)
        if loss_scale:
            self._engine.optimizer.loss_scaler.cur_scale = loss_scale

    def _set(self, parameter: torch.nn.Parameter, part: str, value: torch.Tensor) -> None:
        from deepspeed import utils as ds

        key = None if part == "weights" else part
        if self.stage == 0:
            target = self.base.state[parameter][key] if key else parameter.data
            target.copy_(value)
        elif self.stage == 3:
            shard = self._shard(value, parameter.partition_numel())  # type: ignore[attr-defined]
            ds.safe_set_local_optimizer_state(parameter, shard, key) if key else ds.safe_set_local_fp32_param(
                parameter, shard
            )
        else:
            ds.safe_set_full_optimizer_state(parameter, value, key) if key else ds.safe_set_full_fp32_param(
                parameter, value
            )

    def _shard(self, value: torch.Tensor, length: int) -> torch.Tensor:
        """This worker's part of a tensor that stage 3 cuts into equal lengths, the last one padded with zeros."""
        padded = torch.nn.functional.pad(value.flatten(), (0, length * self.world_size - value.numel()))
        return padded[self.rank * length : (self.rank + 1) * length]

    def _make_moments(self) -> None:
        """Create the optimizer's state now, all zero, rather than in the first step: it can then be read and set at once.

        Left to itself, DeepSpeed's ZeRO 1 and 2 link the moments after the first parameter group's first step and lose
        those of the second group.
        """
        wrapper = self._engine.optimizer
        masters = getattr(wrapper, "fp32_partitioned_groups_flat", None) or [
            parameter for group in self.base.param_groups for parameter in group["params"]
        ]
        for master in masters:
            self.base.state[master] = optimizers.fresh_state(self.base, master)
        optimizers.set_updates(self.base, 0)
        if link := getattr(wrapper, "_lazy_init_hp_params_optimizer_state", None):
            link()

    @property
    def loss_scale(self) -> float:
        """float16's dynamic loss scale; 0 in other precisions."""
        return float(self._engine.optimizer.loss_scale) if self.config.precision == "fp16" else 0.0

    def close(self) -> None:
        self._engine.destroy()
        vars(self.model).pop("forward", None)  # the compiled one holds the model, and the model it
        torch.nn.functional.linear = self._linear


def _recompute_blocks(model: LanguageModel) -> None:
    """Keep only each block's input for the backward pass and compute the block again there: less memory, equal numbers."""
    from torch.utils.checkpoint import checkpoint

    for block in model.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def _deepspeed_settings(
    config: PretrainConfig,
    runtime: RuntimeConfig,
    stage: int,
    device: torch.device,
    micro_batch: int,
    accumulation: int,
) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage}
    if stage >= 2:
        zero["overlap_comm"] = device.type == "cuda" and stage == 2
    if stage and runtime.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.clip_norm if stage else 0.0,  # at stage 0 the guard clips, and so knows the norm
        "steps_per_print": sys.maxsize,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU before and after every micro-batch
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if config.precision == "bf16":
        # Immediate: a 16-bit gradient is added to the float32 ones, and freed, as soon as backward has it.
        bf16 = {"enabled": True, "immediate_grad_update": True}
        settings |= {"bf16": bf16, "data_types": {"grad_accum_dtype": "fp32"}}
    elif config.precision == "fp16":
        settings |= {"fp16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return settings
