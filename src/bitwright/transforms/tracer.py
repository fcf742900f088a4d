"""The tracer: facts that follow tensors from operator to operator (functional calls too), and what ATen operators do.

One `Tracer` carries any number of them through the same forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# -- families of operators; in-place forms end in _
COPIES = _names("alias clone contiguous detach detach_ _to_copy to lift_fresh native_dropout")
SHAPES = _names("view reshape _reshape_alias _unsafe_view flatten squeeze unsqueeze expand")  # axes stay in order
AXES = _names("unflatten permute transpose t as_strided diagonal pixel_shuffle pixel_unshuffle channel_shuffle")
PICKS = _names("slice select narrow gather index index_select unbind split split_with_sizes chunk flip roll repeat")
MAX_POOLS = _names(
    "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices mkldnn_max_pool2d adaptive_max_pool2d "
    "adaptive_max_pool3d"
)
MEAN_POOLS = _names("avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d")
NEAREST = _names("upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d")
BLENDS = _names("upsample_linear1d upsample_bilinear2d")
BORDERS = _names("reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d")
ROUNDINGS = _names("round round_ floor")
CLIPS = _names("clamp clamp_min hardtanh threshold relu6")
NORMS = _names("native_group_norm native_layer_norm")  # beside those called ..batch_norm..
JOINS = _names("cat stack")

# -- what can be said of their values
# the result is never negative
POSITIVE = _names(
    "relu relu_ sigmoid sigmoid_ hardsigmoid hardsigmoid_ _softmax softmax abs abs_ square exp exp_ exp2 "
    "softplus sqrt sqrt_ linalg_vector_norm"
)
# a ReLU behind these does the same as one in front of them
MOVES = COPIES | SHAPES | AXES | PICKS | MAX_POOLS | NEAREST | BORDERS | _names("amax max")
# not negative if the first input is not; if no input is
KEEPS_FIRST = MOVES | MEAN_POOLS | BLENDS | ROUNDINGS | _names("cumsum sort topk mean sum prod amin min ceil")
KEEPS_ALL = JOINS | _names("add add_ mul mul_ div div_ minimum where addcmul")
# a channel of zeros stays one, each channel by itself
KEEPS_ZEROS = (
    COPIES | MAX_POOLS | MEAN_POOLS | NEAREST | BLENDS | ROUNDINGS
    | _names(
        "relu relu_ relu6 leaky_relu leaky_relu_ prelu _prelu_kernel gelu gelu_ silu silu_ elu elu_ celu selu hardswish "
        "hardswish_ tanh tanh_ mish neg abs abs_ sgn trunc dropout dropout_ feature_dropout"
    )
)  # fmt: skip
# the same where samples and channels stay the first two axes
KEEPS_ZEROS_OF_CHANNELS = SHAPES | _names("mean sum slice select constant_pad_nd")


@dataclass
class OperatorCall:
    """One operator that ran. plain: its name without the _ of in-place forms."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __post_init__(self) -> None:
        self.name: str = self.func.overloadpacket.__name__
        self.plain = self.name.rstrip("_")
        self.inputs = tensors_in((self.args, self.kwargs))

    def get(self, place: int, *names: str, default: Any = None) -> Any:
        """An argument by place or by name."""
        if len(self.args) > place:
            return self.args[place]
        return next((self.kwargs[name] for name in names if name in self.kwargs), default)

    @property
    def written(self) -> bool:
        """Whether it changed its first input."""
        return bool(self.func._schema.is_mutable)

    @property
    def clips_at_zero(self) -> bool:
        """Whether it is a clip whose lower bound is 0 or more."""
        low = self.get(1, "min", "min_val")
        if self.plain == "threshold":
            low = min(self.args[1], self.args[2]) if len(self.args) > 2 else None
        return self.plain in CLIPS and isinstance(low, (int, float)) and low >= 0


class Fact:
    """A fact about tensors: the mark of each, and what an operator's outputs get."""

    def __init__(self) -> None:
        self.marks: Any = WeakTensorKeyDictionary()

    def of(self, t: Tensor | None) -> Any:
        """The mark of a tensor; None: nothing is known."""
        return None if t is None else self.marks.get(t)

    def put(self, t: Tensor, mark: Any) -> None:
        """mark None: nothing is known of the tensor any more."""
        if mark is not None:
            self.marks[t] = mark
        elif t in self.marks:
            del self.marks[t]

    def passes(self, call: OperatorCall) -> Any:
        """The mark of what an operator returned, from those of its inputs."""
        raise NotImplementedError

    def after(self, call: OperatorCall, out: list[Tensor]) -> None:
        mark = self.passes(call)
        for t in out:
            if mark is not None or call.name.endswith("_"):  # overwritten in place
                self.put(t, mark)


class Tracer(TorchDispatchMode):
    """While it is entered, every operator of this thread is shown to the facts."""

    def __init__(self, *facts: Fact) -> None:
        super().__init__()
        self.facts = facts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        call, made = OperatorCall(func, args, kwargs or {}), tensors_in(out)
        for fact in self.facts:
            fact.after(call, made)
        return out


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [t for item in items for t in tensors_in(item)]
