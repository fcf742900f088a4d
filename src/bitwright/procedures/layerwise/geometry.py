"""The rows that a layer multiplies its weight with: patches of a convolution, tokens of a linear layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.transforms.geometry import as_rows, crop_of, padding_of
from bitwright.transforms.geometry import from_rows as in_order

CHUNK_BYTES = 64 * 2**20
MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def groups_of(layer: nn.Module) -> int:
    return int(getattr(layer, "groups", 1))


def columns_of(layer: nn.Module) -> int:
    """D: inputs of one output unit, C_in / groups times the taps of the kernel."""
    weight = as_rows(layer, _weight_of(layer))
    return weight[0].numel() if len(weight) else 0


def windows(layer: Any, x: Tensor) -> Tensor:
    """A view [N, C, *out, *kernel] of what a convolution reads, its padding put in first by its own mode.

    A transposed convolution reads, for each place of its output, zeros between the inputs (stride) and around them. Its
    output size is that of `output_padding`, also where a call asks for another one.

    >>> windows(nn.Conv1d(1, 1, 2, dilation=2), torch.arange(4.0).reshape(1, 1, 4)).tolist()
    [[[[0.0, 2.0], [1.0, 3.0]]]]
    >>> windows(nn.ConvTranspose1d(1, 1, 2, stride=2), torch.tensor([[[3.0, 4.0]]])).tolist()
    [[[[3.0, 0.0], [0.0, 3.0], [4.0, 0.0], [0.0, 4.0]]]]
    """
    if getattr(layer, "transposed", False):
        return _transposed_windows(layer, x)
    sides = [(p, p) for p in padding_of(layer)]
    if crop := crop_of(layer):  # "same" with an even kernel: torch pads one more behind
        sides = [(p - c, p) for (p, _), c in zip(sides, crop, strict=True)]
    if any(a or b for a, b in sides):
        flat = [n for pair in reversed(sides) for n in pair]
        x = F.pad(x, flat, mode=MODES[layer.padding_mode])
    taps = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    for axis, (kernel, stride, dilation) in enumerate(taps, start=2):
        x = x.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    return x


def _transposed_windows(layer: Any, x: Tensor) -> Tensor:
    axes = range(2, x.dim())
    sides, steps = [], list(x.shape[:2])
    for axis, kernel, stride, dilation, padding, more in zip(
        axes, layer.kernel_size, layer.stride, layer.dilation, layer.padding, layer.output_padding, strict=True
    ):
        around = dilation * (kernel - 1) - padding
        sides.append((around, around + more))
        steps.append((x.shape[axis] - 1) * stride + 1)
    spread = x.new_zeros(steps)
    spread[(slice(None), slice(None), *(slice(None, None, stride) for stride in layer.stride))] = x
    x = F.pad(spread, [n for pair in reversed(sides) for n in pair])  # a negative padding cuts
    for axis, kernel, dilation in zip(axes, layer.kernel_size, layer.dilation, strict=True):
        x = x.unfold(axis, dilation * (kernel - 1) + 1, 1)[..., ::dilation]
    return x.flip([*range(-len(axes), 0)])


def places(layer: nn.Module, x: Tensor) -> int:
    """Rows that this input gives, all of them: samples times positions.

    >>> places(nn.Conv2d(1, 2, 3, stride=2), torch.zeros(4, 1, 7, 9)), places(nn.Linear(3, 2), torch.zeros(4, 5, 3))
    (48, 20)
    """
    if isinstance(layer, nn.Linear):
        return x.numel() // max(1, x.shape[-1])
    if x.dim() == _weight_of(layer).dim() - 1:
        x = x.unsqueeze(0)
    return len(x) * windows(layer, x[:1]).shape[2 : x.dim()].numel()


def rows_of(layer: nn.Module, x: Tensor, most: int | None = None, seed: int = 0) -> Iterator[Tensor]:
    """Rows [G, n, D] in pieces of at most 64 MB, columns in the order of the filters: channel, then taps.

    x      what the operator reads: [..., C] of a linear layer, [N, C, *space] of a convolution
    most   upper bound of rows per sample, chosen by `seed`

    >>> conv = nn.Conv2d(4, 6, 3, stride=2, groups=2)
    >>> x = torch.randn(5, 4, 7, 7)
    >>> [rows] = rows_of(conv, x)
    >>> y = torch.einsum("gnd,god->gno", rows, conv.weight.reshape(2, 3, 18)).permute(1, 0, 2).reshape(5, 9, 6)
    >>> torch.allclose(y.mT.reshape(5, 6, 3, 3) + conv.bias.reshape(6, 1, 1), conv(x), atol=1e-5)
    True
    """
    x = x.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if isinstance(layer, nn.Linear):
        x = x.reshape(-1, x.shape[-1]) if x.dim() <= 2 or most is None else _some_tokens(x, most, seed)
        for piece in x.split(_per_chunk(x.shape[-1], x)):
            yield piece.unsqueeze(0)
        return
    if x.dim() == _weight_of(layer).dim() - 1:
        x = x.unsqueeze(0)
    view, groups, columns = windows(layer, x), groups_of(layer), columns_of(layer)
    axes = x.dim() - 2
    view = view.movedim(1, 1 + axes)  # [N, *out, C, *kernel], not copied
    space = view.shape[1 : 1 + axes]
    count = space.numel()
    if not count or not len(view):
        return
    chosen = None if most is None or most >= count else _draw(len(view), count, most, seed, x.device)
    per_sample = count if chosen is None else chosen.shape[1]
    step = max(1, _per_chunk(groups * columns, x) // per_sample)
    for start in range(0, len(view), step):
        piece = view[start : start + step]
        if chosen is not None:
            where = torch.unravel_index(chosen[start : start + step], space)
            sample = torch.arange(len(piece), device=x.device).unsqueeze(1)
            piece = piece[(sample, *where)]
        yield piece.reshape(-1, groups, columns).movedim(1, 0)


def weight_rows(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight, in the order of its operator, as [G, O/G, D] rows; float64, a copy.

    >>> weight_rows(nn.Conv2d(4, 6, 3, groups=2), torch.zeros(6, 2, 3, 3)).shape
    torch.Size([2, 3, 18])
    """
    groups, filters = groups_of(layer), as_rows(layer, weight.detach())
    return filters.to(torch.float64, copy=True).reshape(groups, filters.shape[0] // groups, -1)


def from_rows(layer: nn.Module, rows: Tensor) -> Tensor:
    """Rows as the weight again: its order, shape, number type and memory format."""
    weight = _weight_of(layer)
    shape = as_rows(layer, weight).shape
    return torch.empty_like(weight).copy_(in_order(layer, rows.reshape(shape)))


def _weight_of(layer: Any) -> Tensor:
    return layer.weight


def _per_chunk(width: int, x: Tensor) -> int:
    return max(1, CHUNK_BYTES // max(1, width * x.element_size()))


def _draw(samples: int, count: int, most: int, seed: int, device: torch.device) -> Tensor:
    """`most` of `count` places for each sample, without repeats; the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, count, generator=generator).argsort(1)[:, :most].sort(1)[0].to(device)


def _some_tokens(x: Tensor, most: int, seed: int) -> Tensor:
    x = x.reshape(len(x), -1, x.shape[-1])
    if most >= x.shape[1]:
        return x.flatten(0, 1)
    chosen = _draw(len(x), x.shape[1], most, seed, x.device)
    return x.gather(1, chosen.unsqueeze(-1).expand(-1, -1, x.shape[-1])).flatten(0, 1)
