"""The public code of channel gating and precision gating (cornell-zhang/dnn-gating): its ResNet-20 for CIFAR-10.

A file is a bare state dict. Beside the keys of a ResNet (`linear` is our `fc`) it holds, for a gated conv NAME:

    channel gating    NAME.threshold [1, O, 1, 1]; NAME.bn.*, the norm in front of the decision; NAME.mask, 1 where a weight
                      belongs to the base: it tells splits and group, and is dropped
    precision gating  NAME.threshold
    PACT              relu.upper_bound, layerL.B.relu.upper_bound: one level for both activations of a block

Gates on the second convs tell the post-activated net. What the keys do not tell is part of the name given as the model:

    cg            channel gating; told from the keys. cg-shuffle: with -shuffle
    pg-w8a3p2     precision gating with -w 8 -a 3 -pb 2; w0: float weights
    w8a3          no gate: -w 8 -a 3, 0 is float             float    neither

Precision gating quantizes by the largest magnitude of the batch, in their code and here (`scale="batch_max"`), so the answer
for an image depends on its batch. PACT clips where the activation was, in front of the shortcut too: `resnet20_pact`.

Keys were read in the code's source; no file that its authors published is at hand, so tests use random states.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from bitwright import models
from bitwright.errors import InputError, nearest
from bitwright.fn.shares import base_mask
from bitwright.importers.mapping import Imported, Move, carry_out, not_needed
from bitwright.models.resnet_cifar import BasicBlock
from bitwright.parts import make_part
from bitwright.runs.pth import Checkpoint
from bitwright.transforms import Recipe, apply

METHODS = ("cg", "cg-shuffle", "pg-w8a3p2 (any bits)", "w8a3 (any bits)", "float")
SEED = {"compat": "seed"}
ENDS = [{"match": m, "w": "float", "x": "float", "gate": "float"} for m in ("conv1", "fc")]


def resnet20_pact(num_classes: int = 10, width: float = 1) -> nn.Module:
    """ResNet-20 with their PACT activations: one learned level per block, clipping only.

    >>> net = resnet20_pact(width=0.25)
    >>> net.layer1[0].act1 is net.layer1[0].act2, net.act1(torch.tensor([-1.0, 7.0])).tolist()
    (True, [0.0, 6.0])
    """
    net: Any = models.create("resnet20", num_classes, width=width)
    net.act1 = _clip()
    for block in net.modules():
        if isinstance(block, BasicBlock):
            block.act1 = block.act2 = _clip()
    return net


def _clip() -> nn.Module:
    return make_part("pact", alpha=6.0, compat="seed")


def from_checkpoint(checkpoint: Checkpoint, where: str, model: str | None) -> Imported:
    """Our model from a checkpoint; `where` begins every message."""
    tensors = checkpoint.tensors
    _check_net(tensors, where)
    name = _told(tensors, where) if model is None else model
    rules = _rules(name, tensors, where)
    pact, postact = "relu.upper_bound" in tensors, "layer1.0.conv2.threshold" in tensors
    options = _sizes(tensors)
    net = "resnet20_postact" if postact else "resnet20"
    ours = resnet20_pact(**options) if pact else models.create(net, **options)
    recipe = Recipe.from_rules(rules, name=f"dnn-gating {name}")
    if recipe.rules:
        apply(ours, recipe)
    state, rows = carry_out(_moves(ours, tensors), tensors, ours, where, f"{net} with {name}")
    ours.load_state_dict({**ours.state_dict(), **state})
    spec = "bitwright.importers.dnn_gating:resnet20_pact" if pact else net
    weights = "float" if name in ("cg", "cg-shuffle", "float") else "latents"
    full = f"{net}-{name}" + ("-pact" if pact else "")
    return Imported(ours.eval(), rows, recipe, full, spec, options, checkpoint.facts, weights, (3, 32, 32))


def _check_net(tensors: dict[str, Tensor], where: str) -> None:
    """Three stages of three blocks and a `linear`."""
    blocks = {key.rpartition(".conv1.")[0] for key in tensors if key.endswith(".conv1.weight")}
    if blocks != {f"layer{s}.{b}" for s in (1, 2, 3) for b in range(3)} or "linear.weight" not in tensors:
        some = ", ".join(list(tensors)[:4])
        raise InputError(
            f"import {where}: the keys are not of the ResNet-20 of dnn-gating; the file begins with {some}",
            code="import-keys",
            given=some,
        )


def _told(tensors: dict[str, Tensor], where: str) -> str:
    """Channel gating shows in the keys; bits do not."""
    if "layer1.0.conv1.mask" in tensors:
        return "cg"
    kind = "precision gating, but not its" if "layer1.0.conv1.threshold" in tensors else "no gates, and not their"
    raise InputError(
        f"import {where}: the keys say {kind} bits. Give --model, the flags -w, -a, -pb in one word: pg-w8a3p2; "
        "without -pg: w8a3, or float",
        code="import-method",
        possible=", ".join(METHODS),
        remedy="--model pg-w8a3p2",
    )


def _rules(name: str, tensors: dict[str, Tensor], where: str) -> list[dict[str, Any]]:
    """The recipe of a method, checked against the keys."""
    bits = re.fullmatch(r"(pg-)?w([0-8])a([0-8])(?:p([1-7]))?", name)
    known = name in ("cg", "cg-shuffle", "float") or (bits is not None and bool(bits[1]) == bool(bits[4]))
    if not known:
        raise InputError(
            f"import {where}: dnn-gating has no model {name!r}.{nearest(name, ('cg', 'cg-shuffle', 'float'))} "
            f"Its models: {', '.join(METHODS)}; bits from 0 to 8",
            code="model-unknown",
            given=name,
            possible=", ".join(METHODS),
        )
    masked, gated = "layer1.0.conv1.mask" in tensors, "layer1.0.conv1.threshold" in tensors
    if masked != name.startswith("cg") or gated != name.startswith(("cg", "pg")):
        word = "channel gating" if masked else "precision gating" if gated else "a net without gates"
        raise InputError(
            f"import {where}: {name} does not fit the file: its keys are of {word}", code="import-keys", given=name
        )
    if name.startswith("cg"):
        splits, group = _split(tensors, where)
        gate = {"part": "channel_gate", "splits": splits, "group": group, "shuffle": name == "cg-shuffle"}
        found = [key.removesuffix(".threshold") for key in tensors if key.endswith(".threshold")]
        return [{"match": layer, "gate": gate} for layer in found]
    if bits is None:
        return []
    return _quantized(int(bits[2]), int(bits[3]), int(bits[4] or 0), where, name)


def _quantized(w: int, a: int, top: int, where: str, name: str) -> list[dict[str, Any]]:
    if top >= max(1, a):
        raise InputError(
            f"import {where}: {name}: {top} of {a} bits decide; possible: fewer than all",
            code="model-unknown",
            given=name,
        )
    grid: dict[str, Any] = {"part": "sign_magnitude", **SEED}
    every: dict[str, Any] = {"match": "*"}
    every |= {"w": {**grid, "bits": w}} if w else {}
    every |= {"x": {**grid, "bits": a, "scale": "batch_max"}} if a else {}
    if len(every) == 1:
        return []
    gate = {"part": "precision_gate", "bits": a, "top": top, **SEED}
    # the gate itself quantizes the inputs; doing it twice would differ where the largest value rounds
    return [every, *([{"match": "*.conv1", "x": "float", "gate": gate}] if top else []), *ENDS]


def _split(tensors: dict[str, Tensor], where: str) -> tuple[int, bool]:
    """(splits, group), from the masks: which input channels are the base of each output channel."""
    masks = {key.removesuffix(".mask"): t for key, t in tensors.items() if key.endswith(".mask") and t.dim() == 4}
    mask = masks["layer1.0.conv1"][:, :, 0, 0] > 0
    base = int(mask[0].sum())
    splits = mask.shape[1] // base if base else 0
    group = splits > 1 and not bool((mask == mask[0]).all())
    for layer, full in masks.items():
        outs, fan = full.shape[:2]
        fits = 1 < splits <= min(outs, fan)
        if not fits or not torch.equal(
            full > 0, base_mask(fan, outs, 1, splits, group)[..., None, None].expand_as(full)
        ):
            what = "gates nothing" if splits == 1 else "leaves channels out of every share, as the old code then does"
            raise InputError(
                f"import {where}: {layer}.mask {what} ({outs} outputs, {fan} inputs, 1/{splits}); possible: a number of "
                "partitions from 2 that divides the channels",
                code="import-shape",
                layer=f"{layer}.mask",
            )
    return splits, group


def _sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Classes and width; any other size is refused later, with its shape."""
    first, last = tensors.get("conv1.weight"), tensors["linear.weight"]
    classes = last.shape[0] if last.dim() > 1 and 0 < last.shape[0] <= 100_000 else 10
    fits = first is not None and first.dim() == 4 and 0 < first.shape[0] <= 64
    return {"num_classes": classes, "width": first.shape[0] / 16 if fits and first is not None else 1}


def _moves(model: nn.Module, tensors: dict[str, Tensor]) -> list[Move]:
    """The moves from their keys to ours."""
    moves = []
    for key, value in model.state_dict().items():
        old = key.replace("fc.", "linear.", 1) if key.startswith("fc.") else key
        old = old.replace(".gate.norm.", ".bn.").replace(".gate.threshold", ".threshold")
        if key.endswith("num_batches_tracked"):
            moves.append(Move(old, "", not_needed, optional=True, shapes=((),)))
        elif key.endswith(".gate.threshold"):
            moves.append(Move(old, key, _flat, shapes=((1, len(value), 1, 1),), exact=True))
        elif ".act1." in f".{key}" and key.endswith("alpha"):
            moves.append(Move(re.sub(r"act1\.alpha$", "relu.upper_bound", key), key))
        elif (
            key.endswith(".seen")
            or ".act2." in key
            or ".gate.quantizer." in key
            or key.endswith((".gate.size", ".high"))
        ):
            continue  # counters of calibration, and the same level again
        else:
            moves.append(Move(old, key, exact=True))
    masks = [key for key in tensors if key.endswith(".mask")]
    return [*moves, *(Move(key, "", _told_by_mask, shapes=(tuple(tensors[key].shape),)) for key in masks)]


def _flat(old: Tensor, present: Tensor | None) -> tuple[Tensor, str]:
    return old.flatten(), "one number a channel"


def _told_by_mask(old: Tensor, present: Tensor | None) -> tuple[Tensor, str]:
    return old, "is the gate's splits and group"
