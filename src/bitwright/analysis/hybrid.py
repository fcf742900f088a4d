"""Recipes of hybrid nets: k bits in some layers, one bit in the others, float at both ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bitwright.errors import InputError
from bitwright.parts.bits import check_bits
from bitwright.transforms.apply import recipe_of
from bitwright.transforms.decide import exact_glob
from bitwright.transforms.flow import trace_flow
from bitwright.transforms.recipe import Recipe, RecipeLike, Rule, as_recipe

SHORTCUTS = ("fp", "kbit", "binary")
FLOAT = {"w": "float", "x": "float"}
FALLBACK: dict[str, Any] = {"w": "xnor", "x": ["norm", "sign"]}  # fits nets with and without ReLU
GLOBS = ("*shortcut*", "*downsample*")


@dataclass(frozen=True)
class HybridForm:
    """How the layers of a hybrid net are written.

    binary      slots of the layers that stay at one bit
    kbit        slots of the others
    ends        slots of the first and the last layer
    policy      "fp", "kbit" (the precision of the layer that the shortcut bypasses) or "binary"
    shortcuts   shortcut -> layer that it bypasses; None: not known, so rules go by the usual names
    """

    binary: dict[str, Any]
    kbit: dict[str, Any]
    ends: tuple[dict[str, Any], dict[str, Any]]
    policy: str = "fp"
    shortcuts: Mapping[str, str] | None = None

    def rules(self, layers: Sequence[str]) -> list[Rule]:
        """Top to bottom: all layers, shortcuts, the ends, then a rule for each layer of k bits."""
        rules = [Rule("*", slots=self.binary), *self._shortcut_rules(layers)]
        rules += [Rule(end, slots=slots) for end, slots in zip(("first", "last"), self.ends, strict=True)]
        return rules + [Rule(exact_glob(name), slots=self.kbit) for name in layers]

    def _shortcut_rules(self, layers: Sequence[str]) -> list[Rule]:
        usual = FLOAT if self.policy == "fp" else self.binary
        if self.shortcuts is not None:
            deep = {s for s, around in self.shortcuts.items() if self.policy == "kbit" and around in layers}
            return [Rule(exact_glob(s), slots=self.kbit if s in deep else usual) for s in self.shortcuts]
        rules = [Rule(glob, slots=usual, optional=True) for glob in GLOBS]
        blocks = [name.removesuffix("conv1") for name in layers if name.endswith(".conv1")]
        if self.policy == "kbit":
            names = [f"{exact_glob(block)}{glob[1:]}" for block in blocks for glob in GLOBS]
            rules += [Rule(name, slots=self.kbit, optional=True) for name in names]
        return rules


def parts_of_ends(model: nn.Module, inner: Sequence[str], ends: tuple[str, str]) -> dict[str, dict[str, Any]]:
    """The parts of a binary net: {"binary": what most of the inner layers have, "first": ..., "last": ...}.

    A float net, or parts built by hand: xnor behind a norm.
    """
    try:
        slots = {rule.match: dict(rule.slots) for rule in recipe_of(model).rules}
    except InputError:
        slots = {}
    found = [slots[exact_glob(name)] for name in inner if exact_glob(name) in slots]
    first, last = (slots.get(exact_glob(end), FLOAT) for end in ends)
    return {"binary": max(found, key=found.count) if found else dict(FALLBACK), "first": first, "last": last}


def parts_of_recipe(base: RecipeLike) -> dict[str, dict[str, Any]]:
    """The same, from the rules for all layers and for the ends.

    >>> parts_of_recipe("bireal")["binary"]["w"]
    'bireal'
    """
    rules = as_recipe(base).rules
    binary = {s: v for r in rules if r.match == "*" and not r.kind for s, v in r.slots.items()}
    if not binary:
        raise InputError(
            'hybrid: base has no rule with match="*", which says what the binary layers are',
            code="recipe-form",
            given=", ".join(r.match for r in rules),
            possible='match = "*"',
        )
    ends = {e: FLOAT | {s: v for r in rules if r.match == e for s, v in r.slots.items()} for e in ("first", "last")}
    return {"binary": binary, **ends}


def make_form(
    parts: Mapping[str, dict[str, Any]], bits: int | tuple[int, int], policy: str, shortcuts: Mapping[str, str] | None,
    clip: bool, weight_scale: str, compat: str | None,
) -> HybridForm:  # fmt: skip
    """The form from the parts of the binary net."""
    if policy not in SHORTCUTS:
        words = ", ".join(SHORTCUTS)
        raise InputError(
            f"hybrid: shortcut={policy!r}; possible: {words}", code="option", given=str(policy), possible=words
        )
    w_bits, x_bits = (check_bits("kbit", b) for b in ((bits, bits) if isinstance(bits, int) else bits))
    only = {} if clip else {"clip": False}
    weight: dict[str, Any] = {"part": "kbit", "bits": w_bits, "weight_scale": weight_scale, **only}
    if compat is not None:
        weight["compat"] = compat
    value = {"part": "kbit", "bits": x_bits, **only}
    binary = dict(parts["binary"])
    kbit = {**binary, "w": weight, "x": _instead(binary.get("x", "sign"), value)}
    return HybridForm(binary, kbit, (dict(parts["first"]), dict(parts["last"])), policy, shortcuts)


def _instead(slot: Any, part: dict[str, Any]) -> Any:
    """The slot with `part` in the place of its quantizer; norms and dropout stay.

    >>> _instead(["norm", "sign"], {"part": "kbit"}), _instead("sign", {"part": "kbit"})
    (['norm', {'part': 'kbit'}], {'part': 'kbit'})
    """
    if not isinstance(slot, list):
        return part
    links: list[Any] = []
    for link in slot:
        name = link["part"] if isinstance(link, Mapping) else link
        links.append(link if name in ("norm", "dropout") else part)
    return links


@dataclass(frozen=True)
class Fit:
    """Where the layers of an analyzed net lie in the net to be trained.

    names     analyzed layer -> layer there;   by   "name", or "position" in execution order
    first, last, shortcuts   of that net
    """

    names: dict[str, str]
    by: str
    first: str
    last: str
    shortcuts: dict[str, str]


def fit(layers: Sequence[str], target: nn.Module, example: Any, kinds: tuple[type[nn.Module], ...]) -> Fit:
    """By name if all names exist in the target, else by position among the inner layers without shortcuts."""
    sources = trace_flow(target, example)
    modules = dict(target.named_modules())
    inner = [n for n in sources.order[1:-1] if n not in sources.shortcuts and isinstance(modules[n], kinds)]
    if set(layers) <= set(inner):
        names, by = {n: n for n in layers}, "name"
    elif len(inner) == len(layers):
        names, by = dict(zip(layers, inner, strict=True)), "position"
    else:
        raise InputError(
            f"hybrid: the analyzed net has {len(layers)} inner layers, {type(target).__name__} has {len(inner)}: neither "
            "names nor positions fit. Analyze a net of the same depth",
            code="hybrid-fit",
            given=str(len(layers)),
            possible=str(len(inner)),
        )
    return Fit(names, by, sources.order[0], sources.order[-1], sources.shortcuts)


def commented(recipe: Recipe, comments: Mapping[str, str]) -> str:
    """TOML text with a line of comment above the rules whose match is named."""
    head, *blocks = recipe.to_toml().rstrip("\n").split("\n\n[[rule]]\n")
    text = [head]
    for rule, block in zip(recipe.rules, blocks, strict=True):
        note = f"# {comments[rule.match]}\n" if rule.match in comments else ""
        text.append(f"{note}[[rule]]\n{block}")
    return "\n\n".join(text) + "\n"
