"""The reader of recipes and experiments: every text of a stranger is read or refused, in one line and at once."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import bitwright as bw
from bitwright import experiment
from bitwright.errors import InputError
from bitwright.toml import DEEPEST, LARGEST, read_toml, toml_text

DEEP = f"lists more than {DEEPEST} levels deep"
BAD = {
    "brackets": (f"rule = {'[' * 100_000}", DEEP),
    "closed brackets": (f"rule = {'[' * 200}{']' * 200}", DEEP),
    "tables": (f"rule = {'{ a = ' * 5_000}", DEEP),
    "decimal": (f"seed = {'9' * 100_000}", "Exceeds the limit"),
    "hexadecimal": (f"seed = 0x{'f' * 500_000}", "more than 64 bits"),
    "65 bits": (f"seed = {2**63}", "more than 64 bits"),
    "within": (f"x = [[{{ a = {-(2**63) - 1} }}]]", "more than 64 bits"),
    "dotted key": ("a." * 400_000 + "b = 1", "a key of more than 32 parts"),
    "dotted header": ("[" + '"a" . ' * 100_000 + "b]", "a key of more than 32 parts"),
    "size": ("#" * (LARGEST + 1), "characters; possible: at most"),
}


@pytest.mark.parametrize("text, reason", BAD.values(), ids=list(BAD))
def test_beyond_the_bounds_is_one_line(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(tomllib.TOMLDecodeError, match=reason):
        read_toml(text)
    path = tmp_path / "x.toml"
    path.write_text(text)
    for read in (bw.Recipe.load, experiment.load, bw.Recipe.from_toml, experiment.parse):
        with pytest.raises(InputError, match=reason) as error:
            read(path if read in (bw.Recipe.load, experiment.load) else text)  # pyright: ignore[reportArgumentType]
        assert error.value.code in ("recipe-toml", "experiment-toml")
        assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_within_the_bounds_is_read() -> None:
    nested = "[" * (DEEPEST - 1) + "1" + "]" * (DEEPEST - 1)
    assert read_toml(f"a = {nested}")["a"]
    found = read_toml(f"low = {-(2**63)}\nhigh = {2**63 - 1}\nwords = '{'layer.' * 20}'\n{'a.' * (DEEPEST - 1)}b = 1")
    assert (found["low"], found["high"]) == (-(2**63), 2**63 - 1)
    many = "".join(f'[[rule]]\nmatch = "layer{i}.conv"\nw = "bwn"\n' for i in range(5_000))
    assert len(bw.Recipe.from_toml(many).rules) == 5_000


def test_a_mistake_far_down_in_a_long_text_has_its_line() -> None:
    text = "\n" * 200_000 + "[[stage]]\nepochs = 1\n" + "# \n" * 100_000 + "[data]\nnosuch = 1\n"
    with pytest.raises(InputError, match="line 300004: "):
        experiment.parse(text)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xef\xbb\xbfa = 1")
    assert toml_text(path) == "a = 1"
    for content, reason in ((b"\xff", "not UTF-8"), (b" " * (4 * LARGEST + 1), "more than")):
        path.write_bytes(content)
        with pytest.raises(tomllib.TOMLDecodeError, match=reason):
            toml_text(path)


def test_an_override_beyond_the_bounds_is_told_like_a_wrong_value() -> None:
    for value in (f"0x{'f' * 100_000}", "[" * 50_000, "9" * 100_000):
        with pytest.raises(InputError, match="possible: a whole number of at least 0") as error:
            experiment.load("digits-mlp-bwn", [f"seed={value}"])
        assert len(str(error.value)) < 400 + len(value)
