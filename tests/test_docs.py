"""Examples run: those of every docstring, the README and each page of docs/ as one program; commands shown exist."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import bitwright
from bitwright import experiment, models
from bitwright.cli.help import codes
from bitwright.cli.help import topics as help_topics
from bitwright.errors import InputError
from bitwright.parts import registry
from bitwright.transforms import Recipe, recipes

MODULES = [
    "bitwright",
    *(
        m.name
        for m in pkgutil.walk_packages(bitwright.__path__, "bitwright.", onerror=lambda _: None)
        if not m.name.endswith("bitwright_core")  # the native library lies in the package, but is no module
    ),
]
ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
OPTIONAL = ("onnx", "onnxscript", "onnxruntime", "matplotlib", "PIL", "lmdb", "scipy")


@pytest.mark.few(every=4)
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


def blocks(text: str, language: str = "python") -> list[str]:
    """The fenced blocks of a page in one language; blocks marked `text` are sketches."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def page_with(language: str) -> list[str]:
    """The README and the pages that have such a block."""
    return [name for name, text in TEXTS.items() if blocks(text, language)]


@pytest.mark.few("README.md")
@pytest.mark.parametrize("name", page_with("python"))
def test_a_page_is_one_program(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")  # a class must be found where it says it is
    monkeypatch.setitem(sys.modules, "page", module)
    before = set(registry.parts())
    try:
        exec(compile("\n".join(blocks(TEXTS[name])), name, "exec"), vars(module))
    finally:
        for part in set(registry.parts()) - before:  # a part that the page shows how to write
            registry.forget(part)


def test_readme_has_a_program() -> None:
    assert "README.md" in page_with("python")


@pytest.mark.parametrize("name", page_with("toml"))
def test_toml_on_a_page_is_valid(name: str) -> None:
    """Recipes and experiments by their own readers; a table alone, as the beginning of an experiment."""
    for text in blocks(TEXTS[name], "toml"):
        if "rule" in tomllib.loads(text):
            assert Recipe.from_toml(text).rules
        else:
            stage = "" if "[[stage]]" in text else "\n[[stage]]\nepochs = 1\n"
            assert experiment.parse(text + stage).stage


def command_lines(text: str) -> Iterator[str]:
    """What stands behind the prompt, from `bitwright` on, without its output and without what it is piped into."""
    for block in blocks(text, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.match(r"\$ (?:\w+=\S+ )*(bitwright\b[^|>;&#]*)", line):
                yield found[1].strip()


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """Name of the command and its arguments, as the real parser reads them; nothing is run."""
    from bitwright.cli.app import command
    from bitwright.cli.run import FLAGS

    words = [w for w in shlex.split(line)[1:] if w not in FLAGS and w != "--no-color"]
    here: Any = command()
    context, name = None, "bitwright"
    while True:
        context = here.make_context(name, words, parent=context, resilient_parsing="--install-completion" in words)
        words = [*getattr(context, "_protected_args", []), *context.args]
        if not words or not hasattr(here, "resolve_command"):
            return " ".join(context.command_path.split()[1:]), context.params
        name, here, words = here.resolve_command(context, words)


@pytest.mark.parametrize("name", page_with("console"))
def test_commands_on_a_page_exist(name: str) -> None:
    """Known command, options, model, recipe and experiment with its overrides."""
    for line in command_lines(TEXTS[name]):
        try:
            _, given = parsed(line)
            check_names(given)
        except Exception as error:
            message = error.format_message() if hasattr(error, "format_message") else str(error)  # type: ignore[attr-defined]
            pytest.fail(f"{name}: {line}: {message}")


def check_names(given: dict[str, Any]) -> None:
    """Names that are ours and no path or file of the reader's."""
    topic = given.get("topic")
    if topic is not None and topic not in (pages := help_topics()) and topic not in codes(pages["errors"]):
        raise InputError(f"no topic {topic}")
    recipe, model, name = given.get("recipe"), given.get("model"), given.get("experiment")
    if recipe is not None and not recipe.endswith(".toml") and recipe not in recipes():
        raise InputError(f"no recipe {recipe}")
    if (
        model is not None
        and "source" not in given  # of import: a net or method of an old code; the tests of the importers know them
        and ":" not in model
        and "/" not in model
        and model not in (*models.list(), *experiment.names())
    ):
        raise InputError(f"no model {model}")
    if name is not None and "/" not in name and not name.endswith(".toml"):
        experiment.load(name, given.get("overrides") or ())


@pytest.mark.parametrize(
    "line",
    [
        "bitwright plam resnet20 xnor",
        "bitwright eval",
        "bitwright help flop",
        "bitwright train digits-mlp-bwn stage.0.epoch=2",
        "bitwright plan resnet20 xnorr",
        "bitwright plan resnet21 xnor",
        "bitwright plan resnet20 xnor --deep",
        "bitwright bench conv:256x14 --batch many",
    ],
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no |missing|invalid|not a valid|unexpected|should be|unknown"):
        check_names(parsed(line)[1])


@pytest.mark.slow
def test_the_commands_of_ship_it_run(tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line behind a prompt, one after the other in one folder."""
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks(TEXTS["docs/guides/ship-it.md"], "console") for line in block.splitlines()]
    ours = [shlex.split(line)[2:] for line in lines if line.startswith("$ bitwright ")]
    assert [words[:2] for words in ours] == [["export", form] for form in ("onnx", "c", "qonnx", "circuit")]
    for words in ours:
        assert call(*words)[0] == 0, words
        assert (tmp_path / words[words.index("-o") + 1]).stat().st_size > 1000
    (check,) = (line.removeprefix("$ ") for line in lines if line.startswith("$ cc "))
    if shutil.which("cc"):
        assert subprocess.run(check, shell=True, capture_output=True, text=True, timeout=300).stdout == "equal\n"


def test_only_python_blocks_are_read() -> None:
    assert blocks("a\n```python\nx = 1\n```\n```text\nno\n```\n```\nno\n```\n```python\ny = 2\n```\n") == [
        "x = 1\n",
        "y = 2\n",
    ]
