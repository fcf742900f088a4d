"""Laws of the optional moments: after_step, penalty, observe, density."""

from __future__ import annotations

import torch

from bitwright.parts.moments import moment
from bitwright.parts.traits import traits_of
from bitwright.testing.case import Case, inputs, train_step
from bitwright.testing.law import finite, law, require
from bitwright.testing.values import DTYPES


def _steps(case: Case) -> bool:
    return case.slot in ("w", "b") and case.has("after_step") is not None


@law("after_step keeps shape, dtype and finiteness, and works on a Parameter", _steps)
def after_step(case: Case) -> None:
    for kind in ("conv", "linear"):
        for channels in (4, 1):
            for one in DTYPES:
                layer = case.layer(kind, channels).to(one)
                train_step(layer, inputs(kind, channels).to(one))
                latent = layer.weight if case.slot == "w" else layer.bias
                assert latent is not None
                require(latent.requires_grad and latent.is_leaf, "the latent is no longer a leaf that learns")
                require(latent.dtype == one and finite(latent), f"{kind} {one}: dtype or finiteness lost")


def _projects(case: Case) -> bool:
    return _steps(case) and traits_of(case.build()).projects


@law("after_step declared a projection: twice is once, where nothing is clipped", _projects)
def projection(case: Case) -> None:
    step = moment(case.build(), "after_step")
    assert step is not None
    latent = case.tensor() * 0.2
    step(latent)
    once = latent.clone()
    step(latent)
    require(bool((latent - once).abs().max() <= 1e-6), "the second application moves the latent")


def _extras(case: Case) -> bool:
    return any(case.has(name) is not None for name in ("penalty", "observe", "density"))


@law("penalty is a finite scalar, density lies in 0..1, observe leaves a finite state that serves", _extras)
def moments(case: Case) -> None:
    layer = case.layer()
    part = case.of(layer)
    observe = moment(part, "observe")
    if observe is not None:
        for batch in (4, 1, 0):
            observe(case.tensor(batch=batch))
        before = {k: v.clone() for k, v in part.state_dict().items()}
        observe(case.tensor(batch=0)[:0])
        for key, kept in part.state_dict().items():
            require(finite(kept), f"observe left {key} not finite")
            require(torch.equal(kept, before[key]), f"observing nothing changed {key}")
    train_step(layer, inputs())
    layer.eval()(inputs())
    penalty, density = moment(part, "penalty"), moment(part, "density")
    if penalty is not None:
        value = penalty()
        require(value.dim() == 0 and finite(value), f"penalty is {value}")
    if density is not None:
        require(0 <= density() <= 1, f"density is {density()}")
