"""Laws of the code: it holds the values that forward gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitwright.parts.traits import traits_of
from bitwright.testing.case import Case
from bitwright.testing.law import law, require
from bitwright.testing.values import DTYPES
from bitwright.types import Coded


def _encodes(case: Case) -> bool:
    return case.slot != "gate" and case.has("encode") is not None


def exact(code: Coded) -> Tensor:
    """The code's value in float64, so that summing the planes rounds nothing."""
    return code.offset.double() + (code.coef.double() * code.bit).sum(0)


def ulp(dtype: torch.dtype, code: Coded) -> Tensor:
    """Distance of neighbors of `dtype` at the largest magnitude of the grid, per channel if that differs."""
    coef, offset = code.coef.double(), code.offset.double()
    ends = (offset + coef.clamp_min(0).sum(0)).abs(), (offset + coef.clamp_max(0).sum(0)).abs()
    largest = torch.maximum(*ends)
    return torch.where(largest > 0, torch.finfo(dtype).eps * torch.exp2(torch.floor(torch.log2(largest))), 0.0)


@law("encode agrees with forward to one ulp at the largest magnitude; codes are bits without a graph", _encodes)
def encode(case: Case) -> None:
    for kind in ("conv", "linear"):
        for one in DTYPES:
            part = case.build(kind).to(one).eval()
            for label, t in (("random", case.tensor(kind)), ("zeros", torch.zeros(case.shape(kind)))):
                t = t.to(one).requires_grad_()
                code: Coded = part.encode(t)  # type: ignore[operator]
                require(
                    code.bit.dtype == torch.uint8 and code.bit.shape[1:] == t.shape,
                    f"{label}: not uint8 planes of t",
                )
                require(int(code.bit.max()) <= 1, f"{label}: a bit above 1")
                require(
                    not (code.coef.requires_grad or code.offset.requires_grad),
                    f"{label}: the code carries a graph",
                )
                value, said = part(t).detach(), exact(code)
                coarse = max((value.dtype, code.coef.dtype), key=lambda d: torch.finfo(d).eps)
                # the comparison itself rounds in float64
                allowed = ulp(coarse, code) * (2 if coarse == torch.float64 else 1 + 1e-9)
                over = ((value.double() - said).abs() - allowed).max().item()
                require(over <= 0, f"{label} {one} {kind}: code and value differ by {over:.1e} more than one ulp")
                # value() adds the planes in the code's own dtype: half an ulp more for each of two additions
                over = ((code.value().double() - said).abs() - 2 * allowed).max().item()
                require(over <= 0, f"{label} {one} {kind}: value() is off by {over:.1e} more than two ulp")


def _declares_planes(case: Case) -> bool:
    return _encodes(case) and traits_of(case.build()).planes is not None


def _withholds(case: Case) -> bool:
    return case.slot != "gate" and case.has("encode") is None and callable(getattr(case.build(), "encode", None))


@law("a part that has no code with its options refuses to encode", _withholds)
def withheld(case: Case) -> None:
    part: Any = case.build().eval()
    try:
        part.encode(case.tensor())
    except ValueError:
        return
    require(False, "it says that it has no code, and encode gives one")


@law("`planes` is the number of planes of the code", _declares_planes)
def planes(case: Case) -> None:
    part = case.build().eval()
    code: Coded = part.encode(case.tensor())  # type: ignore[operator]
    require(code.planes == part.planes, f"planes={part.planes}, the code has {code.planes}")


@law("a part that encodes declares bits, planes and storage_bits", _encodes)
def declares(case: Case) -> None:
    part = case.build()
    for name in ("bits", "planes", "storage_bits"):
        value = getattr(part, name, None)
        require(isinstance(value, int) and value >= 1, f"{name}={value!r}")
    require(2**part.storage_bits <= 2**32 and part.bits <= 32, "bits beyond 32")  # type: ignore[operator]


@law(
    "an input that is not a number stays one in training code, and its code is the lowest level",
    lambda case: case.slot == "x" and _encodes(case),
)
def not_a_number(case: Case) -> None:
    part = case.build().eval()
    t = case.tensor()
    t.view(-1)[0] = torch.nan
    value = part(t)
    require(bool(value.view(-1)[0].isnan()), "nan is hidden in evaluation")
    code: Coded = part.encode(t)  # type: ignore[operator]
    require(not int(code.bit.flatten(1)[:, 0].sum()), "the code of nan has a bit")


def _reads_bytes(case: Case) -> bool:
    return traits_of(case.build()).source_codes


@law("uint8 codes k mean the same as floats k / 255", _reads_bytes)
def pixel_bytes(case: Case) -> None:
    k = torch.randint(0, 256, case.shape(), dtype=torch.uint8)
    k.view(-1)[:256] = torch.arange(256, dtype=torch.uint8)
    part = case.build().eval()
    require(torch.equal(part(k), part(k.float() / 255)), "values differ")
    require(torch.equal(part.encode(k).bit, part.encode(k.float() / 255).bit), "codes differ")  # type: ignore[operator]
    for one in DTYPES:
        y = case.layer().to(one)(k)
        require(y.dtype == one, f"a {one} layer gives {y.dtype}")


@law(
    "whole gives integers times a unit: the value of forward to two ulps, without a graph",
    lambda case: case.has("whole") is not None,
)
def whole(case: Case) -> None:
    for kind in ("conv", "linear"):
        for one in (torch.float32, torch.float64):
            part = case.build(kind).to(one).eval()
            t = case.tensor(kind).to(one).requires_grad_()
            number, unit = part.whole(t)  # type: ignore[operator]
            require(not (number.requires_grad or unit.requires_grad), "the whole numbers carry a graph")
            require(bool((number == number.round()).all()), f"{one} {kind}: not whole numbers")
            value = part(t).detach()
            allowed = 2 * torch.finfo(one).eps * value.abs().amax().clamp_min(torch.finfo(one).tiny)
            over = (number * unit - value).abs().max()
            require(bool(over <= allowed), f"{one} {kind}: whole * unit and value differ by {over:.1e}")
