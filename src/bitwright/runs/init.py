"""How the weights of a float model are drawn before training."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from bitwright.errors import InputError, nearest

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_SCHEMES: dict[str, Callable[[Tensor], object]] = {
    "kaiming": lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
    "xavier": lambda w: nn.init.xavier_uniform_(w),
    "orthogonal": lambda w: nn.init.orthogonal_(w),
    "xnor": lambda w: nn.init.normal_(w, std=2 / max(1, w[0].numel())),
}
POSSIBLE = f"default, {', '.join(_SCHEMES)}, normal:STD"


def initialize(model: nn.Module, scheme: str) -> None:
    """Draws the weights of Linear and convolution layers anew, in place; biases become 0, norms stay.

    scheme   "default"      nothing is changed
             "kaiming"      normal, std sqrt(2 / fan_out)                       arXiv 1502.01852
             "xavier"       uniform on +-sqrt(6 / (fan_in + fan_out))           Glorot and Bengio 2010
             "orthogonal"   orthogonal rows (columns, if there are more rows)   arXiv 1312.6120
             "xnor"         normal, std 2 / fan_in: the ImageNet script of XNOR-Net-PyTorch
             "normal:STD"   normal, std STD
    A weight that two layers share is drawn once. Draws from torch's global generator: seed it before.

    >>> import torch
    >>> layer = nn.Linear(1000, 10)
    >>> initialize(layer, "normal:0.02")
    >>> round(float(layer.weight.detach().std()), 2), int(layer.bias.count_nonzero())
    (0.02, 0)
    """
    draw = _draw(scheme)
    seen: set[int] = set()
    for layer in model.modules() if draw is not None else ():
        if not isinstance(layer, _LAYERS):
            continue
        if draw is not None and id(layer.weight) not in seen:
            seen.add(id(layer.weight))
            draw(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _draw(scheme: str) -> Callable[[Tensor], object] | None:
    if scheme == "default":
        return None
    if scheme in _SCHEMES:
        return _SCHEMES[scheme]
    name, _, number = scheme.partition(":")
    try:
        std = float(number) if name == "normal" else math.nan
    except ValueError:
        std = math.nan
    if not (math.isfinite(std) and std > 0):
        raise InputError(
            f'model init "{scheme}": no such scheme.{nearest(scheme, [*_SCHEMES, "default", "normal:0.02"])} '
            f"Possible: {POSSIBLE} with STD above 0",
            code="init-unknown",
            given=scheme,
            possible=POSSIBLE,
        )
    return lambda w: nn.init.normal_(w, std=std)
