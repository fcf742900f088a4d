"""The network-compression re-implementations (csyhhu): ResNets for CIFAR-10, CIFAR-100, STL-10 with BWN, DoReFa, TTQ or FBS.

Their ResNet has 1x1 convs as shortcuts where the shape changes, and every conv and Linear is quantized: the stem, the
shortcuts and the classifier too. A file holds the latents under the names that our net has:

    conv1.weight, bn1.*, layerL.B.conv1.weight, ..., layerL.0.downsample.0.weight, layerL.0.downsample.1.*, fc.*
    TTQ: beside each weight NAME.pos and NAME.neg, the values of the two sides; neg has its sign, our n has none
    FBS: beside each weight of an FBS_CNN (or FBS_Linear) NAME.saliency_predictor.weight and .bias; weights are float,
         the stem is gated, the shortcuts where they have these keys. Which layers are gated is told by the keys

Nothing in the file says how its weights are to be quantized, except that TTQ has its scales: the method must be given.
So must the share of channels of FBS, which is an argument of their forward.

    bwn        a sign(w), a = mean|w| of the layer              bwn-f   the same, a per filter (classifier: per layer)
    dorefa-K   K bits on tanh(w) / max|tanh(w)|, without a scale; K = 1 gives -1 and +1
    ttq        threshold 0.05 max|w|                            float   the net they start from
    fbs-0.5    feature boosting and suppression with the flag -CR 0.5: their gate, in front of the norm (`compat="seed"`)

`-stl` behind the name is their net for STL-10, whose stem has stride 3. Their module of 2021 for DoReFa (signed codes,
inputs scaled by the batch) is another method under the same keys, and is not read.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from torch import Tensor, nn

from bitwright import models
from bitwright.errors import InputError, nearest
from bitwright.importers.mapping import Imported, Move, carry_out, not_needed
from bitwright.runs.pth import Checkpoint
from bitwright.transforms import Recipe, apply

LAYER = {"part": "bwn", "granularity": "layer"}
RULES: dict[str, list[dict[str, Any]]] = {
    "bwn": [{"match": "*", "w": LAYER}],
    "bwn-f": [{"match": "*", "w": "bwn"}, {"match": "*", "kind": "Linear", "w": LAYER}],
    # their 1 bit is the formula of more bits, which compat="seed" is
    "dorefa-1": [{"match": "*", "w": {"part": "dorefa_w", "bits": 1, "compat": "seed"}}],
    **{f"dorefa-{k}": [{"match": "*", "w": {"part": "dorefa_w", "bits": k}}] for k in range(2, 9)},
    "ttq": [{"match": "*", "w": {"part": "ttq", "init": "one"}}],
    "float": [],
}
METHODS = ("bwn", "bwn-f", "dorefa-1 to dorefa-8", "ttq", "fbs-0.5 (any share)", "float")
PREDICTOR = ".saliency_predictor"
BLOCKS = {3: 20, 5: 32, 7: 44, 9: 56}  # blocks of a stage -> depth


def resnet(depth: int, num_classes: int = 10, stem_stride: int = 1, width: float = 1) -> nn.Module:
    """Their float net.

    >>> resnet(20).layer2[0].downsample[0].weight.shape
    torch.Size([32, 16, 1, 1])
    """
    return models.create(f"resnet{depth}", num_classes, shortcut="conv", stem_stride=stem_stride, width=width)


# for commands that take a model without arguments
resnet20, resnet32, resnet44, resnet56 = (partial(resnet, depth) for depth in BLOCKS.values())
resnet20_stl = partial(resnet, 20, stem_stride=3)


def from_checkpoint(checkpoint: Checkpoint, where: str, model: str | None) -> Imported:
    """Our model from a checkpoint; `where` begins every message."""
    tensors = checkpoint.tensors
    depth = _depth(tensors, where)
    method, stl = _method(model, tensors, where)
    if stl and depth != 20:
        raise InputError(
            f"import {where}: -stl is their ResNet-20, these are the keys of ResNet-{depth}. Leave -stl out",
            code="import-keys",
            given=str(model),
        )
    options = {**_sizes(tensors), "stem_stride": 3 if stl else 1}
    ours = resnet(depth, **options)
    recipe = Recipe.from_rules(_rules(method, tensors), name=f"network-compression {method}")
    if recipe.rules:
        apply(ours, recipe)
    name = f"resnet{depth}"
    state, rows = carry_out(_moves(ours), tensors, ours, where, f"{name} with {method}")
    if method.startswith("bwn"):
        _check_zeros(tensors, where)
    ours.load_state_dict({**ours.state_dict(), **state})
    return Imported(
        ours.eval(),
        rows,
        recipe,
        f"{name}-{method}",
        f"bitwright.importers.network_compression:{name}{'_stl' if stl else ''}",
        options,
        checkpoint.facts,
        "latents" if RULES.get(method) else "float",
        (3, 96, 96) if stl else (3, 32, 32),
    )


def _depth(tensors: dict[str, Tensor], where: str) -> int:
    """The depth, from the number of blocks in the first stage."""
    blocks = {key.split(".")[1] for key in tensors if key.startswith("layer1.") and key.endswith(".conv1.weight")}
    if len(blocks) not in BLOCKS or "fc.weight" not in tensors:
        some = ", ".join(list(tensors)[:4])
        raise InputError(
            f"import {where}: the keys are of no net of network-compression "
            f"({', '.join(f'resnet{d}' for d in BLOCKS.values())}); the file begins with {some}",
            code="import-keys",
            given=some,
        )
    return BLOCKS[len(blocks)]


def _method(model: str | None, tensors: dict[str, Tensor], where: str) -> tuple[str, bool]:
    """(method, whether it is the net for STL-10); told from the keys only where they say it."""
    scaled, gated = "conv1.pos" in tensors, any(PREDICTOR in key for key in tensors)
    if model is None and gated:
        raise InputError(
            f"import {where}: the keys are of fbs and do not say which share of the channels is kept (their -CR). Give "
            "--model fbs-0.5",
            code="import-method",
            possible="fbs-SHARE, a share above 0 and up to 1",
            remedy="--model fbs-0.5",
        )
    if model is None:
        if scaled:
            return "ttq", False
        raise InputError(
            f"import {where}: the keys do not say how the weights are quantized. Give --model: "
            f"{', '.join(m for m in METHODS if m != 'ttq')}; -stl behind it for their STL-10 net",
            code="import-method",
            possible=", ".join(METHODS),
            remedy="--model bwn",
        )
    method, stl = model.removesuffix("-stl"), model.endswith("-stl")
    if method not in RULES and _keep(method) is None:
        raise InputError(
            f"import {where}: network-compression has no model {model!r}.{nearest(method, RULES)} "
            f"Its models: {', '.join(METHODS)}, each also with -stl",
            code="model-unknown",
            given=model,
            possible=", ".join(METHODS),
        )
    if scaled != (method == "ttq"):
        word = "its keys have the scales of ttq" if scaled else "it has none of the scales of ttq (conv1.pos)"
        raise InputError(
            f"import {where}: {model} does not fit the file: {word}", code="import-keys", given=model, layer="conv1.pos"
        )
    if gated != (_keep(method) is not None):
        word = "it has none of the predictors of fbs" if _keep(method) else "its keys have the predictors of fbs"
        raise InputError(f"import {where}: {model} does not fit the file: {word}", code="import-keys", given=model)
    return method, stl


def _keep(method: str) -> float | None:
    """Share of channels in "fbs-0.5"; None for another method.

    >>> _keep("fbs-0.5"), _keep("fbs-2"), _keep("ttq")
    (0.5, None, None)
    """
    share = re.fullmatch(r"fbs-([01]?\.\d+|1)", method)
    return float(share[1]) if share and 0 < float(share[1]) <= 1 else None


def _rules(method: str, tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
    keep = _keep(method)
    if keep is None:
        return RULES[method]
    gate = {"part": "fbs", "keep": keep, "compat": "seed"}
    layers = [key.removesuffix(f"{PREDICTOR}.weight") for key in tensors if key.endswith(f"{PREDICTOR}.weight")]
    return [{"match": layer, "gate": gate} for layer in layers]


def _sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Classes and width; any other size is refused later, with its shape."""
    first, last = tensors.get("conv1.weight"), tensors["fc.weight"]
    classes = last.shape[0] if last.dim() > 1 and 0 < last.shape[0] <= 100_000 else 10
    fits = first is not None and first.dim() == 4 and 0 < first.shape[0] <= 64
    return {"num_classes": classes, "width": first.shape[0] / 16 if fits and first is not None else 1}


def _moves(model: nn.Module) -> list[Move]:
    """Every key of ours from the key of the same name; the scales of TTQ from theirs."""
    moves = []
    for key in model.state_dict():
        layer = key.removesuffix(".w.p").removesuffix(".w.n")
        if key.endswith(".w.p"):
            moves.append(Move(f"{layer}.pos", key))
        elif key.endswith(".w.n"):
            moves.append(Move(f"{layer}.neg", key, _without_sign))
        elif key.endswith("num_batches_tracked"):
            moves.append(Move(key, "", not_needed, optional=True, shapes=((),)))
        elif ".gate.predictor." in key:
            moves.append(Move(key.replace(".gate.predictor", PREDICTOR), key, exact=True))
        else:
            moves.append(Move(key, key, exact=True))
    return moves


def _without_sign(old: Tensor, present: Tensor | None) -> tuple[Tensor, str]:
    return -old, "sign changed: our n is the size"


def _check_zeros(tensors: dict[str, Tensor], where: str) -> None:
    """Their sign(0) is 0, a third value that no bit holds."""
    for key, value in tensors.items():
        zeros = int((value == 0).sum()) if value.dim() > 1 else 0
        if zeros:
            raise InputError(
                f"import {where}: {key} holds {zeros} zeros; their sign of 0 is 0, and bits have only -1 and +1",
                code="import-zeros",
                layer=key,
            )
