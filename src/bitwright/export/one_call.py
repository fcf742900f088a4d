"""Operators of ours that can run one after the other become one operator, `Run`: onnxruntime spends about a microsecond on each of its own.

A file says what `Run` means as it does for every operator of ours, by a function: the operators that it stands for. `Run` is given
a program, a text that names them once more for the library (csrc/ort_run.h). Its values are numbered, the inputs of `Run` first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from bitwright.export.functions import OPERATORS, own

NAMES = ("Run", *(f"Run{i}" for i in range(2, 9)))  # as the library has them; one function of a file, so one list, each
OURS = {f.name for f in OPERATORS}


def in_one_call(proto: Any) -> None:
    """Replaces the longest lists of our operators. Of the types of values, the file keeps those that `Run` cannot tell."""
    graph = proto.graph
    types = {value.name: value for value in graph.value_info}
    del graph.value_info[:]
    parts = _parts(graph)
    chosen = sorted((part for part in parts if _ours(part[0]) and len(part) > 1), key=len, reverse=True)[: len(NAMES)]
    results, names, nodes = {value.name for value in graph.output}, iter(NAMES), []
    for part in parts:
        if part not in chosen:
            nodes += part
            continue
        inside = _made(part)
        inputs = [value for value in _read(part) if value not in inside]
        read = set(_read(node for other in parts if other is not part for node in other)) | results
        outputs = [value for value in inside if value in read]
        nodes.append(_run(proto, next(names), part, inputs, outputs))
        graph.value_info.extend(types[value] for value in outputs if value in types)
    del graph.node[:]
    graph.node.extend(nodes)


def _parts(graph: Any) -> list[list[Any]]:
    """Copies of all nodes in an order in which they can run, in lists: nodes of others, ours, of others, ..."""
    known = {"", *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    left = [type(node).FromString(node.SerializeToString()) for node in graph.node]
    parts: list[list[Any]] = []
    while left:
        before = len(left)
        for own_turn in (False, True):
            part, later = [], []
            for node in left:
                fits = _ours(node) == own_turn and known.issuperset(_read([node]))
                (part if fits else later).append(node)
                known.update(node.output if fits else ())
            left = later
            parts += [part] if part else []
        assert len(left) < before, "a node reads what no node makes"
    return parts


def _ours(node: Any) -> bool:
    return node.domain == own.domain and node.op_type in OURS


def _made(nodes: Iterable[Any]) -> list[str]:
    return [value for node in nodes for value in node.output]


def _read(nodes: Iterable[Any]) -> list[str]:
    """What nodes read, once each; the branches of a node may read what their graph does not make."""
    found: dict[str, None] = {}
    for node in nodes:
        found.update(dict.fromkeys(node.input))
        for graph in (a.g for a in node.attribute if a.HasField("g")):
            inside = {*_made(graph.node), *(value.name for value in (*graph.input, *graph.initializer))}
            found.update(dict.fromkeys(value for value in _read(graph.node) if value not in inside))
    return list(found)


def _run(proto: Any, name: str, part: list[Any], inputs: list[str], outputs: list[str]) -> Any:
    """The node; its function and its program are added to the file."""
    from onnx import helper, numpy_helper

    program = f"{name.lower()}_program"
    number = {value: i for i, value in enumerate([program, *inputs, *_made(part)])}
    words: list[Any] = [1 + len(inputs), len(number), len(outputs), *(number[value] for value in outputs), len(part)]
    for node in part:
        words += [node.op_type, *(number[value] for value in (*node.input, *node.output)), len(node.attribute)]
        for attribute in node.attribute:
            given = helper.get_attribute_value(attribute)
            given = list(given) if isinstance(given, (list, tuple)) else [given]
            words += [attribute.name, len(given), *given]
    text = np.frombuffer(" ".join(map(str, words)).encode(), np.uint8)
    proto.graph.initializer.append(numpy_helper.from_array(text, program))
    opsets = [helper.make_opsetid(o.domain, o.version) for o in proto.opset_import]
    proto.functions.append(helper.make_function(own.domain, name, [program, *inputs], outputs, part, opsets))
    return helper.make_node(name, [program, *inputs], outputs, name=name.lower(), domain=own.domain)
