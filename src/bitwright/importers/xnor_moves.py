"""Where each key of the XNOR-Net port goes in our models, and how its value changes on the way."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bitwright.importers.mapping import Change, Move, not_needed

EPS = 1e-4  # of their norms; ours have torch's 1e-5
LEAST_GAIN = 0.01
NIN = {3: 2, 4: 3, 6: 4, 7: 5, 8: 6, 10: 7, 11: 8}  # place in their Sequential -> number of our conv
ALEXNET = {4: 2, 6: 3, 7: 4, 8: 5}


class Values:
    """Changes that depend on the file: whether the binary layers hold latents or products."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.binarized: dict[str, bool] = {}

    def weight(self, key: str) -> Change:
        """Binary weights: latents as the old evaluation changes them, products as they are."""

        def change(old: Tensor, present: Tensor | None) -> tuple[Tensor, str]:
            done = self.binarized[key] = is_binarized(old)
            if done:
                return old, "binarized already"
            # in the file's own precision and their order, so that the signs are theirs
            return (old + old.mean(1, keepdim=True).mul(-1)).clamp(-1, 1), "centered, clipped"

        return change


def is_binarized(weight: Tensor) -> bool:
    """Whether every filter holds one magnitude (and perhaps zeros).

    >>> import torch
    >>> is_binarized(torch.tensor([[0.5, -0.5], [0.1, 0.1]])), is_binarized(torch.tensor([[0.5, -0.4]]))
    (True, False)
    """
    size = weight.detach().abs().flatten(1)
    largest = size.amax(1, keepdim=True)
    return bool(((size - largest).abs() <= 1e-6 * largest).logical_or(size == 0).all())


def _less(old: Tensor, present: Tensor | None) -> tuple[Tensor, str]:
    assert present is not None  # the mean comes first
    return present - old, "subtracted from the mean"


def _gain(old: Tensor, present: Tensor | None) -> tuple[Tensor, str]:
    return old.clamp(min=LEAST_GAIN), "at least 0.01"


def _plus(extra: float) -> Change:
    def change(old: Tensor, present: Tensor | None) -> tuple[Tensor, str]:
        return old + extra, f"+ {extra:.3g}, other epsilon"

    return change


def _spread(width: int) -> Change:
    """One value per map -> one per feature of the flattened maps."""

    def change(old: Tensor, present: Tensor | None) -> tuple[Tensor, str]:
        return old.repeat_interleave(width // len(old)), "once per pixel" if len(old) < width else ""

    return change


def _then(*changes: Change) -> Change:
    def change(old: Tensor, present: Tensor | None) -> tuple[Tensor, str]:
        notes = []
        for step in changes:
            old, note = step(old, present)
            notes += [note] if note else []
        return old, "; ".join(notes)

    return change


def _norm(
    old: str, new: str, *, eps: float = EPS, affine: bool = True, clip: bool = True, maps: tuple[int, int] | None = None
) -> list[Move]:
    """A norm. `new` in a slot has their epsilon, one of the model's own has torch's. maps = (maps, features)."""
    in_slot = ".x." in new
    shapes: tuple[tuple[int, ...], ...] = ()
    spread: tuple[Any, ...] = ()
    if maps is not None:
        shapes, spread = ((maps[1],), (maps[0],)), (_spread(maps[1]),)
    gain = (_gain,) if clip else ()
    shift = () if in_slot else (_plus(eps - 1e-5),)
    moves = [
        Move(f"{old}.running_mean", f"{new}.running_mean", _then(*spread), shapes=shapes),
        Move(f"{old}.running_var", f"{new}.running_var", _then(*shift, *spread), shapes=shapes),
        Move(f"{old}.num_batches_tracked", "", not_needed, optional=True, shapes=((),)),
    ]
    if affine:
        moves += [
            Move(f"{old}.weight", f"{new}.weight", _then(*gain, *spread), shapes=shapes),
            Move(f"{old}.bias", f"{new}.bias", _then(*spread), shapes=shapes),
        ]
    return moves


def _stem(conv: str, norm: str, *, affine: bool = False) -> list[Move]:
    """The first conv and its norm; our conv1 has no bias."""
    return [
        Move(f"{conv}.weight", "conv1.weight"),
        *_norm(norm, "bn1", affine=affine, clip=False),
        Move(f"{conv}.bias", "bn1.running_mean", _less),
    ]


def _plain(old: str, new: str) -> list[Move]:
    return [Move(f"{old}.{key}", f"{new}.{key}") for key in ("weight", "bias")]


def _binary(old: str, new: str, values: Values, bias: str) -> list[Move]:
    return [
        Move(f"{old}.weight", f"{new}.weight", values.weight(f"{old}.weight"), exact=True),
        Move(f"{old}.bias", bias),
    ]


def _bare(model: nn.Module, *norms: str) -> None:
    """Norms that only add their bias: mean 0, variance and epsilon together 1, gain 1."""
    for name in norms:
        norm = model.get_submodule(name)
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_var is not None
        norm.running_var.fill_(1 - norm.eps)


def lenet5_moves(model: nn.Module, values: Values) -> list[Move]:
    _bare(model, "bn2", "bn3")
    features, maps = model.get_submodule("fc1").in_features, model.get_submodule("conv2").out_channels
    assert isinstance(features, int) and isinstance(maps, int)
    return [
        *_stem("conv1", "bn_conv1"),
        *_norm("bin_conv2.bn", "conv2.x.links.0"),
        *_binary("bin_conv2.conv", "conv2", values, "bn2.bias"),
        *_norm("bin_ip1.bn", "fc1.x.links.0", maps=(maps, features)),  # a file may have either
        *_binary("bin_ip1.linear", "fc1", values, "bn3.bias"),
        *_plain("ip2", "fc2"),
    ]


def nin_moves(model: nn.Module, values: Values) -> list[Move]:
    _bare(model, *(f"bn{i}" for i in NIN.values()))
    moves = _stem("xnor.0", "xnor.1")
    for place, i in NIN.items():
        moves += _norm(f"xnor.{place}.bn", f"conv{i}.x.links.0")
        moves += _binary(f"xnor.{place}.conv", f"conv{i}", values, f"bn{i}.bias")
    return [*moves, *_norm("xnor.12", "bn9", affine=False), *_plain("xnor.13", "conv9")]


def alexnet_moves(model: nn.Module, values: Values) -> list[Move]:
    _bare(model, "bn6")  # theirs has a gain per feature: it is in the slot of fc6
    moves = _stem("features.0", "features.1", affine=True)
    for place, i in ALEXNET.items():
        moves += _norm(f"features.{place}.bn", f"bn{i}", clip=False)
        moves += _binary(f"features.{place}.conv", f"conv{i}", values, f"conv{i}.bias")
    return [
        *moves,
        *_norm("classifier.0.bn", "fc6.x.links.0", clip=False),
        *_binary("classifier.0.linear", "fc6", values, "fc6.bias"),
        *_norm("classifier.1.bn", "bn7", clip=False),
        *_binary("classifier.1.linear", "fc7", values, "fc7.bias"),
        *_norm("classifier.2", "bn8", eps=1e-3, clip=False),
        *_plain("classifier.4", "fc8"),
    ]
