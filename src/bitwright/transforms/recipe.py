"""A recipe is data: rules read top to bottom, the same in Python and in TOML. Checked when written."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from bitwright.errors import InputError, nearest, unknown
from bitwright.parts.registry import SLOTS, check_use
from bitwright.toml import read_toml, toml_text, toml_value

FOLDER = Path(__file__).parent / "recipes"
RULE_KEYS = ("match", "kind", "optional", "norm", *SLOTS)
FORMAT = 1


@dataclass(frozen=True)
class Rule:
    """One rule: which layers, which slots.

    match      glob on the qualified name, or `first`, `last` (execution order)
    kind       narrows by type name, e.g. "Linear", or "depthwise" (convolutions of one input channel per output);
               "" takes every kind
    slots      slot -> part name, `{"part": name, option: value}`, or a list of them (a chain);
               "float" empties a slot
    optional   True: the rule may match nothing (e.g. shortcuts in a net that has none)
    norm       name of the BatchNorm that a part with `owns_norm` takes over; "" finds it by tracing

    >>> Rule("*", slots={"w": "bwn"}).slots
    {'w': 'bwn'}
    """

    match: str
    kind: str = ""
    slots: dict[str, Any] = field(default_factory=dict)
    optional: bool = False
    norm: str = ""

    def __post_init__(self) -> None:
        for slot, value in self.slots.items():
            if slot not in SLOTS:
                raise InputError(
                    f"unknown slot {slot!r}.{nearest(slot, RULE_KEYS)} Slots: {', '.join(SLOTS)}",
                    code="slot-unknown",
                    given=slot,
                    possible=", ".join(SLOTS),
                )
            check_value(value, slot)
        object.__setattr__(self, "slots", {s: _plain(v) for s, v in self.slots.items()})

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Rule:
        """A rule from its table: `{"match": "*", "w": "bwn"}`."""
        for key in table:
            if key not in RULE_KEYS:
                raise unknown(f"unknown key {key!r}", key, RULE_KEYS, code="recipe-key", word="Keys")
        match = table.get("match")
        if not isinstance(match, str) or not match:
            raise InputError('no match: give match = "*", a glob, or first, last', code="recipe-match")
        kind, optional, norm = table.get("kind", ""), table.get("optional", False), table.get("norm", "")
        if not isinstance(kind, str) or not isinstance(norm, str) or not isinstance(optional, bool):
            raise InputError("kind and norm are text, optional is true or false", code="recipe-key")
        return cls(match, kind, {s: table[s] for s in SLOTS if s in table}, optional, norm)

    def to_dict(self) -> dict[str, Any]:
        table: dict[str, Any] = {"match": self.match}
        if self.kind:
            table["kind"] = self.kind
        if self.optional:
            table["optional"] = True
        if self.norm:
            table["norm"] = self.norm
        return table | self.slots


@dataclass(frozen=True)
class Recipe:
    """Rules as data, with a name for messages and the comment at the head of the file.

    >>> recipe = Recipe.from_toml('[[rule]]\\nmatch = "*"\\nw = "bwn"')
    >>> Recipe.from_toml(recipe.to_toml()) == recipe
    True
    """

    rules: tuple[Rule, ...] = ()
    name: str = ""
    comment: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))

    @classmethod
    def from_rules(cls, tables: Sequence[Mapping[str, Any] | Rule], name: str = "", comment: str = "") -> Recipe:
        """From rules or their tables: `[{"match": "*", "w": "bwn"}]`; an error names the rule, from 0."""
        rules = []
        for i, table in enumerate(tables):
            if isinstance(table, Rule):
                rules.append(table)
                continue
            if not isinstance(table, Mapping):
                raise InputError(f"{_title(name)}: rule {i}: {table!r} is not a table", code="recipe-form")
            try:
                rules.append(Rule.of(table))
            except InputError as error:
                raise error.reworded(f"{_title(name)}: rule {i}: {error}") from None
        return cls(tuple(rules), name, comment)

    @classmethod
    def from_toml(cls, text: str, name: str = "") -> Recipe:
        """From TOML text. Errors carry the line, or the number of the rule."""
        try:
            data = read_toml(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{_title(name)}: not readable as TOML: {error}", code="recipe-toml") from None
        known = ("format", "name", "rule")
        for key in data:
            if key not in known:
                raise unknown(f"{_title(name)}: unknown key {key!r}", key, known, code="recipe-key", word="Keys")
        if data.get("format", FORMAT) != FORMAT:
            raise InputError(
                f"{_title(name)}: format = {data['format']!r}; this version reads {FORMAT}",
                code="recipe-format",
            )
        tables = data.get("rule", [])
        if not isinstance(tables, list):
            raise InputError(f"{_title(name)}: rules are written [[rule]], in double brackets", code="recipe-form")
        return cls.from_rules(tables, str(data.get("name", name)), _header(text))

    @classmethod
    def load(cls, name_or_path: str | Path) -> Recipe:
        """A recipe shipped under this name (see `recipes()`), or the file at this path.

        >>> Recipe.load("xnor").name
        'xnor'
        """
        text = str(name_or_path)
        shipped, path = FOLDER / f"{text}.toml", Path(name_or_path)
        known = recipes()
        if text in known:
            return cls.from_toml(shipped.read_text(encoding="utf-8"), text)
        if not path.is_file():
            raise InputError(
                f"recipe {text}: no such recipe or file.{nearest(text, known)} All: bitwright recipes",
                code="recipe-unknown",
                given=text,
                possible=", ".join(known),
                remedy="bitwright recipes",
            )
        try:
            found = cls.from_toml(toml_text(path), path.stem)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"recipe {text}: not readable as TOML: {error}", code="recipe-toml") from None
        if not found.rules:
            raise InputError(
                f'recipe {text}: has no [[rule]], so it would change nothing. Give at least one: match = "*" and a slot',
                code="recipe-form",
                given=text,
            )
        return found

    def to_toml(self) -> str:
        """TOML text that `from_toml` reads back to an equal recipe."""
        head = [f"# {line}".rstrip() for line in self.comment.splitlines()] if self.comment else []
        top = [f"format = {FORMAT}"] + ([f"name = {toml_value(self.name)}"] if self.name else [])
        blocks = ["\n".join(head + top)]
        for rule in self.rules:
            lines = [f"{key} = {toml_value(value)}" for key, value in rule.to_dict().items()]
            blocks.append("\n".join(["[[rule]]", *lines]))
        return "\n\n".join(blocks) + "\n"

    def renamed(self, matches: Mapping[int, str]) -> Recipe:
        """The same rules with other `match` texts for some of them."""
        rules = [replace(r, match=matches.get(i, r.match)) for i, r in enumerate(self.rules)]
        return replace(self, rules=tuple(rules))

    def __add__(self, other: Recipe) -> Recipe:
        """The rules of both: those of `other` come later, so they win."""
        return replace(self, rules=self.rules + other.rules, name=other.name or self.name)


RecipeLike: TypeAlias = Recipe | str | Path | Sequence[Mapping[str, Any] | Rule]


def as_recipe(value: RecipeLike) -> Recipe:
    """A recipe from an object, a shipped name, a path, or a list of rules.

    >>> len(as_recipe([{"match": "*", "w": "bwn"}]).rules)
    1
    """
    if isinstance(value, Recipe):
        return value
    if isinstance(value, (str, Path)):
        return Recipe.load(value)
    if isinstance(value, Sequence):
        return Recipe.from_rules(value)
    raise InputError(
        f"recipe: cannot read {value!r}. Give a Recipe, a name, a path or a list of rules", code="recipe-form"
    )


def recipes() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def check_value(value: Any, slot: str) -> None:
    """Names in a slot's value: part, options, slot. The part checks option values, per layer, in `plan`."""
    if isinstance(value, str):
        check_use(value, slot, {})
    elif isinstance(value, Mapping):
        if not isinstance(value.get("part"), str):
            raise InputError(f"slot {slot}: a mapping needs the key 'part', got {sorted(value)}", code="slot-form")
        check_use(value["part"], slot, {k: v for k, v in value.items() if k != "part"})
    elif isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        for link in value:
            check_value(link, slot)
    else:
        raise InputError(
            f"slot {slot}: cannot read {value!r}. Give a part name, a mapping or a list of them",
            code="slot-form",
        )


def _plain(value: Any) -> Any:
    """Own copies of dicts and lists: a recipe must not change when its source does."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value


def _header(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" ").rstrip())
    return "\n".join(lines)


def _title(name: str) -> str:
    return f"recipe {name}" if name else "recipe"
