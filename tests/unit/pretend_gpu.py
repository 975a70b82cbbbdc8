"""A pretended GPU: tensors that say they lie on a device and compute on the CPU, and a tally of what the host would wait for.

The arithmetic is real, so that a whole shard can be read and compared. What a GPU does later happens late here too: a copy to
the host that was not waited for holds rubbish until an event behind it is waited for.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# A device type that torch knows and lets nobody in for: it has no kernels, so whatever is not pretended here fails.
DEVICE = torch.device("lazy")
aten = torch.ops.aten
# Their results, or the sizes of these, are read on the host. *Source:* what torch.cuda.set_sync_debug_mode warns of.
WAITING = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten.bincount,
    aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave,
}  # fmt: skip
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
COPYING = {aten._to_copy, aten.copy_}
WITHOUT_A_LAUNCH = {aten.empty, aten.new_empty, aten.empty_like, aten._unsafe_view, aten.detach}


class OnDevice(torch.Tensor):
    """A tensor on the pretended GPU; `host` holds its values."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> OnDevice:
        facts = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, host.size(), device=DEVICE, **facts)
        made.host = host
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise AssertionError(f"{func} outside of the pretended GPU")


class PretendedGPU(TorchDispatchMode):
    """While it is on, operations on its tensors are tallied: `waits` by the line that waits, `launches` in all.

    `queued_behind` has, for each event that was waited for, what was launched between it and the wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.launches = 0
        self.queued_behind: list[int] = []
        self._under_way: list[Callable[[], Any]] = []  # copies to the host, in the stream's order
        self._arrived = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_device = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        if func is aten._pin_memory.default:
            pinned = args[0].clone()
            pinned.is_pretended_pinned = True
            return pinned
        to_device = torch.device(kwargs["device"]).type == DEVICE.type if kwargs.get("device") else bool(on_device)
        operation = func.overloadpacket
        if operation in COPYING:
            return self._copy(func, args, kwargs, to_device)
        if on_device:
            alien = [tensor for tensor in tensors if tensor.dim() and not isinstance(tensor, OnDevice)]
            assert not alien, f"{func} of tensors on the GPU and on the host, {_where()}"
        views = any(found.alias_info and not found.alias_info.is_write for found in func._schema.returns)
        self.launches += to_device and not views and operation not in WITHOUT_A_LAUNCH
        if on_device and (operation in WAITING or _looks_for_places(operation, args)):
            self.waits[f"{_where()} {operation}"] += 1
        return _run(func, args, kwargs, to_device)

    def _copy(self, func: Any, args: Any, kwargs: Any, to_device: bool) -> Any:
        into = func.overloadpacket is aten.copy_
        source = args[1] if into else args[0]
        target = isinstance(args[0], OnDevice) if into else to_device
        non_blocking = kwargs.get("non_blocking", False) or (into and len(args) > 2 and args[2])
        self.launches += target
        if isinstance(source, OnDevice) == target:
            pass
        elif not non_blocking or (target and not getattr(source, "is_pretended_pinned", False)):
            self.waits[f"{_where()} copy {'to' if target else 'from'} the GPU"] += 1
        elif not target:
            assert not into, "write the pretence for copy_ to the host when something needs it"
            late = torch.full_like(source.host, 113)
            self._under_way.append(partial(late.copy_, source.host.clone()))
            return late
        return _run(func, args, kwargs, target)

    def as_one_launch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What a kernel does, by torch's operations."""

        def launch(*arguments: Any) -> Any:
            before = self.launches
            found = function(*arguments)
            self.launches = before + 1
            return found

        return launch

    def events(self) -> type:
        """What stands for torch.cuda.Event."""
        gpu = self

        class Event:
            def record(self) -> None:
                self.copies, self.launches = len(gpu._under_way), gpu.launches

            def synchronize(self) -> None:
                gpu.queued_behind.append(gpu.launches - self.launches)
                for arrive in gpu._under_way[gpu._arrived : self.copies]:
                    arrive()
                gpu._arrived = max(gpu._arrived, self.copies)

        return Event


@contextmanager
def pretended_gpu() -> Iterator[PretendedGPU]:
    gpu = PretendedGPU()
    asked = torch.is_autocast_enabled
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Event", gpu.events())
        # This device type has no autocast, and needs none.
        patch.setattr(torch, "is_autocast_enabled", lambda kind="cuda": kind != DEVICE.type and asked(kind))
        with gpu:
            yield gpu


def _run(func: Any, args: Any, kwargs: Any, to_device: bool) -> Any:
    own = {id(t.host): t for t in tree_leaves((args, kwargs)) if isinstance(t, OnDevice)}
    args, kwargs = tree_map_only(OnDevice, lambda t: t.host, (args, kwargs))
    if kwargs.get("device"):
        kwargs["device"] = torch.device("cpu")
    found = func(*args, **kwargs)
    if not to_device:
        return found
    return tree_map_only(torch.Tensor, lambda t: own[id(t)] if id(t) in own else OnDevice(t), found)


def _looks_for_places(operation: Any, args: Any) -> bool:
    """Indexing by a mask, whose true places must be counted first. A number written through a mask is `masked_fill_`."""
    if operation not in INDEXING or not any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
        return False
    return operation is aten.index or args[2].numel() > 1


def _where() -> str:
    frame = sys._getframe()
    while frame and not any(f"/{ours}/" in frame.f_code.co_filename for ours in ("pipeline", "crate_model")):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}" if frame else "?"
