"""A packed net as one operator for `torch.compile` and `torch.export`: `torch.ops.bitwright.packed`; in layer form each
packed layer is one, `torch.ops.bitwright.packed_layer`.

Their arguments hold all that they compute from (inputs, the tensors of the file, the graph), so that an exported program runs in
any process that imports bitwright.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from bitwright.engine.aten_list import DTYPES, WORDS
from bitwright.engine.graph import Graph
from bitwright.engine.store import SIZES, from_json, stored
from bitwright.transforms.forward import version_of

if TYPE_CHECKING:
    from bitwright.engine.packed import PackedModel

_ops = torch.library.Library("bitwright", "FRAGMENT")
_ops.define("packed(Tensor[] inputs, Tensor[] tensors, Tensor text, str answers) -> Tensor[]")
_ops.define(
    "packed_layer(Tensor input, Tensor[] tensors, Tensor text, int channels, int[] window, int[] stride, int[] padding)"
    " -> Tensor"
)
# by the address of `text`: its memory, identity and version of all tensors, the net. Gone with the memory of `text`
_ready: dict[int, tuple[StorageWeakRef, list[tuple[int, int | None]], PackedModel]] = {}
_lock = threading.Lock()


def text_of(graph: Graph, reference: bool, threads: int | None) -> Tensor:
    """uint8: the graph, the names of its tensors in order, and how it is to run."""
    text, tensors = stored(graph)
    backend = "reference" if reference else "auto"
    data = {"graph": text, "tensors": list(tensors), "backend": backend, "threads": threads}
    return torch.frombuffer(bytearray(json.dumps(data).encode()), dtype=torch.uint8)


def answers_of(graph: Graph) -> str:
    """For each answer its sizes for the batches `SIZES` and its type."""
    return json.dumps([[*map(list, sizes), WORDS[dtype]] for *sizes, dtype in graph.answers])


def _net(tensors: Sequence[Tensor], text: Tensor) -> PackedModel:
    from bitwright.engine.packed import PackedModel

    state = [(t.data_ptr(), version_of(t)) for t in (text, *tensors)]
    with _lock:  # threads may call a net for the first time together
        memory, found, net = _ready.get(text.data_ptr(), (None, None, None))
        if net is not None and memory is not None and found == state and not memory.expired():
            return net
        for place in [k for k, (memory, *_) in _ready.items() if memory.expired()]:
            del _ready[place]
        data = json.loads(bytes(text.numpy()))
        graph = from_json(data["graph"], {k: t.detach() for k, t in zip(data["tensors"], tensors, strict=True)})
        net = PackedModel(graph, data["backend"], data["threads"])
        _ready[text.data_ptr()] = StorageWeakRef(text.untyped_storage()), state, net
        return net


def _run(inputs: list[Tensor], tensors: list[Tensor], text: Tensor, answers: str) -> list[Tensor]:
    made, seen = [], {t.untyped_storage().data_ptr() for t in inputs}
    net = _net(tensors, text)
    for y in net.answers(net.environment(*inputs)):
        y = y.contiguous()
        if y.untyped_storage().data_ptr() in seen:  # an operator's answers share no memory
            y = y.clone()
        seen.add(y.untyped_storage().data_ptr())
        made.append(y)
    return made


def _fake(inputs: list[Tensor], tensors: list[Tensor], text: Tensor, answers: str) -> list[Tensor]:
    n, (two, three) = inputs[0].shape[0], SIZES
    return [
        inputs[0].new_empty([a + (n - two) * ((b - a) // (three - two)) for a, b in zip(x, y, strict=True)], dtype=DTYPES[dtype])
        for x, y, dtype in json.loads(answers)
    ]  # fmt: skip


_ops.impl("packed", _run, "CPU")
torch.library.register_fake("bitwright::packed", _fake, lib=_ops)


# -- one layer: its graph takes every size of image --------------------------------------------------------
def _memory(rank: int) -> torch.memory_format:
    return torch.channels_last if rank == 4 else torch.contiguous_format


def _run_layer(input: Tensor, tensors: list[Tensor], text: Tensor, channels: int, *place: list[int]) -> Tensor:
    from bitwright.engine.packed import laid_out

    net = _net(tensors, text)
    (y,) = net.answers({net.inputs[0].name: laid_out(input)})
    return y.contiguous(memory_format=_memory(y.dim()))


def _fake_layer(input: Tensor, tensors: list[Tensor], text: Tensor, channels: int, *place: list[int]) -> Tensor:
    """place: of each axis the window, the stride, the padding of both sides."""
    n, _, *sizes = input.shape
    made = [(s + p - w) // step + 1 for s, w, step, p in zip(sizes, *place, strict=True)]
    return torch.empty(n, channels, *made, device=input.device, memory_format=_memory(input.dim()))


_ops.impl("packed_layer", _run_layer, "CPU")
torch.library.register_fake("bitwright::packed_layer", _fake_layer, lib=_ops)
