"""Laws of the tools: compile without a graph break, export, autocast."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bitwright.testing.case import Case, inputs
from bitwright.testing.law import finite, law, require


@contextmanager
def _fresh() -> Iterator[None]:
    """An empty compile cache; warnings of the tracer about its own code do not concern the part."""
    torch._dynamo.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._dynamo.reset()


@law("torch.compile(fullgraph=True) gives the same output and gradients", slow=True)
def compiled(case: Case) -> None:
    layer, x = case.layer(), inputs()
    with _fresh():
        fast: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
        fast.train()
        fast(x).sum().backward()  # training mode must trace too
        require(layer.weight.grad is None or finite(layer.weight.grad), "the compiled gradient is not finite")
        got = []
        for one in (layer.eval(), fast.eval()):
            layer.zero_grad()
            y = one(x)
            (y * torch.linspace(0.5, 1, y.numel()).reshape(y.shape)).sum().backward()
            got.append([y.detach(), *(p.grad for p in layer.parameters() if p.grad is not None)])
    require(len(got[0]) == len(got[1]), "compiled code leaves other gradients")
    for one, two in zip(*got, strict=True):
        torch.testing.assert_close(two, one)


@law("torch.export traces it, and the exported program gives the same output", slow=True)
def exported(case: Case) -> None:
    layer, x = case.layer().eval(), inputs()
    with _fresh():
        program = torch.export.export(layer, (x,)).module()
        require(torch.equal(program(x), layer(x)), "the exported program gives another output")


@law("bfloat16 autocast is accepted: finite output, float32 gradients of the latents")
def autocast(case: Case) -> None:
    for kind in ("conv", "linear"):
        layer = case.layer(kind).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = layer(inputs(kind))
            again = case.of(layer)(case.tensor(kind).bfloat16()) if case.slot != "gate" else hidden
        require(finite(hidden) and finite(again), f"{kind}: not finite")
        hidden.float().sum().backward()
        for key, p in layer.named_parameters():
            require(
                p.grad is None or (p.grad.dtype == torch.float32 and finite(p.grad)),
                f"{kind}: gradient of {key}",
            )
