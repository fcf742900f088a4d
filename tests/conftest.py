"""Shared set-up: one thread per worker, no learning of the machine's clock or seed."""

from __future__ import annotations

import gc
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["BITWRIGHT_PLAN"] = "0"  # what was measured on this machine decides nothing here

import pytest
import torch

from bitwright.engine import native

torch.set_num_threads(1)
# readline in the pytest process tells its children a terminal of 80 columns; there is none
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)


@pytest.fixture(params=native.isas() if native.available() else [])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kernels of each instruction set of this machine in turn."""
    native.force_isa(request.param)
    yield request.param
    native.force_isa("")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`few`: of a test with many parameters the fast run takes some, and the others are slow.

    few("a", "b")   the cases with these ids
    few(every=4)    the first of every four
    few()           as many as bring every value of every parameter at least once
    """
    families: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("few") and hasattr(item, "callspec"):
            families[item.nodeid.partition("[")[0]].append(item)
    for name, family in families.items():
        mark = family[0].get_closest_marker("few")
        assert mark is not None
        if mark.args:
            kept = [item for item in family if item.callspec.id in mark.args]
        elif mark.kwargs:
            kept = family[:: mark.kwargs["every"]]
        else:
            kept = covering(family)
        if len(kept) < len(mark.args) and len(family) > 1:
            raise pytest.UsageError(f"{name}: few{mark.args} names a case that is not there")
        for item in family:
            if item not in kept:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the garbage collector need not look at it after every few tests."""
    gc.collect()
    gc.freeze()


def covering(family: list[pytest.Function]) -> list[pytest.Function]:
    """Few cases that bring every value of every parameter."""
    values = {item: {(name, id(value)) for name, value in item.callspec.params.items()} for item in family}
    missing = set().union(*values.values())
    kept = []
    while missing:
        kept.append(max(family, key=lambda item: len(missing & values[item])))
        missing -= values[kept[-1]]
    return kept


def pytest_runtest_setup(item: pytest.Item) -> None:
    """BITWRIGHT_TESTS_END, seconds since 1970: what would start later is skipped, and the summary says so.

    xdist takes files with few tests last; those are the whole journeys. On a machine that others keep busy a run then ends
    with what matters most done, instead of being killed without a result.
    """
    if time.time() > float(os.environ.get("BITWRIGHT_TESTS_END", "inf")):
        pytest.skip("the time of this run is over")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_configuration(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests train must not become trusted runs of the person who runs them."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command in this process -> (exit code, stdout, stderr)."""

    def go(*argv: str) -> tuple[int, str, str]:
        from bitwright.cli.run import run

        capsys.readouterr()
        code = run(list(argv))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return go
