"""The input scale of XNOR-Net."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.parts.gate_call import GateCall
from bitwright.parts.registry import part


@part("xnor_k", "gate")
class XnorK(nn.Module):
    """The scale map K of the inputs: each output is multiplied by the mean |x| under its window.

    value     op(x, w) K + b,  K = mean over the channels of |raw|, averaged over the window: stride, padding, dilation and
              groups are the layer's own; K [N, 1, H', W'], or [..., 1] in a Linear layer; with groups, one map each
    gradient  that of op times K; detach=False: through |raw| too (neither the paper nor a code defines it)
    shape     that of the layer
    options   detach: see gradient. raw is what the quantizer of the x slot reads, behind its norm where there is one
    source    Rastegari et al. 2016, arXiv 1603.05279, section 3.2, equation 11
    differs   no public code uses K (the paper's author: below 1 % of top-1 on AlexNet). It needs the real |x| while
              running, so a layer with it is not packed

    >>> gate = XnorK()
    >>> op = GateCall(lambda x, w, b: x @ w.T, raw=torch.tensor([[3.0, -1.0]]))
    >>> gate(op, torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, -0.5]]), None).tolist()
    [[2.0]]
    """

    ones: Tensor | None
    taps: int
    needs_raw_input = True

    def __init__(self, detach: bool = True) -> None:
        super().__init__()
        self.detach = detach
        self.register_buffer("ones", None, persistent=False)

    @classmethod
    def for_layer(cls, layer: nn.Module, detach: bool = True) -> XnorK:
        new = cls(detach)
        weight, groups = getattr(layer, "weight", None), int(getattr(layer, "groups", 1))
        if isinstance(weight, Tensor):
            transposed = bool(getattr(layer, "transposed", False))  # its weight is [I, O/g, ...], else [O, I/g, ...]
            one = weight.detach()[:, :1] if transposed else weight.detach()[:1]  # one output sees this many weights
            taps = one.numel() // groups if transposed else one.numel()
            # one map serves all outputs; with groups the maps differ, and the operator hands each output its own
            new.ones, new.taps = torch.ones_like(one if groups == 1 else weight.detach()), max(1, taps)
        return new

    def scale_map(self, op: GateCall, w: Tensor, raw: Tensor) -> Tensor:
        """K by the layer's own operator on |raw|, with equal weights."""
        ones, taps = (torch.ones_like(w[:1]), max(1, w[0].numel())) if self.ones is None else (self.ones, self.taps)
        size = (raw.detach() if self.detach else raw).abs()
        return op(size.to(w.dtype), ones.to(w.dtype), None) / taps  # cast here: the layer's dtype may change

    def forward(self, op: GateCall, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        assert op.raw is not None
        y = op(x, w, None) * self.scale_map(op, w, op.raw)
        return y if b is None else y + b.to(y.dtype).reshape(-1, *[1] * (w.dim() - 2))
