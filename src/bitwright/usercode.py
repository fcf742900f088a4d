"""A user's own code: `file.py:name` or `module:name` named by hand, and `file.py:name` named by an experiment.

Naming it on the command line or in Python is asking to run it. An experiment is a file, perhaps somebody else's: what it
names comes from files in its own folder (`Home`), and for a run directory only if the user trusts it (`trust.py`).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitwright import trust
from bitwright.errors import InputError, nearest

KEPT = "code"  # folder of a run with the Python files that its experiment named


def is_own(spec: str) -> bool:
    """Whether a name is the user's own code and not one of ours.

    >>> is_own("net.py:Net"), is_own("resnet20")
    (True, False)
    """
    return ":" in spec


def is_file(spec: str) -> bool:
    """Whether a name has the only form that an experiment may hold.

    >>> is_file("net.py:Net"), is_file("os:system")
    (True, False)
    """
    file, _, name = spec.rpartition(":")
    return file.endswith(".py") and bool(name)


@dataclass(frozen=True)
class Home:
    """Where an experiment was read, and so which files its `file.py:name` may mean.

    folders   the experiment's own folder; with overrides on the command line also the current one. Empty: the experiment
              was made in Python, where any file may be named
    run       a run directory: the folders are those of its training, then its own copy of the code (`RUN/code`), then RUN
    """

    folders: tuple[Path, ...] = ()
    run: Path | None = None

    def find(self, spec: str, where: str) -> Any:
        """What the experiment names; `where` begins every message. Errors: `InputError`, code "run-untrusted" among them."""
        folder, file = self.place(spec, where)
        return find(f"{file}:{spec.rpartition(':')[2]}", where, folder)

    def place(self, spec: str, where: str) -> tuple[Path, str]:
        """(folder, file in it), without running anything."""
        file = spec.rpartition(":")[0]
        if not is_file(spec):
            raise InputError(
                f"{where} {spec}: an experiment names code as file.py:name, a file in its own folder, not a module",
                code="own-form",
                given=spec,
                possible="file.py:name",
            )
        folders = self.folders
        if self.run is not None:
            known = trust.folders_of(self.run)
            if known is None:
                raise InputError(
                    f"{where} {spec}: this is Python code named by the run {self.run}, which you did not train here (or it "
                    "was moved or changed since). Read the code first; to run it, once and for all, add: --trust",
                    code="run-untrusted",
                    given=str(self.run),
                    remedy="--trust",
                )
            folders = (*known, *folders)
        if not folders and self.run is None:
            folder = Path(file).parent if Path(file).is_absolute() else Path()
            if not (folder / file).is_file():
                raise InputError(f"{where} {spec}: no file {folder / file}", code="own-unknown", given=file)
            return folder, file
        tried = [(folder, file) for folder in folders]
        if self.run is not None:
            tried += [(self.run / KEPT, kept_as(file)), (self.run, file)]
        for folder, name in tried:
            if (folder / name).is_file() and _inside(folder, name):
                return folder, name
        outside = next((folder for folder, name in tried if (folder / name).is_file()), None)
        raise InputError(
            f"{where} {spec}: {file} lies outside of the experiment's folder {outside}; possible: a file in it"
            if outside is not None
            else f"{where} {spec}: no file {' nor '.join(dict.fromkeys(str(f / n) for f, n in tried))}",
            code="own-unknown",
            given=file,
        )


def kept_as(file: str) -> str:
    """The name of a file in `RUN/code`.

    >>> kept_as("nets/a.py"), kept_as("/home/me/a.py")
    ('nets/a.py', 'a.py')
    """
    return Path(file).name if Path(file).is_absolute() else file


def _inside(folder: Path, name: str) -> bool:
    return (folder / name).resolve().is_relative_to(folder.resolve())


def with_imports(folder: Path, file: str) -> dict[str, Path]:
    """The file and what it imports from beside it, as name in `RUN/code` -> path; found without running any of it."""
    from modulefinder import ModuleFinder

    path = (folder / file).resolve()
    found = {kept_as(file): path}
    finder = ModuleFinder([str(path.parent)])
    try:
        finder.run_script(str(path))
    except Exception:  # the import will report the error
        return found
    base = Path(kept_as(file)).parent
    for module in finder.modules.values():
        place = getattr(module, "__file__", None)
        if place and Path(place).resolve().is_relative_to(path.parent) and Path(place).suffix == ".py":
            found[str(base / Path(place).resolve().relative_to(path.parent))] = Path(place)
    return found


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


def names_in(path: Path) -> list[str]:
    """The public classes and functions that a Python file defines, classes first; nothing of it is run."""
    import ast

    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    kinds = ((ast.ClassDef,), (ast.FunctionDef,))
    found = [node.name for kind in kinds for node in body if isinstance(node, kind)]
    return [name for name in found if not name.startswith("_")]


def unnamed(spec: str, where: str) -> InputError:
    """The error for `file.py` where `file.py:name` was wanted: it says which names there are."""
    path = Path(spec)
    if not path.is_file():
        return InputError(f"{where}: no file {spec}", code="own-unknown", given=spec)
    names = names_in(path)
    listed = f"In it: {', '.join(names[:20])}" if names else "It defines no class and no function"
    return InputError(
        f"{where}: {spec} is a file; name what to use of it, e.g. {spec}:{names[0] if names else 'NAME'}. {listed}",
        code="own-unnamed",
        given=spec,
        possible=", ".join(f"{spec}:{name}" for name in names[:20]),
    )


def call(function: Any, spec: str, where: str, **arguments: Any) -> Any:
    """Calls what `spec` named; an exception of the user's code becomes one line that says whose it is."""
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
        except BaseException:  # the next import must not find a half-loaded module
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
