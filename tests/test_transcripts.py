"""The transcripts of the command line, line by line in form, numbers aside; run by the real commands.

Where our form is another than the one that was drawn up before the program existed, a comment says why.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bitwright.cli.run import run
from stepping import on_step

pytestmark = pytest.mark.slow  # whole journeys; the commands have quick tests of their own
EXPERIMENT = """
[data]
name = "digits"
limit = 100
limit_test = 40
batch = 20
[model]
name = "bireal_resnet20"
width = 0.25
[[stage]]
epochs = 1
[[stage]]
recipe = "bireal"
epochs = 1
[train]
device = "cpu"
threads = 1
[log]
tensorboard = false
"""
MLP = EXPERIMENT.replace('"bireal"\n', '"bwn"\n').replace(
    '"bireal_resnet20"\nwidth = 0.25', '"mlp"\nhidden = 64\ndepth = 2'
)
SIGN_AFTER_RELU = '[[rule]]\nmatch = "*"\nw = "xnor"\nx = "sign"\n'

# numbers as the program writes them
N, MS, KB, PC, X, S = r"[\d,]+", r"[\d.]+", r"[\d.,]+", r"[\d.]+", r"[\d.,]+x", r"[\d.]+ s"
KINDS = ("warn: ", "next:   ", "error: ")


@dataclass(frozen=True)
class Said:
    code: int
    out: list[str]
    err: list[str]

    @property
    def next(self) -> list[str]:
        return [line.removeprefix("next:   ").split("        ")[0] for line in self.err if line.startswith("next:   ")]


def say(*words: str) -> Said:
    """One command in this process, as if piped; and the laws that hold for every command."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(list(words))
    said = Said(code, out.getvalue().splitlines(), err.getvalue().splitlines())
    text = "\n".join([*said.out, *said.err])
    assert "\x1b" not in text and "Traceback" not in text and "\r" not in text
    assert not any(line.startswith(KINDS) for line in said.out), "progress, warnings and next: go to stderr"
    # verdicts, warnings and errors are one line each, however long: a grep finds them whole, a terminal wraps them;
    # so are the rows of a Markdown table; and the demo's first line names the CPU, however long that name is
    long = [line for line in said.out if len(line) > 100 and not re.match(r"PASS|WARN|REFUSE|\||bitwright ", line)]
    long += [line for line in said.err if len(line) > 100 and not line.startswith(("warn: ", "error: "))]
    assert not long, long
    return said


def like(lines: Sequence[str], *patterns: str) -> None:
    """Every line has the form of its pattern; `...` stands for any lines."""
    rest = list(lines)
    for i, pattern in enumerate(patterns):
        if pattern == "...":
            continue
        if i and patterns[i - 1] == "...":
            while rest and not re.fullmatch(pattern, rest[0]):
                rest.pop(0)
        assert rest and re.fullmatch(pattern, rest[0]), f"{pattern!r} is not the form of {rest[:1]} in\n" + "\n".join(
            lines
        )
        rest.pop(0)
    assert not rest or patterns[-1] == "...", rest


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@dataclass(frozen=True)
class Journey:
    folder: Path
    train: Said
    convert: Said
    bench: Said
    report: Said


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    """One tiny run, all the way; the tests look at what was said."""
    folder = tmp_path_factory.mktemp("journey")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("COLUMNS", raising=False)
        Path("toy.toml").write_text(EXPERIMENT)
        return Journey(
            folder,
            say("train", "toy.toml"),
            say("convert", "runs/toy"),
            say("bench", "runs/toy", "--rounds", "1", "--against", "torch-fp32,torch-int8"),
            say("report", "runs/toy"),
        )


# -- what exists ---------------------------------------------------------------------------------------------------------
def test_methods(here: Path) -> None:
    said = say("methods", "--slot", "w")
    # slots instead of `trains`: most parts train from scratch and from float alike, but not all serve the same slots
    head = r"name +bits  packs  slots +what it does +source"
    row = r"\w+ +(\d+|\d-\d)  (yes|no) +[wbxg](?: \w+)* +\S.*\S +\S.*"
    assert said.code == 0
    like(
        said.out,
        head,
        *[row] * (len(said.out) - 2),
        r"\d+ of \d+ parts\. packs = has integer codes, so convert can use bit kernels\.",
    )
    assert {"bwn", "xnor", "dorefa_w", "ttq"} <= {line.split()[0] for line in said.out}
    like(said.err, r"next:   bitwright methods \w+        formula, options with defaults, recipe line")
    follow(said)


def test_one_method(here: Path) -> None:
    said = say("methods", "ttq")
    assert said.code == 0
    like(
        said.out,
        r"Trained ternary weights .*\.", "", r"value     .*", "...", r"gradient  .*", "...", r"options   .*", "...",
        r"source    .*1612\.01064.*", "...", r"slots     w", r"bits      2", r"packs     yes",
        r"options   .*init='mean', threshold=0\.05", r'recipe    w = "ttq"',
    )  # fmt: skip


def test_plan(here: Path) -> None:
    said = say("plan", "resnet20", "xnor", "--input", "3,32,32")
    assert said.code == 0
    like(
        said.out,
        r"layer +kind +shape +rule  w +x +bits +runs +MACs, k  note",
        r"conv1 +Conv2d  3>16 3x3 +1 +float  float +32/32  float +442  first",
        r"layer1\.0\.conv1  Conv2d  16>16 3x3  0 +xnor   norm\+sign  1/1 +bits +2,359",
        r"layer1\.0\.conv2  Conv2d  16>16 3x3  0 +xnor   norm\+sign  1/1 +bits +2,359",
        r"\.\.\.  16 more like these \(--all\)",
        r"fc +Linear  64>10 +2 +float  float +32/32  float +0\.640  last",
        r"total    20 layers: 18 binary, 2 float   40\.55 M MACs, 98\.9 % of them at 1 bit",
        rf"weights  1,073 kB -> {KB} kB, computed; time is not predicted: use bench",
        # no "each matched": a rule that matches nothing is an error, so all others did
        r'rules    0 "\*"   1 "first"   2 "last"   untouched: 19 BatchNorm2d',
    )
    # bench and not train: the plan of a model knows no data set; the plan of an experiment says train
    like(said.err, r"next:   bitwright bench resnet20 --recipe xnor --input 3,32,32        is it faster here\?")


def test_plan_of_an_experiment(here: Path) -> None:
    Path("toy.toml").write_text(EXPERIMENT)
    said = say("plan", "toy.toml")
    assert said.code == 0
    like(
        said.out,
        r"digits 1x8x8 \| bireal_resnet20 \| 2 stages \| seed 0", "", r"stage 0  no recipe, 1 epoch", "...",
        r"stage 1  bireal, 1 epoch", r"layer +kind .*", "...", r"total +22 layers: 18 binary, 4 float .*", "...",
    )  # fmt: skip
    like(said.err, r"next:   bitwright train toy\.toml        train it")


def test_plan_sees_a_sign_after_relu(here: Path) -> None:
    Path("mine.toml").write_text(SIGN_AFTER_RELU)
    said = say("plan", "resnet20", "mine.toml", "--input", "3,32,32")
    assert said.code == 2 and said.out[0].startswith("layer ")
    like(
        said.err,
        r"error: plan resnet20: layer1\.0\.conv1 and 18 more take the sign of the output of \w+ \(relu\), which is never negative: they would "
        r'see a constant\. Write x = \["norm", "sign"\] in rule 0, or build the model with activation="identity"',
    )
    # apply says the same
    said = say("cost", "resnet20", "mine.toml")
    assert said.code == 2 and said.out == []
    like(said.err, r"error: .*layer1\.0\.conv1.*never negative.*norm.*")


def test_experiments(here: Path) -> None:
    said = say("experiments")
    assert said.code == 0
    like(said.out, r"name +epochs  what it is", *[r"[\w-]+ +[\d+]+  \S.*"] * (len(said.out) - 1))
    assert all(line.split()[0].count("-") >= 2 for line in said.out[1:]), "DATA-MODEL-RECIPE"
    like(said.err, r"next:   bitwright experiments [\w-]+", r"next:   bitwright train [\w-]+")
    name = said.next[0].split()[-1]
    assert say(*shlex.split(said.next[0])[1:]).code == 0
    assert say("train", name, "--dry-run", "--data-root", "nowhere").code == 2, "parses; only the data is missing"


def test_data_check(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITWRIGHT_DATA", str(here))
    said = say("data", "check", "digits")
    assert said.code == 0
    like(said.out, r"set .*", r"digits  ok +1,437 / 360 +embedded")
    said = say("data", "check", "mnist")
    assert said.code == 1, "the answer is no; a check of all sets is content with those that are there"
    like(
        said.out,
        r"set +status   train / test +where",
        r"mnist +missing +looked in.*",
        "...",
    )
    assert "get it: bitwright data get mnist" in " ".join(" ".join(said.out).split())
    assert said.next == ["bitwright data get mnist"]


# -- training ------------------------------------------------------------------------------------------------------------
EPOCH = r"stage {}  epoch   \d  loss [\d.]+  train [\d.]+ %  test [\d.]+ %  lr [\d.e-]+  [\d.]+ s"
CODED = EPOCH + r"  flips [\d.]+ %  dead [\d.]+ %"
HEAD = r"digits 100 train / 40 test \| {}, [\d.]+ M weights \| 2 stages \| seed 0 \| .+"


def test_train(journey: Journey) -> None:
    assert journey.train.code == 0
    # piped: no bar, a line per epoch; head and run are results, the loader's rate is progress
    like(
        journey.train.out,
        HEAD.format("bireal_resnet20"),
        r"run: runs/toy",
        EPOCH.format(0),
        CODED.format(1),
        r"done: test [\d.]+ % \(last epoch\), \d+:\d\d, \d warnings?",
    )
    like(
        [line for line in journey.train.err if not line.startswith("warn: ")],
        r"toy: 2 stages, 2 epochs, seed 0",
        r"loader alone [\d,]+ img/s, training [\d,]+ img/s: the loader .*",
        r"next:   bitwright convert runs/toy",
    )


def test_ctrl_c_and_resume(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my toy.toml").write_text(MLP)
    on_step(monkeypatch, 8, lambda callback: signal.raise_signal(signal.SIGINT))  # five steps an epoch
    said = say("train", "my toy.toml")
    assert said.code == 130
    like(said.out, HEAD.format("mlp"), r"run: runs/my toy", EPOCH.format(0))
    like(
        said.err[-2:],
        rf"\^C stopped at stage 1, epoch 0, step 3 of 5; saved \({S}\)\. A second Ctrl-C quits without saving\.",
        r"next:   bitwright train 'my toy\.toml' --resume",
    )
    said = say(*shlex.split(said.next[0])[1:])
    assert said.code == 0
    like(
        [line for line in said.err if not line.startswith("warn: ")],
        r"my toy: 2 stages, 2 epochs, seed 0",
        r"resumed: stage 1, epoch 0, step 3 \(same data order and random state as an unbroken run\)",
        "...",
        r"next:   bitwright convert 'runs/my toy'",
    )
    like(said.out, HEAD.format("mlp"), r"run: runs/my toy", EPOCH.format(1) + ".*", r"done: test [\d.]+ % .*")
    # --json: the same, one object each
    data = one_object("train", "my toy.toml", "--resume")
    assert data["train"]["test_images"] == 40 and data["next"] == ["bitwright convert 'runs/my toy'"]


# -- convert, bench, report ----------------------------------------------------------------------------------------------
TABLE = r"layer +runs as +w/x +kB float +kB +ms float +ms(  max diff)?  why"
LAYER = rf"\S+ +[a-z0-9+, ]*[a-z] +\S+ +{KB} +{KB} +({MS}|-) +({MS}|-)( .*)?"


def test_convert_pass(journey: Journey) -> None:
    said = journey.convert
    assert said.code == 0
    like(
        said.out,
        TABLE,
        LAYER,
        rf"layer1\.0\.conv1 +(bits|int8) +1/1 +{KB} +{KB} +{MS} +{MS} +0",
        "...",
        r"\.\.\.  4 more (bits|int8) layers \(--all\)",
        "...",
        rf"fc +float +float +{KB} +{KB} +{MS} +{MS} +.*",
        rf"whole net +18 (bits|int8), 4 float +{KB} +{KB} +{MS} +{MS}",
        rf"gain       {X} smaller, ({X} faster than float in torch.*|as fast as float in torch.*|{X} float in torch \(slower\).*)",
        "...",
        r"verify  40 of 40 test images: same class as the trained net \(\d+ different\); largest output.*",
        "...",
        r"        codes of 18 layers equal bit for bit; values up to rounding",
        # WARN: a net of two epochs guesses, or another program on this machine disturbs the times
        rf"(PASS|WARN)  .*runs/toy/packed\.safetensors  {KB} kB",
    )
    assert said.next == ["bitwright bench runs/toy"]


def test_convert_warn_and_refuse(here: Path) -> None:
    """Weights of 1 bit under float inputs: smaller only. A float net: nothing to pack."""
    Path("bwn.toml").write_text(MLP)
    Path("float.toml").write_text(MLP.replace('recipe = "bwn"\n', ""))
    assert say("train", "bwn.toml").code == 0
    said = say("convert", "runs/bwn")
    assert said.code == 0
    like(
        said.out, TABLE, "...", LAYER, "...", r"verify  40 of 40 test images: same class .*", "...",
        rf"WARN  .*its bits save bytes, not time: {X} smaller.*; .*; file written: runs/bwn/packed\.safetensors  {KB} kB",
    )  # fmt: skip
    said = say("train", "float.toml")
    assert said.code == 0 and said.next == ["bitwright eval runs/float"], "nothing to convert"
    follow(said)
    said = say("convert", "runs/float")
    assert said.code == 1 and not Path("runs/float/packed.safetensors").exists()
    like(
        said.out, TABLE, "...", LAYER, "...", r"whole net +3 float .*", r"verify  not done",
        r"REFUSE  nothing to pack: 3 of 3 layers stay float\. First: fc1 \(Linear 64>64\): its slots are empty\. Try: .*; "
        r"or --force for a file that runs without the model's code, no smaller and no faster",
    )  # fmt: skip
    assert said.next == []
    data = one_object("convert", "runs/float")
    assert data["status"] == "REFUSE" and data["exit_code"] == 1 and "error" not in data


def test_bench(journey: Journey) -> None:
    said = journey.bench
    assert said.code == 0
    row = rf"{{}} +{{}} +{MS} +{MS}-{MS} +{MS} +{N}  {{}}"
    like(
        said.out,
        r".+, kernels .+, 1 thread, batch 1, input 1x8x8, 1 rounds? interleaved,?.*",
        "...",
        r"candidate +precision +ms median +quartiles +p95 +img/s  ours faster by",
        row.format("bitwright", "1 bit", "-(?: +(?:onnxruntime|torch).*)?"),
        "...",
        row.format("torch-int8", "int8", r"[\d.]+x( \(slower\))? +best int8.*"),
        "...",  # the note of a peer may go on below it
        row.format("torch-fp32", "fp32", r"[\d.]+x( \(slower\))? +best fp32.*"),
        "...",
        r"in one line: [\d.]+x the speed of the fastest program here, .*",
        "...",
        # the machine is named as it is: spread and load
        r"quality: quartile spread [\d.]+ %.*|quality: NOISY.*",
        rf"size: {X} smaller, {KB} kB; the float net {KB} kB, file against file",
    )
    assert said.next == ["bitwright report runs/toy"]


def test_report(journey: Journey, monkeypatch: pytest.MonkeyPatch) -> None:
    said = journey.report
    assert said.code == 0
    like(said.out, rf"report: runs/toy/report\.html  \({KB} kB\)", "...", r"(PASS|WARN)  toy is .*")
    assert said.next == [], "nothing is missing on the page"
    monkeypatch.chdir(journey.folder)
    for command in [*journey.convert.next, *journey.bench.next]:
        assert Path(shlex.split(command)[-1], "experiment.toml").is_file()
    follow(journey.bench)
    table = say("report", "--compare", "runs/toy", "--format", "markdown")
    assert table.code == 0
    like(
        table.out,
        r"\| run \| accuracy, % \| size, kB \| (latency, ms|ms on .+) \| verdict .*",
        r"\| ---.*",
        r"\| toy \| .*",
    )


# -- --json --------------------------------------------------------------------------------------------------------------
def one_object(*words: str) -> dict[str, Any]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run([*words, "--json"])
    assert err.getvalue() == "" and out.getvalue().count("\n") == 1
    data = json.loads(out.getvalue())
    assert list(data)[:5] == ["schema", "command", "status", "exit_code", "warnings"]
    assert data["schema"].startswith("bitwright/") and data["exit_code"] == code
    assert isinstance(data["warnings"], list) and (code == 0 or data["status"] in ("error", "REFUSE", "BELOW"))
    if data["status"] == "error":
        assert set(data["error"]) >= {"code", "message", "layer", "given", "possible", "try"}
        assert "\n" not in data["error"]["message"]
    return data


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["methods", "--slot", "w"], 0),
        (["recipes"], 0),
        (["experiments"], 0),
        (["plan", "resnet20", "xnor"], 0),
        (["cost", "resnet20", "xnor"], 0),
        (["plan", "resnet20", "xnorr"], 2),
        (["train", "digits-mlp-bnw"], 2),
        (["train", "digits-mlp-bwn", "stage.0.epoch=1"], 2),
        (["convert", "runs/toy", "--nonsense"], 2),
        (["report", "runs/nothing"], 2),
        (["data", "check", "nothing"], 2),
        (["nonsense"], 2),
    ],
)
def test_json(words: list[str], code: int, here: Path) -> None:
    assert one_object(*words)["exit_code"] == code


# -- demo ----------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_demo(here: Path) -> None:
    said = say("demo", "--quick")
    assert said.code == 0
    step = rf"\[{{}}/5\] train  {{}} +\d+ epochs? +{S} +test {PC} %  .*"
    net = rf"  {{}} +{PC} +{{}} +{KB} +{{}} +{MS} .*"
    like(
        said.out,
        r"bitwright \S+ \| .+, \d+ cores?, kernels: \S+ \| embedded digits, 1437 train / 360 test",
        step.format(1, "float teacher"),
        step.format(2, "W1A1 student"),
        step.format(3, "W1A2 student"),
        r"\[4/5\] convert \+ verify +360 of 360 test images: same answer as the trained net",
        r"\[5/5\] bench +1 thread, batch 1.*, interleaved, (up to )?[\d,]+ runs.*",
        "",
        r"  net +test % +vs float +kB +smaller +ms.* vs fastest .*verdict",
        net.format("float", "-", "-"),
        net.format("W1A1", r"[+-][\d.]+", X),
        net.format("W1A2", r"[+-][\d.]+", X),
        "...",
        rf"report: runs/demo/report\.html  \({KB} kB\)",
    )
    assert said.next[-1] == "bitwright plan resnet20 xnor"
    follow(said)


def follow(said: Said) -> None:
    """Every `next:` line is a command that works as it stands, here and now."""
    assert said.next
    for command in said.next:
        program, *words = shlex.split(command)
        assert program == "bitwright"
        assert say(*words).code == 0, command
