"""What a user types for a model and its input -> objects."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from bitwright import usercode
from bitwright.errors import InputError, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

Shape = tuple[int, ...]
LIMIT = 1 << 28  # values in one example; more is a slip of the keyboard


def parse_shape(text: str | None, command: str) -> Shape | None:
    """`3,32,32` or `3x32x32`, without the batch.

    >>> parse_shape("3,32,32", "plan")
    (3, 32, 32)
    """
    if text is None:
        return None
    pieces = text.replace("x", ",").split(",")
    if not all(p.strip().isdecimal() and 0 < int(p) < LIMIT for p in pieces):
        raise InputError(
            f"{command}: --input {text!r} is not a shape. Give positive sizes without the batch, e.g. --input 3,32,32",
            code="input-shape",
            given=text,
            possible="3,32,32",
        )
    shape = tuple(int(p) for p in pieces)
    count = 1
    for size in shape:
        count *= size
    if count > LIMIT:
        raise InputError(f"{command}: --input {text!r} has {count:,} values; at most {LIMIT:,}", code="input-shape")
    return shape


def check_model(spec: str, command: str) -> None:
    """Errors: `InputError` for what is neither `file.py:callable` nor the name of one of our models."""
    if usercode.is_own(spec):
        return
    if spec.endswith(".py"):
        raise usercode.unnamed(spec, command)
    from bitwright import models

    known = models.list()
    if spec not in known:
        missing = f"no folder {spec}, and no such model" if "/" in spec else f"unknown model {spec!r}"
        raise unknown(f"{command}: {missing}", spec, known, code="model-unknown", more=". Or file.py:callable")


def make_model(spec: str, command: str, shape: Shape | None = None, classes: int = 10) -> tuple[nn.Module, Shape]:
    """The model in eval mode and the shape of one input.

    spec   a name of `bw.models`, `file.py:callable` or `module:callable`; a callable takes no arguments
    """
    if usercode.is_own(spec):
        model = _call(spec, command)
        if shape is None:
            raise InputError(
                f"{command} {spec}: the input's shape is not known. Give it, e.g. --input 3,32,32",
                code="input-missing",
                possible="--input 3,32,32",
            )
        return model.eval(), shape
    check_model(spec, command)
    from bitwright import models

    parameters = inspect.signature(models._MODELS[spec].build).parameters
    if shape is None:
        size = parameters["size"].default
        shape = (parameters["in_channels"].default, size, size)
    if len(shape) != 3 or shape[1] != shape[2]:
        given = ",".join(map(str, shape))
        raise InputError(
            f"{command} {spec}: --input {given} is not a square image. Give channels,side,side",
            code="input-shape",
            given=given,
            possible="3,32,32",
        )
    model = models.create(spec, classes, in_channels=shape[0], size=shape[1])
    return model.eval(), shape


def example(shape: Shape, batch: int = 1) -> Tensor:
    """Random input, the same each time, without touching torch's global generator."""
    import torch

    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))


def try_input(model: nn.Module, x: Tensor, command: str, spec: str) -> None:
    """One forward pass, so that a wrong shape is one line here and not an internal error later."""
    import torch

    try:
        with torch.no_grad():
            model(x)
    except InputError:
        raise
    except Exception as error:
        shape = ",".join(map(str, x.shape[1:]))
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{command} {spec}: the model does not take input {shape}: {first}. Give its shape with --input",
            code="input-shape",
            given=shape,
        ) from error


def _call(spec: str, command: str) -> nn.Module:
    from torch import nn

    model = usercode.call(usercode.find(spec, command), spec, command)
    if not isinstance(model, nn.Module):
        name = spec.rpartition(":")[2]
        raise InputError(f"{command} {spec}: {name}() gave {type(model).__name__}, not a torch module", code="own-call")
    return model
