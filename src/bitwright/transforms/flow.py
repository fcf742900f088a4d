"""What one eval forward shows of a model: where layer inputs come from, and who reads what a layer or a clip puts out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from bitwright.transforms.forward import evaluating, run_model
from bitwright.transforms.layers import candidates
from bitwright.transforms.tracer import (
    CLIPS,
    JOINS,
    KEEPS_ALL,
    KEEPS_FIRST,
    MOVES,
    NORMS,
    POSITIVE,
    Fact,
    OperatorCall,
    Tracer,
    tensors_in,
)
from bitwright.transforms.unwrap import unwrap

Mark = tuple[str, str]  # (name of the module in whose forward the operator ran, name of the operator)
Names = frozenset[str]
NONE: Names = frozenset()


@dataclass
class Flow:
    """Facts from one forward pass.

    nonneg   layer name -> (module, operator) that made its input non-negative, in every call
    reader   layer name -> name of the BatchNorm that is the only reader of its output, if there is one
    clip_readers   name of a Hardtanh or ReLU -> the layers that read its output, if nothing else reads it
    signed   layer name -> the layers that read its output, normed or not, where no ReLU has removed the negative values;
             "" for an operator outside of layers, and for the caller of the model
    order    layers in the order in which they ran first
    inputs   layer name -> layers whose outputs reach its input without passing through another layer, in that order
    shortcuts   1x1 convolution beside a layer -> the layer that it bypasses
    """

    nonneg: dict[str, Mark] = field(default_factory=dict)
    reader: dict[str, str] = field(default_factory=dict)
    clip_readers: dict[str, set[str]] = field(default_factory=dict)
    signed: dict[str, set[str]] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    shortcuts: dict[str, str] = field(default_factory=dict)


class _NonNegative(Fact):
    """Mark: what made the tensor non-negative."""

    def __init__(self, stack: list[str]) -> None:
        super().__init__()
        self.stack = stack

    def passes(self, call: OperatorCall) -> Mark | None:
        here = (self.stack[-1], call.name.strip("_"))
        if call.name in POSITIVE or call.clips_at_zero:
            return here
        if call.plain in CLIPS or call.name in KEEPS_FIRST:  # clipping keeps the sign of what is non-negative already
            return self._all(call.inputs[:1])
        if call.plain == "pow":
            power = call.get(1)
            return here if isinstance(power, (int, float)) and power % 2 == 0 else self._all(call.inputs[:1])
        if call.plain == "mul" and len(call.inputs) == 2 and call.inputs[0] is call.inputs[1]:
            return here
        if call.name == "maximum":
            return next((m for m in map(self.of, call.inputs) if m is not None), None)
        if call.name == "constant_pad_nd":
            return self._all(call.inputs[:1]) if call.get(2, "value", default=0) >= 0 else None
        if call.name in KEEPS_ALL:
            numbers = [a for a in (*call.args, *call.kwargs.values()) if isinstance(a, (int, float))]
            return self._all(call.inputs) if all(n >= 0 for n in numbers) else None
        return None

    def _all(self, tensors: list[Tensor]) -> Mark | None:
        found = [self.of(t) for t in tensors]
        return found[0] if found and all(m is not None for m in found) else None


class _Readers(Fact):
    """Mark: the layer or clip whose output this tensor is. Kept: the modules that read it."""

    def __init__(self, stack: list[str]) -> None:
        super().__init__()
        self.stack = stack
        self.found: dict[str, list[str]] = {}

    def after(self, call: OperatorCall, out: list[Tensor]) -> None:
        for maker in map(self.of, call.inputs):
            if maker is not None:
                self.found.setdefault(maker, []).append(self.stack[-1])


class _Signed(Fact):
    """Mark: the layers whose sums a tensor holds, perhaps normed or moved. Kept: the modules that read it before a ReLU."""

    def __init__(self, stack: list[str]) -> None:
        super().__init__()
        self.stack = stack
        self.found: dict[str, set[str]] = {}

    def passes(self, call: OperatorCall) -> Names | None:
        layers = NONE.union(*(self.of(t) or () for t in call.inputs))
        if not layers or call.name.strip("_") == "relu" or call.clips_at_zero:
            return None
        if call.name in MOVES or call.name in JOINS or call.name in NORMS or "batch_norm" in call.name:
            return layers
        for layer in layers:
            self.found.setdefault(layer, set()).add(self.stack[-1])
        return None


class _Sources(Fact):
    """Mark: the layers that a tensor came from; a layer's output carries its own name alone. Kept: what was added."""

    def __init__(self) -> None:
        super().__init__()
        self.joins: list[tuple[Names, Names]] = []

    def behind(self, tensors: list[Tensor]) -> Names:
        return NONE.union(*(self.of(t) or NONE for t in tensors))

    def passes(self, call: OperatorCall) -> Names | None:
        if call.plain == "add":
            sides = [side for t in call.inputs if (side := self.of(t))]
            if len(sides) == 2:
                self.joins.append((sides[0], sides[1]))
        return self.behind(call.inputs) or None


class FlowWatch:
    """The hooks that tell the rules which module is at work."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.stack = model, [""]
        self.nonneg, self.readers = _NonNegative(self.stack), _Readers(self.stack)
        self.signed, self.sources = _Signed(self.stack), _Sources()
        self.layers = {id(c.module): c.name for c in candidates(model)}
        self.rows = {c.name for c in candidates(model) if isinstance(c.module, nn.Linear)}
        self.clips = {name for name, module in model.named_modules() if isinstance(module, (nn.Hardtanh, nn.ReLU))}
        self.marks: dict[str, list[Mark | None]] = {}  # of each input of a layer
        self.inputs: dict[str, Names] = {}
        self.norms: dict[str, int] = {}
        self.out: list[Tensor] = []

    def enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.stack.append(name)
            given = tensors_in((args, kwargs))
            first = given[0] if given else None
            if id(module) in self.layers:
                layer = self.layers[id(module)]
                self.marks.setdefault(layer, []).append(self.nonneg.of(first))
                self.inputs[layer] = self.inputs.get(layer, NONE) | self.sources.behind(given)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                tokens = first is not None and first.dim() > 2  # axis 1 is then not the features of a Linear
                if tokens and self.readers.of(first) in self.rows:
                    return
                self.norms[name] = self.norms.get(name, 0) + 1

        return hook

    def leave(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.stack.pop()
            layer = self.layers.get(id(module))
            made = tensors_in(output)
            for t in made:
                if layer is not None:
                    self.readers.put(t, layer)
                    self.signed.put(t, frozenset((layer,)))
                    self.sources.put(t, frozenset((layer,)))
                elif name in self.clips:
                    self.readers.put(t, name)
            if module is self.model:
                self.out = made

        return hook

    def flow(self) -> Flow:
        """What the passes so far have shown."""
        names, order = set(self.layers.values()), tuple(self.inputs)
        place = {name: i for i, name in enumerate(order)}
        modules = {name: module for module in self.model.modules() if (name := self.layers.get(id(module)))}
        flow = Flow(
            nonneg={n: m[0] for n, m in self.marks.items() if m[0] is not None and all(m)},
            signed={n: {_layer_of(reader, names) for reader in who} for n, who in self.signed.found.items()},
            order=order,
            inputs={name: tuple(sorted(found, key=lambda n: place[n])) for name, found in self.inputs.items()},
            shortcuts=_shortcuts(order, self.inputs, self.sources.joins, modules),
        )
        returned = {self.readers.of(t) for t in self.out}
        for t in self.out:
            for name in self.signed.of(t) or ():
                flow.signed.setdefault(name, set()).add("")
        for name, who in self.readers.found.items():
            if name in returned:
                continue
            owners = {_layer_of(reader, names) for reader in who}
            if name in self.clips and "" not in owners:
                flow.clip_readers[name] = owners
            if len(set(who)) == 1 and self.norms.get(who[0]) == len(self.marks.get(name, ())):
                flow.reader[name] = who[0]
        return flow


@contextmanager
def watching(model: nn.Module) -> Iterator[FlowWatch]:
    """Watches the forward passes inside the block; `flow()` of the yielded object says what they showed."""
    watch = FlowWatch(model)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            # pre-hook last, hook first: a user's own hooks run outside
            before = module.register_forward_pre_hook(watch.enter(name), with_kwargs=True)
            after = module.register_forward_hook(watch.leave(name), prepend=True, always_call=False)
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.enter_context(Tracer(watch.nonneg, watch.readers, watch.signed, watch.sources))
        yield watch


def trace_flow(model: nn.Module, example: Any) -> Flow:
    """The facts of a `Flow`, from one eval forward. The model is left as it was.

    >>> import torch
    >>> flow = trace_flow(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), torch.zeros(1, 2))
    >>> flow.nonneg, flow.inputs
    ({'2': ('1', 'relu')}, {'0': (), '2': ('0',)})
    """
    model = unwrap(model)
    with watching(model) as watch, evaluating(model):
        run_model(model, example)
    return watch.flow()


def _layer_of(reader: str, layers: set[str]) -> str:
    """The layer in whose forward, or in whose parts, something was read; "" outside of all."""
    while reader and reader not in layers:
        reader = reader.rpartition(".")[0]
    return reader


def _shortcuts(
    order: tuple[str, ...], inputs: dict[str, Names], joins: list[tuple[Names, Names]], modules: dict[str, nn.Module]
) -> dict[str, str]:
    """A 1x1 conv that reads what another layer reads, and whose output is added to a result of that layer."""
    found: dict[str, str] = {}
    for pair in joins:
        for side, other in (pair, pair[::-1]):
            one = next(iter(side))
            if len(side) != 1 or one in found or not _is_pointwise(modules[one]):
                continue
            before = _before(other, inputs)
            twin = next((n for n in order if n != one and inputs[n] == inputs[one] and n in before), None)
            # two 1x1 convs side by side: the path with more layers is the main one
            if twin is not None and (not _is_pointwise(modules[twin]) or other != {twin}):
                found[one] = twin
    return found


def _before(names: Names, inputs: dict[str, Names]) -> Names:
    """These layers and all that came before them."""
    seen: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name not in seen:
            seen.add(name)
            stack += inputs[name]
    return frozenset(seen)


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and set(module.kernel_size) == {1}
