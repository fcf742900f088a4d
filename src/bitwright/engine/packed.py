"""The packed network: a plain module that walks its graph. No user code, no compilation, one tensor in, one out."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.engine import native, run_native, run_reference
from bitwright.engine.fuse import fuse
from bitwright.engine.graph import Graph, Node
from bitwright.engine.store import from_json, stored
from bitwright.errors import BitwrightWarning, InputError

BACKENDS = ("auto", "native", "reference")


_said: set[str] = set()


def _best() -> str:
    """The compiled kernels where they are; else plain torch, said once in a process."""
    if native.available():
        return "native"
    if native.notice() not in _said:
        _said.add(native.notice())
        warnings.warn(
            f"{native.notice()}; packed nets run on plain torch, right but slow", BitwrightWarning, stacklevel=4
        )
    return "reference"


class PackedModel(nn.Module):
    """Runs a folded graph, fused at first use, on a backend.

    backend  "native": the compiled kernels; "reference": plain torch, the oracle; "auto": native where it is built
    threads  of the kernels per call; None: one for small layers, else torch's number

    The state dict holds the packed tensors (bits, scales, float layers). Evaluation only: there is nothing to train.
    """

    def __init__(self, graph: Graph, backend: str = "auto", threads: int | None = None) -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise InputError(f"backend {backend!r} is none of {', '.join(BACKENDS)}", code="backend")
        if backend == "native" and not native.available():
            raise InputError(f"backend 'native': {native.notice()}", code="backend")
        self.backend = backend if backend != "auto" else _best()
        self.threads = threads
        self._graph = graph if graph.checked else from_json(*stored(graph))
        self._runtime: Graph | None = None
        tensors = stored(self._graph)[1]
        self._keys = {k: k.replace(".", "/") for k in tensors}  # a dot would nest modules
        self._steps: list[tuple[Node, Any, list[str]]] | None = None
        self._sample = self._graph.nodes[0].shape
        self.output_name = self._graph.nodes[-1].inputs[0]
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
    def graph_json(self) -> str:
        """Its text in a file."""
        return stored(self._graph)[0]

    @property
    def runtime(self) -> Graph:
        """The graph that runs: fused, once."""
        if self._runtime is None:
            self._runtime = fuse(self._graph)
        return self._runtime

    def _build(self) -> list[tuple[Node, Any, list[str]]]:
        graph = self.runtime
        out = self.output_name
        steps = run_native.build(graph, self.threads) if self.backend == "native" else run_reference.build(graph)
        last: dict[str, int] = {}
        for i, (node, _) in enumerate(steps):
            for name in node.inputs:
                last[name] = i
        last.pop(out, None)
        drop: list[list[str]] = [[] for _ in steps]
        for name, i in last.items():
            drop[i].append(name)
        return [(node, step, names) for (node, step), names in zip(steps, drop, strict=True)]

    def steps(self) -> list[tuple[Node, Any, list[str]]]:
        """(node, function on the environment, values to forget afterwards), built once."""
        if self._steps is None:
            self._steps = self._build()
        return self._steps

    def prepare(self, x: Tensor) -> Tensor:
        """Checks and lays out one input batch."""
        if tuple(x.shape[1:]) != self._sample:
            want = "x".join(str(s) for s in self._sample)
            raise InputError(
                f"packed model: input is {'x'.join(str(s) for s in x.shape)}, the model was converted for {want} "
                "(any batch). Resize, or convert again with this example",
                code="input-shape",
                given=str(list(x.shape)),
                possible=want,
            )
        if x.dtype == torch.uint8:  # pixels as stored; the first layer's codes are k itself
            x = x.float() / 255
        elif x.dtype != torch.float32:
            x = x.float()
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        env = {"input": self.prepare(x)}
        for _, step, forget in self.steps():
            step(env)
            for name in forget:
                del env[name]
        return env[self.output_name]

    @torch.no_grad()
    def values(self, x: Tensor) -> dict[str, Tensor]:
        """Every value of one run, for checks."""
        env = {"input": self.prepare(x)}
        for _, step, _ in self.steps():
            step(env)
        return env

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_steps"] = state["_runtime"] = None  # kernel plans hold raw pointers: they are made again
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedModel:
        return PackedModel(self._graph.copy(), self.backend, self.threads)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for key, name in self._keys.items():
            self._graph.tensors[key] = self.get_buffer(name)
        self._steps = self._runtime = None  # fused and laid out from the old tensors

    def train(self, mode: bool = True) -> PackedModel:
        """Stays in evaluation: there is nothing to train."""
        return super().train(False)

    def extra_repr(self) -> str:
        ops = [n.op for n in self._graph.nodes]
        coded = sum(op.startswith("coded") for op in ops)
        return f"{len(ops)} nodes, {coded} coded layers, backend={self.backend}"
