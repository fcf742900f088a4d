"""The Hybrid-Net code (ichakra2/pca-hybrid): ResNets with 19 or 31 convs, plain or with shortcuts, and VGG-15, for CIFAR-100.

A file holds the latents of every layer, as they were after centering and clipping; evaluation there centers and clips them
once more, and so does the import. Nothing in the file says which layers have 2 bits: --model says it.

    hybrid              2 bits where the published model files have them: convs 22 to 31 and their shortcut; VGG 3, 5, 8, 11, 12
    hybrid:12,13,22-24  2 bits in these convs, counted from 1 as in the names; a shortcut follows the conv beside it
    binary              1 bit in all layers but the first and the last; plain nets are always binary

2-bit inputs there are not clipped, so they have more than four levels: such a net can be evaluated and trained on, but not
packed. The binary ones pack.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from bitwright.errors import InputError, nearest
from bitwright.importers import pca_nets
from bitwright.importers.mapping import Imported, Move, carry_out, not_needed
from bitwright.runs.pth import Checkpoint
from bitwright.transforms import Recipe, apply

NORM = {"part": "norm", "eps": 1e-4}
BINARY = {"w": "xnor", "x": [NORM, {"part": "sign", "boundary": "open"}]}
TWO_BITS = {"w": {"part": "kbit", "bits": 2}, "x": [NORM, {"part": "kbit", "bits": 2, "clip": False}]}
FLOAT = {"w": "float", "x": "float"}
PUBLISHED = {"resnet31": range(22, 32), "resnet19": range(0), "vgg": (3, 5, 8, 11, 12)}
CHOICES = ("hybrid", "hybrid:12,13,22-24", "binary")


def from_checkpoint(checkpoint: Checkpoint, where: str, model: str | None) -> Imported:
    """Our model from a checkpoint; `where` begins every message."""
    tensors = checkpoint.tensors
    name, convs = _net(tensors, where)
    deep = _layers(model, name, convs, where)
    options = _sizes(name, tensors)
    ours: nn.Module = getattr(pca_nets, name)(**options)
    layers = [n for n, m in ours.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    last = "fc3" if name == "vgg" else "fc"
    turns = {f"resconv{s}.0": f"conv{i}" for i, s in getattr(ours, "turns", {}).items()}
    rules: list[dict[str, Any]] = [{"match": "*", **BINARY}]
    rules += [{"match": end, **FLOAT} for end in ("conv1", last)]
    rules += [{"match": n, **TWO_BITS} for n in layers if turns.get(n, n) in deep]
    recipe = Recipe.from_rules(rules, name="pca-hybrid")
    apply(ours, recipe)
    inner = [n for n in layers if n not in ("conv1", last)]
    state, rows = carry_out(_moves(ours, inner), tensors, ours, where, name)
    _check_zeros(state, [n for n in inner if turns.get(n, n) not in deep], where)
    ours.load_state_dict({**ours.state_dict(), **state})
    full = f"{name}-{'hybrid' if deep else 'binary'}"
    spec = f"bitwright.importers.pca_nets:{name}"
    return Imported(ours.eval(), rows, recipe, full, spec, options, checkpoint.facts, "latents", (3, 32, 32))


def _net(tensors: dict[str, Tensor], where: str) -> tuple[str, int]:
    """(name, number of convs), from the keys."""
    numbers = [int(m[1]) for key in tensors if (m := re.fullmatch(r"conv(\d+)(?:\.conv)?\.weight", key))]
    convs = max(numbers, default=0)
    if "fc1.linear.weight" in tensors and convs == 13:
        return "vgg", convs
    if convs in (19, 31) and "fc.weight" in tensors:
        return f"{'resnet' if 'resconv1.0.conv.weight' in tensors else 'plain'}{convs}", convs
    some = ", ".join(list(tensors)[:4])
    raise InputError(
        f"import {where}: the keys are of no net of pca-hybrid (ResNets with 19 or 31 convs, VGG-15); the file begins with "
        f"{some}",
        code="import-keys",
        given=some,
    )


def _layers(model: str | None, name: str, convs: int, where: str) -> set[str]:
    """Names of the 2-bit convs."""
    word, _, numbers = (model or "").partition(":")
    plain = name.startswith("plain")
    if plain and word in ("", "binary"):
        return set()
    if word == "binary" and not numbers:
        return set()
    if model is None or (word == "hybrid" and not numbers and not plain and not PUBLISHED.get(name)):
        raise InputError(
            f"import {where}: the keys do not say which layers have 2 bits. Give --model binary, or as in the model "
            f"file: --model hybrid:12,13,22-24 (numbers of its BinConv2d2)",
            code="import-method",
            possible=", ".join(CHOICES),
            remedy="--model hybrid",
        )
    if word != "hybrid" or plain:
        raise InputError(
            f"import {where}: {'a plain net of ' if plain else ''}pca-hybrid has no model {model!r}.{nearest(word, CHOICES)} "
            f"Its models: {'binary' if plain else ', '.join(CHOICES)}",
            code="model-unknown",
            given=model,
            possible=", ".join(CHOICES),
        )
    chosen = _numbers(numbers) if numbers else set(PUBLISHED[name])
    if not chosen or not chosen <= set(range(2, convs + 1)):
        raise InputError(
            f"import {where}: --model {model}: numbers are convs from 2 to {convs}, e.g. hybrid:12,13,22-24",
            code="model-unknown",
            given=model,
            possible=f"2 to {convs}",
        )
    return {f"conv{i}" for i in chosen}


def _numbers(text: str) -> set[int]:
    """The numbers in a list with ranges; empty where it is not understood.

    >>> sorted(_numbers("12,13,22-24")), _numbers("a")
    ([12, 13, 22, 23, 24], set())
    """
    found: set[int] = set()
    for piece in text.split(","):
        match = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", piece.strip())
        if match is None:
            return set()
        found |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found


def _sizes(name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Classes and width; any other size is refused later, with its shape."""
    first, last = tensors.get("conv1.weight"), tensors.get("fc3.weight" if name == "vgg" else "fc.weight")
    base = 64 if name == "vgg" else 16
    classes = last.shape[0] if last is not None and last.dim() > 1 and 0 < last.shape[0] <= 100_000 else 100
    fits = first is not None and first.dim() == 4 and 0 < first.shape[0] <= 4 * base
    return {"num_classes": classes, "width": first.shape[0] / base if fits and first is not None else 1}


def _prepared(old: Tensor, present: Tensor | None) -> tuple[Tensor, str]:
    # in the file's own precision and their order, so that the signs are theirs
    return (old + old.mean(1, keepdim=True).mul(-1)).clamp(-1, 1), "centered, clipped"


def _moves(model: nn.Module, inner: list[str]) -> list[Move]:
    """Our key -> theirs: a low-bit layer is a norm `bn` and a `conv` or `linear` inside of it."""
    moves = []
    for key in model.state_dict():
        layer = next((n for n in inner if key.startswith(f"{n}.")), None)
        old, change = key, None
        if layer is not None:
            word = "linear" if isinstance(model.get_submodule(layer), nn.Linear) else "conv"
            rest = key.removeprefix(f"{layer}.")
            old = f"{layer}.{rest.replace('x.links.0.', 'bn.') if '.' in rest else f'{word}.{rest}'}"
            change = _prepared if rest == "weight" else None
        if key.endswith("num_batches_tracked"):
            moves.append(Move(old, "", not_needed, optional=True, shapes=((),)))
        else:
            moves.append(Move(old, key, change, exact=True) if change else Move(old, key, exact=True))
    known = {move.old for move in moves}
    norms = [f"{n}.bn.num_batches_tracked" for n in inner]  # our norm part has no counter
    return moves + [Move(n, "", not_needed, optional=True, shapes=((),)) for n in norms if n not in known]


def _check_zeros(state: dict[str, Tensor], binary: list[str], where: str) -> None:
    """Their sign(0) is 0, a third value that no bit holds."""
    for name in binary:
        zeros = int((state[f"{name}.weight"] == 0).sum())
        if zeros:
            raise InputError(
                f"import {where}: {name} holds {zeros} zeros after centering; their sign of 0 is 0, and bits have only "
                "-1 and +1",
                code="import-zeros",
                layer=name,
            )
