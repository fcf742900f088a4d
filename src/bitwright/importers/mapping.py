"""From old keys to ours: a list of moves, carried out and written down one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.transforms import Recipe

# of a change: old value, what our key holds so far (None: nothing yet) -> (our value, what was done in words)
NAMED = 10  # keys in one message
Change = Callable[[Tensor, Tensor | None], tuple[Tensor, str]]


def as_it_is(old: Tensor, present: Tensor | None) -> tuple[Tensor, str]:
    return old, ""


def not_needed(old: Tensor, present: Tensor | None) -> tuple[Tensor, str]:
    return old, "a counter, not used in evaluation"


@dataclass(frozen=True)
class Move:
    """old key -> our key ("" drops it), and how the value changes on the way.

    optional   the old file may lack it
    shapes     what the old tensor may look like; empty: as ours does
    exact      the change works in the file's own precision; else floats arrive as float64
    """

    old: str
    new: str
    change: Change = as_it_is
    optional: bool = False
    shapes: tuple[tuple[int, ...], ...] = ()
    exact: bool = False


@dataclass(frozen=True)
class MappedKey:
    """One old key: where it went, its shape in the file, what was done to it."""

    old: str
    new: str
    shape: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class Imported:
    """Our model with the old weights, in eval mode.

    name     the net, e.g. "nin"; `spec` is what `--model` takes to build it again, `options` what
             `bw.models.create` would need beside the name
    weights  what the file held for its low-bit layers: "latents", "binarized" (signs times scales) or, where it has
             no such layer, "float"
    shape    of one input, where `spec` does not tell it
    rows     a row per old key
    recipe   what was applied to the model
    facts    numbers and texts saved beside the weights: epoch, accuracy
    """

    model: nn.Module
    rows: tuple[MappedKey, ...]
    recipe: Recipe
    name: str = ""
    spec: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, float | str] = field(default_factory=dict)
    weights: str = ""
    shape: tuple[int, ...] = ()


def carry_out(
    moves: list[Move], old: Mapping[str, Tensor], model: nn.Module, where: str, net: str
) -> tuple[dict[str, Tensor], tuple[MappedKey, ...]]:
    """Our state, and the rows. Errors name every old key that is missing, left over or of another shape."""
    own = model.state_dict()
    _check_names(moves, old, where, net)
    state: dict[str, Tensor] = {}
    rows = []
    for move in moves:
        if move.old not in old:
            continue
        value = old[move.old]
        allowed = move.shapes or (tuple(own[move.new].shape),)
        if tuple(value.shape) not in allowed:
            raise InputError(
                f"import {where}: {move.old} has shape {_shape(value.shape)}; in {net} it is "
                f"{' or '.join(map(_shape, allowed))}",
                code="import-shape",
                layer=move.old,
                given=_shape(value.shape),
                possible=" or ".join(map(_shape, allowed)),
            )
        if move.new and not value.is_floating_point():
            raise InputError(
                f"import {where}: {move.old} holds {str(value.dtype).removeprefix('torch.')}, not floats",
                code="import-shape",
                layer=move.old,
            )
        wide = value.double() if value.is_floating_point() and not move.exact else value
        changed, note = move.change(wide, state.get(move.new))
        if move.new:
            state[move.new] = changed
        rows.append(MappedKey(move.old, move.new, tuple(value.shape), note))
    return {k: v.to(own[k].dtype) for k, v in state.items()}, tuple(rows)


def _check_names(moves: list[Move], old: Mapping[str, Tensor], where: str, net: str) -> None:
    known = {move.old for move in moves}
    missing = [m.old for m in moves if m.old not in old and not m.optional]
    extra = [key for key in old if key not in known]
    if missing or extra:
        parts = [
            f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} {what}: {', '.join(keys[:NAMED])}"
            + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")
            for what, keys in (("missing", missing), ("not of this net", extra))
            if keys
        ]
        raise InputError(
            f"import {where}: not the weights of {net}: {'; '.join(parts)}",
            code="import-keys",
            layer=(missing or extra)[0],
        )


def _shape(shape: tuple[int, ...] | torch.Size) -> str:
    """A shape in words.

    >>> _shape((20, 1, 5, 5)), _shape(())
    ('20x1x5x5', 'one number')
    """
    return "x".join(map(str, shape)) or "one number"
