"""Every tensor of a list of modules and every place that refers to it: parameters, buffers, plain attributes, lists.

A *slot* is one tensor object; its *places* are where modules keep it (a tied weight has several, an LSTM's weight also
stands in `_flat_weights`). While the weights are away each place holds the slot's stand-in on `meta`; the tensor object
itself (`live`) is kept, so that ties, weak references and whoever holds it find it again after the next reload.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class Place(NamedTuple):
    """`holder[key]` is the tensor. `name` is for people."""

    holder: Any  # a dict, a list, or a _Tuple
    key: Any
    name: str


class _Tuple:
    """Lets one element of a tuple be replaced, by replacing the tuple."""

    def __init__(self, holder: Any, key: Any) -> None:
        self.holder, self.key = holder, key

    def __getitem__(self, index: int) -> Any:
        return self.holder[self.key][index]

    def __setitem__(self, index: int, value: Any) -> None:
        old = self.holder[self.key]
        items = [*old[:index], value, *old[index + 1 :]]
        self.holder[self.key] = old._make(items) if hasattr(old, "_make") else type(old)(items)


class Slot:
    """One tensor object with its shape, its places, and its bytes in the arena from `offset` on."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.places: list[Place] = []
        self.packed = False  # it has bytes in the arena
        self.offset = 0
        self.flat_at, self.flat_end = -1, -1  # the block of back-to-back weights that it belongs to
        self.own: torch.Tensor | None = None  # its value on the host, when that is no longer in the arena
        self._is(tensor)

    def _is(self, tensor: torch.Tensor) -> None:
        self.live = tensor
        self.counter = tensor  # its `_version` moves when this tensor is written to, and perhaps also at another time
        self.dtype, self.size, self.stride = tensor.dtype, tensor.size(), tensor.stride()
        self.storage_key: int = tensor.untyped_storage()._cdata
        first = int(tensor.storage_offset())
        last = first + sum((n - 1) * int(step) for n, step in zip(self.size, self.stride, strict=True))
        self.span: tuple[int, int] = (
            first * tensor.itemsize,
            (last + 1) * tensor.itemsize,
        )  # bytes of its storage that it reaches
        self.contiguous = tensor.is_contiguous()
        self.on_meta = tensor.is_meta
        away = torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")
        self.away = nn.Parameter(away, requires_grad=False) if isinstance(tensor, nn.Parameter) else away

    @property
    def name(self) -> str:
        return self.places[0].name if self.places else "a tensor that left its module"

    @property
    def nbytes(self) -> int:
        return self.span[1] - self.span[0]

    def view(self, block: torch.Tensor, base: int = 0) -> torch.Tensor:
        """Its tensor inside `block`, uint8, which begins at byte `base` of the arena."""
        size, start = self.dtype.itemsize, self.offset - base
        flat = block[start : start + self.nbytes // size * size].view(self.dtype)
        return flat.as_strided(self.size, self.stride)

    def keep(self) -> int:
        """Its value moves to a host tensor of its own, for good. Returns the bytes copied."""
        self.own = self.live.detach().to("cpu", copy=True)
        if self.live.is_inference():  # such an object counts no versions and cannot be pointed elsewhere
            self.live = nn.Parameter(self.own, False) if isinstance(self.live, nn.Parameter) else self.own.clone()
        self._is(self.live)
        return self.own.nbytes


def share_counters(groups: Sequence[Sequence[Slot]], order: Sequence[Slot]) -> None:
    """Give the tensors of each group, which stay the same objects, one version counter, so that one look tells that
    none was written to. Their insides come to lie behind one another, in `order`: a loop over them that finds the
    caches cold takes a third of the time.
    """
    roots = {id(slot): root for group in groups for root in [torch.empty(0)] for slot in group if _plain(slot.live)}
    sharing = [slot for slot in order if id(slot) in roots]
    fresh = [nn.Parameter(roots[id(slot)], requires_grad=False) for slot in sharing]
    for slot, inside in zip(sharing, fresh, strict=True):
        inside.data = slot.live
        inside.requires_grad = slot.live.requires_grad
        try:
            torch._C._swap_tensor_impl(slot.live, inside)
        except RuntimeError:  # some C++ code refers to it
            continue
        slot.counter = roots[id(slot)]


def _plain(tensor: torch.Tensor) -> bool:
    """Nothing hangs on it that would not come along with its elements."""
    return not (
        tensor.is_inference()
        or tensor.grad_fn is not None
        or tensor.grad is not None
        or tensor._is_view()
        or tensor._backward_hooks
        or getattr(tensor, "_post_accumulate_grad_hooks", None)
    )


class Found(NamedTuple):
    """All that has to be looked after in a list of modules."""

    slots: list[Slot]
    flats: list[list[Slot]]  # weights of each recurrent module in the order of cuDNN's block
    norms: list[tuple[nn.Module, list[Slot]]]  # running statistics, which a kernel writes without moving `_version`
    siblings: list[list[Slot]]  # buffers of one module
    cached: list[nn.Module]  # LightningModules: they remember their device in `_device`


def find(modules: Sequence[nn.Module], before: Sequence[Slot] = ()) -> Found:
    """Walks everything below `modules`. TypeError for what cannot be moved by its bytes.

    `before` are the slots that were found last time: they stay the same objects, and packed ones stay even without a
    place (who took them out may put them back).
    """
    found = Found([], [], [], [], [])
    known: dict[int, Slot] = {}
    for slot in before:
        slot.places.clear()
        known[id(slot.live)] = known[id(slot.away)] = slot
    seen: set[int] = set()
    for number, root in enumerate(modules):
        for path, module in root.named_modules(prefix=f"{type(root).__name__}[{number}]"):
            if id(module) in seen:
                continue
            seen.add(id(module))
            if isinstance(module, torch.jit.ScriptModule):
                raise TypeError(f"{path} is TorchScript, whose tensors cannot be replaced; leave it out of the arena")
            for place in _places(module, path):
                tensor = place.holder[place.key]
                if id(tensor) not in known:
                    known[id(tensor)] = Slot(tensor)
                slot = known[id(tensor)]
                if not slot.places:
                    found.slots.append(slot)
                slot.places.append(place)
            buffers = [known[id(b)] for b in module._buffers.values() if b is not None and id(b) in known]
            if len(buffers) > 1:
                found.siblings.append(buffers)
            if isinstance(module, _NormBase) and module.running_mean is not None:
                found.norms.append((module, buffers))
            if isinstance(module, nn.RNNBase):
                weights = [known[id(w)] for w in module._flat_weights if id(w) in known]
                found.flats.append(sorted(weights, key=lambda s: len(s.size) < 2))  # matrices, then biases
            if isinstance(vars(module).get("_device"), torch.device):
                found.cached.append(module)
    found.slots.extend(slot for slot in before if slot.packed and not slot.places)
    return found


def _places(module: nn.Module, path: str) -> Iterator[Place]:
    done: set[int] = set()
    yield from _within(module._parameters, path, done)
    yield from _within(module._buffers, path, done)
    own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")}
    for key, value in own.items():
        yield from _look(vars(module), key, value, f"{path}.{key}", done)


def _within(holder: dict[Any, Any] | list[Any], path: str, done: set[int]) -> Iterator[Place]:
    if id(holder) in done:
        return
    done.add(id(holder))
    for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
        yield from _look(holder, key, value, f"{path}.{key}", done)


def _look(holder: Any, key: Any, value: Any, path: str, done: set[int]) -> Iterator[Place]:
    if isinstance(value, torch.Tensor):
        if movable(value, path):
            yield Place(holder, key, path)
            if isinstance(value, nn.Parameter) and vars(value):  # bitsandbytes hangs its QuantState there
                yield from _within(vars(value), path, done)
    elif isinstance(value, dict | list):
        yield from _within(value, path, done)
    elif isinstance(value, tuple):
        around = _Tuple(holder, key)
        for index, item in enumerate(value):
            yield from _look(around, index, item, f"{path}.{index}", done)
    elif type(value).__name__ == "QuantState":  # of bitsandbytes: absmax, code, offset, and the nested state2
        yield from _within(vars(value), path, done)


def movable(tensor: Any, path: str) -> bool:
    """False for what stays on the host: sparse index buffers (they have no storage), and tensors without elements."""
    if is_traceable_wrapper_subclass(tensor):
        raise TypeError(f"{path} is a {type(tensor).__name__}, whose bytes cannot be reached; unwrap it first")
    return bool(tensor.layout == torch.strided and tensor.numel() > 0)


def names(slots: Sequence[Slot], most: int = 3) -> str:
    """A few of them, for a message."""
    shown = ", ".join(s.name for s in itertools.islice(slots, most))
    return shown + (f" and {len(slots) - most} more" if len(slots) > most else "")
