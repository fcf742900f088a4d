"""`torch.ops.bitwright.packed`: a whole packed net as one operator, for `torch.compile` and `torch.export`.

Its arguments hold all that it computes from (inputs, the tensors of the file, the graph), so that an exported program runs in
any process that imports bitwright.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitwright.engine.aten_list import DTYPES
from bitwright.engine.graph import Graph
from bitwright.engine.store import SIZES, from_json, stored

if TYPE_CHECKING:
    from bitwright.engine.packed import PackedModel

LIMIT = 16  # nets kept ready
_ops = torch.library.Library("bitwright", "FRAGMENT")
_ops.define("packed(Tensor[] inputs, Tensor[] tensors, Tensor text, str answers) -> Tensor[]")
_ready: dict[Any, tuple[list[Tensor], PackedModel]] = {}  # by identity and version of the tensors, which stay alive


def text_of(graph: Graph, reference: bool, threads: int | None) -> Tensor:
    """uint8: the graph, the names of its tensors in order, and how it is to run."""
    text, tensors = stored(graph)
    data = {
        "graph": text,
        "tensors": list(tensors),
        "backend": "reference" if reference else "auto",
        "threads": threads,
    }
    return torch.frombuffer(bytearray(json.dumps(data).encode()), dtype=torch.uint8)


def answers_of(graph: Graph) -> str:
    """For each answer its sizes for the batches `SIZES` and its type."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    return json.dumps([[*map(list, sizes), names[dtype]] for *sizes, dtype in graph.answers])


def _state(t: Tensor) -> tuple[int, int]:
    return t.data_ptr(), 0 if t.is_inference() else t._version


def _net(tensors: Sequence[Tensor], text: Tensor) -> PackedModel:
    from bitwright.engine.packed import PackedModel

    held = [text, *tensors]
    key = tuple(map(_state, held))
    if key not in _ready:
        if len(_ready) >= LIMIT:
            _ready.clear()
        data = json.loads(bytes(text.numpy()))
        graph = from_json(data["graph"], {k: t.detach() for k, t in zip(data["tensors"], tensors, strict=True)})
        _ready[key] = held, PackedModel(graph, data["backend"], data["threads"])
    return _ready[key][1]


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
