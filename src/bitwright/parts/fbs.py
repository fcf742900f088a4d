"""Feature boosting and suppression: the input chooses which output channels are worth computing."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.errors import BitwrightWarning, InputError
from bitwright.parts.float_part import Float
from bitwright.parts.gate_call import GateCall
from bitwright.parts.gate_norm import FreeNorm, autocast_off
from bitwright.parts.options import check_compat, check_number
from bitwright.parts.registry import part
from bitwright.parts.remembered import Remembered
from bitwright.parts.scale import wide
from bitwright.parts.split_gate import Watched, channels_to_gate, spent_of
from bitwright.types import Site, Spent

LEAST = 1e-4  # smaller gains count as this one, because the shift is divided by the gain


class _MeanSize(torch.autograd.Function):
    """A backward pass of our own: autograd's gives a gradient in another memory format than that of the activations."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, last: bool) -> Tensor:
        size = wide(x.abs())
        return size.unsqueeze(1).flatten(1, -2).mean(1) if last else size.unsqueeze(-1).flatten(2).mean(2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, bool], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.last = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (x,) = ctx.saved_tensors
        (grad,) = grad_outputs
        ones = [1] * (x.dim() - 2)
        share = grad / max(1, x[0].numel() // grad.shape[1]) if len(x) else grad
        share = share.reshape(len(x), *((*ones, -1) if ctx.last else (grad.shape[1], *ones)))
        return torch.sgn(x) * share.to(x.dtype), None


def mean_size(x: Tensor, last: bool) -> Tensor:
    """mean |x| of each channel, [N, C], in float32 for half types; gradient sgn(x) g / positions.

    >>> mean_size(torch.tensor([[[1.0, -3.0], [0.0, 2.0]]]), last=False).tolist()
    [[2.0, 1.0]]
    """
    return _MeanSize.apply(x, last)


@part("fbs", "gate")
class FBS(Watched):
    """A small predictor scales every output channel; the channels it finds least salient are not computed.

    value     A g (f norm(op(x, w)) + shift);  g = relu(predictor(mean |x|)) [N, O],  A = 1 for the ceil(keep O) largest g
              of a sample where g > 0, else 0; f = +1 or -1 per channel (nearer 0 where a gain taken over was below
              1e-4), norm: BatchNorm without gain. A ReLU follows
    gradient  A is a constant: only winners learn; g through the predictor and mean |x|
    shape     that of the layer
    options   keep: share of channels; 1 only boosts. channel_block: neighbors that win or lose together, by their mean g.
              l1: weight of the mean over a batch of the sum of g, a penalty that makes channels unimportant
    moments   takes over the BatchNorm that is the only reader of the layer. With keep=1 no output changes: the predictor
              starts as the norm's gain (its sign becomes f, its shift is divided by it). A new norm (no step made yet): shift 0.1,
              predictor bias 1. A later recipe with the same part changes keep and keeps what was learned
    source    Gao et al. 2019, arXiv 1810.05331; deep-fry/mayo, the authors' code
    edges     a depthwise layer is left without a gate, with a warning: it has no work where the layer in front switched
              its input off, and an affine norm behind it would change those zeros. One output channel (or block) is
              always kept, with a warning. A SyncBatchNorm taken over stays one
    differs   the authors start from bias 1 also for a trained net, and gate by the signed mean; a depthwise layer with its
              norm does not inherit the mask of its input. Their code can also compare with a learned threshold, a running mean
              of the (k+1)-th largest g: not offered, since keep would then hold on average over training images, but not
              for each image, as a staged keep and a steady latency need it. The published ratio counts all inputs of a
              layer as sparse: here only those that can really be zero. compat="seed": the code of network-compression, which keeps k - 1
              channels (k rounded to even), takes |predictor|, sums its penalty over the batch, and gates in front of the
              affine BatchNorm, so that nothing behind it is zero

    >>> import bitwright as bw
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> _ = bw.apply(net, [{"match": "0", "gate": {"part": "fbs", "keep": 0.5}}], torch.zeros(1, 3, 8, 8))
    >>> out = net.eval()(torch.rand(2, 3, 8, 8))
    >>> (out.amax((2, 3)) > 0).sum(1).max().item() <= 4
    True
    """

    inputs: int
    outputs: int
    last: bool
    flip: Tensor
    predictor: nn.Linear
    norm: FreeNorm
    shift: nn.Parameter
    needs_raw_input = True
    switches_channels = True

    def __init__(self, keep: float = 0.5, channel_block: int = 1, l1: float = 1e-8, compat: str | None = None) -> None:
        super().__init__()
        self.keep = check_number("fbs", "keep", keep, "a share above 0 and up to 1", lambda v: 0 < v <= 1)
        if not isinstance(channel_block, int) or channel_block < 1:
            raise InputError(f"part fbs: channel_block={channel_block!r}; a whole number from 1", code="option")
        self.l1 = check_number("fbs", "l1", l1, "0 or more", lambda v: 0 <= v < math.inf)
        self.block = channel_block
        self.seed = check_compat("fbs", compat)
        self.owns_norm = not self.seed
        self.saliency = Remembered[Tensor]()
        self.watchers = ()

    @classmethod
    def for_layer(cls, layer: nn.Module, **options: Any) -> nn.Module:
        new = cls(**options)
        inputs, outputs, like = channels_to_gate("fbs", layer)
        groups = int(getattr(layer, "groups", 1))
        if groups > 1 and groups == inputs:
            warnings.warn(
                "fbs: depthwise, left without a gate: it has no work where the layer in front switched its input off, "
                "unless something between them changes zeros",
                BitwrightWarning,
                stacklevel=2,
            )
            return Float()
        if outputs % new.block:
            sizes = ", ".join(str(n) for n in range(1, outputs + 1) if outputs % n == 0)
            raise InputError(
                f"part fbs: {outputs} output channels do not divide by channel_block={new.block}; blocks: {sizes}",
                code="gate-layer",
                given=f"channel_block={new.block}",
                possible=sizes,
            )
        if outputs // new.block == 1 and new.keep < 1:
            warnings.warn(
                "fbs: one output channel (or block) is always kept: nothing is gated", BitwrightWarning, stacklevel=2
            )
        new.inputs, new.outputs, new.last = inputs, outputs, isinstance(layer, nn.Linear)
        new.predictor = nn.Linear(new.inputs, new.outputs)
        if not new.seed:
            nn.init.trunc_normal_(new.predictor.weight, std=0.05, a=-0.1, b=0.1)
            nn.init.ones_(new.predictor.bias)
            new.norm = FreeNorm(new.outputs, new.last)
            new.shift = nn.Parameter(torch.full((new.outputs,), 0.1))
            new.register_buffer("flip", torch.ones(new.outputs))
        return new.to(like.device)

    # -- the norm behind the layer ------------------------------------------------------------------------------------
    def take_norm(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        self.norm.follow(norm)
        state = {key: value.detach().clone() for key, value in norm.state_dict().items()}
        taken = self.norm_state(state)
        as_made = nn.BatchNorm1d(self.outputs).state_dict()
        if all(torch.equal(state[key].to("cpu", value.dtype), value) for key, value in as_made.items() if key in state):
            return  # a net that never trained: the paper's start
        own = dict(self.named_parameters()) | dict(self.named_buffers())
        with torch.no_grad():
            for key, value in taken.items():
                own[key].copy_(value)

    def norm_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """State of a BatchNorm -> the state with which this part computes the same at keep=1."""
        out = {f"norm.{key}": value for key, value in state.items() if key not in ("weight", "bias")}
        mean = state["running_mean"]
        gain, bias = state.get("weight", torch.ones_like(mean)), state.get("bias", torch.zeros_like(mean))
        size = gain.abs().clamp_min(LEAST)
        factor = (gain.abs() / size).clamp_min(
            0.01
        )  # the rest of a gain below LEAST; never 0, because then the channel could not learn
        out["flip"] = torch.where(gain < 0, -factor, factor)
        out["shift"] = bias / size
        out["predictor.bias"] = size
        out["predictor.weight"] = torch.zeros_like(
            self.predictor.weight
        )  # at first the result depends on the gain alone
        return out

    def succeed(self, old: FBS) -> None:
        """The same part with another keep: what was learned goes on."""
        for name in ("predictor", "norm", "shift", "flip"):
            if hasattr(old, name):
                setattr(self, name, getattr(old, name))

    def set_keep(self, keep: float) -> None:
        """Another share of channels, also in the recipe that is saved with the net."""
        self.keep = keep
        if isinstance(spec := self.__dict__.get("spec"), dict):
            self.__dict__["spec"] = {**spec, "keep": keep}

    # -- the gate -----------------------------------------------------------------------------------------------------
    def winners(self, g: Tensor) -> Tensor:
        """1 for channels that are computed, else 0; [N, O], no gradient."""
        g = g.detach()
        if self.seed:
            k = max(1, round(self.keep * self.outputs))
            return (g > g.topk(k, 1).values[:, -1:]).to(g.dtype)
        blocks = g.unflatten(1, (self.outputs // self.block, self.block)).mean(2)
        k = max(1, math.ceil(self.keep * blocks.shape[1] - 1e-9))
        if k < blocks.shape[1]:
            chosen = torch.zeros_like(blocks).scatter(1, blocks.topk(k, 1).indices, 1.0)
        else:
            chosen = torch.ones_like(blocks)
        return chosen.repeat_interleave(self.block, 1) * (g > 0)

    def saliencies(self, raw: Tensor) -> Tensor:
        """g of every channel, winners and losers, [N, O]."""
        size = mean_size(raw, self.last)
        g = F.linear(size, self.predictor.weight.to(size.dtype), self.predictor.bias.to(size.dtype))
        return g.abs() if self.seed else g.relu()

    def forward(self, op: GateCall, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        assert op.raw is not None
        y = op(x, w, b)
        with autocast_off(y):
            g = self.saliencies(op.raw)
            on = self.winners(g)
        for watcher in self.watchers:
            watcher(self, on)
        learns = self.training and self.l1 and torch.is_grad_enabled() and len(g)  # an empty batch has no mean
        self.saliency.value = (g.sum() if self.seed else g.sum(1).mean()) if learns else None
        scale = self._as_channels(g * on, y)
        if self.seed:
            return y * scale.to(y.dtype)
        z = self.norm(y, wide(self.flip), wide(self.shift))
        return (z * scale.to(z.dtype)).to(y.dtype)

    def _as_channels(self, t: Tensor, y: Tensor) -> Tensor:
        """[N, O] or [O] beside an output: [N, O, 1, 1], or [N, 1, O] for Linear."""
        rows = t if t.dim() == 2 else t[None]
        if self.last:
            return rows.reshape(len(rows), *[1] * (y.dim() - 2), self.outputs)
        return rows.reshape(len(rows), self.outputs, *[1] * (y.dim() - 2))

    def penalty(self) -> Tensor:
        last, self.saliency.value = self.saliency.value, None
        return self.predictor.bias.new_zeros(()) if last is None else self.l1 * last

    def density(self) -> float:
        """Largest share of output channels that are computed."""
        if self.seed:
            return max(0, max(1, round(self.keep * self.outputs)) - 1) / self.outputs
        blocks = self.outputs // self.block
        return max(1, math.ceil(self.keep * blocks - 1e-9)) / blocks

    def fires(self, on: Tensor) -> Tensor:
        """Channels that are computed, int64 [N, O]."""
        return on.detach().long()

    def spent(self, site: Site, fires: Tensor, active: Tensor | None) -> Spent:
        present = site.active(active, len(fires)).to(fires.device)
        on = fires.double().reshape(len(fires), site.groups, site.outputs // site.groups)
        macs = site.taps * site.positions * (present.sum(2) * on.sum(2)).sum(1)
        # the predictor reads the active inputs; each output is scaled once, also where no channel is computed
        overhead = present.sum((1, 2)) * site.outputs + float(site.outputs * site.places)
        bops = macs * site.w_bits * site.x_bits + overhead * 32 * 32
        return spent_of(macs + overhead, bops, overhead, site.outputs)
