"""Experiments from TOML: every mistake is one line that names the place, what was given and what is possible."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bitwright.errors import InputError, nearest
from bitwright.experiment import wanted
from bitwright.experiment.check import problems
from bitwright.experiment.lines import index, nearest_line
from bitwright.experiment.override import Override, put_all
from bitwright.experiment.schema import Experiment
from bitwright.toml import read_toml, toml_text, toml_value
from bitwright.usercode import Home

FOLDER = Path(__file__).parent / "shipped"
_OF_A_RUN = ("state.json", "machine.json", "command.txt", "last.ckpt", "model.safetensors")  # beside experiment.toml
_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


def names() -> list[str]:
    """The experiments in the package, named DATA-MODEL-RECIPE."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """A shipped experiment by name, a file, or the experiment of a run directory.

    overrides   "key=value" as on the command line: dotted, stages counted from 0; see `override.put_all`
    errors      InputError, one line with the line in the file, or with the override

    >>> load("digits-mlp-bwn", ["stage.0.epochs=2", "data.limit=100"]).data.limit
    100
    """
    text, known = str(name_or_path), names()
    overrides, folder = list(overrides), False
    if text in known:
        path = FOLDER / f"{text}.toml"
    else:
        path = Path(name_or_path)
        folder = path.is_dir()
        path = path / "experiment.toml" if (path / "experiment.toml").is_file() else path
    if not path.is_file():
        raise InputError(
            f"experiment {text}: no such experiment or file.{nearest(text, known)} All: bitwright experiments",
            code="experiment-unknown",
            given=text,
            possible=", ".join(known),
            remedy="bitwright experiments",
        )
    try:
        content = toml_text(path)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"experiment {text}: not readable as TOML: {error}", code="experiment-toml") from None
    except OSError as error:
        raise InputError(f"experiment {text}: cannot be read: {error.strerror}", code="experiment-toml") from None
    found = parse(content, overrides, f"experiment {text}")
    here = (Path(),) if overrides or text in known else ()  # where code lies that was named on the command line
    if text in known:
        return found.read_from(Home(here))
    if folder or (path.name == "experiment.toml" and any((path.parent / name).exists() for name in _OF_A_RUN)):
        return found.read_from(Home(here, path.parent))
    return found.read_from(Home((path.parent, *here)))


def parse(text: str, overrides: Iterable[str] = (), title: str = "experiment") -> Experiment:
    """An experiment from TOML text; `title` begins every message.

    >>> parse('[[stage]]\\nepochs = 3', ["seed=7"]).seed
    7
    """
    try:
        data = read_toml(text)
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(text, str(error), title) from None
    put = put_all(data, overrides, title)
    found: list[_Mistake] = []
    try:
        # by way of JSON: strict there takes tables and lists, but neither "3" nor true for a number
        experiment = Experiment.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        experiment = None
        found = [_Mistake.of(e["type"], e["loc"], e["input"]) for e in error.errors(include_url=False)]
    else:
        idle = [i for i, stage in enumerate(experiment.stage) if not stage.epochs and stage.procedure is None]
        found = [_Mistake.of("missing", ("stage", i, "epochs"), None) for i in idle]
        found += [_Mistake(paths, message, "experiment-value") for paths, message in problems(experiment)]
    if experiment is None or found:
        raise _one_line(found, put, index(text), title)
    return experiment


def _not_toml(text: str, message: str, title: str) -> InputError:
    place = _PLACE.search(message)
    if place is None:  # a bound of the reader: about the whole text
        return InputError(f"{title}: not readable as TOML: {message}", code="experiment-toml")
    line = int(place[1]) if place[1] else text.rstrip("\n").count("\n") + 1
    return InputError(
        f"{title}: line {line}: not readable as TOML: {_PLACE.sub('', message)}",
        code="experiment-toml",
        given=str(line),
    )


class _Mistake:
    """One thing that is wrong: the keys it is about, the words for it."""

    def __init__(
        self,
        paths: Sequence[tuple[str | int, ...]],
        text: str,
        code: str,
        given: Any = None,
        possible: str | None = None,
    ) -> None:
        self.paths, self.text, self.code, self.given, self.possible = paths, text, code, given, possible

    @classmethod
    def of(cls, kind: str, path: tuple[str | int, ...], given: Any) -> _Mistake:
        """Made from one error of pydantic."""
        *above, last = path or ("",)
        if kind == "extra_forbidden":
            known = wanted.keys(above)
            inside = f" in {dotted(above)}" if above else ""
            text = f"unknown key {str(last)!r}{inside}.{nearest(str(last), known)} Keys: {', '.join(known)}"
            return cls([path], text, "experiment-key", last, ", ".join(known))
        if path == ("stage",):
            none = kind in ("missing", "too_short")
            how = "no stage; write [[stage]] and below it epochs = 10"
            return cls([path], how if none else "stages are written [[stage]], in double brackets", "experiment-value")
        allowed = wanted.possible(path)
        if kind == "missing":
            return cls([path], f"{dotted(path)} is missing; possible: {allowed}", "experiment-key", None, allowed)
        near = nearest(given, allowed.split(", ")) if kind == "literal_error" and isinstance(given, str) else ""
        text = f"{dotted(path)} = {_short(given)}{'.' if near else ';'}{near} {'Possible' if near else 'possible'}: {allowed}"
        return cls([path], text, "experiment-value", given, allowed)


def _one_line(found: list[_Mistake], put: list[Override], lines: dict[Any, int], title: str) -> InputError:
    """The first mistake, by line; those of overrides come before all."""
    placed = []
    for mistake in found:
        over = next((o for p in mistake.paths for o in reversed(put) if _touches(o.path, p)), None)
        line = next((n for p in mistake.paths if (n := lines.get(p)) is not None), None)
        line = line or nearest_line(lines, mistake.paths[0])
        placed.append((0 if over else line or 0, over, mistake))
    line, over, mistake = min(placed, key=lambda p: p[0])
    where = f"override {over.text}" if over else f"line {line}" if line else ""
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return InputError(
        ": ".join(filter(None, (title, where, mistake.text))) + more,
        code=mistake.code,
        given=None if mistake.given is None else str(mistake.given),
        possible=mistake.possible,
    )


def _touches(override: Sequence[str | int], path: Sequence[str | int]) -> bool:
    """Whether one of the two is the beginning of the other."""
    return all(a == b for a, b in zip(override, path, strict=False))


def dotted(path: Iterable[str | int]) -> str:
    """A path as overrides write it.

    >>> dotted(("stage", 0, "epochs"))
    'stage.0.epochs'
    """
    return ".".join(map(str, path))


def _short(value: Any) -> str:
    text = toml_value(value) if isinstance(value, (bool, int, float, str, list, dict)) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
