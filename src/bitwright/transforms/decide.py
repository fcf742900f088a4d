"""From rules to decisions: which rule decides which slot of which layer. Nothing is changed here."""

from __future__ import annotations

import glob
import warnings
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from bitwright.errors import BitwrightWarning, InputError, nearest
from bitwright.nn.layers import SlotLayer, replace_layer
from bitwright.parts.moments import moment
from bitwright.parts.traits import traits_of
from bitwright.transforms.clips import awake
from bitwright.transforms.flow import Flow, watching
from bitwright.transforms.layers import ComputeLayer, candidates
from bitwright.transforms.recipe import Recipe, Rule
from bitwright.transforms.walk import Seen, try_example


@dataclass
class Decision:
    """What the rules want of one layer."""

    layer: ComputeLayer
    slots: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, int] = field(default_factory=dict)
    norm: str = ""
    words: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # what its parts warned of while they were built

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def fills(self) -> bool:
        """Whether some slot gets a part; a plain layer whose slots all stay empty is left as it is."""
        return any(not is_float(v) for v in self.slots.values())

    @property
    def replaces(self) -> bool:
        return not self.layer.reason and bool(self.slots) and (self.fills or isinstance(self.layer.module, SlotLayer))


@dataclass
class Resolution:
    """All decisions, the recipe with `first`, `last` written as names, and what the forward pass showed."""

    decisions: list[Decision]
    recipe: Recipe
    hits: list[list[str]]
    seen: dict[int, Seen] | None
    flow: Flow | None


def exact_glob(name: str) -> str:
    """A glob for one name; a layer may be called `first`, and glob signs may sit in names.

    >>> exact_glob("layer1.0.conv1"), exact_glob("first"), exact_glob("a[0]")
    ('layer1.0.conv1', '[f]irst', 'a[[]0]')
    """
    return f"[{name[0]}]{name[1:]}" if name in ("first", "last") else glob.escape(name)


def is_float(value: Any) -> bool:
    """Whether a slot's value leaves it empty.

    >>> is_float("float"), is_float({"part": "dorefa_w", "bits": 32}), is_float(["norm", "sign"])
    (True, True, False)
    """
    if isinstance(value, str):
        return value == "float"
    if isinstance(value, dict):
        return value["part"] == "float" or value.get("bits") == 32
    return all(is_float(v) for v in value)


def decide(model: nn.Module, recipe: Recipe, example: Any, verb: str) -> Resolution:
    """Reads the rules top to bottom; a later one overrides slot by slot. `verb` heads the messages."""
    found = candidates(model)
    where = f"{verb} {type(model).__name__}"
    if not found:
        raise InputError(f"{where}: the model has no layer that a recipe could change", code="recipe-nomatch")
    seen, flow = (None, None) if example is None else _run(model, example, found, where)
    decisions = [Decision(c) for c in found]
    matches: dict[int, str] = {}
    hits: list[list[str]] = []
    for i, rule in enumerate(recipe.rules):
        if rule.match in ("first", "last"):
            ends = [d for d in decisions if d.layer.is_kind(rule.kind) and not d.layer.is_table]
            one = _end(model, rule.match, ends, seen, f"{where}: rule {i}") if ends else None
            chosen = [] if one is None else [one]
            if one is not None:
                one.words.append(rule.match)
                matches[i] = exact_glob(one.name)
        else:
            chosen = [
                d
                for d in decisions
                if any(fnmatchcase(n, rule.match) for n in d.layer.names) and d.layer.is_kind(rule.kind)
            ]
        usable = [d for d in chosen if not d.layer.reason or rule.match != "*"]
        if not usable and not rule.optional:
            raise _no_layer(f"{where}: rule {i}", rule.match, rule.kind, found, chosen)
        hits.append([d.name for d in chosen])
        for d in chosen:
            d.slots |= rule.slots
            d.rules |= dict.fromkeys(rule.slots, i)
            d.norm = rule.norm or d.norm
    if seen is not None:
        recipe += _leave_unreached(decisions, hits, seen, verb)
        decisions.sort(key=lambda d: seen[id(d.layer.module)].order if id(d.layer.module) in seen else len(seen))
    return Resolution(decisions, recipe.renamed(matches), hits, seen, flow)


def _run(model: nn.Module, example: Any, found: list[ComputeLayer], where: str) -> tuple[dict[int, Seen], Flow]:
    """What one eval forward shows of the model."""
    try:
        with awake(model), watching(model) as watch:
            seen = try_example(model, example, found)
        return seen, watch.flow()
    except InputError as error:
        raise error.reworded(f"{where}: {error}") from error.__cause__


def _leave_unreached(decisions: list[Decision], hits: list[list[str]], seen: dict[int, Seen], verb: str) -> Recipe:
    """Layers that the example never calls (an auxiliary head, a pretraining head) stay float, and the saved recipe
    says so. It is an error if a rule is for such layers alone, because its part would do nothing."""
    called = {d.name for d in decisions if id(d.layer.module) in seen}
    rules = []
    for d in decisions:
        if d.name in called or not d.fills or d.layer.reason or isinstance(d.layer.module, SlotLayer):
            continue
        for slot, i in d.rules.items():
            if not is_float(d.slots[slot]) and not called.intersection(hits[i]):
                raise unreached(d.layer, f"{verb}: rule {i} is for {d.name} ({d.layer.kind}), but")
        d.layer.reason = f"{d.layer.kind}, the example never reaches it, unless its weight is read past the layer"
        rules.append(Rule(exact_glob(d.name), slots=dict.fromkeys(d.slots, "float")))
    return Recipe(tuple(rules))


def unreached(layer: ComputeLayer, head: str) -> InputError:
    return InputError(
        f'{head} the example never reached it: its part would do nothing. Leave it out (match="{layer.name}" w="float" '
        'x="float"), or call the module, not its weight',
        code="layer-unused",
        layer=layer.name,
    )


def check_any(result: Resolution, verb: str) -> str:
    """The message that not one layer would get a part, and why; "" where one does, or where no rule wants one."""
    wanted = any(not is_float(value) for rule in result.recipe.rules for value in rule.slots.values())
    if not wanted or any(d.replaces and d.fills for d in result.decisions):
        return ""
    why = [f"{d.name} ({d.layer.reason or _left_out(d)})" for d in result.decisions]
    rest = f" and {len(why) - 3} more" if len(why) > 3 else ""
    return f"{verb}: not one layer gets a part, so the net would stay as it is: {', '.join(why[:3])}{rest}"


def _left_out(d: Decision) -> str:
    if not d.rules:
        return f"{d.layer.kind}, no rule is for it"
    return f"{d.layer.kind}, left float by rule {', '.join(str(i) for i in sorted(set(d.rules.values())))}"


def check_skipped(result: Resolution, verb: str) -> list[str]:
    """Layers that stay float although a rule wanted a part in them: an error if named, else returned."""
    left = []
    for d in result.decisions:
        if not d.layer.reason or not d.fills:
            continue
        named = [i for s, i in d.rules.items() if not is_float(d.slots[s]) and result.recipe.rules[i].match != "*"]
        what = f"{d.name} ({d.layer.reason})"
        if named:
            raise InputError(
                f"{verb}: {what} cannot be replaced (rule {named[0]}). "
                f'Use bw.nn layers inside it, or match="{d.name}" w="float" x="float"',
                code="layer-kind",
                layer=d.name,
                remedy=f'match="{d.name}" w="float" x="float"',
            )
        left.append(what)
    return left


def warn_skipped(left: list[str]) -> None:
    if left:
        warnings.warn(f"apply: stays float: {'; '.join(left)}", BitwrightWarning, stacklevel=3)


def build_layer(decision: Decision, verb: str, share: bool) -> SlotLayer:
    """A slot layer with the wanted parts, not yet in the model.

    share=True   the very same Parameters (apply)
    share=False  tensors that only share memory (plan): hooks that a part puts on a Parameter leave no trace
    """
    old = decision.layer.module
    if decision.name == "" and not isinstance(old, SlotLayer):
        raise InputError(
            f"{verb}: the model itself is a {decision.layer.kind}; there is nothing to put its "
            "replacement in. Wrap it: nn.Sequential(layer)",
            code="layer-root",
        )
    if isinstance(old, SlotLayer):
        new = old.__class__.__new__(old.__class__)
        nn.Module.__init__(new)
        kept = dict(old.__dict__)
        kept["_modules"] = dict(old._modules)
        new.__dict__.update(kept)
    else:
        new = replace_layer(old)
    if not share:
        new._parameters = {
            k: None if p is None else nn.Parameter(p.detach(), requires_grad=False) for k, p in new._parameters.items()
        }
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            new.set_slots(decision.name, **decision.slots)
    except InputError as error:
        numbers = sorted(set(decision.rules.values()))
        raise error.reworded(f"{verb}: rule {', '.join(map(str, numbers))}: {error}", layer=decision.name) from None
    decision.said = [str(w.message) for w in heard if issubclass(w.category, BitwrightWarning)]
    for w in heard:
        if not issubclass(w.category, BitwrightWarning):
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    weight = new._parameters.get("weight")
    for slot in decision.slots:
        part = getattr(new, slot)
        if part is not None:
            part.train(old.training)
            if weight is not None and weight.dtype.itemsize == 8:
                part.double()  # a double net computes in double everywhere
    return new


def check_tied(layers: dict[str, SlotLayer], verb: str) -> None:
    """Two different weight parts on one tied Parameter are refused: each would move it in its own way."""
    first: dict[int, tuple[str, Any]] = {}
    for name, layer in layers.items():
        if layer.w is None:
            continue
        spec = traits_of(layer.w).spec or type(layer.w).__name__
        other = first.setdefault(id(layer._parameters.get("weight")), (name, spec))
        if other[1] != spec:
            raise InputError(
                f"{verb}: {other[0]} and {name} share one weight, but slot w wants {_spec_text(other[1])} "
                f"and {_spec_text(spec)}; give both the same part",
                code="tied",
                layer=name,
            )


def shared_with_float(model: nn.Module, layers: dict[str, SlotLayer]) -> list[str]:
    """The message for weights that a part will clip or center while a module without that part reads them unchanged."""
    owners: dict[int, list[str]] = {}
    mine = {name for name, layer in layers.items() if layer.w is not None}
    for name, module in model.named_modules():
        coded = name in mine or (isinstance(module, SlotLayer) and module.w is not None)
        for value in () if coded else module._parameters.values():
            owners.setdefault(id(value), []).append(name)
    found = []
    for name, layer in layers.items():
        step = None if layer.w is None else moment(layer.w, "after_step")
        others = owners.get(id(layer._parameters.get("weight")), [])
        if step is not None and others:
            found.append(f"{name} shares its weight with {', '.join(others)}, which reads it as a float")
    return found


def slot_layers(model: nn.Module) -> dict[str, SlotLayer]:
    """Slot layers by their first name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, SlotLayer)}


def _spec_text(spec: Any) -> str:
    if isinstance(spec, dict):
        options = ", ".join(f"{k}={v!r}" for k, v in spec.items() if k != "part")
        return f"{spec['part']}({options})" if options else str(spec["part"])
    return "+".join(_spec_text(s) for s in spec) if isinstance(spec, list) else str(spec)


def _end(model: nn.Module, word: str, decisions: list[Decision], seen: dict[int, Seen] | None, where: str) -> Decision:
    """The first or last compute layer in execution order."""
    if seen is not None:
        called = [d for d in decisions if id(d.layer.module) in seen]
        if not called:
            raise InputError(f'{where} match="{word}": the example reached no layer', code="recipe-nomatch")
        called.sort(key=lambda d: seen[id(d.layer.module)].order)
        return called[0] if word == "first" else called[-1]
    module = _sequential_end(model, word, {id(d.layer.module) for d in decisions})
    if module is None:
        raise InputError(
            f'{where} match="{word}" means execution order: give an example input, or name the layer',
            code="recipe-order",
            remedy="example=",
        )
    return next(d for d in decisions if d.layer.module is module)


def _sequential_end(model: nn.Module, word: str, layers: set[int]) -> nn.Module | None:
    """Definition order is execution order only inside nn.Sequential."""
    if id(model) in layers:
        return model
    if type(model) is not nn.Sequential:
        return None
    for child in model if word == "first" else reversed(model):
        if any(id(m) in layers for m in child.modules()):
            return _sequential_end(child, word, layers)
    return None


def _no_layer(where: str, match: str, kind: str, found: list[ComputeLayer], skipped: list[Decision]) -> InputError:
    here = f'{where} match="{match}"' + (f' kind="{kind}"' if kind else "")
    if skipped:
        reasons = "; ".join(f"{d.name} ({d.layer.reason})" for d in skipped)
        text = f"{here} selects no layer that can be replaced: {reasons}"
        return InputError(text, code="recipe-nomatch", given=match)
    heads: list[str] = []
    for name in (n for c in found for n in c.names):
        first, _, rest = name.partition(".")
        text = f"{first}.*" if rest else first
        if text not in heads:
            heads.append(text)
    if len(heads) > 12:
        heads = [*heads[:8], "...", *heads[-3:]]
    close = nearest(match, [n for c in found for n in c.names])
    kinds = sorted({c.kind for c in found}) + ["depthwise"] * any(c.is_depthwise for c in found)
    tail = f" Kinds here: {', '.join(kinds)}" if kind else ""
    return InputError(
        f"{here} selects no layer.{close} Names here: {', '.join(heads)}{tail}",
        code="recipe-nomatch",
        given=match,
        possible=", ".join(heads),
    )
