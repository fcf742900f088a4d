"""Experiments: lines of every key, every message, overrides, the round trip, the shipped files."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bitwright as bw
from bitwright.data import Dataset
from bitwright.errors import InputError
from bitwright.experiment import Experiment, load, names, parse, to_toml
from bitwright.experiment.lines import index, nearest_line
from bitwright.experiment.override import value_of
from bitwright.experiment.read import FOLDER
from bitwright.runs.build import apply_stage, build_model, example_of, normalized, recipe_of_stage
from bitwright.runs.init import initialize
from bitwright.training.losses import make_loss
from bitwright.training.optimizers import make_optimizer

TWO = """seed = 1
[data]
name = "digits"
val = 5

[[stage]]   # float
epochs = 2

[[stage]]
epochs = 3
optimizer = { name = "sgd", lr = 0.1 }
teacher = "previous"
"""


def message(text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(text, overrides, "experiment mine.toml")
    said = str(caught.value)
    assert "\n" not in said and said.startswith("experiment mine.toml: ")
    return said.removeprefix("experiment mine.toml: ")


# ---- lines ----


def test_every_form_of_key_has_its_line() -> None:
    text = '''# head
a.b = 1 # c [x]
"quo # ted" = """
[no.table]
x = 1 \\"""" # three, one of them the text's
c = \'\'\'
y = 2\'\'\'
list = [ # 9
  1,
  [2, "]", 3], # 11
  { k = 1, "l" = [ 4 ] },
]
[t."u.v"]
w = 1979-05-27 07:32:00
[[arr]]
x = 'a#b'
[[arr.sub]]
y = 1
[[arr]]
x = { y.z = 1 }
[[arr.sub]]
[[arr.sub]]
last = inf
[arr.one]
v = true
'''
    tomllib.loads(text)
    lines = index(text)
    expected = {
        ("a", "b"): 2,
        ("quo # ted",): 3,
        ("c",): 6,
        ("list",): 8,
        ("list", 0): 9,
        ("list", 1): 10,
        ("list", 1, 1): 10,
        ("list", 2): 11,
        ("list", 2, "k"): 11,
        ("list", 2, "l", 0): 11,
        ("t", "u.v"): 13,
        ("t", "u.v", "w"): 14,
        ("arr",): 15,
        ("arr", 0, "x"): 16,
        ("arr", 0, "sub", 0): 17,
        ("arr", 0, "sub", 0, "y"): 18,
        ("arr", 1): 19,
        ("arr", 1, "x", "y", "z"): 20,
        ("arr", 1, "sub", 0): 21,
        ("arr", 1, "sub", 1, "last"): 23,
        ("arr", 1, "one"): 24,
        ("arr", 1, "one", "v"): 25,
    }
    assert {path: lines.get(path) for path in expected} == expected
    assert not any("no" in path for path in lines)
    assert nearest_line(lines, ("arr", 1, "x", "y", "none")) == 20
    assert nearest_line(lines, ("nothing",)) is None
    assert index(text.replace("\n", "\r\n")) == lines


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [leaf for key, inner in items for leaf in leaves(inner, (*path, key))]


@pytest.mark.parametrize("name", names())
def test_the_index_knows_exactly_what_tomllib_reads(name: str) -> None:
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    assert set(index(text)) == set(leaves(tomllib.loads(text)))


# ---- messages ----


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed = 1", "seed = -1", "line 1: seed = -1; possible: a whole number of at least 0"),
        ("seed = 1", "seed = true", "line 1: seed = true; possible: a whole number of at least 0"),
        ("seed = 1", 'seed = "1"', 'line 1: seed = "1"; possible: a whole number of at least 0'),
        ("val = 5", "vall = 5", "line 4: unknown key 'vall' in data. Nearest: val. Keys: name, root, "),
        ("[data]", "[dat]", "line 2: unknown key 'dat'. Nearest: data. Keys: seed, data, model, stage, train, log"),
        ("val = 5", "augment = 1", "line 4: data.augment = 1; possible: true or false"),
        ("lr = 0.1", "lr = 0", "line 11: stage.1.optimizer.lr = 0; possible: a number above 0"),
        ("lr = 0.1", "lr = inf", "line 11: stage.1.optimizer.lr = inf; possible: a number above 0"),
        ("lr = 0.1", "momentum = 2", "line 11: stage.1.optimizer.momentum = 2; possible: a number from 0 to 1"),
        ("lr = 0.1", "rate = 1", "line 11: unknown key 'rate' in stage.1.optimizer. Keys: name, lr, weight_decay"),
        ("lr = 0.1", "betas = [0.9]", "stage.1.optimizer.betas"),
        (
            '"sgd"',
            '"sdg"',
            'line 11: stage.1.optimizer.name = "sdg". Nearest: sgd. Possible: sgd, adam, adamw, nadam, rmsprop',
        ),
        ("epochs = 3", "epochs = 3\nfreeze = [1]", "line 11: stage.1.freeze.0 = 1; possible: text"),
        ("epochs = 3", "epochs = 3\nfreeze = 1", "line 11: stage.1.freeze = 1; possible: a list, each text"),
        ("epochs = 3", "", "line 9: stage.1.epochs is missing; possible: a whole number of at least 1"),
        ('"previous"', '{ weight = 2 }', "line 12: stage.1.teacher.weight = 2; possible: a number from 0 to 1"),
        ("epochs = 3", "epochs = 0\nloss = 3", "line 10: stage.1.epochs = 0; possible: a whole number of at least 1 (and 1 more)"),
        ("epochs = 3", "epochs = 3\noptimizer.lr = 3", "line 12: not readable as TOML: "),
        # across keys
        ("val = 5", "limit = 5\nval = 5", "line 5: val = 5 leaves no training image of limit = 5; possible: below 5"),
        ("epochs = 2", 'epochs = 2\nteacher = "previous"', "line 8: no stage before this one; possible: a run, a file"),
        ("epochs = 3", 'epochs = 3\nrecipe = "bwn"\nrule = [{ match = "*" }]', "line 11: a stage has a recipe or rules"),
        ("epochs = 3", 'epochs = 3\nloss = "mes"', 'line 11: unknown loss "mes". Nearest: mse. Possible: cross_entropy'),
        ("epochs = 3", 'epochs = 3\nloss = "mse"\nlabel_smoothing = 0.1', "line 12: label_smoothing belongs to cross_entropy"),
        ("lr = 0.1", "nesterov = true", "line 11: nesterov needs momentum; possible: momentum = 0.9"),
        ("lr = 0.1", "betas = [0.9, 0.99]", "line 11: betas is an option of adam, adamw, nadam; this is sgd"),
        ('"sgd", lr = 0.1', '"adam", momentum = 0.9', "line 11: momentum is an option of sgd, rmsprop; this is adam"),
        ('"sgd", lr = 0.1', '"nadam", fused = true', "line 11: fused is an option of sgd, adam, adamw; this is nadam, which has"),
        ('"sgd", lr = 0.1', '"sgd", eps = 1e-3', "line 11: eps is an option of adam, adamw, nadam, rmsprop; this is sgd"),
        ("epochs = 3", 'epochs = 3\nschedule.name = "milestones"', "line 11: milestones need their epochs"),
        ("[data]", '[train]\nprecision = "fp16"\ndevice = "cpu"\n[data]', 'line 3: fp16 needs a GPU; possible on device = "cpu"'),
        ("[data]", "[expected]\nlow = 0.9\nhigh = 0.8\n[data]", "line 3: low = 0.9 is above high = 0.8; possible: low <= high"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file(old: str, new: str, said: str) -> None:
    assert old in TWO
    assert said in message(TWO.replace(old, new, 1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no stage; write [[stage]] and below it epochs = 10"),
        ("stage = []", "line 1: no stage; write [[stage]] and below it epochs = 10"),
        ("\n[stage]\nepochs = 1", "line 2: stages are written [[stage]], in double brackets"),
        ("a = 1\nb =", "line 2: not readable as TOML: Invalid value"),
        ("a = [1,\n2\n", "line 2: not readable as TOML: Unclosed array"),
    ],
)
def test_a_file_that_is_none(text: str, said: str) -> None:
    assert message(text) == said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=x", 'override seed=x: seed = "x"; possible: a whole number of at least 0'),
        ("stage.2.epochs=1", "override stage.2.epochs=1: 2 stages, counted from 0; possible: 0 to 1"),
        ("stage.-1.epochs=1", "override stage.-1.epochs=1: 2 stages, counted from 0; possible: 0 to 1"),
        ("stage.x.epochs=1", "override stage.x.epochs=1: 2 stages, counted from 0; possible: 0 to 1"),
        ("stage.1.rule.0.w=bwn", "override stage.1.rule.0.w=bwn: there is no stage.1.rule.0"),
        ("stage.0.epoch=1", "override stage.0.epoch=1: unknown key 'epoch' in stage.0. Nearest: epochs. Keys: "),
        ("stag.0.epochs=1", "override stag.0.epochs=1: unknown key 'stag'. Nearest: stage. Keys: "),
        ("train.precision=bf61", 'train.precision = "bf61". Nearest: bf16. Possible: fp32, bf16, fp16'),
        ("seed.x=1", "override seed.x=1: seed is 1, not a table with keys"),
        ("data.limit=5", "override data.limit=5: val = 5 leaves no training image of limit = 5"),
        ("stage.0.optimizer=adam", 'stage.0.optimizer = "adam"; possible: a table with name, lr, '),
        ("epochs=0", "override epochs=0: stage.0.epochs = 0; possible: a whole number of at least 1 (and 1 more)"),
        ("foo", "override 'foo': possible: key=value, e.g. seed=3 or stage.0.epochs=2"),
        ("=1", "override '=1': possible: key=value"),
        ("data..val=1", "override 'data..val=1': possible: key=value"),
    ],
)
def test_a_mistake_in_an_override(override: str, said: str) -> None:
    assert said in message(TWO, override)


def test_a_message_names_the_override_and_not_the_line_it_replaces() -> None:
    assert message(TWO, "seed=2", "seed=-3").startswith("override seed=-3: ")
    assert message(TWO.replace("val = 5", "val = -5"), "seed=2").startswith("line 4: ")


def test_error_codes() -> None:
    codes = {}
    for text in ("", "a =", "x = 1\n[[stage]]\nepochs = 1", "seed = -1\n[[stage]]\nepochs = 1"):
        with pytest.raises(InputError) as caught:
            parse(text)
        codes[text[:4]] = caught.value.code
    assert list(codes.values()) == ["experiment-value", "experiment-toml", "experiment-key", "experiment-value"]


# ---- overrides ----


def test_overrides() -> None:
    found = parse(
        TWO,
        [
            "seed=3", "stage.0.epochs=2", "data.limit=1000", "model.width=0.5", "model.name=resnet20",
            "train.precision=bf16", "stage.0.optimizer.lr=.1", "stage.1.optimizer.lr=0.5", "stage.1.teacher.weight=0.3",
            "stage.1.schedule={ name = 'step', every = 4 }", "data.root=/a b/c=d", "stage.0.freeze=['conv1.*']",
            "stage.0.rule=[{ match = '*', w = 'bwn' }]", "stage.0.rule.0.w=ttq",
        ],
    )  # fmt: skip
    first, second = found.stage
    assert (found.seed, first.epochs, found.data.limit, found.train.precision) == (3, 2, 1000, "bf16")
    assert found.model.arguments == {"width": 0.5} and found.model.name == "resnet20"
    assert (first.optimizer.lr, first.optimizer.name) == (0.1, "adam")
    assert (second.optimizer.lr, second.optimizer.name) == (0.5, "sgd")
    assert second.teacher is not None and (second.teacher.source, second.teacher.weight) == ("previous", 0.3)
    assert (second.schedule.name, second.schedule.every) == ("step", 4)
    assert found.data.root == "/a b/c=d" and first.freeze == ["conv1.*"]
    assert first.rule == [{"match": "*", "w": "ttq"}]


def test_short_overrides() -> None:
    rules = TWO + '[[stage.rule]]\nmatch = "*"\nw = "bwn"\n'
    found = parse(rules, ["recipe=xnor", "epochs=7"])
    assert [(s.recipe, s.epochs, s.rule) for s in found.stage] == [(None, 7, []), ("xnor", 7, [])]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("1.5", 1.5), ("1e-3", 1e-3), (".5", 0.5), ("2.", 2.0), ("true", True), ("'a'", "a"), ("bf16", "bf16"),
        ("[1, 2]", [1, 2]), ("{ a = 1 }", {"a": 1}), ("", ""), ("1\nb = 2", "1\nb = 2"), ("2024-01-01", "2024-01-01"),
        ("a = 1", "a = 1"), ("C:\\x", "C:\\x"),
    ],
)  # fmt: skip
def test_values_of_overrides(text: str, value: Any) -> None:
    found = value_of(text)
    assert found == value and type(found) is type(value)


# ---- files ----


def test_load_finds_names_files_and_runs(tmp_path: Path) -> None:
    path = tmp_path / "mein Versuch ü.toml"
    path.write_bytes(b"\xef\xbb\xbf" + TWO.replace("\n", "\r\n").encode())  # as an editor on Windows leaves it
    assert load(path) == load(str(path)) == parse(TWO)
    run = tmp_path / "run"
    run.mkdir()
    (run / "experiment.toml").write_text(to_toml(parse(TWO)))
    assert load(run) == parse(TWO)
    assert load("digits-mlp-bwn", ["seed=4"]).seed == 4
    with pytest.raises(InputError) as caught:
        load("cifar10-resnet20-xnorr")
    assert str(caught.value) == (
        "experiment cifar10-resnet20-xnorr: no such experiment or file. Nearest: cifar10-resnet20-xnor. "
        "All: bitwright experiments"
    )
    assert caught.value.code == "experiment-unknown"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8 text"):
        load(path)
    path.write_text("[[stage]]\nepochs = 0")
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value).startswith(f"experiment {path}: line 2: stage.0.epochs = 0; possible: ")


def test_shipped_files_are_found_beside_the_code(tmp_path: Path) -> None:
    """What a wheel holds is the folder of the package, so the files must lie in it."""
    package = Path(bw.__file__).parent
    assert FOLDER.is_relative_to(package) and len(list(FOLDER.glob("*.toml"))) == len(names()) >= 24
    shutil.copytree(FOLDER, tmp_path / "copy")
    assert load(tmp_path / "copy" / "digits-mlp-bwn.toml") == load("digits-mlp-bwn")


SHAPES = {"digits": (1, 8, 10), "mnist": (1, 28, 10), "fashion-mnist": (1, 28, 10), "cifar10": (3, 32, 10),
          "cifar100": (3, 32, 100), "svhn": (3, 32, 10), "stl10": (3, 96, 10), "imagenet": (3, 96, 1000)}  # fmt: skip


def blank_images(name: str) -> Dataset:
    channels, size, classes = SHAPES[name]
    images = torch.zeros(4, channels, size, size, dtype=torch.uint8)
    moments = (0.5,) * channels
    return Dataset(name, images, torch.zeros(4, dtype=torch.int64), tuple(map(str, range(classes))), moments, moments)


def signs(model: nn.Module) -> set[str]:
    """Layers with a binary weight and a binary input."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, bw.nn.SlotLayer)}
    return {n for n, m in layers.items() if getattr(m.w, "bits", 0) == 1 and m.x is not None}


def gates(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Gated layers with the options of their gates; `keep` differs between the stages of one method."""
    layers: dict[str, Any] = {n: m.gate for n, m in model.named_modules() if isinstance(m, bw.nn.SlotLayer)}
    return {n: {k: v for k, v in gate.spec.items() if k != "keep"} for n, gate in layers.items() if gate is not None}


def width(name: str) -> str:
    """Narrow; a net with gates has at least channels to share out, a published start of 0/1 weights some on."""
    return "model.width=0.25" if GATED.search(name) or "selfprune-published" in name else "model.width=0.0625"


GATED = re.compile("fbs|channel_gate|precision_gate")


@pytest.mark.few(every=4)
@pytest.mark.parametrize("name", names())
def test_shipped(name: str) -> None:
    """The name says what is in the file; model and recipes fit each other; it says what is known of it.

    Only shapes count here: models are narrow, images blank, and those of imagenet 96 pixels wide.
    """
    experiment = load(name, [width(name)])
    narrow = experiment.model.model_copy(update={"weights": None})  # those in a file are of the full width
    experiment = experiment.model_copy(update={"model": narrow})
    gated = bool(GATED.search(name))  # their rules stand in the file, so that every option is a key
    steps = [stage.recipe or ("rules" if stage.rule else "float") for stage in experiment.stage]
    data, model = experiment.data.name, experiment.model.name
    end = name.removeprefix(f"{data}-{model}-").removesuffix("-published").removesuffix("-two-step")
    end = end.removesuffix("-pixels1")
    assert name.startswith(f"{data}-{model}-{end}") and end in ("float", *bw.recipes())
    assert steps[-1] == end or (steps[-1] == "rules" and (gated or len(steps) != 2))
    assert steps.count("float") <= 1 and "float" not in steps[1:]
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    assert text.startswith("# ") and "\n# known: " in text and (end == "float" or "\n# source: " in text)
    assert parse(to_toml(experiment)) == experiment
    images = blank_images(experiment.data.name)
    example = example_of(experiment, images)
    model = build_model(experiment, images)
    for i in range(len(experiment.stage)):
        if recipe_of_stage(experiment, i).rules:
            rows = bw.plan(model, recipe_of_stage(experiment, i), example).rows
            assert any((row.w, row.x) != ("float", "float") for row in rows) or any(row.gate for row in rows)
        model = apply_stage(model, experiment, i, example)
    if gated:
        recipe = "channel_gate-postact" if "postact" in name else end
        mine, named = gates(model), gates(bw.apply(build_model(experiment, images), recipe, example))
        if "m_cifarnet" in name:  # the authors gate the first conv too
            assert mine.pop("conv1")
        assert mine == named and named
    elif steps[-1] == "rules":  # step by step, or layer by layer: the whole is what the name says
        whole = apply_stage(
            build_model(experiment, images), load("cifar10-resnet20-bwn", [f"recipe={end}"]), 1, example
        )
        assert signs(model) == signs(whole)
    assert normalized(experiment) == (not experiment.data.binarize and (gated or "8" not in end or end == "w8a8"))
    assert model.eval()(example).shape == (2, len(images.classes))


# ---- round trip ----

# a colon would make a name the user's own code, which has a form of its own
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=":"), min_size=1, max_size=12)
share = st.floats(0, 1)
positive = st.floats(1e-8, 1e8)
plain = st.one_of(st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), text)
value = st.recursive(
    plain,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)
own_keys = text.filter(lambda key: key not in ("name", "init", "weights") and not key.startswith("model_"))


@st.composite
def stages(draw: st.DrawFn, first: bool) -> dict[str, Any]:
    stage: dict[str, Any] = {"epochs": draw(st.integers(1, 99)), "freeze": draw(st.lists(text, max_size=2))}
    if draw(st.booleans()):
        stage["rule"] = draw(st.lists(st.dictionaries(text, value, min_size=1, max_size=3), max_size=2))
    else:
        stage["recipe"] = draw(text)
    stage["optimizer"] = {
        "name": "adam", "lr": draw(positive), "betas": draw(st.one_of(st.none(), st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)))),
    }  # fmt: skip
    stage["schedule"] = {"name": "milestones", "at": draw(st.lists(st.integers(1, 99), min_size=1, max_size=3))}
    stage["clip"] = draw(st.one_of(st.none(), positive))
    stage["teacher"] = draw(st.sampled_from([None, {"source": "runs/x", "weight": 0.25}] + ["previous"] * (not first)))
    return stage


@st.composite
def experiments(draw: st.DrawFn) -> Experiment:
    return Experiment.model_validate(
        {
            "seed": draw(st.integers(0, 2**31)),
            "data": {"name": draw(text), "root": draw(st.one_of(st.none(), text)), "augment": draw(st.booleans())},
            "model": {"name": draw(text), **draw(st.dictionaries(own_keys, value, max_size=3))},
            "stage": [draw(stages(True)), *draw(st.lists(stages(False), max_size=2))],
            "expected": draw(st.one_of(st.none(), st.just({"low": 0.25, "high": 0.5, "source": "x"}))),
        }
    )


@settings(max_examples=60, deadline=None)
@given(experiments())
def test_what_is_written_is_read_back(experiment: Experiment) -> None:
    written = to_toml(experiment)
    assert parse(written) == experiment
    assert set(index(written)) == set(leaves(tomllib.loads(written)))


# ---- weights ----


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(), nn.Linear(64, 64))


@pytest.mark.parametrize(
    ("scheme", "conv", "linear"),
    [
        ("kaiming", (2 / (64 * 9)) ** 0.5, (2 / 64) ** 0.5),
        ("xavier", (2 / (72 * 9 - 8 * 9 + 8 * 9)) ** 0.5, (2 / 128) ** 0.5),
        ("orthogonal", (1 / 72) ** 0.5, (1 / 64) ** 0.5),
        ("xnor", 2 / 72, 2 / 64),
        ("normal:0.3", 0.3, 0.3),
    ],
)
def test_initialize(scheme: str, conv: float, linear: float) -> None:
    torch.manual_seed(0)
    net = small()
    kept = nn.init.uniform_(net.get_parameter("1.weight")).detach().clone()
    initialize(net, scheme)
    state = net.state_dict()
    assert float(state["0.weight"].std()) == pytest.approx(conv, rel=0.05)
    assert float(state["4.weight"].std()) == pytest.approx(linear, rel=0.05)
    assert not state["0.bias"].any() and not state["4.bias"].any()
    assert torch.equal(state["1.weight"], kept)
    if scheme == "orthogonal":
        rows = state["4.weight"]
        torch.testing.assert_close(rows @ rows.T, torch.eye(64), rtol=0, atol=1e-5)


def test_initialize_default_changes_nothing_and_a_shared_weight_is_drawn_once() -> None:
    net = small()
    before = {key: t.clone() for key, t in net.state_dict().items()}
    initialize(net, "default")
    assert all(torch.equal(before[key], t) for key, t in net.state_dict().items())
    tied = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False))
    tied[1].weight = tied[0].weight
    torch.manual_seed(3)
    initialize(tied, "normal:1")
    torch.manual_seed(3)
    assert torch.equal(tied.get_parameter("0.weight"), torch.empty(5, 5).normal_())


@pytest.mark.parametrize(
    "scheme", ["kaimin", "normal", "normal:", "normal:x", "normal:0", "normal:nan", "kaiming:1", ""]
)
def test_initialize_with_an_unknown_scheme(scheme: str) -> None:
    with pytest.raises(InputError) as caught:
        initialize(small(), scheme)
    assert "Possible: default, kaiming, xavier, orthogonal, xnor, normal:STD with STD above 0" in str(caught.value)
    assert caught.value.code == "init-unknown" and "\n" not in str(caught.value)


# ---- sets that are not at hand ----

AWAY = [name for name in names() if name.split("-")[0] in ("svhn", "stl10", "imagenet")]


def random_images(name: str) -> Dataset:
    blank = blank_images(name)
    images = torch.randint(256, blank.images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Dataset(name, images, torch.arange(4), blank.classes, blank.mean, blank.std)


@pytest.mark.few(every=3)
@pytest.mark.parametrize("name", sorted({*AWAY, *filter(GATED.search, names())}))
def test_first_step_on_stand_ins(name: str) -> None:
    """Each stage: one step of its own optimizer and loss on a few random images; weights move, everything is finite."""
    experiment = load(name, [width(name)])
    images = random_images(experiment.data.name)
    example = example_of(experiment, images, 4)
    model = build_model(experiment, images)
    for i, stage in enumerate(experiment.stage):
        model = apply_stage(model, experiment, i, example)
        bw.calibrate(model, [example])
        optimizer = make_optimizer(model, stage.optimizer)
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        with bw.attach(model, optimizer):
            loss = make_loss(stage, i)(model.train()(example), images.labels) + bw.penalty(model)
            loss.backward()
            optimizer.step()
        assert all(p.isfinite().all() for p in model.parameters())
        moved = [key for key, p in model.named_parameters() if not torch.equal(before[key], p)]
        assert len(moved) > len(before) / 2


@pytest.mark.parametrize("name", ["svhn-resnet20-pact-w2a2", "stl10-resnet20-ttq", "imagenet-alexnet-xnor"])
def test_trained_on_stand_ins(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole of `bw.train`, an epoch per stage."""
    monkeypatch.setattr("bitwright.data.load", lambda name, *_, **__: random_images(name))
    few = ["model.width=0.0625", "epochs=1", "data.batch=2", "train.precision=fp32", "log.tensorboard=false"]
    bw.train(load(name, few), tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").is_file()
