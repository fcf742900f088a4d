"""Recipes: TOML both ways, checked when written, shipped ones complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from bitwright.errors import InputError
from bitwright.transforms import Recipe, Rule, apply, as_recipe, recipe_of, recipes


@pytest.mark.parametrize("name", recipes())
def test_shipped_recipe(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name
    for word in ("source:", "data:", "expected:"):
        assert word in recipe.comment
    again = Recipe.from_toml(recipe.to_toml())
    assert again == recipe


def test_shipped_names() -> None:
    wanted = [
        "xnor",
        "bireal",
        "bireal8",
        "bwn",
        "dorefa-w1a32",
        "dorefa-w1a2",
        "dorefa-w2a2",
        "ttq",
        "w1a1",
        "w8a8",
        "binaryconnect",
        "twn",
        "pact-w2a2",
        "pact-w4a4",
        "lsq-w2a2",
        "lsq-w3a3",
        "lsq-w4a4",
        "dorefa-w1a4",
        "dorefa-w1a2g6",
        "react",
        "fbs-keep100",
        "fbs-keep90",
        "fbs-keep70",
        "fbs",
        "channel_gate",
        "channel_gate-postact",
        "precision_gate-w8a3p2",
        "precision_gate-w8a8p4",
        "selfprune",
        "selfprune-step",
        "zero_one",
    ]
    assert set(wanted) <= set(recipes())


def test_toml_round_trip_of_every_kind_of_value() -> None:
    rules = [
        Rule('a"b\\*', "Linear", {"w": {"part": "ttq", "threshold": 0.1, "init": "one"}}, optional=True),
        Rule("first", slots={"x": ["norm", "sign", {"part": "dropout", "p": 1e-05}], "w": "float"}),
        Rule("ü.[0]", slots={"x": {"part": "uniform", "bits": 8, "signed": True}}, norm="bn"),
        Rule("c", slots={"x": {"part": "input8", "mean": [0.5, 0.25, 1.0]}}),
    ]
    recipe = Recipe(tuple(rules), "mine", "two\nlines")
    assert Recipe.from_toml(recipe.to_toml()) == recipe


def test_recipe_is_its_own_copy() -> None:
    table: dict[str, Any] = {"part": "ttq", "threshold": 0.1}
    recipe = as_recipe([{"match": "*", "w": table}])
    table["threshold"] = 9
    assert recipe.rules[0].slots["w"]["threshold"] == 0.1


def test_load_name_path_object_and_rules(tmp_path: Path) -> None:
    path = tmp_path / "my net ü.toml"
    path.write_text('[[rule]]\nmatch = "*"\nw = "bwn"\n', encoding="utf-8")
    assert as_recipe(path).rules == as_recipe(str(path)).rules == (Rule("*", slots={"w": "bwn"}),)
    assert as_recipe(path).name == "my net ü"
    assert as_recipe(Recipe.load("bwn")) == as_recipe("bwn")


def test_unknown_recipe() -> None:
    with pytest.raises(InputError) as error:
        Recipe.load("xnorr")
    assert str(error.value) == "recipe xnorr: no such recipe or file. Nearest: xnor. All: bitwright recipes"


def test_unreadable_toml_names_the_line() -> None:
    with pytest.raises(InputError, match=r"recipe mine: not readable as TOML: .*line 2"):
        Recipe.from_toml('[[rule]]\nmatch = = "*"', "mine")


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ('w = "ttqq"', "rule 1: unknown part 'ttqq'. Nearest: ttq."),
        (
            'w = { part = "ttq", treshold = 0.1 }',
            "rule 1: part ttq: unknown option treshold=0.1. Nearest: threshold.",
        ),
        ('wx = "ttq"', "rule 1: unknown key 'wx'."),
        ("optinal = true", "rule 1: unknown key 'optinal'. Nearest: optional."),
        ('x = "dorefa_w"', "rule 1: part dorefa_w in slot x: serves slot w only. For inputs: "),
        ("w = 3", "rule 1: slot w: cannot read 3"),
        ("w = { bits = 3 }", "rule 1: slot w: a mapping needs the key 'part'"),
        ("optional = 1", "rule 1: kind and norm are text"),
    ],
)
def test_checked_when_written(rule: str, text: str) -> None:
    with pytest.raises(InputError) as error:
        Recipe.from_toml(f'[[rule]]\nmatch = "*"\nw = "bwn"\n[[rule]]\nmatch = "a"\n{rule}')
    assert text in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[rule]]\nw = "bwn"', "rule 0: no match"),
        ("[rule]\nw = 1", r"written \[\[rule\]\]"),
        ("rules = []", "unknown key 'rules'. Nearest: rule."),
        ("format = 2", "format = 2; this version reads 1"),
    ],
)
def test_form_errors(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe.from_toml(text)


def test_unknown_slot_of_a_rule_object() -> None:
    with pytest.raises(InputError, match="unknown slot 'weights'"):
        Rule("*", slots={"weights": "bwn"})


def test_recipe_of_rebuilds_exactly() -> None:
    def net() -> Any:
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))

    rules = [
        {"match": "*", "w": ["mask", {"part": "ttq", "threshold": 0.1}], "x": ["norm", "sign"]},
        {"match": "0", "x": {"part": "uniform", "bits": 4}},
        {"match": "last", "w": "float", "x": "float"},
    ]
    first: Any = apply(net(), rules)
    text = recipe_of(first).to_toml()
    second: Any = apply(net(), Recipe.from_toml(text))
    assert recipe_of(second) == recipe_of(first)
    assert second.load_state_dict(first.state_dict()).missing_keys == []
    assert [r.match for r in recipe_of(first).rules] == ["0", "1"]  # the last layer has no part


def test_recipe_of_layer_called_first() -> None:
    net: Any = nn.ModuleDict({"a": nn.Linear(2, 2), "first": nn.Linear(2, 2)})
    apply(net, [{"match": "[f]irst", "w": "bwn"}])
    again: Any = apply(nn.ModuleDict({"a": nn.Linear(2, 2), "first": nn.Linear(2, 2)}), recipe_of(net))
    assert type(again["a"]) is nn.Linear and again["first"].w is not None


def test_recipe_of_needs_specs() -> None:
    import bitwright as bw

    class Own(nn.Module):
        def forward(self, t: Any) -> Any:
            return t

    with pytest.raises(InputError, match="slot w of 0 holds Own, built by hand"):
        recipe_of(nn.Sequential(bw.nn.Linear(2, 2, w=Own())))


def test_a_file_without_rules_is_a_mistake(tmp_path: Path):
    path = tmp_path / "empty.toml"
    path.write_text("# nothing yet\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"empty\.toml: has no \[\[rule\]\], so it would change nothing"):
        Recipe.load(path)
