"""Dropout as a link of a chain."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.parts.registry import part


@part("dropout", "x")
class Dropout(nn.Module):
    """Dropout of inputs while training, identity in evaluation and in the packed net.

    value     x * keep / (1 - p) in training, keep ~ Bernoulli(1 - p); x in evaluation
    gradient  g * keep / (1 - p)
    shape     any
    source    Srivastava et al. 2014, JMLR 15; after the sign as in the XNOR-Net PyTorch port
    differs   nothing

    >>> import torch
    >>> Dropout(0.5).eval()(torch.ones(2)).tolist()
    [1.0, 1.0]
    """

    idle_in_eval = True

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise InputError(f"part dropout: p={p!r}; a share lies in 0..1", code="option")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)
