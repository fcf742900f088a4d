"""The packed network: a plain module that walks its graph. No user code, no compilation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitwright.engine import native, run_native, run_reference
from bitwright.engine.aten_list import DTYPES
from bitwright.engine.fuse import LIMIT, fuse
from bitwright.engine.graph import Graph, Node
from bitwright.engine.native_run import joined, reads, within
from bitwright.engine.store import from_json, stored
from bitwright.engine.torch_op import answers_of, text_of
from bitwright.errors import BitwrightWarning, InputError

if TYPE_CHECKING:
    from bitwright.engine.planner import Explanation

BACKENDS = ("auto", "native", "reference")
MOST_THREADS = 1024

_said: set[str] = set()


def _best() -> str:
    """The compiled kernels where they are built; else plain torch, with one warning per process."""
    if native.available():
        return "native"
    if native.notice() not in _said:
        _said.add(native.notice())
        warnings.warn(
            f"{native.notice()}; packed nets run on plain torch, correct but slow", BitwrightWarning, stacklevel=4
        )
    return "reference"


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
        self._runtime: Graph | None = None
        self._steps: Steps | None = None
        self._whole: Steps | None = None
        self._plain: Steps | None = None
        self.inputs = self._graph.inputs()
        self.outputs = list(self._graph.nodes[-1].inputs)
        self.structure = self._graph.nodes[-1].attrs.get("structure", 0)
        tensors = stored(self._graph)[1]
        self._answers = answers_of(self._graph)
        text = text_of(self._graph, self.backend == "reference", threads)
        self.register_buffer("graph_text", text, persistent=False)
        self._keys = {k: k.replace(".", "/") for k in tensors}  # a dot would nest modules
        for key, name in self._keys.items():  # last, so that no name of a file can hide an attribute
            if not name or hasattr(self, name):
                raise InputError(f"packed model: {key[:60]!r} cannot name a tensor", code="file-graph")
            self.register_buffer(name, tensors[key])
        self.eval()

    @property
    def graph(self) -> Graph:
        """The folded graph, as a file holds it. Read only: the run is made from it once."""
        return self._graph

    @property
    def output_name(self) -> str:
        """The value that is the answer; of several the first."""
        return self.outputs[0]

    @property
    def runtime(self) -> Graph:
        """The graph that runs: fused, once."""
        if self._runtime is None:
            self._runtime = fuse(self._graph)
        return self._runtime

    def steps(self) -> Steps:
        """One step per node, built once, for inspection. A call runs the steps of `_joined`."""
        if self._steps is None:
            native_run = self.backend == "native"
            built = run_native.build(self.runtime, self.threads) if native_run else run_reference.build(self.runtime)
            self._steps = self._laid_out(built)
        return self._steps

    def _joined(self) -> Steps:
        """The same steps, neighboring native ones in one call."""
        if self._whole is None:
            single = [(node, step) for node, step, _ in self.steps()]
            self._whole = self._laid_out(joined(single, set(self.outputs)))
        return self._whole

    def folded_steps(self) -> Steps:
        """The folded graph, nothing fused: for numbers beyond `LIMIT`, whose sums may be infinite or NaN inside."""
        if self._plain is None:
            self._plain = self._laid_out(run_reference.build(self._graph))
        return self._plain

    def _laid_out(self, steps: list[tuple[Node, Any]]) -> Steps:
        last = {name: i for i, step in enumerate(steps) for name in reads(*step) if name not in self.outputs}
        drop: list[list[str]] = [[] for _ in steps]
        for name, i in last.items():
            drop[i].append(name)
        return [(node, step, names) for (node, step), names in zip(steps, drop, strict=True)]

    def prepare(self, x: Tensor, of: Node | None = None) -> Tensor:
        """Checks and lays out one input batch."""
        node = of or self.inputs[0]
        dtype = DTYPES[node.attrs["dtype"]]
        check_on_cpu(x, f"packed model: {node.name}")
        if x.dim() != len(node.shape) + 1 or x.shape[1:] != node.shape:
            want = "x".join(str(s) for s in node.shape)
            remedy = ". Resize, or convert again with this example"
            if tuple(x.shape) == node.shape:
                remedy = f": one sample has no batch axis here, give x[None] (1x{want})"
            given = "x".join(str(s) for s in x.shape) or "a single number"
            text = f"packed model: {node.name} is {given}, the model was converted for {want} (any batch){remedy}"
            raise InputError(text, code="input-shape", given=str(list(x.shape)), possible=want)
        if x.is_floating_point() and not dtype.is_floating_point:
            kind = str(node.attrs["dtype"])
            text = f"packed model: {node.name} holds {kind}, got {x.dtype}"
            raise InputError(text, code="input-dtype", given=str(x.dtype), possible=kind)
        return laid_out(x, dtype)

    def environment(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The inputs under their nodes' names, checked."""
        if len(inputs) != len(self.inputs):
            names = ", ".join(n.name for n in self.inputs)
            text = f"packed model: takes {len(self.inputs)} inputs ({names}), got {len(inputs)}"
            raise InputError(text, code="input-count")
        env = {node.name: self.prepare(x, node) for node, x in zip(self.inputs, inputs, strict=True)}
        if len({x.shape[0] for x in env.values()}) > 1:
            raise InputError("packed model: its inputs differ in the size of the batch, axis 0", code="input-shape")
        return env

    def held(self) -> list[Tensor]:
        """The tensors of the file, in its order."""
        return [self.get_buffer(name) for name in self._keys.values()]

    def forward(self, *inputs: Tensor) -> Any:
        if torch.compiler.is_compiling():
            given = [x.detach() for x in inputs]
            found = torch.ops.bitwright.packed(given, self.held(), self.graph_text, self._answers)
            return self._in_structure(found)
        return self.run(self.environment(*inputs))

    def run(self, env: dict[str, Tensor]) -> Any:
        """The answer for inputs by name, laid out: where a graph is one layer, of any size that the layer takes."""
        return self._in_structure(self.answers(env))

    @torch.no_grad()
    def answers(self, env: dict[str, Tensor]) -> list[Tensor]:
        """The outputs as a flat list, whatever structure the trained net returns."""
        far = [x for x in env.values() if x.is_floating_point() and not self._near(x)]
        broken = [x.isnan().flatten(1).any(1) if x.dim() > 1 else x.isnan() for x in far]
        for _, step, forget in self.folded_steps() if far else self._joined():
            step(env)
            for name in forget:
                del env[name]
        for mask in broken:
            if bool(mask.any()):
                env |= {name: _marked(env[name], mask) for name in self.outputs}
        return [env[o] for o in self.outputs]

    def _in_structure(self, found: list[Tensor]) -> Any:
        return found[0] if self.structure == 0 else _filled(self.structure, found)

    def _near(self, x: Tensor) -> bool:
        """Whether no number is NaN, infinite or so large that a fused step could give another result."""
        if self.backend == "native" and x.dtype is torch.float32:
            return within(x, LIMIT)
        if x.numel() == 0:
            return True
        low, high = torch.aminmax(x)
        return float(low) >= -LIMIT and float(high) <= LIMIT

    def explain(self, measure: bool = False) -> Explanation:
        """How each layer with codes runs, and the predicted and measured time of every way; `print` it.

        measure  True: times every way on this CPU (seconds), keeps the times for nets that are loaded later, and takes the fastest.
                 All ways give the same answers
        """
        from bitwright.engine.planner import explain

        return explain(self, measure)

    def forget_steps(self) -> None:
        """Fuses and lays out anew at the next call: the tensors, or the plan of this CPU, have changed."""
        self._steps = self._whole = self._plain = self._runtime = None

    @torch.no_grad()
    def values(self, env: dict[str, Tensor], plain: bool = False) -> dict[str, Tensor]:
        """Every value of one run, for checks. plain: of the folded graph in plain torch."""
        for _, step, _ in self.folded_steps() if plain else self.steps():
            step(env)
        return env

    def __getstate__(self) -> dict[str, Any]:
        # kernel plans hold raw pointers: they are made again
        return {**self.__dict__, "_steps": None, "_whole": None, "_plain": None, "_runtime": None}

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
    raise InputError(
        f"{what} is {given}; possible: a dense tensor of real numbers on the CPU", code="input-dtype", given=given
    )


def laid_out(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """An input as the operators read it; pixels as k / 255."""
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    if x.dtype is dtype and x.is_contiguous(memory_format=layout):
        return x
    pixels = x.dtype == torch.uint8 and dtype == torch.float32  # as stored; the first layer's codes are k itself
    x = x.to(dtype) / 255 if pixels else x.to(dtype)
    return x.contiguous(memory_format=layout)


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
