"""The levels that layer-wise quantizers leave behind."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn.coded import ternary_code, uint_code
from bitwright.fn.levels import fit_scale, fit_scale_zero, level_grid, nearest_level
from bitwright.fn.plain import step_size
from bitwright.fn.ste import sign, ste2
from bitwright.parts.from_file import ShapesFromFile
from bitwright.parts.options import check_word
from bitwright.parts.registry import part
from bitwright.parts.scale import kept_only, weight_of, wide
from bitwright.types import Coded


@part("codebook", "w")
class Codebook(ShapesFromFile):
    """Weights on a small set of levels: value = scale * level, the levels chosen by a procedure and kept.

    value     s (levels[index] - z); `.levels` whole numbers, sorted; `.index` the kept choice (uint8, shape of the weight,
              outputs first); `.scale` s > 0, learned; `.zero` z, 0 unless asymmetric
    gradient  dw = g;   ds = c sum g (levels[index] - z),  c = 1 / sqrt(N max level), N = weights behind one scale
    shape     [O, ...]; s a scalar, [O], or [O, groups]
    options   levels: "ternary", "pow2:N" (0 and powers of two of both signs), "uniform:N" (whole numbers); N counts levels.
              granularity: one scale a "filter" or a "layer"; group=n: one for each n weights of a filter, in their order.
              asymmetric: a z beside each s, one of the levels, fixed; for "uniform:N". It packs with a bit more per weight
    moments   after_step: the choice follows the latents, nearest level of w / s, halfway away from 0.
              `hold(weight, index, scale, zero)` sets a result; without one the scale is that of least squared error.
              observe (`bw.calibrate`): reads scale and choice again, for weights that were loaded or tied after `bw.apply`
    source    Chen et al. 2019 (AAAI), Deep neural network quantization via layer-wise optimization using limited training data
    differs   levels are rounded halfway away from 0 at every threshold; bias is never quantized. With `group` there is no
              single unit per filter, so it has codes but no bit kernel

    >>> part = Codebook("pow2:5", granularity="layer")
    >>> part(torch.tensor([[0.2, -1.4, 1.5, 7.0]])).tolist()
    [[0.0, -1.0, 2.0, 2.0]]
    """

    scale: nn.Parameter
    index: Tensor
    levels: Tensor
    zero: Tensor
    from_file = ("index", "scale", "zero")
    bits_range = "2-8"
    projects = True

    def __init__(
        self, levels: str = "ternary", granularity: str = "filter", group: int | None = None, asymmetric: bool = False
    ) -> None:
        super().__init__()
        grid = level_grid(levels)
        if asymmetric and not levels.startswith("uniform"):
            raise InputError(f"part codebook: asymmetric with levels={levels!r}; possible: uniform:N", code="option")
        if group is not None and (isinstance(group, bool) or not isinstance(group, int) or group < 1):
            raise InputError(f"part codebook: group={group!r}; a number of weights, 1 or more", code="option")
        self.granularity = check_word("codebook", "granularity", granularity, ("filter", "layer"))
        self.group, self.asymmetric = group, asymmetric
        wide = grid[-1] - grid[0]
        # of level - zero, which may be any number from -wide to wide
        low, top = (-wide, wide) if asymmetric else (grid[0], max(grid[-1], -grid[0]))
        self.ternary, self.low, self.top = len(grid) == 3 and not asymmetric, low, top
        self.bits = math.ceil(math.log2(len(grid)))
        self.planes = self.storage_bits = 2 if self.ternary else (2 * wide if asymmetric else wide).bit_length()
        self.register_buffer("levels", torch.tensor(grid, dtype=torch.float32), persistent=False)
        self.register_buffer("index", torch.zeros((), dtype=torch.uint8))
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("zero", torch.zeros(()), persistent=asymmetric)

    @classmethod
    def for_layer(
        cls,
        layer: nn.Module,
        levels: str = "ternary",
        granularity: str = "filter",
        group: int | None = None,
        asymmetric: bool = False,
    ) -> Codebook:
        new, weight = cls(levels, granularity, group, asymmetric), weight_of(layer)
        if weight is None:
            raise InputError(f"part codebook: {type(layer).__name__} has no weight", code="codebook-layer")
        new.to(weight.device)
        kept = torch.float64 if weight.dtype == torch.float64 else torch.float32
        rows, width = weight.shape[0], math.prod(weight.shape[1:])
        by_group = group is not None
        shape = (rows, math.ceil(width / group)) if by_group else (rows,) if granularity == "filter" else ()
        new.scale = nn.Parameter(torch.ones(shape, dtype=kept, device=weight.device))
        if asymmetric:
            new.zero = torch.zeros(shape, dtype=kept, device=weight.device)
        new.index = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
        if weight.device.type != "meta":
            new.observe(weight)
        return new

    def offers(self, name: str) -> bool:
        return name != "whole" or self.group is None

    # -- setting it -----------------------------------------------------------------------------------------------
    @torch.no_grad()
    def observe(self, w: Tensor) -> None:
        """Sets scales and levels from weights, with the least squared error."""
        if w.shape != self.index.shape or not w.numel():
            return
        flat = wide(w).flatten(1)
        if self.group is not None:
            short = -flat.shape[1] % self.group  # zeros change no fit
            flat = nn.functional.pad(flat, (0, short)).reshape(-1, self.group)
        elif self.granularity == "layer":
            flat = flat.reshape(1, -1)
        if self.asymmetric:
            scale, zero = fit_scale_zero(flat, self.levels)
            self.zero.copy_(zero.reshape(self.zero.shape))
        else:
            scale = fit_scale(flat, self.levels)
        self.scale.copy_(scale.reshape(self.scale.shape))
        self.after_step(w)

    @torch.no_grad()
    def hold(self, weight: Tensor, index: Tensor, scale: Tensor, zero: Tensor | None = None) -> None:
        """Takes a result, and moves the latents `weight` onto it.

        index   positions in `.levels`, shape of the weight;   scale  > 0, in as many numbers as `.scale`;   zero  as many,
                where the part is asymmetric
        """
        if (zero is not None) != self.asymmetric or (zero is not None and zero.numel() != self.zero.numel()):
            raise InputError("part codebook: zero goes with asymmetric, one for each scale", code="codebook-shape")
        if index.shape != self.index.shape or scale.numel() != self.scale.numel() or not bool((scale > 0).all()):
            raise InputError(
                f"part codebook: index {tuple(index.shape)} and scale {tuple(scale.shape)} for weights "
                f"{tuple(self.index.shape)}, {self.scale.numel()} positive scales",
                code="codebook-shape",
            )
        self.index.copy_(index)
        self.scale.copy_(scale.reshape(self.scale.shape))
        if zero is not None:
            self.zero.copy_(zero.reshape(self.zero.shape))
        weight.copy_(self._numbers(weight) * self._spread(wide(self.scale), weight))

    @torch.no_grad()
    def after_step(self, weight: Tensor, keep: Tensor | None = None) -> None:
        if weight.shape == self.index.shape:
            self.index.copy_(self._nearest(kept_only(weight, keep)))

    # -- the value ------------------------------------------------------------------------------------------------
    def _spread(self, scale: Tensor, w: Tensor) -> Tensor:
        """Broadcasts over w."""
        if scale.dim() < 2:
            return scale if scale.dim() == 0 else scale.reshape(-1, *[1] * (w.dim() - 1))
        width = math.prod(w.shape[1:])
        return scale.repeat_interleave(self.group or 1, 1)[:, :width].reshape(w.shape)

    def _nearest(self, w: Tensor) -> Tensor:
        w = wide(w.detach())
        place = w / self._spread(step_size(wide(self.scale)), w)
        return nearest_level(place + self._spread(wide(self.zero), w) if self.asymmetric else place, self.levels)

    def _choice(self, w: Tensor) -> Tensor:
        """The kept choice; of a tensor that is not the layer's weight, its nearest levels."""
        return self.index.long() if w.shape == self.index.shape else self._nearest(w)

    def _numbers(self, w: Tensor) -> Tensor:
        number = wide(self.levels)[self._choice(w)]
        return number - self._spread(wide(self.zero), w) if self.asymmetric else number

    def forward(self, w: Tensor, keep: Tensor | None = None) -> Tensor:
        number, scale = self._numbers(w), wide(self.scale)
        size = self._spread(step_size(scale), w)
        rate = math.sqrt(max(1, w.numel() // max(1, scale.numel())) * self.top)
        slope = number * self._spread(sign(scale.detach()), w) / rate
        return ste2(w, self._spread(scale, w), number * size, w.new_ones(()), slope)

    def encode(self, w: Tensor, keep: Tensor | None = None) -> Coded:
        number, size = self._numbers(w), self._spread(step_size(wide(self.scale)), w)
        if self.ternary:
            return ternary_code(number > 0, number < 0, size, size)
        return uint_code(number - self.low, self.planes, size, self.low * size)

    def whole(self, w: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._numbers(w).to(w.dtype), self._spread(step_size(wide(self.scale)), w)
