"""Laws over the table of operators: every record runs as torch's operator, says its shape, is stored and read back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitwright.engine import aten_list
from bitwright.engine.graph import Graph, Node
from bitwright.engine.operators import OPERATORS, bounds, function, monotone
from bitwright.engine.packed import PackedModel
from bitwright.engine.store import check_graph, from_json, stored
from bitwright.errors import InputError

W, V = torch.linspace(-1, 1, 4 * 4 * 9).reshape(4, 4, 3, 3), torch.tensor([0.5, -1.0, 2.0, 0.25])
POOL = {"rank": 2, "kernel": [2, 3], "stride": [2, 1], "padding": [1, 0]}
CONV = {"stride": [2, 1], "padding": [1, 0], "dilation": [1, 2], "groups": 1}
# op -> attributes, tensors, the operator of torch; all on values [N, 4, 6, 6]
EXAMPLES: dict[str, tuple[dict[str, Any], dict[str, Tensor], Callable[..., Tensor]]] = {
    "affine": ({"last": False}, {"scale": V, "add": V + 1}, lambda x: x * V[:, None, None] + (V + 1)[:, None, None]),
    "conv": ({"rank": 2, **CONV}, {"weight": W, "bias": V}, lambda x: F.conv2d(x, W, V, (2, 1), (1, 0), (1, 2))),
    "conv_transpose": (
        {**CONV, "output_padding": [1, 0]},
        {"weight": W},
        lambda x: F.conv_transpose2d(x, W, None, (2, 1), (1, 0), (1, 0), 1, (1, 2)),
    ),
    "linear": ({}, {"weight": W[0, 0, :, :2].repeat(1, 3)}, lambda x: x @ W[0, 0, :, :2].repeat(1, 3).T),
    "relu": ({}, {}, torch.relu),
    "clamp": ({"low": None, "high": 0.25}, {}, lambda x: x.clamp(max=0.25)),
    "prelu": ({}, {"slope": V.abs()}, lambda x: F.prelu(x, V.abs())),
    "max_pool": (
        {**POOL, "dilation": [1, 1], "ceil": True},
        {},
        lambda x: F.max_pool2d(x, (2, 3), (2, 1), (1, 0), 1, True),
    ),
    "adaptive_avg_pool": ({"rank": 2, "size": [2, 3]}, {}, lambda x: F.adaptive_avg_pool2d(x, (2, 3))),
    "flatten": ({"start": 2, "end": 3}, {}, lambda x: x.flatten(2)),
    "slice": ({"dim": 2, "start": -3, "end": 6, "step": 2}, {}, lambda x: x[:, :, -3::2]),
    "pad": ({"pads": [1, 2, 0, 1], "value": 2.0, "mode": "constant"}, {}, lambda x: F.pad(x, (1, 2, 0, 1), value=2.0)),
    "add": ({}, {}, torch.add),
    "add_scalar": ({"value": -0.3}, {}, lambda x: x - 0.3),
    "mul_scalar": ({"value": -2.0}, {}, lambda x: x * -2),
    "aten": ({"call": "roll.default", "args": {"self": 0, "shifts": [1], "dims": [3]}}, {}, lambda x: x.roll(1, 3)),
}


def graph_of(op: str) -> Graph:
    attrs, tensors, _ = EXAMPLES[op]
    count = {-1: 2, None: 1}.get(OPERATORS[op].inputs, OPERATORS[op].inputs)
    assert count is not None
    nodes = [Node("input", "input", [], {"shape": [4, 6, 6], "dtype": "float32"})]
    nodes += [Node(op, "n", ["input"] * count, dict(attrs)), Node("output", "output", ["n"])]
    graph = Graph(nodes, {})
    for role, value in tensors.items():
        graph.put(nodes[1], role, value)
    check_graph(graph)
    return graph


def test_every_float_operator_has_its_example() -> None:
    gates = {"saliency", "winners", "switch", "channel_gate"}  # values of other shapes: tests/test_packed_gates.py
    assert set(EXAMPLES) == {op for op, record in OPERATORS.items() if record.run is not None} - gates


@pytest.mark.parametrize("op", EXAMPLES)
def test_it_runs_as_torchs_operator_in_the_shape_it_says(op: str) -> None:
    graph = graph_of(op)
    node = graph.nodes[1]
    run = function(node, graph)
    for n in (1, 3):
        x = torch.randn(n, 4, 6, 6)
        xs = [x + i for i in range(len(node.inputs))]
        torch.testing.assert_close(run(*xs), EXAMPLES[op][2](*xs))
        assert run(*xs).shape == (n, *node.shape)


@pytest.mark.parametrize("op", EXAMPLES)
def test_it_is_stored_and_read_back(op: str) -> None:
    graph = graph_of(op)
    again = from_json(*stored(graph))
    assert stored(again)[0] == stored(graph)[0] and again.nodes[1].shape == graph.nodes[1].shape
    assert set(graph.nodes[1].attrs) <= set(again.nodes[1].attrs)


@pytest.mark.parametrize("op", EXAMPLES)
def test_its_bound_holds(op: str) -> None:
    graph = graph_of(op)
    x = (torch.rand(50, 4, 6, 6) * 2 - 1).sign() * 7
    found = function(graph.nodes[1], graph)(*[x] * len(graph.nodes[1].inputs))
    assert float(found.abs().max()) <= bounds(graph, 7.0)["n"] * (1 + 1e-6)


@pytest.mark.parametrize("op", [op for op in EXAMPLES if OPERATORS[op].monotone])
def test_what_thresholds_may_take_rises_or_falls(op: str) -> None:
    graph = graph_of(op)
    assert monotone(graph.nodes[1], graph)
    x = torch.linspace(-9, 9, 400).reshape(-1, 1, 1, 1).expand(-1, 4, 6, 6)
    steps = function(graph.nodes[1], graph)(x).diff(dim=0)
    assert bool(((steps >= 0).all(0) | (steps <= 0).all(0)).all())


# -- the generic node ------------------------------------------------------------------------------------------
def generic(call: str, args: Any, shape: list[int] | None = None, **attrs: Any) -> PackedModel:
    nodes = [Node("input", "input", [], {"shape": shape or [4, 6], "dtype": "float32"})]
    nodes += [Node("aten", "n", ["input"], {"call": call, "args": args, **attrs}), Node("output", "o", ["n"])]
    return PackedModel(Graph(nodes, {}))


def test_arguments_are_written_by_their_type() -> None:
    x = torch.randn(3, 4, 6)
    assert torch.equal(generic("expand.default", {"self": 0, "size": ["N", 4, 6]})(x), x)
    assert torch.equal(generic("reshape.default", {"self": 0, "shape": ["2*N", 2, 6]})(x), x.reshape(6, 2, 6))
    assert torch.equal(
        generic("full.default", {"size": ["N+1"], "fill_value": "-inf"})(x), torch.full((4,), -torch.inf)
    )
    assert generic("_to_copy.default", {"self": 0, "dtype": "bool"})(x).dtype == torch.bool
    assert torch.equal(generic("topk.default", {"self": 0, "k": 2, "dim": -1}, item=1)(x), x.topk(2, -1)[1])


@pytest.mark.parametrize(
    ("call", "args"),
    [
        ("rand.default", {"size": [2]}),
        ("relu_.default", {"self": 0}),
        ("nonzero.default", {"self": 0}),
        ("as_strided.default", {"self": 0, "size": [1 << 40], "stride": [1]}),
        ("empty.memory_format", {"size": [4]}),
        ("empty_like.default", {"self": 0}),
        ("system.default", {}),
        ("relu.out", {"self": 0}),
        ("relu.__class__", {"self": 0}),
        ("relu", {"self": 0}),
        ("relu.default", {}),
        ("relu.default", {"self": 1}),
        ("relu.default", {"self": "c0"}),
        ("relu.default", {"self": 0.0}),
        ("relu.default", {"self": True}),
        ("relu.default", [0]),
        ("relu.default", {"self": 0, "more": 1}),
        ("expand.default", {"self": 0, "size": [1 << 30, "N", 4, 6]}),
        ("repeat.default", {"self": 0, "repeats": [1 << 20, 1 << 20, 1]}),
        ("constant_pad_nd.default", {"self": 0, "pad": [1 << 40, 1 << 40]}),
        ("full.default", {"size": [1 << 62, 4], "fill_value": 1}),
        ("full.default", {"size": ["N"], "fill_value": "system"}),
        ("expand.default", {"self": 0, "size": ["N*N", 4, 6]}),
        ("expand.default", {"self": 0, "size": ["9999999999*N", 4, 6]}),
        ("_to_copy.default", {"self": 0, "dtype": "complex64"}),
        ("_to_copy.default", {"self": 0, "device": "cuda"}),
        ("topk.default", {"self": 0, "k": 2}),
        ("masked_fill.Tensor", {"self": 0, "mask": 0, "value": 0}),
        ("index.Tensor", {"self": 0, "indices": [0]}),
        ("einsum.default", {"equation": "x" * 500, "tensors": [0]}),
    ],
)
def test_a_call_that_is_not_so_is_one_line(call: str, args: Any) -> None:
    with pytest.raises(InputError) as error:
        generic(call, args)
    assert "\n" not in str(error.value) and str(error.value).startswith("packed file: node 1 'n' (aten)")


def test_what_a_call_makes_on_its_way_is_bounded() -> None:
    """2^30 products a sample on the way to a result of one number."""
    with pytest.raises(InputError, match="values a sample"):
        generic("einsum.default", {"equation": "nac,nbc,nad,nbd->n", "tensors": [0, 0, 0, 0]}, [1 << 15, 1])


VALUES = st.recursive(
    st.sampled_from(
        [0, 1, 2, -1, 3, 7, 0.5, True, False, None, "N", "2*N", "N-1", "inf", "float16", "int64", "c0", "none"]
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(aten_list.ALLOWED)), st.data())
def test_no_arguments_break_a_check(name: str, data: st.DataObject) -> None:
    """Whatever stands in a file: refused in one line, or a call that gives the shape that the check worked out."""
    call = f"{name}.{data.draw(st.sampled_from(getattr(torch.ops.aten, name).overloads()))}"
    try:
        kinds = aten_list.arguments(call)
        items = len(aten_list.overload(call)._schema.returns)
    except aten_list.Unlisted:
        return
    args = {}
    for k, (kind, optional) in kinds.items():
        if not optional or data.draw(st.booleans()):
            args[k] = 0 if kind == "Tensor" and data.draw(st.booleans()) else data.draw(VALUES)
    try:
        model = generic(call, args, None, **({} if items == 1 else {"item": 0}))
        shape = list(model.graph.nodes[1].shape)
        y = model(torch.ones(2, 4, 6))
    except (InputError, RuntimeError, IndexError, NotImplementedError, ValueError) as error:
        assert not isinstance(error, InputError) or "\n" not in str(error)
        return
    assert y.dim() == 0 or [aten_list.read(s, "int", [], {}, 2) for s in shape] == list(y.shape[1:])
