"""Which channels of a tensor can be non-zero, followed through a forward pass: what a gate switched off stays off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# operators by what they do to a channel of zeros; these keep it, each channel by itself
_SAME = _names(
    "relu relu_ relu6 leaky_relu leaky_relu_ prelu _prelu_kernel gelu gelu_ silu silu_ elu elu_ celu selu hardswish "
    "hardswish_ tanh tanh_ mish clone contiguous detach detach_ alias _to_copy to lift_fresh neg abs abs_ sgn round round_ "
    "floor trunc dropout dropout_ feature_dropout native_dropout max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices mkldnn_max_pool2d avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d "
    "_upsample_nearest_exact2d"
)
_VIEWS = _names(
    "view _unsafe_view reshape _reshape_alias flatten squeeze unsqueeze expand mean sum slice select constant_pad_nd"
)


# in place, these leave zeros in every view of the tensor
_STILL = frozenset(name.rstrip("_") for name in _SAME) | {"mul", "div"}


_BROADCAST = frozenset({"mul", "div", "add", "sub", "expand"})


class Mask:
    """bool [N, C], and how many channels the sparsest of the tensors added into this one had (int64 [N])."""

    def __init__(self, channels: Tensor, least: Tensor | None = None) -> None:
        self.channels = channels
        self.least = channels.sum(1) if least is None else least


class ActiveChannels(TorchDispatchMode):
    """Carries `Mask`s from tensor to tensor. An operator that it does not know ends a mask: all channels count.

    Through an addition goes the union, through a multiplication the intersection, through a concatenation both side by
    side; norms, biases and whatever else moves a zero end it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.masks: Any = WeakTensorKeyDictionary()

    def of(self, t: Tensor) -> Mask | None:
        return self.masks.get(t)

    def put(self, t: Tensor, mask: Mask | None) -> None:
        if mask is not None and t.dim() >= 2 and t.shape[:2] == mask.channels.shape:
            self.masks[t] = mask
        elif t in self.masks:
            del self.masks[t]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        if isinstance(first, Tensor):
            name = func.overloadpacket.__name__
            if func._schema.is_mutable and name.rstrip("_") not in _STILL:
                self._written(first)
            self.put(first, self._mask(name, args, kwargs, first))
        return out

    def _written(self, t: Tensor) -> None:
        """Whatever shares memory with a tensor that was written to is known no longer."""
        place = t.untyped_storage().data_ptr()
        for other in [o for o in self.masks if o.untyped_storage().data_ptr() == place]:
            if other is not t:
                del self.masks[other]

    def _mask(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Mask | None:
        plain = name.rstrip("_")
        if plain == "cat":
            return self._cat(args, kwargs)
        first, second = (a if isinstance(a, Tensor) else None for a in (*args[:2], None, None)[:2])
        if any(t is not None and t.dim() not in (0, out.dim()) for t in (first, second)) and plain in _BROADCAST:
            return None  # axes move: [N, C] beside [N, C, H, W] lies along H and W
        mine = None if first is None else self.of(first)
        if plain in ("mul", "div"):
            other = self.of(second) if second is not None and plain == "mul" else None
            return _both(mine, other)
        if plain in ("add", "sub"):
            other = None if second is None else self.of(second)
            if mine is None or other is None or mine.channels.shape != other.channels.shape:
                return None
            return Mask(mine.channels | other.channels, torch.minimum(mine.least, other.least))
        if mine is None or first is None:
            return None
        if name in _SAME:
            return mine
        if plain in ("clamp", "hardtanh", "clamp_min", "clamp_max"):
            return mine if _zero_inside(plain, args, kwargs) else None
        return _view(plain, mine, first, args, kwargs, out) if plain in _VIEWS else None

    def _cat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mask | None:
        tensors = list(args[0])
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        if not tensors or dim % tensors[0].dim() != 1 or all(self.of(t) is None for t in tensors):
            return None
        parts = [self.of(t) or _all(t) for t in tensors]
        channels = torch.cat([p.channels for p in parts], 1)
        return Mask(channels, torch.stack([p.least for p in parts]).sum(0))


def _zero_inside(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a clamp lets 0 be; bounds are numbers, or None for none (tensors: who knows)."""
    if name == "clamp_max":
        args = (args[0], None, *args[1:])
    rest = dict(zip(("low", "high"), args[1:3], strict=False))
    low, high = (-1, 1) if name == "hardtanh" else (None, None)  # what PyTorch leaves out of the call
    low = rest.get("low", kwargs.get("min", kwargs.get("min_val", low)))
    high = rest.get("high", kwargs.get("max", kwargs.get("max_val", high)))
    if any(isinstance(bound, Tensor) for bound in (low, high)):
        return False
    return (low is None or low <= 0) and (high is None or high >= 0)


def _all(t: Tensor) -> Mask:
    return Mask(torch.ones(t.shape[0], t.shape[1], dtype=torch.bool, device=t.device))


def _both(one: Mask | None, two: Mask | None) -> Mask | None:
    if one is None or two is None or one.channels.shape != two.channels.shape:
        return one or two
    return Mask(one.channels & two.channels)


def _view(
    name: str, mine: Mask, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
) -> Mask | None:
    """Shapes that keep samples and channels apart, or lay each channel's places out in a row (flatten)."""
    n, c = mine.channels.shape
    if name == "constant_pad_nd":
        sides, value = args[1], args[2] if len(args) > 2 else kwargs.get("value", 0)
        own = len(sides) // 2 >= source.dim() - 1  # does the padding reach the channels?
        if value != 0 or len(sides) // 2 >= source.dim():
            return None
        if not own:
            return mine
        at = 2 * (source.dim() - 2)
        return Mask(torch.nn.functional.pad(mine.channels, (sides[at], sides[at + 1])), mine.least)
    if name == "slice":
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % source.dim()
        if dim >= 2:
            return mine
        start, end = (args[2] if len(args) > 2 else None), (args[3] if len(args) > 3 else None)
        step = args[4] if len(args) > 4 else 1
        cut = mine.channels[start:end:step] if dim == 0 else mine.channels[:, start:end:step]
        return Mask(cut)
    if name in ("mean", "sum"):
        dims = args[1] if len(args) > 1 else None
        axes = {d % source.dim() for d in ([dims] if isinstance(dims, int) else dims or range(source.dim()))}
        return mine if not axes & {0, 1} else None
    if name == "select" and (args[1] % source.dim()) < 2:
        return None
    if out.dim() >= 2 and out.shape[0] == n and out.shape[1] == c:
        return mine
    if out.dim() == 2 and out.shape[0] == n and out.shape[1] % c == 0 and out.numel() == source.numel():
        return Mask(mine.channels.repeat_interleave(out.shape[1] // c, 1), mine.least * (out.shape[1] // c))
    return None
