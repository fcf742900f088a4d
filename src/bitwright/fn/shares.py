"""Which input channels an output of a channel gate reads first, and in which order channels lie."""

from __future__ import annotations

import torch
from torch import Tensor


def fitting(splits: int, room: int) -> int:
    """The largest divisor of `splits` that is at most `room`.

    >>> fitting(4, 3), fitting(6, 5), fitting(4, 1)
    (2, 3, 1)
    """
    return max(d for d in range(1, splits + 1) if splits % d == 0 and d <= max(1, room))


def base_mask(fan: int, outs: int, groups: int, splits: int, group: bool) -> Tensor:
    """bool [groups * outs, fan]: which inputs of its group each output reads first; the last share takes leftovers.

    >>> base_mask(3, 2, 1, 2, True).int().tolist()
    [[1, 0, 0], [0, 1, 1]]
    """
    if splits == 1:
        return torch.ones(groups * outs, fan, dtype=torch.bool)
    share = (torch.arange(fan) // (fan // splits)).clamp_max(splits - 1)
    mine = (
        (torch.arange(outs) // (outs // splits)).clamp_max(splits - 1) if group else torch.zeros(outs, dtype=torch.long)
    )
    return (share[None] == mine[:, None]).repeat(groups, 1)


def shuffled(inputs: int, splits: int) -> Tensor:
    """Channel order that deals the channels of each share out to all shares.

    >>> shuffled(6, 2).tolist()
    [0, 3, 1, 4, 2, 5]
    """
    share, at = inputs // splits, torch.arange(inputs)
    group = (at // max(1, share)).clamp_max(splits - 1)
    return torch.argsort((at - group * share) * splits + group, stable=True)
