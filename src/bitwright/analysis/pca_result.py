"""What PCA found, and the recipes that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from bitwright.analysis.baselines import layer_sets
from bitwright.analysis.hybrid import HybridForm, commented, fit, make_form, parts_of_recipe
from bitwright.errors import InputError, nearest
from bitwright.nn.layers import KINDS
from bitwright.tabular import Tabular, columns
from bitwright.transforms.decide import exact_glob
from bitwright.transforms.recipe import Recipe, RecipeLike


@dataclass(frozen=True)
class PcaLayer:
    """One analyzed layer.

    rows         samples x pixels that were counted
    components   by the rule of the analysis;   halves   in two disjoint subsets of the samples
    shares       share of the variance in the first j components, j = 1 .. channels
    """

    name: str
    channels: int
    rows: int
    components: int
    halves: tuple[int, int]
    shares: tuple[float, ...]
    weights: int = 0


@dataclass(frozen=True)
class Pca(Tabular):
    """Result of `bw.analyze.pca`: layers in the order in which they run.

    components    layer -> count;   significant   layers whose count rises
    before        layer -> the layer it is compared with
    halves        what either half of the samples would have chosen; None: too few rows to say
    parts         slots of the analyzed net: of its binary layers, its first and its last
    """

    text = (0, 6)

    layers: tuple[PcaLayer, ...]
    before: dict[str, str]
    significant: list[str]
    halves: tuple[list[str], list[str]] | None
    shortcuts: dict[str, str]
    first: str
    last: str
    threshold: float
    delta: float
    count: str
    relative: float | None = None
    budget: float | None = None
    parts: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def components(self) -> dict[str, int]:
        return {row.name: row.components for row in self.layers}

    @property
    def spectra(self) -> dict[str, tuple[float, ...]]:
        """Layer -> cumulative share of the variance."""
        return {row.name: row.shares for row in self.layers}

    @property
    def stable(self) -> bool | None:
        """Whether both halves of the samples choose the same layers as all of them; None: too few rows to say."""
        return None if self.halves is None else all(h == self.significant for h in (self.halves or ([], [])))

    def rise(self, name: str) -> int | None:
        """Components more than in the layer before; None where there is none."""
        before = self.before.get(name)
        return None if before is None else self.components[name] - self.components[before]

    # -- recipes --------------------------------------------------------------------------------------------------
    def recipe(
        self,
        bits: int | tuple[int, int] = 2,
        shortcut: str = "fp",
        *,
        base: RecipeLike | None = None,
        target: nn.Module | None = None,
        example: Any = None,
        clip: bool = True,
        weight_scale: str = "std",
        compat: str | None = None,
        layers: list[str] | None = None,
    ) -> Recipe:
        """The hybrid net: `kbit` in the significant layers, the binary parts in the others, float at both ends.

        bits      of weights and inputs, or (weights, inputs)
        shortcut  1x1 shortcut convs: "fp" float, "binary", "kbit" the precision of the layer that they bypass
        base      recipe of the binary layers; None: as the analyzed net has them (a float net: xnor behind a norm)
        target, example   the net to be trained, where it is another one; layers are found there by name, else by position
        layers    other layers than the significant ones
        clip, weight_scale, compat   options of kbit; the public code's are clip=False, "none", "seed"
        """
        net = self if target is None else self.fitted(target, example)
        form = net._form(bits, shortcut, base, clip, weight_scale, compat)
        if layers is None:
            return net._recipe(form, net.significant, "pca")
        names = dict(zip(self.components, net.components, strict=True))
        unknown = next((name for name in layers if name not in names), None)
        if unknown is not None:
            raise InputError(
                f"hybrid: {unknown} is no analyzed layer.{nearest(unknown, names)} There are: {next(iter(names))} to "
                f"{list(names)[-1]}",
                code="recipe-nomatch",
                given=unknown,
                possible=", ".join(names),
            )
        return net._recipe(form, [names[name] for name in layers], "")

    def baselines(
        self, bits: int | tuple[int, int] = 2, shortcut: str = "fp", *, random: int = 3, seed: int = 0,
        base: RecipeLike | None = None, target: nn.Module | None = None, example: Any = None, clip: bool = True,
        weight_scale: str = "std", compat: str | None = None,
    ) -> dict[str, Recipe]:  # fmt: skip
        """Name -> recipe: "pca", "binary", "kbit", "random-0" ..., "first-heavy", "last-heavy"; see `layer_sets`."""
        net = self if target is None else self.fitted(target, example)
        form = net._form(bits, shortcut, base, clip, weight_scale, compat)
        return {name: net._recipe(form, list(layers), name) for name, layers in net.sets(random, seed).items()}

    def sets(self, random: int = 3, seed: int = 0) -> dict[str, tuple[str, ...]]:
        """Name -> layers of k bits."""
        return layer_sets(self.significant, {row.name: row.weights for row in self.layers}, random, seed)

    def fitted(self, target: nn.Module, example: Any) -> Pca:
        """The same result with the names and shortcuts of the net to be trained: by name, else by position in depth."""
        found = fit(list(self.components), target, example, tuple(KINDS))
        to = found.names
        halves = None if self.halves is None else tuple([to[n] for n in h] for h in self.halves)
        return replace(
            self, layers=tuple(replace(row, name=to[row.name]) for row in self.layers),
            before={to[a]: to[b] for a, b in self.before.items()}, significant=[to[n] for n in self.significant],
            halves=None if halves is None else (halves[0], halves[1]), shortcuts=found.shortcuts,
            first=found.first, last=found.last,
        )  # fmt: skip

    def _form(
        self, bits: int | tuple[int, int], shortcut: str, base: RecipeLike | None, clip: bool, weight_scale: str,
        compat: str | None,
    ) -> HybridForm:  # fmt: skip
        parts = self.parts if base is None else parts_of_recipe(base)
        return make_form(parts, bits, shortcut, self.shortcuts or None, clip, weight_scale, compat)

    def _recipe(self, form: HybridForm, layers: list[str], kind: str) -> Recipe:
        return Recipe(tuple(form.rules(layers)), "", self._head(form, layers, kind))

    def _head(self, form: HybridForm, layers: list[str], kind: str) -> str:
        """The comment of the file: how it was chosen, and every layer with its counts."""
        w, x = form.kbit["w"]["bits"], _bits(form.kbit["x"])
        what = {
            "pca": f"PCA: components at {self.threshold:g} ({self.count}), layers with {self._rule()}",
            "binary": "baseline: all inner layers binary", "kbit": f"baseline: all inner layers at {w}/{x} bits",
            "first-heavy": "baseline: from the first layer on, extra bits as with PCA",
            "last-heavy": "baseline: from the last layer back, extra bits as with PCA", "": "layers chosen by hand",
        }.get(kind, f"baseline: {kind}, extra bits as with PCA")  # fmt: skip
        held = sum(r.weights for r in self.layers if r.name in layers)
        share = held / max(1, sum(r.weights for r in self.layers))
        lines = [
            f"Hybrid net, {w} bits of weights and {x} of inputs in {len(layers)} of {len(self.layers)} inner layers "
            f"({100 * share:.1f} % of their weights).",
            f"{what}; shortcuts: {form.policy}",
        ]
        if kind == "pca" and self.stable is not None:
            lines.append("Both halves of the images choose the same layers." if self.stable else self.unstable())
        lines += ["To change the choice, add or remove rules at the end.", ""]
        head, table = ["layer", "channels", "components", "rise", "bits"], []
        for row in self.layers:
            pair = f"{w}/{x}" if row.name in layers else "1/1"
            table.append([row.name, str(row.channels), str(row.components), _signed(self.rise(row.name)), pair])
        return "\n".join([*lines, *columns(head, table, range(1, 5))])

    def _rule(self) -> str:
        if self.budget is not None:
            return f"the largest rises within {100 * self.budget:g} % of the weights"
        if self.relative is not None:
            return f"a rise of {self.relative:g} or more per channel"
        return f"a rise of {self.delta:g} or more"

    def unstable(self) -> str:
        """What either half chooses, where they differ."""
        a, b = (", ".join(chosen) or "none" for chosen in self.halves or ([], []))
        return f"NOT STABLE: half of the images choose {a}; the other half {b}. Analyze more images"

    def recipe_text(self, recipe: Recipe) -> str:
        """TOML of a recipe of this result, with the counts above each layer's rule."""
        return commented(recipe, {exact_glob(row.name): self.said(row.name) for row in self.layers})

    def said(self, name: str) -> str:
        """Why a layer is in or out, in words."""
        row = next(r for r in self.layers if r.name == name)
        text = f"{row.components} of {row.channels} components"
        rise, before = self.rise(name), self.before.get(name)
        if rise is None:
            return f"{text}, no layer before it to compare with"
        word = f"{abs(rise)} {'more' if rise >= 0 else 'fewer'} than"
        return f"{text}, {word if rise else 'as many as'} {before}"

    # -- as text and data -----------------------------------------------------------------------------------------
    def cells(self) -> list[list[str]]:
        """Head and rows: layer, channels, rows, components, of each half, rise, choice."""
        out = [["layer", "channels", "rows", "components", "halves", "rise", "choice"]]
        for row in self.layers:
            halves = f"{row.halves[0]}/{row.halves[1]}"
            chosen = "k bits" if row.name in self.significant else "1 bit"
            counts = [str(row.channels), f"{row.rows:,}", str(row.components), halves]
            out.append([row.name, *counts, _signed(self.rise(row.name)), chosen])
        return out

    def records(self) -> list[dict[str, Any]]:
        """Layer, counts and choice, a dict per layer."""
        return [
            {
                "layer": row.name, "channels": row.channels, "rows": row.rows, "components": row.components,
                "rise": self.rise(row.name), "significant": row.name in self.significant,
            }
            for row in self.layers
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in pca.json of a run."""
        plain = asdict(self)
        plain["layers"] = [asdict(row) | {"rise": self.rise(row.name)} for row in self.layers]
        return plain | {"stable": self.stable}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Pca:
        """What `to_dict` gave, also after JSON."""
        rows = []
        for row in value["layers"]:
            plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k != "rise"}
            rows.append(PcaLayer(**plain))
        halves = value["halves"]
        rest = {k: v for k, v in value.items() if k not in ("layers", "halves", "stable")}
        return cls(layers=tuple(rows), halves=None if halves is None else (list(halves[0]), list(halves[1])), **rest)


def _bits(slot: Any) -> int:
    links = slot if isinstance(slot, list) else [slot]
    return next(link["bits"] for link in links if isinstance(link, dict) and link.get("part") == "kbit")


def _signed(rise: int | None) -> str:
    return "-" if rise is None else f"{rise:+d}"
