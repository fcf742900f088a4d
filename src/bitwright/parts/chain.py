"""Several parts in one slot, left to right; a mask always acts last."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn.coded import masked_code
from bitwright.parts.mask import Mask
from bitwright.parts.moments import moment
from bitwright.parts.traits import title_of, traits_of
from bitwright.types import Coded


class Chain(nn.Module):
    """Parts applied in order. A mask, whatever its place, acts last and hides what it prunes from the others.

    Why last: sign(0) = +1 would revive every pruned weight, and zeros would make the scale smaller.
    Errors: two quantizers in one chain, because the second would see only the grid of the first.

    >>> import bitwright as bw
    >>> chain = Chain([bw.make_part("mask", layer=nn.Linear(2, 1)), bw.make_part("bwn")])
    >>> _ = chain.mask.mask.copy_(torch.tensor([[1, 0]]))
    >>> chain(torch.tensor([[2.0, 4.0]])).tolist()      # scale = mean of the kept weight alone
    [[2.0, 0.0]]
    """

    def __init__(self, links: Iterable[nn.Module]) -> None:
        super().__init__()
        links = list(links)
        self.links = nn.ModuleList(links)
        quantizers = [m for m in links if moment(m, "encode")]
        if len(quantizers) > 1:
            names = " and ".join(title_of(m) for m in quantizers)
            raise InputError(f"chain: two quantizers in one slot, {names}; keep one", code="chain-two")
        masks = [i for i, m in enumerate(links) if isinstance(m, Mask)]
        if len(masks) > 1:
            raise InputError("chain: two masks in one slot; keep one", code="chain-two")
        self.mask_at = masks[0] if masks else -1
        self.code_at = next((i for i, m in enumerate(links) if moment(m, "encode")), -1)

    @property
    def mask(self) -> Mask | None:
        found = self.links[self.mask_at] if self.mask_at >= 0 else None
        return found if isinstance(found, Mask) else None

    @property
    def quantizer(self) -> nn.Module | None:
        return self.links[self.code_at] if self.code_at >= 0 else None

    @property
    def spec(self) -> list[object]:
        return [traits_of(m).spec for m in self.links]

    @property
    def part_name(self) -> str:
        return "+".join(title_of(m) for m in self.links)

    @property
    def bits(self) -> int | None:
        return 32 if self.quantizer is None else traits_of(self.quantizer).bits

    @property
    def planes(self) -> int | None:
        """Planes of the code; None where there is none. A mask makes the offset of its quantizer one plane more."""
        own = traits_of(self.quantizer).planes if self.offers("encode") else None
        return own if own is None or self.mask is None else own + self._has_offset(self.mask)

    @property
    def storage_bits(self) -> int:
        """Bits of a weight on disk: those of its code, or a float, and those of the mask."""
        bits = [traits_of(m).storage_bits or 0 for m in self.links]
        return (32 if self.quantizer is None else bits.pop(self.code_at)) + sum(b for b in bits if b < 32)

    @torch.no_grad()
    def _has_offset(self, mask: Mask) -> bool:
        """Read off the code of a small weight with both signs, since only the quantizer knows it."""
        if mask.mask.is_meta:
            return True  # nothing to look at; few codes have none
        shape = mask.mask.shape if mask.mask.dim() > 1 else (1, 1)
        pair = torch.tensor([1.0, -1.0], device=mask.mask.device).reshape(1, 2, *[1] * (len(shape) - 2))
        probe = pair.expand(shape[0], *pair.shape[1:])
        code = moment(self.quantizer, "encode")
        assert code is not None
        return bool((code(probe, keep=torch.ones_like(probe)).offset != 0).any())

    def offers(self, name: str) -> bool:
        """Whether some link has this moment; `encode` and `whole` also need that nothing after it moves the value."""
        if name == "whole" and moment(self.quantizer, "whole") is None:
            return False
        if name in ("encode", "whole"):
            after = self.links[self.code_at + 1 :]
            return self.code_at >= 0 and all(isinstance(m, Mask) or traits_of(m).idle_in_eval for m in after)
        return any(moment(m, name) for m in self.links)

    def _others(self) -> list[nn.Module]:
        return [m for i, m in enumerate(self.links) if i != self.mask_at]

    def forward(self, t: Tensor) -> Tensor:
        mask = self.mask
        if mask is None:
            for link in self.links:
                t = link(t)
            return t
        for link in self._others():
            t = link(t, keep=mask.mask)
        return mask(t)

    def before(self, t: Tensor) -> Tensor:
        """What the quantizer reads: the links in front of it. `rest` goes on from there (input slots: no mask)."""
        for link in self.links[: max(0, self.code_at)]:
            t = link(t)
        return t

    def rest(self, t: Tensor) -> Tensor:
        for link in self.links[max(0, self.code_at) :]:
            t = link(t)
        return t

    def encode(self, t: Tensor) -> Coded:
        if not self.offers("encode"):
            raise InputError(
                f"chain {self.part_name}: the quantizer is missing or not last, nothing to encode", code="chain-none"
            )
        mask = self.mask
        if mask is None:
            for i, link in enumerate(self.links):
                if i == self.code_at:
                    found = moment(link, "encode")
                    assert found is not None
                    return found(t)
                t = link(t)
        assert mask is not None
        for link in self._others():
            found = moment(link, "encode")
            if found is not None:
                return masked_code(found(t, keep=mask.mask), mask.mask)
            t = link(t, keep=mask.mask)
        raise InputError("chain: no quantizer in it, nothing to encode", code="chain-none")

    def whole(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Whole numbers and unit of the quantizer's value; a mask puts zeros among them."""
        found = moment(self.quantizer, "whole")
        assert found is not None
        mask = self.mask
        for link in self.links[: self.code_at]:
            if link is not mask:
                t = link(t) if mask is None else link(t, keep=mask.mask)
        if mask is None:
            return found(t)
        number, unit = found(t, keep=mask.mask)
        return mask(number), unit

    def start(self, weight: Tensor) -> None:
        self._on_latent("start", weight)

    def after_step(self, weight: Tensor) -> None:
        self._on_latent("after_step", weight)

    def _on_latent(self, name: str, weight: Tensor) -> None:
        mask = self.mask
        for link in self._others():
            found = moment(link, name)
            if found is not None:
                found(weight) if mask is None else found(weight, keep=mask.mask)

    def penalty(self) -> Tensor:
        found = [moment(m, "penalty") for m in self.links]
        return torch.stack([f() for f in found if f is not None]).sum()

    @torch.no_grad()
    def observe(self, t: Tensor) -> None:
        for link in self.links:
            found = moment(link, "observe")
            if found is not None:
                found(t)
            t = link(t)

    def density(self) -> float:
        product = 1.0
        for link in self.links:
            found = moment(link, "density")
            product *= found() if found is not None else 1.0
        return product

    def bind(self, optimizer: torch.optim.Optimizer, group: dict[str, object]) -> None:
        for link in self.links:
            found = moment(link, "bind")
            if found is not None:
                found(optimizer, group)

    def release(self, optimizer: torch.optim.Optimizer) -> None:
        for link in self.links:
            found = moment(link, "release")
            if found is not None:
                found(optimizer)
