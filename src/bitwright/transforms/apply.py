"""A recipe becomes layers with parts, in place; all of it or nothing."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import torch
from torch import nn

from bitwright.errors import BitwrightWarning, InputError
from bitwright.nn.layers import SlotLayer
from bitwright.parts.registry import SLOTS
from bitwright.parts.traits import traits_of
from bitwright.transforms.clips import idle_clips
from bitwright.transforms.decide import (
    Decision,
    build_layer,
    check_any,
    check_skipped,
    check_tied,
    decide,
    exact_glob,
    shared_with_float,
    slot_layers,
    unreached,
    warn_skipped,
)
from bitwright.transforms.facts import links_of, part_text, signed_first
from bitwright.transforms.flow import Flow
from bitwright.transforms.layers import ComputeLayer
from bitwright.transforms.norms import give_norms, inherit, norm_of, plan_norms
from bitwright.transforms.project import project
from bitwright.transforms.recipe import Recipe, RecipeLike, Rule, as_recipe
from bitwright.transforms.unwrap import unwrap
from bitwright.transforms.walk import run_forward

ATTRIBUTE = "bitwright_recipe"
Model = TypeVar("Model", bound=nn.Module)


def apply(model: Model, recipe: RecipeLike, example: Any = None) -> Model:
    """Gives the layers of `model` the parts that `recipe` names, in place; returns the model.

    Layers become `bw.nn` layers with the same Parameter objects, so optimizers and checkpoints keep working.
    With `example` (a batch of inputs) two eval forwards, one before and one after, prove that every replaced layer is really
    called, and that no signed input part reads a ReLU; a layer that the example never reaches stays float, with a warning. Then a
    part that draws first latents does so (`zero_one`), and each part's projection runs once.
    Wrappers (`DataParallel`, compiled and averaged models, ...) are looked through; names are those of the net inside.
    The recipe, `first` and `last` resolved to names, stays at `bitwright_recipe` of the net.
    Errors: `InputError`, and the model is as it was; also where not one layer would get a part.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> apply(net, [{"match": "last", "w": "bwn"}])[2]
    Linear(in_features=8, out_features=2, bias=True, w=bwn)
    """
    given, model = model, cast("Model", unwrap(model))
    resolved = decide(model, as_recipe(recipe), example, "apply")
    left = check_skipped(resolved, "apply")
    if nothing := check_any(resolved, "apply"):
        raise InputError(nothing, code="apply-nothing")
    wanted = [d for d in resolved.decisions if d.replaces]
    rng = torch.get_rng_state()
    try:
        built = [(d, build_layer(d, "apply", share=True)) for d in wanted]
        for name, text in ((d.name, text) for d in wanted for text in d.said):
            warnings.warn(f"apply: {name}: {text}", BitwrightWarning, stacklevel=2)
        for decision, new in built:
            if isinstance(decision.layer.module, SlotLayer):
                inherit(decision.name, decision.layer.module, new)
        _check(model, built, resolved.flow)
        norms = plan_norms(model, [(d.name, d.norm, new) for d, new in built], resolved.flow)
        undo = Undo()
    except BaseException:
        torch.set_rng_state(rng)
        raise
    try:
        for decision, new in built:
            _install(model, decision, new, undo)
        give_norms(model, norms, undo)
        _fast_paths_off(model, undo)
        if example is not None:
            _check_called(model, built, example)
        idle_clips(model, resolved.flow, undo)
    except BaseException:
        undo.run()
        torch.set_rng_state(rng)
        raise
    for text in shared_with_float(model, {d.name: new for d, new in built if "w" in d.slots}):
        warnings.warn(
            f"apply: {text}: what {text.split(' ')[0]}'s part clips or centers changes there too. "
            'Leave it float (w = "float"), or untie the two',
            BitwrightWarning,
            stacklevel=2,
        )
    fresh = {id(p) for d, new in built for s in d.slots if (p := getattr(new, s)) is not None}
    project(model, only=fresh, name="start")
    project(model, only=fresh)
    before = getattr(model, ATTRIBUTE, Recipe())
    setattr(model, ATTRIBUTE, before + resolved.recipe)
    warn_skipped(left)
    return given


class Undo:
    """Undo steps, newest first."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def add(self, step: Any) -> None:
        self.steps.append(step)

    def run(self) -> None:
        for step in reversed(self.steps):
            step()
        self.steps.clear()


def _check(model: nn.Module, built: list[tuple[Decision, SlotLayer]], flow: Flow | None) -> None:
    layers = slot_layers(model)
    for decision, new in built:
        layers[decision.name] = new
    check_tied(layers, "apply")
    if flow is not None and (refused := constant_input(flow, built, "apply")):
        raise refused


def constant_input(flow: Flow, built: list[tuple[Decision, SlotLayer]], verb: str) -> InputError | None:
    """The error for layers whose signed x part would read a non-negative input: one for all, or None."""
    found = list(constant_inputs(flow, built))
    if not found:
        return None
    text, first = found[0]
    if len(found) > 1:
        text = text.replace(f"{first} takes", f"{first} and {len(found) - 1} more take", 1)
        text = text.replace("it would see", "they would see", 1).replace("of its grid", "of each grid", 1)
    return InputError(f"{verb}: {text}", code="sign-after-relu", layer=first, remedy='x = ["norm", "sign"]')


def constant_inputs(flow: Flow, built: list[tuple[Decision, SlotLayer]]) -> Iterator[tuple[str, str]]:
    """(message, layer) for each layer whose signed x part would read a non-negative input."""
    for decision, new in built:
        part, mark = signed_first(new.x), flow.nonneg.get(decision.name)
        if part is None or mark is None or "x" not in decision.slots:
            continue
        name = part_text(part)
        source = f"{mark[0]} ({mark[1]})" if mark[0] else f"a {mark[1]} in the model's forward"
        effect = "it would see a constant" if traits_of(part).bits in (None, 1) else "half of its grid lies idle"
        yield (
            f"{decision.name} takes the {name} of the output of {source}, which is never negative: {effect}. "
            f'Write x = ["norm", "{name}"] in rule {decision.rules["x"]}, '
            'or build the model with activation="identity"',
            decision.name,
        )


def _install(model: nn.Module, decision: Decision, new: SlotLayer, undo: Undo) -> None:
    old = decision.layer.module
    if isinstance(old, SlotLayer):  # its slots change in place: the object that the user holds stays the layer
        before = dict(old._modules)
        undo.add(lambda: old._modules.update(before))
        old._modules.update({s: new._modules[s] for s in SLOTS})
        return
    for name in decision.layer.names:
        parent, _, child = name.rpartition(".")
        holder = model.get_submodule(parent)
        undo.add(lambda holder=holder, child=child: holder._modules.__setitem__(child, old))
        holder._modules[child] = new
    for hook in new._load_state_dict_pre_hooks.values():
        wrapped: Any = hook  # torch's, which knows its module by itself
        if getattr(wrapped, "with_module", False) and wrapped.module() is old:
            undo.add(lambda hook=wrapped: setattr(hook, "module", weakref.ref(old)))
            wrapped.module = weakref.ref(new)


def _fast_paths_off(model: nn.Module, undo: Undo) -> None:
    """Transformer encoder layers compute in one eval kernel, past our layers; their switch turns it off."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and _has_slots(module):
            _set(module, "activation_relu_or_gelu", 0, undo)
        elif isinstance(module, nn.TransformerEncoder) and _has_slots(module):
            _set(module, "use_nested_tensor", False, undo)


def _has_slots(module: nn.Module) -> bool:
    return any(isinstance(m, SlotLayer) for m in module.modules())


def _set(module: nn.Module, key: str, value: Any, undo: Undo) -> None:
    if hasattr(module, key):
        before = getattr(module, key)
        undo.add(lambda: setattr(module, key, before))
        setattr(module, key, value)


def _check_called(model: nn.Module, built: list[tuple[Decision, SlotLayer]], example: Any) -> None:
    now = [d.layer.module if isinstance(d.layer.module, SlotLayer) else new for d, new in built]
    rows = [ComputeLayer(m, d.layer.names) for m, (d, _) in zip(now, built, strict=True)]
    seen = run_forward(model, example, rows)
    for row in rows:
        if id(row.module) not in seen:
            raise unreached(row, f"apply: {row.name} ({row.kind}) was replaced but")


def recipe_of(model: nn.Module) -> Recipe:
    """The recipe that rebuilds the slots as they are now: one rule per layer, by exact name.

    >>> net = apply(nn.Sequential(nn.Linear(4, 2)), [{"match": "*", "w": "bwn"}])
    >>> recipe_of(net).rules
    (Rule(match='0', kind='', slots={'w': 'bwn'}, optional=False, norm=''),)
    """
    rules = []
    for name, layer in slot_layers(unwrap(model)).items():
        slots = {s: _spec(name, s, getattr(layer, s)) for s in SLOTS if getattr(layer, s) is not None}
        if slots:
            rules.append(Rule(exact_glob(name), slots=slots, norm=norm_of(layer)))
    return Recipe(tuple(rules))


def _spec(name: str, slot: str, part: nn.Module) -> Any:
    specs = []
    for link in links_of(part):
        spec = traits_of(link).spec
        if not isinstance(spec, dict):
            raise InputError(
                f"recipe_of: slot {slot} of {name} holds {type(link).__name__}, built by hand; "
                "a recipe needs parts made by bw.make_part",
                code="recipe-spec",
                layer=name,
            )
        # tensors (a mask) travel in the state dict, not in the recipe
        options = {k: v for k, v in spec.items() if v is not None and not isinstance(v, torch.Tensor)}
        specs.append(options["part"] if len(options) == 1 else options)
    return specs[0] if len(specs) == 1 else specs
