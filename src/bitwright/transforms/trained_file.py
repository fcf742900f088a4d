"""A trained net in a file: its state dict, its recipe, smaller layers, and which tensors lay in channels_last memory."""

from __future__ import annotations

import json
import os
import shlex

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.transforms.apply import apply, recipe_of
from bitwright.transforms.copying import copy_model
from bitwright.transforms.recipe import Recipe
from bitwright.transforms.widths import KEY, put_widths, widths_of

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes


def metadata_of(model: nn.Module, state: dict[str, Tensor]) -> dict[str, str]:
    last = [key for key, value in state.items() if is_channels_last(value)]
    found = {"channels_last": json.dumps(last, separators=(",", ":"))} if last else {}
    if widths := widths_of(model):
        found[KEY] = json.dumps(widths, separators=(",", ":"))
    return {**found, "recipe": recipe_of(model).to_toml()}


def put_stored_widths(model: nn.Module, metadata: dict[str, str], path: str | os.PathLike[str]) -> None:
    """Makes the layers as small as the file says. Errors: `InputError` for sizes that this model cannot take."""
    if KEY in metadata:
        try:
            widths = json.loads(metadata[KEY])
        except (ValueError, RecursionError):
            widths = None
        put_widths(model, widths, f"load {path}")


def load_trained(
    model: nn.Module, tensors: dict[str, Tensor], metadata: dict[str, str], path: str | os.PathLike[str]
) -> nn.Module:
    """Makes layers as small as the file's, applies its recipe where it is missing, then loads strictly; if not all fits, the model
    is unchanged."""
    recipe = Recipe.from_toml(metadata.get("recipe", ""))
    needed = bool(recipe.rules) and recipe_of(model).to_toml() != recipe.to_toml()
    trial = copy_model(model)
    put_stored_widths(trial, metadata, path)
    if needed:
        try:
            apply(trial, recipe)
        except InputError as error:
            raise error.reworded(f"load {path}: its recipe does not fit this model: {error}") from None
    _load_strictly(trial, tensors, path, recipe)
    put_stored_widths(model, metadata, path)
    if needed:
        apply(model, recipe)
    _load_strictly(model, tensors, path, recipe)
    _restore_layout(model, metadata)
    return model


def is_channels_last(value: Tensor) -> bool:
    """Whether memory is channels_last and not also in plain order."""
    kind = CHANNELS_LAST.get(value.dim())
    return kind is not None and value.is_contiguous(memory_format=kind) and not value.is_contiguous()


def _restore_layout(model: nn.Module, metadata: dict[str, str]) -> None:
    """Puts the tensors that were channels_last when saved into that order of memory; the values stay."""
    try:
        names = set(json.loads(metadata.get("channels_last", "[]")))
    except (ValueError, TypeError, RecursionError):
        return  # a damaged memory order is no reason to refuse intact weights
    for key, value in model.state_dict(keep_vars=True).items():
        if key in names and value.dim() in CHANNELS_LAST:
            value.data = value.data.contiguous(memory_format=CHANNELS_LAST[value.dim()])


def _load_strictly(model: nn.Module, tensors: dict[str, Tensor], path: str | os.PathLike[str], recipe: Recipe) -> None:
    wanted = set(model.state_dict())
    missing, extra = sorted(wanted - set(tensors)), sorted(set(tensors) - wanted)
    if missing or extra:
        parts = [
            f"{len(keys)} keys {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (("missing", missing), ("unexpected", extra))
            if keys
        ]
        keys = f"load {path}: {' and '.join(parts)}"
        own = recipe_of(model)
        if own.rules and own.rules != recipe.rules:  # the model came with parts of its own
            remedy = f"bitwright plan --diff {shlex.quote(str(path))} RECIPE"
            raise InputError(
                f"{keys} because the file was trained with {_in_words(recipe)}, this model has {_in_words(own)}: {remedy}",
                code="load-keys",
                given=_in_words(own),
                possible=_in_words(recipe),
                remedy=remedy,
            )
        raise InputError(f"{keys}: the file was trained with another model or recipe", code="load-keys")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        line = next((t.strip() for t in str(error).splitlines()[1:] if t.strip()), str(error))
        raise InputError(f"load {path}: {line}", code="load-keys") from None


def _in_words(recipe: Recipe) -> str:
    """The parts that a recipe puts into layers: `w=bwn, x=norm+sign`; `no recipe` where it is empty."""
    found: dict[str, list[str]] = {}
    for rule in recipe.rules:
        for slot, value in rule.slots.items():
            links = value if isinstance(value, list) else [value]
            names = "+".join(str(v["part"]) if isinstance(v, dict) else str(v) for v in links)
            if names != "float" and names not in found.setdefault(slot, []):
                found[slot].append(names)
    return ", ".join(f"{slot}={'/'.join(names)}" for slot, names in found.items() if names) or "no recipe"
