"""The optimizer side: projections after each step, groups with the right weight decay, the penalty term."""

from __future__ import annotations

import weakref
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.nn.layers import SlotLayer
from bitwright.parts.moments import moment
from bitwright.parts.traits import traits_of
from bitwright.transforms.facts import bit_facts
from bitwright.transforms.project import parts_of, project
from bitwright.transforms.steppers import held_by, steppers
from bitwright.transforms.unwrap import unwrap

# which optimizers serve which model; stored on neither, so that both can be copied and pickled at any time
_Hooks: TypeAlias = "weakref.WeakKeyDictionary[Any, list[Any]]"
_ATTACHED: weakref.WeakKeyDictionary[nn.Module, _Hooks] = weakref.WeakKeyDictionary()


class Handle:
    """Ends an attachment: `handle.remove()`, or leave the `with` block."""

    def __init__(self, model: nn.Module, optimizer: Any, hooks: list[Any]) -> None:
        self._model, self._optimizer, self._hooks = model, optimizer, hooks

    def remove(self) -> None:
        """Takes the hooks off; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        release(self._model, steppers(self._optimizer))
        attached = _ATTACHED.get(self._model)
        if attached is not None and attached.get(self._optimizer) is self._hooks:
            del attached[self._optimizer]

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def attach(model: nn.Module, optimizer: Any, add: bool = False) -> Handle:
    """From now on each `optimizer.step()` is followed by `after_step` of the parts whose weight it moves.

    A tied weight is projected once per step. With several optimizers, attach each; the one holding the part
    parameters first. Where an optimizer holds another one and works through it (SAM, Lookahead, the wrappers of
    trainers), the step of the inner one counts; where the outer `step` does not call the inner one, the outer counts.
    add      True: trainable part parameters in no group get one, without weight decay
    Errors   `InputError` listing part parameters, of layers this optimizer trains, that no optimizer moves; for an
             optimizer that is none of torch's and holds none; for one that holds no parameter of this model

    >>> net = nn.Sequential(nn.Linear(2, 2))
    >>> import bitwright as bw
    >>> _ = bw.transforms.apply(net, [{"match": "*", "w": "bwn"}])
    >>> optimizer = torch.optim.SGD(net.parameters(), 10.0)
    >>> with attach(net, optimizer):
    ...     net(torch.ones(1, 2)).sum().backward(); optimizer.step()
    >>> bool(net[0].weight.abs().max() <= 1)
    True
    """
    model = unwrap(model)
    found = steppers(optimizer)
    mine = set[int]().union(*(held_by(each) for each in found))
    if not any(id(p) in mine for p in model.parameters()):
        raise InputError(
            f"attach: {type(optimizer).__name__} holds no parameter of this {type(model).__name__}, perhaps copies of "
            "them: no step of it would be followed by a projection. Build it from bw.param_groups(model, lr, weight_decay)",
            code="attach-none",
            given=type(optimizer).__name__,
        )
    missing = _missing(model, mine)
    if missing and not add:
        names = ", ".join(missing)
        raise InputError(
            f"attach: part parameters in no group of the optimizer: {names}. Build it from "
            "bw.param_groups(model, lr, weight_decay), or pass add=True",
            code="attach-missing",
            possible=names,
            remedy="add=True",
        )
    for decay in sorted({d for _, d in missing.values()}):
        group = [p for p, d in missing.values() if d == decay]
        found[0].add_param_group({"params": group, "weight_decay": decay})
    for each in reversed(found):  # the one that steps last, so that its parts know it
        bind(model, each)
    attached = _ATTACHED.setdefault(model, weakref.WeakKeyDictionary())
    for hook in attached.pop(optimizer, ()):
        hook.remove()  # attached before, e.g. ahead of another `apply`: still once per step
    watched, done = weakref.ref(model), set[int]()

    def after(opt: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        living, held = watched(), held_by(opt)
        outer = opt is found[-1]
        if living is not None:
            project(living, weights=held - done if outer else held)
        done.clear() if outer else done.update(held)  # `done`: projected after an inner optimizer

    attached[optimizer] = [each.register_step_post_hook(after) for each in found]
    return Handle(model, optimizer, attached[optimizer])


def _missing(model: nn.Module, mine: set[int]) -> dict[str, tuple[nn.Parameter, float]]:
    """Trainable part parameters that no optimizer moves, name -> (parameter, its weight decay).

    mine   ids of the parameters of this optimizer. Parts of a layer whose weight trains elsewhere are left to that other
           optimizer.
    """
    others = (held_by(each) for given in _ATTACHED.get(model, ()) for each in steppers(given))
    held = set(mine).union(*others)
    found: dict[str, tuple[nn.Parameter, float]] = {}
    for name, layer, _, part in parts_of(model):
        if layer is not None and layer.weight.requires_grad and id(layer.weight) not in mine:
            continue
        for key, parameter in part.named_parameters():
            if parameter.requires_grad and id(parameter) not in held:
                held.add(id(parameter))
                found[f"{name}.{key}"] = (parameter, _decay_of(part, parameter))
    return found


def bind(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Tells parts that ask for it which optimizer and group move their weight."""
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, layer, slot, part in parts_of(model):
        tell = moment(part, "bind")
        if tell is None or layer is None:
            continue
        group = group_of.get(id(layer.bias if slot == "b" else layer.weight))
        if group is not None:
            try:
                tell(optimizer, group)
            except InputError as error:
                raise error.reworded(f"{name}: {error}", layer=name.removesuffix(f".{slot}")) from None


def release(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Tells parts that ask for it that the steps of these optimizers are followed no longer."""
    for _, _, _, part in parts_of(model):
        tell = moment(part, "release")
        if tell is not None:
            for optimizer in optimizers:
                tell(optimizer)


def _decay_of(part: nn.Module, parameter: nn.Parameter) -> float:
    """A part's own weight decay (PACT's alpha), else 0; in a chain, that of the link it sits in."""
    decay = 0.0
    for module in part.modules():
        if any(p is parameter for p in module.parameters()):
            own = traits_of(module).decay
            decay = decay if own is None else float(own)
    return decay


def _latent_decay(part: nn.Module) -> float:
    """What a part asks for the weight in front of it; in a chain, the most that a link asks."""
    return max(float(traits_of(module).latent_decay) for module in part.modules())


def param_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for any optimizer of torch; every trainable parameter is in exactly one.

    "weights"   float weights and those of more than 2 bits: `weight_decay`
    "latents"   weights behind a part of 1 or 2 bits: no decay, their size has no meaning of its own; or the part's own
                (`latent_decay`, e.g. zero_one, where 0 is off)
    "plain"     biases, norms, and whatever else has less than two dimensions: no decay
    "parts"     scales, steps, thresholds of parts: no decay, or the part's own (`decay`, e.g. PACT)

    >>> import bitwright as bw
    >>> net = nn.Sequential(bw.nn.Linear(4, 4, w="ttq"), nn.Linear(4, 2))
    >>> [(g["name"], len(g["params"]), g["weight_decay"]) for g in param_groups(net, 0.1, 1e-4)]
    [('weights', 1, 0.0001), ('latents', 1, 0.0), ('plain', 2, 0.0), ('parts', 2, 0.0)]
    """
    model = unwrap(model)
    place: dict[int, tuple[str, float]] = {}
    for _, layer, slot, part in parts_of(model):
        for parameter in part.parameters():
            place[id(parameter)] = ("parts", _decay_of(part, parameter))
        bits = bit_facts(part)[0] if slot in ("w", "b") else None
        if isinstance(layer, SlotLayer) and bits is not None and bits <= 2:
            latent = layer.bias if slot == "b" else layer.weight
            place[id(latent)] = ("latents", _latent_decay(part))
    for module in model.modules():
        if isinstance(module, NORMS):
            for parameter in module.parameters(recurse=False):
                place.setdefault(id(parameter), ("plain", 0.0))
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():  # each once, also where tied
        if parameter.requires_grad:
            usual = ("weights", float(weight_decay)) if parameter.dim() > 1 else ("plain", 0.0)
            groups.setdefault(place.get(id(parameter), usual), []).append(parameter)
    order = ("weights", "latents", "plain", "parts")
    return [
        {"params": groups[key], "lr": lr, "weight_decay": key[1], "name": key[0]}
        for key in sorted(groups, key=lambda k: (order.index(k[0]), k[1]))
    ]


NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def penalty(model: nn.Module) -> Tensor:
    """The sum of all parts' penalties, a scalar to add to the loss; 0 where no part has one.

    >>> penalty(nn.Linear(1, 1)).item()
    0.0
    """
    found = [moment(part, "penalty") for _, _, _, part in parts_of(unwrap(model))]
    terms = [f() for f in found if f is not None]
    if terms:
        total = terms[0].reshape(())
        for term in terms[1:]:
            total = total + term.reshape(()).to(total.device)
        return total
    first = next(model.parameters(), None)
    return torch.zeros((), device=None if first is None else first.device)
