"""The packed network: a plain module that walks its graph. No user code, no compilation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.engine import native, planner, run_native, run_reference
from bitwright.engine.aten_list import DTYPES
from bitwright.engine.fuse import LIMIT, fuse
from bitwright.engine.fuse_connections import joined_connections
from bitwright.engine.fuse_floats import float_kernels
from bitwright.engine.fuse_gates import gated_kernels
from bitwright.engine.graph import Graph, Node
from bitwright.engine.native_images import image_kernels
from bitwright.engine.native_run import KEPT, NativeRun, joined, reads, within
from bitwright.engine.one_run import OneRun, kind_of
from bitwright.engine.store import from_json, sized, stored
from bitwright.engine.torch_op import answers_of, text_of
from bitwright.errors import BitwrightWarning, InputError

BACKENDS = ("auto", "native", "reference")
MOST_THREADS = 1024

_said: set[str] = set()


def _best() -> str:
    """The compiled kernels where they are built; else plain torch, with one warning per process."""
    if native.available():
        return "native"
    if native.notice() not in _said:
        _said.add(native.notice())
        text = f"{native.notice()}; packed nets run on plain torch, correct but slow"
        warnings.warn(text, BitwrightWarning, stacklevel=4)
    return "reference"


# what the graph becomes on this machine, when first asked for
MADE = ("runtime", "steps", "_joined", "_ready", "folded_steps")
Steps = list[tuple[Node, Any, list[str]]]  # node, function on the environment, values to forget afterwards


class PackedModel(nn.Module):
    """Runs a folded graph, fused at first use, on a backend. It takes and returns what the trained net takes and returns.

    backend  "native": the compiled kernels; "reference": plain torch, the oracle; "auto": native where it is built
    threads  of the kernels per call; None: one for small layers, else torch's number

    A sample with NaN in an input has NaN in every float answer, as in the trained net. The state dict holds the packed tensors
    (bits, scales, float layers). Evaluation only: there is nothing to train.
    """

    graph_text: Tensor

    def __init__(self, graph: Graph, backend: str = "auto", threads: int | None = None) -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise InputError(f"backend {backend!r} is none of {', '.join(BACKENDS)}", code="backend")
        if backend == "native" and not native.available():
            raise InputError(f"backend 'native': {native.notice()}", code="backend")
        self.backend = backend if backend != "auto" else _best()
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MOST_THREADS):
            text = f"packed model: threads={threads!r}; possible: 1 to {MOST_THREADS}, or None for torch's number"
            raise InputError(text, code="threads", given=str(threads))
        self.threads = threads
        self._graph = graph if graph.work is not None else from_json(*stored(graph))
        self.inputs = self._graph.inputs()
        self._sizes: set[tuple[int, ...]] = set()  # of images that were checked
        self._passed: set[Any] = set()  # kinds of inputs that need neither a check nor another layout
        self.outputs = list(self._graph.nodes[-1].inputs)
        self.structure = self._graph.nodes[-1].attrs.get("structure", 0)
        tensors = stored(self._graph)[1]
        self._answers = answers_of(self._graph)
        text = text_of(self._graph, self.backend == "reference", threads)
        self.register_buffer("graph_text", text, persistent=False)
        self._keys = {k: k.replace(".", "/") for k in tensors}  # a dot would nest modules
        for key, name in self._keys.items():  # last, so that no name of a file can hide an attribute
            if not name or hasattr(type(self), name) or hasattr(self, name):
                raise InputError(f"packed model: {key[:60]!r} cannot name a tensor", code="file-graph")
            self.register_buffer(name, tensors[key])
        self.eval()

    @property
    def graph(self) -> Graph:
        """The folded graph, as a file holds it. Read only: the run is made from it once."""
        return self._graph

    @cached_property
    def runtime(self) -> Graph:
        """The graph that runs: fused, once."""
        return fuse(self._graph)

    @cached_property
    def steps(self) -> Steps:
        """One step per node, built once, for inspection. A call runs `_joined`."""
        if self.backend != "native":
            return self._laid_out(run_reference.build(self.runtime))
        make = partial(run_native.step, threads=self.threads)
        graph = image_kernels(joined_connections(float_kernels(gated_kernels(self.runtime))))
        return self._laid_out(run_reference.build(graph, make))

    @cached_property
    def _joined(self) -> Steps:
        """The same steps, neighboring native ones in one call."""
        return self._laid_out(joined([(node, step) for node, step, _ in self.steps], set(self.outputs)))

    @cached_property
    def _ready(self) -> dict[Any, OneRun]:
        """Of kinds of inputs that went through before."""
        return {}

    @cached_property
    def folded_steps(self) -> Steps:
        """The folded graph, nothing fused: for numbers beyond `LIMIT`, whose sums may be infinite or NaN inside."""
        return self._laid_out(run_reference.build(self._graph))

    def _laid_out(self, steps: list[tuple[Node, Any]]) -> Steps:
        last = {name: i for i, step in enumerate(steps) for name in reads(*step) if name not in self.outputs}
        drop: list[list[str]] = [[] for _ in steps]
        for name, i in last.items():
            drop[i].append(name)
        return [(node, step, names) for (node, step), names in zip(steps, drop, strict=True)]

    @property
    def output_name(self) -> str:
        """The value of the first answer."""
        return self.outputs[0]

    def prepare(self, x: Tensor, of: Node | None = None) -> Tensor:
        """Checks and lays out one input batch; `of`: the node of the input. [default: the first]"""
        node = self.inputs[0] if of is None else of
        # what has passed once passes again: most of the time of a small net was this
        kind = kind_of(x)
        if (node.name, kind) in self._passed:
            return x
        dtype = DTYPES[node.attrs["dtype"]]
        check_on_cpu(x, f"packed model: {node.name}")
        if node.attrs.get("any_size") and x.dim() == len(node.shape) + 1 and x.shape[1] == node.shape[0]:
            self._fits(tuple(x.shape[1:]))
        elif x.dim() != len(node.shape) + 1 or x.shape[1:] != node.shape:
            want = "x".join(str(s) for s in node.shape)
            remedy = ". Resize, or convert again with this example"
            if tuple(x.shape) == node.shape:
                remedy = f": one sample has no batch axis here, give x[None] (1x{want})"
            given = "x".join(str(s) for s in x.shape) or "a single number"
            text = f"packed model: {node.name} is {given}, the model was converted for {want} (any batch){remedy}"
            raise InputError(text, code="input-shape", given=str(list(x.shape)), possible=want)
        if x.is_floating_point() and not dtype.is_floating_point:
            wanted = str(node.attrs["dtype"])
            text = f"packed model: {node.name} holds {wanted}, got {x.dtype}"
            raise InputError(text, code="input-dtype", given=str(x.dtype), possible=wanted)
        made = laid_out(x, dtype, self._reads_planes(node))
        if made is x and kind is not None:
            if len(self._passed) >= KEPT:
                self._passed.clear()
            self._passed.add((node.name, kind))
        return made

    def _reads_planes(self, of: Node) -> bool:
        """Whether all that reads an input takes an image with its channels first, as torch makes it."""
        readers = [step for node, step, _ in self._joined if of.name in reads(node, step)]
        return len(of.shape) == 3 and all(
            isinstance(step, NativeRun) and step.reads_planes(of.name, of.shape[0]) for step in readers
        )

    @property
    def any_size(self) -> bool:
        """Whether images of every size run: `convert(..., dynamic_size=True)`."""
        return bool(self.inputs[0].attrs.get("any_size"))

    def _fits(self, shape: tuple[int, ...]) -> None:
        """Checks the graph for images of another size, each once. Errors: `InputError` where they do not go through, or take
        more memory than a file may ask for."""
        if shape == self.inputs[0].shape or shape in self._sizes:
            return
        try:
            sized(self._graph, shape)
        except InputError as error:
            given = "x".join(map(str, shape))
            text = f"packed model: images of {given} do not go through: {str(error).removeprefix('packed file: ')}"
            raise InputError(text, code="input-shape", given=given) from None
        if len(self._sizes) >= KEPT:
            self._sizes.clear()
        self._sizes.add(shape)

    def at_size(self, *inputs: Tensor) -> PackedModel:
        """This net for the size of these inputs alone."""
        if not self.any_size or inputs[0].shape[1:] == self.inputs[0].shape:
            return self
        return PackedModel(sized(self._graph, inputs[0].shape[1:]), self.backend, self.threads)

    def environment(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The inputs under their nodes' names, checked."""
        if len(inputs) != len(self.inputs):
            names = ", ".join(n.name for n in self.inputs)
            text = f"packed model: takes {len(self.inputs)} inputs ({names}), got {len(inputs)}"
            raise InputError(text, code="input-count")
        if len(inputs) == 1:
            return {self.inputs[0].name: self.prepare(inputs[0])}
        env = {node.name: self.prepare(x, node) for node, x in zip(self.inputs, inputs, strict=True)}
        if len({x.shape[0] for x in env.values()}) > 1:
            raise InputError("packed model: its inputs differ in the size of the batch, axis 0", code="input-shape")
        return env

    def held(self) -> list[Tensor]:
        """The tensors of the file, in its order."""
        return [self.get_buffer(name) for name in self._keys.values()]

    def forward(self, *inputs: Tensor) -> Any:
        if torch.compiler.is_compiling():
            if (
                self.any_size and inputs[0].shape[1:] != self.inputs[0].shape
            ):  # the operator's shapes are those of the file
                want = "x".join(map(str, self.inputs[0].shape))
                raise InputError(
                    f"packed model: compiled, it takes {want}; convert with an example of your size", code="input-shape"
                )
            given = [x.detach() for x in inputs]
            found = torch.ops.bitwright.packed(given, self.held(), self.graph_text, self._answers)
            return _filled(self.structure, found)
        ready = self._ready.get(kind_of(inputs[0])) if len(inputs) == 1 else None
        if ready is not None and (y := ready(inputs[0])) is not None:
            return y
        answer = self.run(self.environment(*inputs))
        if ready is None:
            self._make_ready(*inputs)
        return answer

    def _make_ready(self, *inputs: Tensor) -> None:
        """What the next call with such an input takes, where the net is one native run with one answer."""
        if not len(inputs) == len(self.outputs) == len(self._joined) == 1 or self.structure != 0:
            return
        only, x, kind = self._joined[0][1], inputs[0], kind_of(inputs[0])
        if not isinstance(only, NativeRun) or (self.inputs[0].name, kind) not in self._passed:
            return
        if x.is_floating_point() and x.dtype is not torch.float32:  # the kernels' check of the range reads no others
            return
        program, copies = only.program([x])
        if len(self._ready) >= KEPT:
            self._ready.clear()
        if not copies:
            self._ready[kind] = OneRun(program, x, self.threads)

    def run(self, env: dict[str, Tensor]) -> Any:
        """The answer for inputs by name, laid out: where a graph is one layer, of any size that the layer takes."""
        return _filled(self.structure, self.answers(env))

    def answers(self, env: dict[str, Tensor]) -> list[Tensor]:
        """The outputs as a flat list, whatever structure the trained net returns."""
        far: list[Tensor] = []
        for name, x in env.items():
            if x.requires_grad:  # nothing else here does: no graph is recorded
                env[name] = x = x.detach()
            if x.is_floating_point() and not self._near(x):
                far.append(x)
        if far:
            env |= _pixels(env)
        for _, step, forget in self.folded_steps if far else self._joined:
            step(env)
            for name in forget:
                del env[name]
        for x in far:
            mask = x.isnan().flatten(1).any(1) if x.dim() > 1 else x.isnan()
            if bool(mask.any()):
                env |= {name: _marked(env[name], mask) for name in self.outputs}
        return [env[o] for o in self.outputs]

    def _near(self, x: Tensor) -> bool:
        """Whether no number is NaN, infinite or so large that a fused step could give another result."""
        if self.backend == "native" and x.dtype is torch.float32:
            return within(x, LIMIT)
        if x.numel() == 0:
            return True
        low, high = torch.aminmax(x)
        return float(low) >= -LIMIT and float(high) <= LIMIT

    def explain(self, measure: bool = False) -> planner.Explanation:
        """How each layer with codes runs, and the predicted and measured time of every way; `print` it.

        measure  True: times every way on this CPU (seconds), keeps the times for nets that are loaded later, and takes the fastest.
                 All ways give the same answers
        """
        return planner.explain(self, measure)

    def forget_steps(self) -> None:
        """Fuses and lays out anew at the next call: the tensors, or the plan of this CPU, have changed."""
        for name in MADE:
            self.__dict__.pop(name, None)

    @torch.no_grad()
    def values(self, env: dict[str, Tensor], plain: bool = False) -> dict[str, Tensor]:
        """Every value of one run, for checks. plain: of the folded graph in plain torch."""
        if plain:
            env |= _pixels(env)
        for _, step, _ in self.folded_steps if plain else self.steps:
            step(env)
        return env

    def __getstate__(self) -> dict[str, Any]:
        # kernel plans hold raw pointers: they are made again
        return {key: value for key, value in self.__dict__.items() if key not in MADE}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for key, name in self._keys.items():
            self._graph.tensors[key] = self.get_buffer(name)
        self.forget_steps()

    def train(self, mode: bool = True) -> PackedModel:
        """Stays in evaluation: there is nothing to train."""
        return super().train(False)

    def extra_repr(self) -> str:
        ops = [n.op for n in self._graph.nodes]
        coded = sum(op.startswith("coded") for op in ops)
        return f"{len(ops)} nodes, {coded} coded layers, backend={self.backend}"


def check_on_cpu(x: Tensor, what: str) -> None:
    """Errors: `InputError` for what is no plain tensor of real numbers in the CPU's memory."""
    if not isinstance(x, Tensor):
        given = type(x).__name__
    elif x.device.type != "cpu":
        given = f"on {x.device}"
    elif x.layout is not torch.strided:
        given = str(x.layout).removeprefix("torch.")
    elif x.is_complex():
        given = "complex"
    else:
        return
    text = f"{what} is {given}; possible: a dense tensor of real numbers on the CPU"
    raise InputError(text, code="input-dtype", given=given)


def laid_out(x: Tensor, dtype: torch.dtype = torch.float32, planes: bool = False) -> Tensor:
    """An input as the operators read it; pixels as k / 255. planes: channels may lie first."""
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    if x.dtype is dtype and (x.is_contiguous(memory_format=layout) or (planes and x.is_contiguous())):
        return x
    pixels = x.dtype == torch.uint8 and dtype == torch.float32  # as stored; the first layer's codes are k itself
    x = x.to(dtype) / 255 if pixels else x.to(dtype)
    return x.contiguous(memory_format=layout)


def _pixels(env: dict[str, Tensor]) -> dict[str, Tensor]:
    """The images of floats as torch's operators read them here: the same numbers whichever way an image lies."""
    return {name: laid_out(x, x.dtype) for name, x in env.items() if x.is_floating_point()}


def _marked(y: Tensor, broken: Tensor) -> Tensor:
    """NaN in the rows of broken samples; everywhere, where rows are not samples."""
    if not y.is_floating_point():
        return y
    if y.dim() == 0 or y.shape[0] != broken.shape[0]:
        return torch.full_like(y, torch.nan)
    return torch.where(broken.reshape(-1, *[1] * (y.dim() - 1)), torch.nan, y)


def _filled(structure: Any, values: list[Tensor]) -> Any:
    """The answer in the trained net's own structure."""
    if structure is None or isinstance(structure, int):
        return None if structure is None else values[structure]
    kind, inner = next(iter(structure.items()))
    if isinstance(inner, Mapping):
        return {k: _filled(v, values) for k, v in inner.items()}
    made = [_filled(v, values) for v in inner]
    return tuple(made) if kind == "tuple" else made
