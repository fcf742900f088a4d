"""Wrong use, command by command: the error stands alone on stderr, nothing is left behind; plan and apply say the same."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.cli.output import Output
from bitwright.errors import InputError
from bitwright.runs import Run

NET = """
from torch import nn


def _hidden(): ...


def make():
    return Net()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)

    def forward(self, x):
        return self.b(self.a(x).relu())


raise SystemExit("only a name was asked for: this is not run")
"""

WRONG = """
nosuch
demo --out vgg.py
doctor extra
methods nosuch
recipes nosuch
experiments nosuch
plan runs/nosuch
plan resnet20 nosuch
plan digits-mlp-bwn nosuch
train nosuch
train digits-mlp-bwn data.name=nosuch
train digits-mlp-bwn model.name=nosuch
train digits-mlp-bwn model.name=resnet20
train digits-mlp-bwn stage.1.recipe=nosuch
train digits-mlp-bwn stage.1.recipe=bireal8
train digits-mlp-bwn train.device=cuda
train digits-mlp-bwn --out vgg.py
train digits-mlp-bwn --out run
train cifar10-resnet20-bwn --data-root nowhere
eval nosuch
eval run --packed --weights x
eval run --packed
eval run --weights nosuch.pt
convert run --form nosuch
convert run --backend nosuch
convert run --model resnet20
convert vgg.py --model resnet20 --form nosuch
bench run
bench run --recipe xnor
bench run --against nosuch
bench resnet20 --recipe nosuch
bench vgg.py
cost nosuch
cost run --energy nosuch
analyze nosuch
analyze run -o nowhere/x.toml
report nosuch
report run --format nosuch
zoo nosuch
zoo --check
import vgg.py --from nosuch
help nosuch
data show nosuch
data get nosuch
data pack nosuch
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a Python file and an unfinished run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITWRIGHT_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("vgg.py").write_text(NET)
    Path("run").mkdir()
    Run("run").write_text("experiment.toml", bw.experiment.to_toml(bw.experiment.load("digits-mlp-bwn")))
    return tmp_path


@pytest.mark.parametrize("command", WRONG.strip().splitlines())
def test_an_error_of_use_stands_alone(here: Path, call: Any, command: str) -> None:
    before = [path for path in sorted(here.rglob("*")) if path.is_file()]
    code, out, err = call(*shlex.split(command))
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, (code, out, err)
    assert [path for path in sorted(here.rglob("*")) if path.is_file()] == before


def test_a_wrong_option_is_answered_with_the_help_of_its_own_command(call: Any) -> None:
    assert call("data", "pack", "x")[2].endswith("Try: bitwright data pack --help\n")
    assert call("convert")[2].endswith("Try: bitwright convert --help\n")
    code, out, err = call("data")
    assert code == 0 and "pack" in out and err == ""


@pytest.mark.parametrize("command", ["plan", "plan vgg.py xnor --input 3,8,8", "bench", "cost"])
def test_a_file_without_a_name_is_answered_with_the_names_in_it(here: Path, call: Any, command: str) -> None:
    words = command.split()
    name = words[0]
    code, _, err = call(*(words if len(words) > 1 else [name, "vgg.py"]))
    said = f"error: {name}: vgg.py is a file; name what to use of it, e.g. vgg.py:Net. In it: Net, make\n"
    assert (code, err) == (2, said)
    assert call(name, "none.py")[2] == f"error: {name}: no file none.py\n"


def test_an_experiment_is_told_the_same(here: Path, call: Any) -> None:
    code, _, err = call("train", "digits-mlp-bwn", "model.name=vgg.py")
    assert code == 2 and err.startswith("error: models: vgg.py is a file; name what to use of it, e.g. vgg.py:Net.")


class Relus(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


@pytest.mark.parametrize(
    "net, recipe",
    [
        (Relus(), [{"match": "[bc]", "x": "sign"}]),  # a signed quantizer behind a ReLU
        (Relus(), [{"match": "b", "x": "sign"}]),
        (Relus(), [{"match": "*", "w": "bwn", "optional": True, "kind": "depthwise"}]),  # no layer gets a part
        (nn.Linear(4, 4), [{"match": "*", "w": "bwn"}]),  # nothing to put the new layer in
        (Relus(), [{"match": "nosuch", "w": "bwn"}]),
        (Relus(), [{"match": "a", "w": "uniform"}, {"match": "b", "w": "kbit"}]),
    ],
)
def test_plan_and_apply_say_the_same(net: nn.Module, recipe: list[dict[str, Any]]) -> None:
    x = torch.randn(2, 4)
    try:
        refused: InputError | None = bw.plan(net, recipe, x).refused
    except InputError as error:
        refused = error
    try:
        bw.apply(net, recipe, x)
    except InputError as error:
        assert refused is not None
        assert str(refused).replace("plan", "apply") == str(error) and refused.code == error.code
    else:
        assert refused is None


def test_the_command_plan_ends_as_apply_does(here: Path, call: Any) -> None:
    Path("net.py").write_text(NET.rpartition("\n\n\nraise")[0])
    Path("r.toml").write_text('[[rule]]\nmatch = "b"\nx = "sign"\n')
    code, out, err = call("plan", "net.py:Net", "r.toml", "--input", "3,8,8")
    assert code == 2 and out.startswith("layer") and err.count("\n") == 1
    told = call("bench", "net.py:Net", "--recipe", "r.toml", "--input", "3,8,8")
    assert told[0] == 2 and err.replace("error: plan net.py:Net: ", "") == told[2].replace("error: apply: ", "")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_heading_on_a_terminal_is_seen_at_once_and_can_be_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    out = Output(color=False)
    out.head("eval run: reading")
    assert screen.getvalue() == "eval run: reading"
    out.fail("eval: no", 2, {})
    assert screen.getvalue() == "eval run: reading\r\x1b[Kerror: eval: no\n"
    out.head("again")
    out.note("done")
    assert screen.getvalue().endswith("again\r\x1b[Kagain\ndone\n")


def test_a_long_verdict_is_wrapped_for_a_person_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = "PASS  " + "word " * 12
    for stream, lines in ((Terminal(), 2), (io.StringIO(), 1)):
        monkeypatch.setattr("sys.stdout", stream)
        Output(color=False).verdict(text.strip())
        found = stream.getvalue().splitlines()
        assert len(found) == lines and " ".join(" ".join(found).split()) == " ".join(text.split())
