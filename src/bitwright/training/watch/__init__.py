"""What is watched while a net trains: every `Watcher` in a module of this folder, in the order of their tables."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from bitwright.runs.cells import TABLES
from bitwright.training.watch.watcher import Watcher

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

WATCHERS = tuple(sorted((kind() for kind in Watcher.__subclasses__()), key=lambda watcher: TABLES.index(watcher.table)))
