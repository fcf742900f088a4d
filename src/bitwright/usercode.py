"""A user's own file or module, named as `file.py:name` or `module:name`: naming it is asking to run it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from bitwright.errors import InputError, nearest


def is_own(spec: str) -> bool:
    """Whether a name is the user's own code and not one of ours.

    >>> is_own("net.py:Net"), is_own("resnet20")
    (True, False)
    """
    return ":" in spec


def find(spec: str, where: str, folder: Path | None = None) -> Any:
    """The object that `spec` names; `where` begins every message.

    folder   where a relative `file.py` lies. [default: the current folder]
    """
    place, _, name = spec.rpartition(":")
    module = _import(place, spec, where, folder or Path())
    if not hasattr(module, name):
        names = [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")]
        raise InputError(
            f"{where} {spec}: {place} has no {name!r}.{nearest(name, names)} "
            f"Callables: {', '.join(names[:20]) or 'none'}",
            code="own-unknown",
            given=name,
            possible=", ".join(names[:20]),
        )
    return getattr(module, name)


def call(spec: str, where: str, folder: Path | None = None, **arguments: Any) -> Any:
    """Calls what `spec` names; an exception of the user's code becomes one line that says whose it is."""
    function = find(spec, where, folder)
    try:
        return function(**arguments)
    except InputError:
        raise
    except Exception as error:
        name = spec.rpartition(":")[2]
        given = ", ".join(f"{k}={v!r}" for k, v in arguments.items())
        raise InputError(
            f"{where} {spec}: calling {name}({given}) failed: {type(error).__name__}: {_first(error)}",
            code="own-call",
        ) from error


def _import(place: str, spec: str, where: str, folder: Path) -> Any:
    path = folder / place
    is_file = place.endswith(".py")
    if not place:
        raise InputError(f"{where} {spec}: no file or module before the colon, e.g. file.py:fn", code="own-unknown")
    if is_file and not path.is_file():
        raise InputError(f"{where} {spec}: no file {path}", code="own-unknown", given=str(path))
    root = str((path.parent if is_file else folder).resolve())
    if root not in sys.path:
        sys.path.insert(0, root)  # its own imports work as if it was run
    try:
        if not is_file:
            return importlib.import_module(place)
        loaded = sys.modules.get(path.stem)
        if loaded is not None and getattr(loaded, "__file__", None) == str(path.resolve()):
            return loaded  # a class must be the same class each time it is asked for
        loader = importlib.util.spec_from_file_location(path.stem, path.resolve())
        assert loader is not None and loader.loader is not None
        module = importlib.util.module_from_spec(loader)
        sys.modules[path.stem] = module
        try:
            loader.loader.exec_module(module)
        except BaseException:  # half a module must not pass for a whole one the next time
            del sys.modules[path.stem]
            raise
        return module
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{where} {spec}: importing {place} failed: {type(error).__name__}: {_first(error)}", code="own-import"
        ) from error


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
