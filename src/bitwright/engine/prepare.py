"""What `convert` works on: a copy of the user's net in evaluation, and what is known of its layers before any form is tried."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bitwright.errors import InputError
from bitwright.nn import SlotLayer
from bitwright.transforms.bake import bake
from bitwright.transforms.call import Call, as_floats, as_is, as_pixels
from bitwright.transforms.copying import copy_model
from bitwright.transforms.decide import slot_layers
from bitwright.transforms.forward import evaluating, version_of
from bitwright.transforms.layers import candidates
from bitwright.transforms.unwrap import hooked, unwrap


@dataclass
class Prepared:
    """A copy of the net to convert, unwrapped and in evaluation; the user's own is not touched.

    own      slot layers that must run as they are, and why: code of the user's that a packed layer would lose
    hooked   slot layers with hooks that change what goes in or comes out, and which: a packed layer keeps them
    uncalled compute layers that a run of the example never reached
    watched  modules whose hooks only look: a graph goes without them
    change   what the tensors of a batch need before the model takes them: nothing, float32, pixels as k / 255
    """

    model: nn.Module
    call: Call
    change: Callable[[Tensor], Tensor] = as_is
    own: dict[str, str] = field(default_factory=dict)
    hooked: dict[str, str] = field(default_factory=dict)
    uncalled: set[str] = field(default_factory=set)
    watched: set[str] = field(default_factory=set)


def prepare(model: nn.Module, example: Any) -> Prepared:
    """Copies, looks through wrappers, works out parametrizations, runs the example once.

    Errors: `InputError` where the model does not run on this example.
    """
    call = Call.of(example)
    lone = isinstance(example, Tensor) and (example.dim() == 0 or (example.dim() == 1 and example.is_floating_point()))
    if not call.tensors or call.images < 1 or lone:
        what = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise InputError(f"convert: the example is one batch of inputs [N, ...], got {what}", code="convert-example")
    copied = copy_model(unwrap(model)).eval()
    bake(copied)
    found = Prepared(copied, call)
    _own_code(found)
    _watch(found)
    return found


def without_hooks(model: nn.Module, only: Iterable[str] | None = None) -> nn.Module:
    """Removes hooks in place, of all modules or some: they would run on the exporter's tensors, which hold no values."""
    for module in model.modules() if only is None else [model.get_submodule(name) for name in only]:
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return model


def plain_weights(layer: SlotLayer) -> None:
    """In place: the weight and the bias that the operator gets, and nothing left to compute them."""
    with torch.no_grad():
        found = {"weight": layer.quantized_weight(), "bias": layer.quantized_bias()}
    layer.set_slots(w=None, b=None, g=None)
    for key, value in found.items():
        setattr(layer, key, None if value is None else nn.Parameter(value.detach().clone(), requires_grad=False))


def _own_code(found: Prepared) -> None:
    """Layers whose `forward`, or that of one of their parts, was replaced on the object, or whose weight a hook computes."""
    for name, layer in slot_layers(found.model).items():
        replaced = [inner for inner, module in layer.named_modules() if "forward" in vars(module)]
        if replaced:
            where = f" of its part {replaced[0]}" if replaced[0] else ""
            found.own[name] = f"the forward{where} was replaced on the object, and stays your code"
        elif "weight" not in layer._parameters:
            found.own[name] = "its weight is computed by a hook, and stays your code"


class _Reads(TorchDispatchMode):
    """Which weights are operands of an operator outside their layer's own call."""

    def __init__(self, weights: dict[int, str]) -> None:
        super().__init__()
        self.weights, self.inside, self.found = weights, [], set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside:
            for t in tree_leaves((args, kwargs or {})):
                if isinstance(t, Tensor) and id(t) in self.weights:
                    self.found.add(self.weights[id(t)])
        return func(*args, **(kwargs or {}))


def _watch(found: Prepared) -> None:
    """One run of the example: which layers are called, which hooks change something, whose weight others compute with."""
    model, layers = found.model, slot_layers(found.model)
    weights = {id(p): n for n, m in layers.items() for p in m._parameters.values() if p is not None}
    reads = _Reads(weights)
    called: set[str] = set()
    said: dict[nn.Module, set[str]] = defaultdict(set)
    spied = [
        (said[m], table, i, hook, kind)
        for m in model.modules()
        for table, kind in ((m._forward_pre_hooks, "forward pre-hook"), (m._forward_hooks, "forward hook"))
        for i, hook in table.items()
    ]
    for words, table, i, hook, kind in spied:
        table[i] = _spied(hook, kind, words)
    wanted = {c.name: c.module for c in candidates(model)} | layers

    def enter(name: str, *call: Any) -> None:
        called.add(name)
        reads.inside.append(name)

    def leave(*call: Any) -> None:
        reads.inside.pop()

    handles = [m.register_forward_pre_hook(partial(enter, n), prepend=True) for n, m in wanted.items()]
    handles += [m.register_forward_hook(leave) for m in wanted.values()]
    try:
        _run(found, reads)
    finally:
        for handle in handles:
            handle.remove()
        for _, table, i, hook, _ in spied:
            table[i] = hook
    found.uncalled = {n for n in wanted if n not in called}
    for name in reads.found - set(found.own):
        found.own[name] = "your code computes with its weight or bias, whose trained values a packed layer loses"
    for name, layer in layers.items():
        inner = [f"{where} of its part {n}" for n, m in layer.named_modules() if n for where in said[m]]
        if inner and name not in found.own:
            found.own[name] = f"a {inner[0]} changes values, and a packed layer has no parts"
        if said[layer]:
            found.hooked[name] = " and a ".join(sorted(said[layer], reverse=True))
    found.watched = {n for n, m in model.named_modules() if not said[m] and hooked(m)}


def _run(found: Prepared, reads: _Reads) -> None:
    """The example through the model, its tensors in the first type that runs."""
    given, failed = found.call, None
    for change in (as_is, as_floats, as_pixels):
        found.call, found.change = given.map(change), change
        try:
            with evaluating(found.model), reads:
                found.call(found.model)
            return
        except InputError:
            raise
        except Exception as error:  # whatever the user's code raises
            failed = failed or error
    assert failed is not None
    axis = ""
    try:
        with evaluating(found.model):
            given.map(lambda t: as_pixels(t)[None])(found.model)
        axis = " With a batch axis in front it does: example[None]"
    except Exception:  # then that is not what is missing
        pass
    shapes = ", ".join(str(list(t.shape)) for t in given.tensors)
    text = f"convert: the model does not run on this example of shape {shapes}: {first_line(failed)}{axis}"
    raise InputError(text, code="convert-example") from None


def _spied(hook: Callable[..., Any], kind: str, said: set[str]) -> Callable[..., Any]:
    """The hook, which says its kind where it gives something back or writes into what it is given."""

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen = [t for t in tree_leaves((args[1:], kwargs)) if isinstance(t, Tensor)]
        before = [version_of(t) for t in seen]
        result = hook(*args, **kwargs)
        if result is not None or before != [version_of(t) for t in seen]:
            said.add(kind)
        return result

    return watched


def first_line(error: BaseException) -> str:
    text = next((t.strip() for t in str(error).splitlines() if t.strip()), type(error).__name__)
    return text[:200].rstrip(".") + "."
