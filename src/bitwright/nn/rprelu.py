"""The activation of ReActNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RPReLU(nn.Module):
    """PReLU between two learned shifts, all per channel.

    value     z + after_c if z > 0, else slope_c z + after_c;  z = x + before_c
    shape     [N, C, ...]
    keys      `before`, `slope`, `after`, each [C]; shifts start at 0, slopes at 0.25; `bw.param_groups` decays none of them
    source    Liu et al. 2020, arXiv 2003.03488, section 4.2
    differs   the public code decays the shifts in its first step, because they have four axes there

    >>> r = RPReLU(1)
    >>> _ = r.before.data.fill_(-1), r.after.data.fill_(10)
    >>> r(torch.tensor([[3.0], [-1.0]])).flatten().tolist()
    [12.0, 9.5]
    """

    def __init__(self, features: int, slope: float = 0.25) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.zeros(features))
        self.slope = nn.Parameter(torch.full((features,), float(slope)))
        self.after = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.dim() - 2))
        z = x + self.before.to(x.dtype).reshape(shape)
        return F.prelu(z, self.slope.to(x.dtype)) + self.after.to(x.dtype).reshape(shape)

    def extra_repr(self) -> str:
        return str(self.before.numel())
