"""The register of parts: names to classes, built with checked options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from bitwright.errors import InputError, nearest, unknown
from bitwright.parts.traits import traits_of
from bitwright.types import PartInfo

SLOTS = ("w", "b", "x", "g", "gate")
SLOT_WORDS = {"w": "weights", "b": "biases", "x": "inputs", "g": "gradients", "gate": "gates"}
_PARTS: dict[str, type[nn.Module]] = {}
_FITS: dict[str, tuple[str, ...]] = {}
Class = TypeVar("Class", bound=type[nn.Module])


def part(name: str, *slots: str) -> Callable[[Class], Class]:
    """Class decorator: enters a part under `name` for the given slots (default: "w").

    >>> @part("twice_for_docs", "w")
    ... class Twice(nn.Module):
    ...     def forward(self, t): return 2 * t
    >>> type(make_part("twice_for_docs")).__name__
    'Twice'
    >>> forget("twice_for_docs")
    """

    def register(cls: Class) -> Class:
        if name in _PARTS:
            taken = _PARTS[name]
            raise InputError(f"part {name!r} is taken by {taken.__module__}.{taken.__qualname__}", code="part-taken")
        for slot in slots:
            if slot not in SLOTS:
                raise InputError(f"part {name}: no such slot {slot!r}. Slots: {', '.join(SLOTS)}", code="slot-unknown")
        _PARTS[name], _FITS[name] = cls, slots or ("w",)
        cls.part_name = name  # type: ignore[attr-defined]
        return cls

    return register


def forget(name: str) -> None:
    """Removes a part, for tests and notebooks that define one twice."""
    _PARTS.pop(name, None)
    _FITS.pop(name, None)


def part_class(name: str) -> type[nn.Module]:
    """The class behind a name; `InputError` naming the nearest one."""
    if name not in _PARTS:
        said = f"unknown part {name!r}"
        raise unknown(said, name, sorted(_PARTS), code="part-unknown", remedy="bitwright methods")
    return _PARTS[name]


def options_of(name: str) -> dict[str, Any]:
    """Option names and defaults of a part, read off its constructor (`slot` is not an option)."""
    params = inspect.signature(part_class(name)).parameters.values()
    return {
        p.name: None if p.default is p.empty else p.default
        for p in params
        if p.name != "slot" and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def check_use(name: str, slot: str, options: Mapping[str, Any]) -> None:
    """`InputError` naming the nearest, where a part, one of its options or its slot does not exist.

    >>> check_use("ttq", "w", {"threshold": 0.1})
    """
    part_class(name)
    known = options_of(name)
    for option, value in options.items():
        if option not in known:
            listing = ", ".join(f"{k}={v!r}" for k, v in known.items()) or "none"
            raise InputError(
                f"part {name}: unknown option {option}={value!r}.{nearest(option, known)} Options: {listing}",
                code="option-unknown",
                given=option,
                possible=listing,
            )
    if slot not in _FITS[name]:
        others = ", ".join(sorted(n for n, fits in _FITS.items() if slot in fits and n != "float"))
        raise InputError(
            f"part {name} in slot {slot}: serves slot {', '.join(_FITS[name])} only. "
            f"For {SLOT_WORDS.get(slot, slot)}: {others or 'none yet'}",
            code="slot-wrong",
            given=slot,
            possible=others,
        )


def make_part(name: str, *, slot: str | None = None, layer: nn.Module | None = None, **options: Any) -> nn.Module:
    """Builds one part. `slot` picks the meaning where a part serves several; `layer` supplies sizes where needed.

    Errors: `InputError` (a ValueError) for an unknown name or option, naming the nearest; for a slot it does not serve.

    >>> make_part("dorefa_a", bits=2).bits
    2
    """
    cls = part_class(name)
    slot = slot or _FITS[name][0]
    check_use(name, slot, options)
    if options.get("bits") == 32:  # the papers' W32 or A32: nothing at all, not a clone
        return make_part("float", slot=slot)
    if "slot" in inspect.signature(cls).parameters:
        options["slot"] = slot
    build = getattr(cls, "for_layer", None)
    try:
        new = build(layer, **options) if build is not None and layer is not None else cls(**options)
    except TypeError as error:  # a missing required option
        raise InputError(f"part {name}: {error}", code="option-missing") from None
    new.__dict__["spec"] = {"part": name, **{k: v for k, v in options.items() if k != "slot"}}
    return new


def make_slot(value: Any, slot: str, layer: nn.Module | None = None, where: str = "") -> nn.Module | None:
    """What a user may write for a slot -> a module, or None for an empty slot.

    None | "name" | {"part": name, options...} | a module | a list of these (a chain, left to right).
    `where` is the layer's name, for messages.
    """
    from bitwright.parts.chain import Chain

    try:
        if value is None:
            return None
        if isinstance(value, str):
            made = make_part(value, slot=slot, layer=layer)
        elif isinstance(value, nn.Module):
            return value
        elif isinstance(value, Mapping):
            rest = dict(value)
            if "part" not in rest:
                raise InputError(f"slot {slot}: a mapping needs the key 'part', got {sorted(rest)}", code="slot-form")
            made = make_part(str(rest.pop("part")), slot=slot, layer=layer, **rest)
        elif isinstance(value, Sequence):
            links = [m for m in (make_slot(v, slot, layer) for v in value) if m is not None]
            if not links:
                return None
            return links[0] if len(links) == 1 else Chain(links)
        else:
            raise InputError(
                f"slot {slot}: cannot read {value!r}. Give a part name, a mapping or a list", code="slot-form"
            )
    except InputError as error:
        if where and where not in str(error):
            text = str(error)
            head = f"in slot {slot}:"
            fuller = text.replace(head, f"in slot {slot} of {where}:") if head in text else f"{where}: {text}"
            raise error.reworded(fuller, layer=where) from None
        raise
    return None if traits_of(made).part_name == "float" else made


def parts() -> dict[str, PartInfo]:
    """The registry, name -> facts."""
    return {name: _info(name, cls) for name, cls in sorted(_PARTS.items())}


def _info(name: str, cls: type[nn.Module]) -> PartInfo:
    doc = inspect.cleandoc(cls.__doc__ or "")
    source = next((line.strip()[6:].strip() for line in doc.splitlines() if line.strip().startswith("source")), "")
    bits: object = traits_of(cls).bits_range or traits_of(cls).bits
    return PartInfo(
        name=name,
        slots=_FITS[name],
        options=options_of(name),
        summary=doc.split("\n", 1)[0].rstrip("."),
        source=source,
        bits=str(bits) if isinstance(bits, (int, str)) else "",
        packs=hasattr(cls, "encode"),
    )
