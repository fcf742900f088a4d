"""Laws of state: evaluation is a pure function of the state dict; copies work; options are data."""

from __future__ import annotations

import copy
import io
import json
import pickle
import tomllib
from typing import Any

import torch
from torch import Tensor

from bitwright.nn import SlotLayer
from bitwright.parts.registry import options_of
from bitwright.testing.case import Case, inputs, train_step
from bitwright.testing.law import law, require


def _reloaded(layer: SlotLayer, case: Case) -> SlotLayer:
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)
    fresh = case.layer()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh.eval()


def _same(one: dict[str, Tensor], two: dict[str, Tensor]) -> list[str]:
    return [k for k in one.keys() | two.keys() if k not in one or k not in two or not torch.equal(one[k], two[k])]


@law("evaluation is a pure function of the state dict: no change, twice the same, save and load the same")
def evaluation(case: Case) -> None:
    layer = case.layer()
    for trained in (False, True):
        if trained:
            train_step(layer, inputs())
        layer.eval()
        before = copy.deepcopy(layer.state_dict())
        x, other = inputs(), inputs(batch=2)
        first = layer(x)
        layer(other)
        with torch.no_grad():
            require(torch.equal(first, layer(x)), "two evaluations differ")
        changed = _same(before, layer.state_dict())
        require(not changed, f"evaluation changed {', '.join(changed)}")
        require(
            torch.equal(first, _reloaded(layer, case)(x)),
            f"a loaded state dict evaluates differently ({trained=})",
        )


@law("an entry of a batch does not depend on the others in evaluation", lambda case: case.slot == "x")
def batch_free(case: Case) -> None:
    layer = case.layer().eval()
    x = inputs(batch=4)
    part = case.of(layer)
    for other in (x, 10 * x, torch.zeros_like(x)):
        batch = torch.cat([x[:1], other[1:]])
        require(torch.equal(part(batch)[:1], part(x[:1])), "the first sample changes with its neighbors")


@law("deepcopy and pickle work, also right after a training step")
def copies(case: Case) -> None:
    layer = case.layer()
    x = inputs()
    for trained in (False, True):
        if trained:
            train_step(layer, x)
            layer.train()
            layer(x).sum().backward()
        twins = {"deepcopy": copy.deepcopy(layer), "pickle": pickle.loads(pickle.dumps(layer))}
        y = layer.eval()(x)
        for word, twin in twins.items():
            require(torch.equal(y, twin.eval()(x)), f"{word} evaluates differently ({trained=})")
            require(not _same(layer.state_dict(), twin.state_dict()), f"{word} has another state ({trained=})")


def toml_value(value: Any) -> str:
    """Numbers, texts, truth values and lists of them, as TOML writes them.

    >>> toml_value([0.5, "a", True])
    '[0.5, "a", true]'
    """
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_value(v) for v in value)}]"
    if isinstance(value, (bool, str, int, float)):
        return json.dumps(value)
    raise TypeError(f"{value!r} is no TOML value")


@law("options survive TOML and back, defaults too")
def options(case: Case) -> None:
    part = case.build()
    spec: Any = part.spec
    require(isinstance(spec, dict), f"spec is {spec!r}")
    require(spec["part"] in (case.part, "float"), f"spec says {spec['part']}")
    given = {k: v for k, v in spec.items() if k != "part"}
    for chosen in (given, {k: v for k, v in {**options_of(case.part), **given}.items() if v is not None}):
        text = "".join(f"{k} = {toml_value(v)}\n" for k, v in chosen.items())
        read = tomllib.loads(text)
        twin_case = Case(case.part, case.slot, read)
        twin = twin_case.build()
        require(
            twin.spec
            == {
                "part": spec["part"],
                **{k: list(v) if isinstance(v, tuple) else v for k, v in chosen.items()},
            },
            f"{chosen} came back as {twin.spec}",
        )
        layer = case.layer().eval()
        other = twin_case.layer().eval()
        other.load_state_dict(layer.state_dict())
        x = inputs()
        require(torch.equal(layer(x), other(x)), f"{text!r} builds another part")
