"""What a user types for a model and its input -> objects."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.errors import InputError, nearest

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


def make_model(spec: str, command: str, shape: Shape | None = None, classes: int = 10) -> tuple[nn.Module, Shape]:
    """The model in eval mode and the shape of one input.

    spec   a name of `bw.models`, `file.py:callable` or `module:callable`; a callable takes no arguments
    """
    if ":" in spec:
        model = _call(spec, command)
        if shape is None:
            raise InputError(
                f"{command} {spec}: the input's shape is not known. Give it, e.g. --input 3,32,32",
                code="input-missing",
                possible="--input 3,32,32",
            )
        return model.eval(), shape
    from bitwright import models

    if spec not in models.list():
        known = models.list()
        form = f" Or {spec}:NAME for a callable in that file." if spec.endswith(".py") else " Or file.py:callable."
        raise InputError(
            f"{command}: unknown model {spec!r}.{nearest(spec, known)} Known: {', '.join(known)}.{form}",
            code="model-unknown",
            given=spec,
            possible=", ".join(known),
        )
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

    place, _, name = spec.rpartition(":")
    module = _import(place, spec, command)
    if not hasattr(module, name):
        names = [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")]
        raise InputError(
            f"{command} {spec}: {place} has no {name!r}.{nearest(name, names)} Callables: {', '.join(names[:20])}",
            code="model-unknown",
            given=name,
            possible=", ".join(names[:20]),
        )
    try:
        model = getattr(module, name)()
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"{command} {spec}: calling {name}() failed: {type(error).__name__}: {first}", code="model-call"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{command} {spec}: {name}() gave {type(model).__name__}, not a torch module", code="model-call"
        )
    return model


def _import(place: str, spec: str, command: str) -> Any:
    """The user's own file or module: naming it on the command line is asking to run it."""
    path = Path(place)
    is_file = place.endswith(".py")
    if is_file and not path.is_file():
        raise InputError(f"{command} {spec}: no file {place}", code="model-unknown", given=place)
    sys.path.insert(0, str(path.parent.resolve() if is_file else Path.cwd()))  # its own imports work as if it was run
    try:
        if not is_file:
            return importlib.import_module(place)
        loader = importlib.util.spec_from_file_location(path.stem, path)
        assert loader is not None and loader.loader is not None
        module = importlib.util.module_from_spec(loader)
        sys.modules[path.stem] = module
        loader.loader.exec_module(module)
        return module
    except InputError:
        raise
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"{command} {spec}: importing {place} failed: {type(error).__name__}: {first}", code="model-import"
        ) from error
