"""The law of the docstring: it says what the part computes and from which source, and shows an example."""

from __future__ import annotations

import doctest
import inspect
import sys

from bitwright.parts.registry import part_class
from bitwright.testing.case import Case
from bitwright.testing.law import law, require

LINES = ("value", "gradient", "source")


@law("docstring has lines value, gradient, source, and an example that runs")
def docstring(case: Case) -> None:
    cls = part_class(case.part)
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    starts = {line.split(" ", 1)[0] for line in text.splitlines()}
    missing = [word for word in LINES if word not in starts]
    require(not missing, f"docstring has no line {', '.join(missing)}")
    names = dict(vars(sys.modules[cls.__module__]))
    example = doctest.DocTestParser().get_doctest(text, names, cls.__name__, None, None)
    require(bool(example.examples), "docstring has no example")
    report: list[str] = []
    failed = doctest.DocTestRunner(verbose=False).run(example, out=report.append).failed
    require(not failed, "example fails:\n" + "".join(report))
