"""Laws of the value: shape, dtype, finiteness, grid, memory layout, masks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from torch import Tensor

from bitwright.parts.moments import moment
from bitwright.parts.registry import make_slot, options_of
from bitwright.parts.traits import traits_of
from bitwright.testing.case import OUT, Case, inputs
from bitwright.testing.law import finite, law, require

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _alone(case: Case) -> bool:
    return case.slot != "gate"


@law("same shape and dtype in float16, bfloat16, float32 and float64")
def dtype(case: Case) -> None:
    for kind in ("conv", "linear") if _alone(case) else ():
        for mode in (True, False):
            for one in DTYPES:
                t = case.tensor(kind).to(one)
                value = case.build(kind).to(one).train(mode)(t)
                require(value.dtype == one, f"{one} in, {value.dtype} out")
                require(value.shape == t.shape, f"{tuple(t.shape)} in, {tuple(value.shape)} out")
    for one in DTYPES:
        layer = case.layer().to(one)
        x = inputs().to(one)
        y = layer(x)
        require(y.dtype == one, f"a layer reads {one} and gives {y.dtype}")
        require(y.shape == (x.shape[0], OUT, 6, 6), f"a layer gives {tuple(y.shape)}")


def _awkward(case: Case) -> Iterator[tuple[str, Tensor, int]]:
    full = case.tensor()
    for label, t in (
        ("zeros", torch.zeros_like(full)),
        ("minus zeros", -torch.zeros_like(full)),
        ("ones", torch.ones_like(full)),
        ("a negative constant", torch.full_like(full, -0.3)),
        ("tiny values", full * 1e-30),
        ("large values", full * 1e4),
        ("half zeros", full * (torch.rand_like(full) < 0.5)),
    ):
        yield label, t, full.shape[1] if case.slot in ("w", "x") else 4
    if case.slot in ("w", "x"):
        yield "one channel", case.tensor(channels=1), 1
        yield "one channel of zeros", torch.zeros_like(case.tensor(channels=1)), 1
    if case.slot in ("x", "g"):
        yield "a batch of one", case.tensor(batch=1), 4
        yield "an empty batch", case.tensor(batch=0), 4


@law("finite value and gradient for zeros, constants, one channel, one sample, no sample", _alone)
def finite_values(case: Case) -> None:
    for mode in (True, False):
        for label, t, channels in _awkward(case):
            t = t.clone().requires_grad_()
            part = case.build(channels=channels).train(mode)
            value = part(t)
            require(value.shape == t.shape, f"{label}: {tuple(t.shape)} in, {tuple(value.shape)} out")
            require(finite(value), f"{label}: a value is not finite (training={mode})")
            value.sum().backward()
            require(t.grad is None or finite(t.grad), f"{label}: a gradient is not finite (training={mode})")
            for key, kept in part.state_dict().items():
                require(finite(kept), f"{label}: state {key} is not finite (training={mode})")


@law("a layer takes one sample and no sample")
def finite_layer(case: Case) -> None:
    for batch in (1, 0):
        for mode in (True, False):
            layer = case.layer().train(mode)
            y = layer(inputs(batch=batch))
            require(
                y.shape == (batch, OUT, 6, 6) and finite(y),
                f"batch of {batch}: {tuple(y.shape)}, or not finite",
            )


def _declares_storage(case: Case) -> bool:
    if not _alone(case):
        return False
    part = traits_of(case.build())
    return part.storage_bits is not None and part.bits not in (None, 32)


def channels_of(case: Case, t: Tensor) -> Tensor:
    """[channels, everything else]: rows of w, channels of x."""
    return (t if case.slot in ("w", "b") else t.transpose(0, 1)).reshape(t.shape[int(case.slot in ("x", "g"))], -1)


@law("no more distinct values per channel (or group of it with a scale) than 2**storage_bits", _declares_storage)
def grid(case: Case) -> None:
    for kind in ("conv", "linear"):
        part = case.build(kind).eval()
        bits = part.storage_bits
        assert isinstance(bits, int)
        value = part(case.tensor(kind, batch=40))
        rows = channels_of(case, value.detach())
        most = max(some.unique().numel() for row in rows for some in row.split(traits_of(part).group or row.numel()))
        require(most <= 2**bits, f"{most} distinct values in a channel, storage_bits={bits}")


@law(
    "channels_last, transposed, sliced and expanded memory give the value and gradient of contiguous memory",
    _alone,
)
def memory(case: Case) -> None:
    base = case.tensor().double()
    twice = torch.cat([base, -base])
    forms = {
        "transposed": base.transpose(0, -1).contiguous().transpose(0, -1),
        "sliced": torch.stack([base, -base], -1)[..., 0],
        "sliced rows": torch.stack([base, -base], 1).flatten(0, 1)[::2],
        "a view": twice[: base.shape[0]],
        "expanded": base[:1].expand_as(base),
    }
    if base.dim() == 4:
        forms["channels_last"] = base.contiguous(memory_format=torch.channels_last)
        forms["expanded channels"] = base[:, :1].expand_as(base)
    for label, form in forms.items():
        part = case.build().double().eval()
        got: list[tuple[Tensor, Tensor]] = []
        for t in (form.detach(), form.detach().contiguous()):
            t = t.requires_grad_()
            value = part(t)
            (value * torch.linspace(0.5, 2, value.numel(), dtype=torch.float64).reshape(value.shape)).sum().backward()
            got.append((value.detach(), torch.zeros_like(value) if t.grad is None else t.grad))
        for word, one, other in zip(("value", "gradient"), *got, strict=True):
            gap = (one - other).abs().max().item()
            require(gap < 1e-12, f"{label}: {word} differs by {gap:.1e} from contiguous")


def _accepts_keep(case: Case) -> bool:
    if case.slot not in ("w", "b"):
        return False
    return "keep" in inspect.signature(case.build().forward).parameters


@law("keep of ones changes nothing; values of pruned entries never show in the others", _accepts_keep)
def keep(case: Case) -> None:
    part = case.build().eval()
    t = case.tensor()
    encode = moment(part, "encode")
    require(
        torch.equal(part(t), part(t, keep=torch.ones_like(t, dtype=torch.uint8))),
        "keep of ones changes a value",
    )
    chosen = (torch.rand_like(t) < 0.6).to(torch.uint8)
    chosen[0] = 0
    plain = part(t, keep=chosen)
    require(finite(plain), "a fully pruned filter gives a value that is not finite")
    for label, fill in (("0", 0.0), ("30", 30.0), ("inf", torch.inf), ("nan", torch.nan)):
        other = torch.where(chosen.bool(), t, torch.full_like(t, fill))
        seen = part(other, keep=chosen)
        require(
            torch.equal(plain[chosen.bool()], seen[chosen.bool()]),
            f"pruned entries set to {label} change the others",
        )
        if encode is not None:
            one, two = encode(t, keep=chosen).value(), encode(other, keep=chosen).value()
            require(
                torch.equal(one[chosen.bool()], two[chosen.bool()]),
                f"pruned entries set to {label} change the code",
            )


@law("bits=32 gives an empty slot", lambda case: "bits" in options_of(case.part))
def bits32(case: Case) -> None:
    layer = case.layer()
    made = make_slot({"part": case.part, **case.options, "bits": 32}, case.slot, layer)
    require(made is None, f"slot holds {type(made).__name__}")
