"""The PyTorch port of XNOR-Net (jiecaoyu): LeNet-5 for MNIST, NIN for CIFAR-10, AlexNet for ImageNet.

Their block is norm, sign, conv with bias, ReLU; first and last layer stay float. Evaluation there begins by
centering the weights of binary layers over the input channels and clipping them to [-1, 1]; then each filter is
mean|w| times its signs. A file saved inside a training step holds these products instead: they are kept.

Where our model is written differently, the same function is written in our terms:

    norm before sign      LeNet-5, NIN: the `norm` of the layer's x slot; AlexNet: the model's own norm (fc6: both)
    bias of a binary layer the norm behind it, which does nothing else (LeNet-5, NIN)
    bias of the first one  subtracted from the running mean of the norm that follows
    another epsilon       the difference is added to the running variance
    gain of a norm        at least 0.01 (LeNet-5, NIN clip it in every forward)

NIN has a norm before and a ReLU behind its last conv: `bw.models.create("nin", norm_last=True)`, here `nin`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bitwright import models
from bitwright.errors import InputError, unknown
from bitwright.importers.mapping import Imported, Move, carry_out
from bitwright.importers.xnor_moves import ALEXNET, EPS, NIN, Values, alexnet_moves, lenet5_moves, nin_moves
from bitwright.runs.pth import Checkpoint
from bitwright.transforms import Recipe, apply

NORM_SIGN = [{"part": "norm", "eps": EPS}, {"part": "sign", "boundary": "open"}]
SIGN = {"part": "sign", "boundary": "open"}
FLOAT = [{"match": edge, "w": "float", "x": "float"} for edge in ("first", "last")]


def nin(num_classes: int = 10, in_channels: int = 3, width: float = 1) -> nn.Sequential:
    """The NIN of `bw.models` in their form, for commands that take a model without options (`--model`).

    >>> [name for name, _ in nin().named_children()][-5:]
    ['bn9', 'conv9', 'act9', 'pool3', 'flatten']
    """
    net = models.create("nin", num_classes, in_channels=in_channels, width=width, norm_last=True)
    assert isinstance(net, nn.Sequential)
    return net


@dataclass(frozen=True)
class KnownNet:
    """One of their nets: how to know it, how to build it, where its keys go.

    first, last, binary   old layers (without `.weight`)
    channels              outputs of the first layer at width 1
    """

    spec: str
    first: str
    last: str
    binary: tuple[str, ...]
    channels: int
    build: Callable[..., nn.Module]
    rules: list[dict[str, Any]]
    moves: Callable[[nn.Module, Values], list[Move]]


def from_checkpoint(checkpoint: Checkpoint, where: str, model: str | None) -> Imported:
    """Our model from a checkpoint; `where` begins every message."""
    name = _guess(checkpoint.tensors, where) if model is None else _known(model, where, checkpoint.tensors)
    net = NETS[name]
    options = _sizes(net, checkpoint.tensors)
    ours = net.build(**options)
    recipe = Recipe.from_rules(net.rules, name="xnor-net")
    apply(ours, recipe)
    values = Values(checkpoint.tensors)
    state, rows = carry_out(net.moves(ours, values), checkpoint.tensors, ours, where, name)
    ours.load_state_dict({**ours.state_dict(), **state})
    _check_zeros(checkpoint.tensors, values, where)
    kinds = set(values.binarized.values())
    weights = "latents" if kinds == {False} else "binarized" if kinds == {True} else "latents and binarized"
    shape = (3, 32, 32) if name == "nin" else ()
    return Imported(ours.eval(), rows, recipe, name, net.spec, options, checkpoint.facts, weights, shape)


def _check_zeros(tensors: dict[str, Tensor], values: Values, where: str) -> None:
    """Their sign(0) is 0, a third value that no bit holds; trained weights are never exactly 0."""
    for key, done in values.binarized.items():
        zeros = int((tensors[key].flatten(1) == 0).logical_and(tensors[key].flatten(1).any(1, keepdim=True)).sum())
        if done and zeros:
            raise InputError(
                f"import {where}: {key} holds {zeros} zeros among its signs; bits have only -1 and +1. "
                "Import the file with the latents, saved outside a training step",
                code="import-zeros",
                layer=key,
            )


def _known(name: str, where: str, tensors: dict[str, Tensor]) -> str:
    """The given name, if it is one of theirs and the keys do not say that it is another one."""
    if name not in NETS:
        raise unknown(
            f"import {where}: xnor-net has no model {name!r}", name, NETS, code="model-unknown", word="Its models"
        )
    share = _share(tensors)
    other = max(share, key=lambda net: share[net])
    if share[name] < 0.5 <= share[other]:
        raise InputError(
            f"import {where}: these are the keys of {other}, not of {name}. Give --model {other}, or leave it out",
            code="import-keys",
            given=name,
            possible=other,
        )
    return name


def _share(tensors: dict[str, Tensor]) -> dict[str, float]:
    """For each net, which share of its layers the keys name."""
    share = {}
    for name, net in NETS.items():
        wanted = [f"{layer}.weight" for layer in (net.first, *net.binary, net.last)]
        share[name] = sum(key in tensors for key in wanted) / len(wanted)
    return share


def _guess(tensors: dict[str, Tensor], where: str) -> str:
    """The net whose layers the keys name; at least half of them must be there."""
    share = _share(tensors)
    best = max(share, key=lambda name: share[name])
    if share[best] < 0.5:
        some = ", ".join(list(tensors)[:4])
        raise InputError(
            f"import {where}: the keys are of no net of xnor-net ({', '.join(NETS)}); the file begins with {some}",
            code="import-keys",
            given=some,
            possible=", ".join(NETS),
        )
    return best


def _sizes(net: KnownNet, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Classes, input channels and width, from the first and the last layer; any other size is refused later."""
    options: dict[str, Any] = {}
    first, last = tensors.get(f"{net.first}.weight"), tensors.get(f"{net.last}.weight")
    if first is not None and first.dim() == 4 and 0 < first.shape[0] <= 2 * net.channels and first.shape[1] in (1, 3):
        options = {"in_channels": first.shape[1], "width": first.shape[0] / net.channels}
    classes = last.shape[0] if last is not None and last.dim() > 1 and 0 < last.shape[0] <= 100_000 else 10
    return {"num_classes": classes, **options}


NETS = {
    "lenet5": KnownNet(
        "lenet5", "conv1", "ip2", ("bin_conv2.conv", "bin_ip1.linear"), 20,
        lambda **options: models.create("lenet5", **options),
        [{"match": "*", "w": "xnor", "x": NORM_SIGN}, *FLOAT], lenet5_moves,
    ),
    "nin": KnownNet(
        "bitwright.importers.xnor_net:nin", "xnor.0", "xnor.13", tuple(f"xnor.{p}.conv" for p in NIN), 192, nin,
        [{"match": "*", "w": "xnor", "x": NORM_SIGN}, *FLOAT], nin_moves,
    ),
    "alexnet": KnownNet(
        "alexnet", "features.0", "classifier.4",
        (*(f"features.{p}.conv" for p in ALEXNET), "classifier.0.linear", "classifier.1.linear"), 96,
        lambda **options: models.create("alexnet", **options),
        [{"match": "*", "w": "xnor", "x": SIGN}, {"match": "fc6", "x": NORM_SIGN}, *FLOAT], alexnet_moves,
    ),
}  # fmt: skip
