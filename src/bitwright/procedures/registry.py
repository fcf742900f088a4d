"""The register of procedures: what a stage of an experiment and the command line need to know to run one by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from torch import nn

from bitwright.errors import InputError, nearest
from bitwright.procedures.report import Report
from bitwright.transforms.recipe import Recipe

Function = TypeVar("Function", bound=Callable[..., "Report | Recipe"])
_PROCEDURES: dict[str, Procedure] = {}


@dataclass(frozen=True)
class Procedure:
    """A function of a trained net and data, by its name.

    function   f(model, batches, **options), or f(model, **options) where it needs no data. It changes the net in place and
               returns a `Report`, or leaves it alone and returns a `Recipe` to apply
    options    their names, types and defaults: the keyword parameters of the function
    data       whether it sees training batches, each (inputs, labels)
    verb       the command that runs it: "prune", "quantize", or "compress" for the rest
    """

    name: str
    function: Callable[..., Report | Recipe]
    options: type[BaseModel]
    data: bool
    verb: str = "compress"

    @property
    def summary(self) -> str:
        return inspect.cleandoc(self.function.__doc__ or "").split("\n", 1)[0].rstrip(".")

    def check(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options as the function takes them. Errors: `InputError` for one that does not exist, or a wrong value."""
        try:
            checked = self.options.model_validate(dict(options))
        except ValidationError as error:
            first = max(error.errors(include_url=False), key=lambda e: e["type"] == "extra_forbidden")
            name, known = str(first["loc"][0]), list(self.options.model_fields)
            listing = ", ".join(known) or "none"
            text = _why(name, options.get(name), [e for e in error.errors(include_url=False) if e["loc"][0] == name])
            if first["type"] == "extra_forbidden":
                text = f"unknown option {name!r}.{nearest(name, known)} Options: {listing}"
            elif first["type"] == "missing":
                text = f"{name} is missing"
            raise InputError(
                f"procedure {self.name}: {text}", code="procedure-option", given=name, possible=listing
            ) from None
        return {name: getattr(checked, name) for name in self.options.model_fields}

    def __call__(self, model: nn.Module, batches: Iterable[Any], **options: Any) -> Report | Recipe:
        """Runs it; `batches` are not touched where it needs none."""
        return self.function(model, *([batches] if self.data else []), **self.check(options))


def _why(name: str, given: Any, errors: list[Any]) -> str:
    """Every kind of value that the option could have been, or the entry of a mapping that is wrong."""
    inside = next((e for e in errors if len(e["loc"]) > 2), None)
    if inside is not None:
        glob = inside["loc"][2]
        return f"{name} of {glob!r} = {given[glob]!r}: {inside['msg']}"
    kinds = [e for e in errors if e["type"] != "dict_type"]
    words = [e["msg"].removeprefix("Input should be ").split(", unable")[0] for e in kinds]
    if len(kinds) < len(errors):
        words.append(
            "a mapping from layer globs to values, as GLOB=VALUE,GLOB=VALUE on the command line, a table elsewhere"
        )
    return f"{name} = {given!r}; possible: {'; or '.join(dict.fromkeys(words))}"


def procedure(name: str, verb: str = "compress") -> Callable[[Function], Function]:
    """Decorator: enters a function under `name`, for a command; the function stays what it is.

    >>> @procedure("halve_for_docs")
    ... def halve(model: nn.Module, *, by: float = 2.0) -> Report: ...
    >>> found = get("halve_for_docs")
    >>> found.data, found.check({}), found.check({"by": "4"})
    (False, {'by': 2.0}, {'by': 4.0})
    >>> forget("halve_for_docs")
    """

    def register(function: Function) -> Function:
        if name in _PROCEDURES:
            raise InputError(f"procedure {name!r} is taken by {_PROCEDURES[name].function.__module__}")
        hints = get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters.values()
        keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        fields: Any = {n: (hints[n], ... if d is inspect.Parameter.empty else d) for n, d in keywords.items()}
        options = create_model(name, __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True), **fields)
        places = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
        _PROCEDURES[name] = Procedure(name, function, options, len(places) > 1, verb)
        return function

    return register


def get(name: str) -> Procedure:
    """The procedure of this name; `InputError` naming the nearest one."""
    if name not in _PROCEDURES:
        listing = ", ".join(names())
        raise InputError(
            f"unknown procedure {name!r}.{nearest(name, _PROCEDURES)} Known: {listing}",
            code="procedure-unknown",
            given=name,
            possible=listing,
        )
    return _PROCEDURES[name]


def names(verb: str | None = None) -> list[str]:
    """All procedures that a stage or a command may name; `verb`: those of one command.

    >>> "recalibrate_batchnorm" in names(), "l_obs" in names("prune")
    (True, True)
    """
    return sorted(name for name, found in _PROCEDURES.items() if verb in (None, found.verb))


def forget(name: str) -> None:
    """Removes one, for tests and notebooks that define it twice."""
    _PROCEDURES.pop(name, None)
