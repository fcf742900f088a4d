"""What one call saves in ONNX Runtime: a packed net as its file has it, and with a node for each operator; one image, one thread.

    python bench/one_call.py [--rounds 31]

nodes, us              of the file that `bw.export.onnx` writes
apart_nodes, apart_us  of the same net, operators of ours not put together
saved_us_a_node        (apart_us - us) / (apart_nodes - nodes)

CPU time, both in turn. The lower quartile of the rounds counts, as in overhead.py. Rows go to docs/results/one_call.csv. Needs the
extra `onnx`.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import torch

import bitwright as bw
from bitwright.engine.packed import PackedModel
from bitwright.export import one_call
from bitwright.export.to_onnx import packed_proto
from bitwright.timing import clock_for, interleave
from overhead import measured


def row(model: str, recipe: str, side: int, rounds: int) -> dict[str, Any]:
    net, x = bw.models.create(model), torch.rand(1, 3, side, side)
    bw.apply(net, recipe, x)
    packed = bw.convert(net.eval(), x, threads=1, verify=False).model
    assert isinstance(packed, PackedModel)
    protos = {"": packed_proto(packed, (x,))}
    with patch.object(one_call, "NAMES", ()):
        protos["apart_"] = packed_proto(packed, (x,))
    calls, feed = {}, {protos[""].graph.input[0].name: x.numpy()}
    for name, proto in protos.items():
        session: Any = bw.ort.session(proto.SerializeToString(), threads=1)
        calls[name] = partial(session.run, None, feed)
    found = interleave(calls, rounds=rounds, slice_seconds=0.003, clock=clock_for(1)[0])
    made: dict[str, Any] = {"model": model, "recipe": recipe}
    for name, proto in protos.items():
        made |= {f"{name}nodes": len(proto.graph.node), f"{name}us": round(1e6 * found[name].q1, 1)}
    made["saved_us_a_node"] = round((made["apart_us"] - made["us"]) / (made["apart_nodes"] - made["nodes"]), 2)
    return {**made, "spread": round(found[""].spread, 3), "runs": found[""].runs}


if __name__ == "__main__":
    measured(row, __doc__ or "", "one_call.csv")
