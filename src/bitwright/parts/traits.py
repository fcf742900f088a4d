"""Everything that a part may state about itself. The only place that asks by name whether it states it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, cast


@dataclass(frozen=True)
class Traits:
    """Every trait: what holds where a part does not state it, and what it means.

    A part states a trait as an attribute, of its class or of itself. Its methods are its moments (`moments.py`).
    """

    part_name: str = ""  # name in the registry; '' for a module that is no registered part
    spec: Any = None  # the name and options that build it again; a list for a chain, None where built by hand
    bits: int | None = None  # bits of one value, as the papers count them; 32: floats stay floats
    bits_range: str = ""  # the values that the option `bits` takes, for listings
    planes: int | None = None  # bit planes of the code: what kernels pay for
    storage_bits: int | None = None  # bits of one value in a file
    group: int | None = None  # weights of a filter that share a scale; None: all of them
    signed: bool | None = None  # whether the values lie on both sides of zero
    clip: bool = True  # False: a grid without ends, so no number of bits names its levels
    begins_at_zero: bool = False  # its grid begins at 0: a ReLU in front of it changes nothing
    local_gradient: bool = False  # its gradient is 0 beyond 1: a hardtanh in front of it changes nothing
    fits_nonnegative: bool = False  # signed, and yet no level is lost on an input that is never negative
    fixed_range: bool = False  # the mean size of its latents says how many are on, not how large they are
    idle_in_eval: bool = False  # evaluation returns the input as it is
    source_codes: bool = False  # reads the input of the net, which may then be bytes
    projects: bool = False  # `after_step` twice is `after_step` once
    decay: float | None = None  # weight decay of its own parameters
    latent_decay: float = 0.0  # weight decay of the weight in front of it, where that has at most 2 bits
    owns_norm: bool = False  # takes over the BatchNorm that is the only reader of its layer
    bitwright_norm: str = ""  # name of the BatchNorm that it took over
    needs_raw_input: bool = False  # a gate that also reads what the quantizer of the x slot reads
    needs_code: bool = False  # a gate that also reads input and weight as whole numbers
    one_sided: bool = False  # a gate that leaves small sums as they are, as if a ReLU followed
    switches_channels: bool = False  # a gate that decides per output channel; what it switches off is zero
    splits: int | None = None  # a gate that first adds up one of so many shares of the input channels
    reads_batch: bool = False  # in evaluation too, a result depends on the other samples of the batch
    code_bits: int | None = None  # a gate that splits the code of the input: the bits of that code
    governed: bool | None = None  # a gate with thresholds: whether a budget moves them
    keep: float | None = None  # a gate with a fixed share of channels: that share


class _Stated:
    """Reads a trait at the moment it is asked for: some are worked out, and a forward pass asks for one or two."""

    def __init__(self, part: object) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name, _DEFAULTS[name])


_DEFAULTS = {each.name: each.default for each in fields(Traits)}


def traits_of(part: object) -> Traits:
    """The traits of a part, of a class of parts, or of an empty slot (None): those that it states, else the defaults.

    >>> import bitwright as bw
    >>> traits = traits_of(bw.make_part("sign"))
    >>> traits.bits, traits.signed, traits.owns_norm, traits_of(None).bits
    (1, True, False, None)
    """
    return cast("Traits", _Stated(part))


def title_of(part: object) -> str:
    """Its name in the registry, else that of its class: how messages call a part.

    >>> from torch import nn
    >>> title_of(nn.ReLU())
    'ReLU'
    """
    return traits_of(part).part_name or type(part).__name__
