"""Examples run: those of every docstring, and the README as one program."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import bitwright

MODULES = [
    "bitwright",
    *(
        m.name
        for m in pkgutil.walk_packages(bitwright.__path__, "bitwright.", onerror=lambda _: None)
        if not m.name.endswith("bitwright_core")  # the native library lies in the package, but is no module
    ),
]
README = Path(__file__).parent.parent / "README.md"
OPTIONAL = ("onnx", "onnxscript", "onnxruntime", "matplotlib", "PIL", "lmdb", "scipy")


@pytest.mark.parametrize("name", [m for m in MODULES if not m.endswith("__main__")])
def test_docstring_examples(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in OPTIONAL:
            pytest.skip(f"needs {error.name}")
        raise
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(example, out=report.append)
    assert not runner.failures, "".join(report)


def blocks(text: str) -> list[str]:
    """The python blocks of a page; blocks marked `text` are sketches."""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.skipif(not README.exists(), reason="no README yet")
def test_readme_is_one_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(README.read_text(encoding="utf-8"))
    assert found, "README.md has no python block"
    exec(compile("\n".join(found), str(README), "exec"), {"__name__": "readme"})


def test_only_python_blocks_are_read() -> None:
    assert blocks("a\n```python\nx = 1\n```\n```text\nno\n```\n```\nno\n```\n```python\ny = 2\n```\n") == [
        "x = 1\n",
        "y = 2\n",
    ]
