"""The sections of the page: every `Section` in a module of this folder, by its `place`."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from bitwright.reporting.sections.section import Section

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

SECTIONS = tuple(sorted((kind() for kind in Section.__subclasses__()), key=lambda section: section.place))
