"""Numbers a part states about itself, looked up through chains: bits, planes, storage. Unknown stays None."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.nn.layers import SlotLayer
from bitwright.parts.chain import Chain
from bitwright.parts.moments import moment
from bitwright.parts.traits import title_of, traits_of


def links_of(part: nn.Module | None) -> list[nn.Module]:
    """The parts of a slot, left to right: none, one, or the links of a chain."""
    if part is None:
        return []
    return list(part.links) if isinstance(part, Chain) else [part]


def split(part: nn.Module | None) -> tuple[list[nn.Module], nn.Module | None]:
    """(what comes before the quantizer, the quantizer) of an input slot."""
    links = links_of(part)
    at = next((i for i, link in enumerate(links) if moment(link, "encode")), None)
    return links[:at], None if at is None else links[at]


def quantizer_of(part: nn.Module | None) -> nn.Module | None:
    """The link that decides the values: the one that encodes, else the only one that states bits below 32.

    >>> import bitwright as bw
    >>> quantizer_of(bw.make_part("mask")) is None
    True
    """
    links = links_of(part)
    for link in links:
        if moment(link, "encode") is not None:
            return link
    return next((m for m in links if traits_of(m).bits not in (None, 32)), None)


def bit_facts(part: nn.Module | None) -> tuple[int | None, int | None]:
    """(bits, planes) of a slot: (32, None) where it is float, (None, None) where a part does not say."""
    if part is None:
        return 32, None
    found = quantizer_of(part)
    if found is None:
        return (32, None) if all(_harmless(m) for m in links_of(part)) else (None, None)
    if moment(found, "encode") is None and traits_of(found).clip is False:
        return None, None  # a grid without ends has more levels than its bits can name
    return traits_of(found).bits, traits_of(part).planes


def _harmless(part: nn.Module) -> bool:
    """Parts that leave floats as floats."""
    return traits_of(part).bits == 32 or folds(part)


def folds(part: nn.Module) -> bool:
    """Whether packing may leave it out in front of a quantizer: it does nothing there, or is a scale and an add that go
    into the thresholds (moment `constants`).

    >>> import bitwright as bw
    >>> [folds(bw.make_part(name)) for name in ("dropout", "sign")]
    [True, False]
    """
    return traits_of(part).idle_in_eval or moment(part, "constants") is not None


def weight_bits(part: nn.Module | None) -> float | None:
    """Bits one weight takes on disk, summed over the chain (quantizer, mask); None = unknown."""
    if part is None:
        return 32
    found = quantizer_of(part)
    if found is None and bit_facts(part)[0] is None:
        return None
    own = 32 if found is None else traits_of(found).storage_bits
    if own is None:
        return None
    return own + sum(traits_of(m).storage_bits or 0 for m in links_of(part) if m is not found)


def density_of(layer: nn.Module) -> float:
    """Share of the work really done: mask and gate."""
    if not isinstance(layer, SlotLayer):
        return 1.0
    product = 1.0
    for part in (layer.w, layer.gate):
        found = moment(part, "density")
        product *= float(found()) if found is not None else 1.0
    return product


def float_bytes(layer: nn.Module) -> int:
    """Bytes of the floats beside the weights: bias, scales of the code, tensors of the other parts."""
    count = 0
    bias = getattr(layer, "bias", None)
    if isinstance(bias, Tensor) and not isinstance(bias, nn.UninitializedParameter):
        count += bias.numel()
    if not isinstance(layer, SlotLayer):
        return 4 * count
    found = quantizer_of(layer.w)
    if found is not None:
        count += _scales(layer, found)
    for part in (layer.b, layer.x, layer.g, layer.gate):
        if part is not None:
            tensors = [*part.parameters(), *part.buffers()]
            count += sum(t.numel() for t in tensors if t.is_floating_point())
    return 4 * count


@torch.no_grad()
def _scales(layer: SlotLayer, part: nn.Module) -> int:
    """Floats of the weight code: one per channel or tensor where planes are 1, 2, 4 ... times the first."""
    encode = moment(part, "encode")
    weight = layer.slot_weight()
    if encode is None or weight.device.type == "meta":
        return weight.shape[0]
    thin = weight.detach()
    for axis in range(1, thin.dim()):
        thin = thin.narrow(axis, 0, min(1, thin.shape[axis]))  # scales do not depend on the size: keep this cheap
    try:
        code = encode(thin)
    except Exception:  # a part may insist on the full shape (a codebook); its scale count is then a guess
        return weight.shape[0]
    planes = max(1, code.planes)
    ladder = code.coef[:1] * torch.tensor([2.0**i for i in range(planes)]).reshape(-1, *[1] * (code.coef.dim() - 1)).to(
        code.coef
    )
    return code.coef.numel() // planes if torch.allclose(ladder, code.coef) else code.coef.numel()


def part_text(part: nn.Module | None) -> str:
    """`xnor`, `norm+sign`, or `float` for an empty slot."""
    if part is None:
        return "float"
    return "+".join(title_of(m) for m in links_of(part))


def signed_first(part: nn.Module | None) -> nn.Module | None:
    """The signed quantizer of an x slot if it sees the raw input (first, or after dropout only), else None.

    8 bits and more do not count: half of such a grid still resolves a non-negative input. Nor does a part that says
    `fits_nonnegative`: its levels above zero are its stated bits.
    """
    for link in links_of(part):
        traits = traits_of(link)
        if traits.idle_in_eval:
            continue
        few = (traits.bits is None or traits.bits < 8) and not traits.fits_nonnegative
        return link if traits.signed and few else None
    return None
