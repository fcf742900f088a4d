"""Float networks by name. Recipes make them low-bit; here they are ordinary modules.

All take `in_channels`, `size`, `activation`, `width` (multiplies channels or hidden units) and `dropout`.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from torch import nn

from bitwright.errors import InputError
from bitwright.usercode import unnamed

from .alexnet import alexnet
from .bireal import bireal_cifar, bireal_resnet18
from .cifarnet import cifarnet, m_cifarnet
from .common import ACTIVATIONS
from .demo import demo
from .lenet import lenet5
from .mlp import lenet300, mlp
from .nin import nin
from .resnet import resnet18
from .resnet_cifar import Shortcut, resnet20_plain, resnet20_postact, resnet_cifar
from .selfprune import Head, Norm, selfprune_conv, selfprune_mlp
from .vgg import vgg15, vgg_small

__all__ = ["create", "list"]


@dataclass(frozen=True)
class _Entry:
    build: Callable[..., nn.Module]
    min_size: int = 1  # smallest image that leaves at least one pixel for the last layer
    multiple: int = 1  # sizes must be a multiple of this


_MODELS: dict[str, _Entry] = {
    "mlp": _Entry(mlp),
    "lenet5": _Entry(lenet5, min_size=16),
    "lenet300": _Entry(lenet300),
    "nin": _Entry(nin),
    "cifarnet": _Entry(cifarnet, min_size=15),
    "m_cifarnet": _Entry(m_cifarnet, min_size=3),
    "vgg_small": _Entry(vgg_small, min_size=8),
    "vgg15": _Entry(vgg15, min_size=32),
    "resnet20": _Entry(partial(resnet_cifar, 20)),
    "resnet32": _Entry(partial(resnet_cifar, 32)),
    "resnet44": _Entry(partial(resnet_cifar, 44)),
    "resnet56": _Entry(partial(resnet_cifar, 56)),
    "resnet20_postact": _Entry(resnet20_postact),
    "resnet20_plain": _Entry(resnet20_plain),
    "bireal_resnet20": _Entry(partial(bireal_cifar, 20), multiple=4),
    "bireal_resnet32": _Entry(partial(bireal_cifar, 32), multiple=4),
    "resnet18": _Entry(resnet18),
    "bireal_resnet18": _Entry(bireal_resnet18, multiple=32),
    "alexnet": _Entry(alexnet, min_size=67),
    "demo": _Entry(demo, min_size=4),
    "selfprune_mlp": _Entry(selfprune_mlp),
    "selfprune_conv": _Entry(selfprune_conv, min_size=8),
}


def list() -> tuple[str, ...]:
    """Names that `create` knows, small nets first.

    >>> "resnet20" in list()
    True
    """
    return tuple(_MODELS)


def create(name: str, num_classes: int = 10, **options: Any) -> nn.Module:
    """A new float model with random weights.

    options   in_channels, size (image side), activation ("relu", "identity", "hardtanh", "prelu",
              "tanh"), width (multiplies channels or hidden units, say 0.5 or 2), dropout; `mlp` and `selfprune_mlp` have
              hidden, depth too, `selfprune_*` norm and head, `nin` norm_last, `resnet20` to `resnet56` shortcut and
              stem_stride, `bireal_*` rprelu.
              Defaults are the model's published ones; `size` changes only what it must (a Linear's inputs).

    >>> import torch
    >>> create("resnet20", width=0.5)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    if name not in _MODELS:
        if name.endswith(".py"):
            raise unnamed(name, "models")
        raise InputError(f"models: unknown model {name!r}{_known(name, _MODELS)}")
    entry = _MODELS[name]
    parameters = inspect.signature(entry.build).parameters
    defaults = {key: p.default for key, p in parameters.items() if key != "num_classes"}
    for key in options:
        if key not in defaults:
            raise InputError(f"models: {name} has no option {key!r}{_known(key, defaults)}")
    _check(name, entry, {"num_classes": num_classes, **defaults, **options})
    return entry.build(num_classes, **options)


def _known(given: object, known: Iterable[str]) -> str:
    """The end of an error line: the nearest name, if one is near, and all names."""
    word, names = str(given), tuple(known)

    def likeness(name: str) -> tuple[float, bool]:  # the beginning decides: resnet21 is near resnet20
        return difflib.SequenceMatcher(a=name, b=word).ratio(), name.startswith(word[:-1])

    near = max(names, key=likeness)
    hint = f"; did you mean {near!r}?" if likeness(near)[0] >= 0.6 else ";"
    return f"{hint} Known: {', '.join(names)}"


def _check(name: str, entry: _Entry, options: dict[str, Any]) -> None:
    """Values of the options, so that a mistake is one line here and not a traceback from deep inside torch."""
    for key in ("num_classes", "in_channels", "size", "hidden", "depth", "stem_stride"):
        value = options.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"models: {name}: {key}={value!r}; possible: an integer of at least 1")
    size, width, dropout = options["size"], options["width"], options["dropout"]
    if size < entry.min_size or size % entry.multiple:
        need = f"a multiple of {entry.multiple}" if entry.multiple > 1 else f"at least {entry.min_size}"
        raise InputError(f"models: {name}: size={size}; possible: {need}")
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < float("inf"):
        raise InputError(f"models: {name}: width={width!r}; possible: a number above 0")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise InputError(f"models: {name}: dropout={dropout!r}; possible: 0 up to, not including, 1")
    for key in ("norm_last", "rprelu"):
        if not isinstance(options.get(key, False), bool):
            raise InputError(f"models: {name}: {key}={options[key]!r}; possible: true, false")
    for key, words in (("shortcut", Shortcut), ("norm", Norm), ("head", Head)):
        if key in options and options[key] not in get_args(words):
            raise InputError(f"models: {name}: unknown {key} {options[key]!r}{_known(options[key], get_args(words))}")
    kind = options["activation"]
    if kind not in ACTIVATIONS:
        raise InputError(f"models: {name}: unknown activation {kind!r}{_known(kind, ACTIVATIONS)}")
