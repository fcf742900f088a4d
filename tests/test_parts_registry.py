"""The register: names, options, slots, and errors that say what is possible."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.parts import forget, make_slot, options_of, part, part_class

NAMES = sorted(bw.parts())


def test_an_unknown_part_names_the_nearest_and_all() -> None:
    with pytest.raises(
        ValueError, match=r"unknown part 'xnorr'\. Nearest: xnor\. Known: binaryconnect, bireal, bwn"
    ) as caught:
        bw.make_part("xnorr")
    assert isinstance(caught.value, InputError)
    assert caught.value.to_dict()["code"] == "part-unknown" and caught.value.given == "xnorr"


def test_an_unknown_part_far_from_all_names_no_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown part 'zzzz'\. Known") as caught:
        bw.make_part("zzzz")
    assert "Nearest" not in str(caught.value)


def test_an_unknown_option_names_the_nearest_and_all() -> None:
    with pytest.raises(InputError, match=r"unknown option bit=3\. Nearest: bits\. Options: bits=2") as caught:
        bw.make_part("dorefa_a", bit=3)
    assert caught.value.code == "option-unknown" and caught.value.given == "bit"


def test_an_option_of_a_part_without_options() -> None:
    with pytest.raises(InputError, match="Options: none"):
        bw.make_part("float", bits=2)


def test_a_wrong_slot_names_the_parts_that_serve_it() -> None:
    with pytest.raises(
        InputError, match=r"part sign in slot w: serves slot x only\. For weights: binaryconnect, bireal, bwn"
    ) as caught:
        bw.make_part("sign", slot="w")
    assert caught.value.code == "slot-wrong" and "float" not in str(caught.value)


def test_a_slot_error_names_the_layer() -> None:
    layer = bw.nn.Conv2d(3, 4, 3)
    with pytest.raises(InputError, match=r"part sign in slot w of layer1\.0\.conv2: ") as caught:
        layer.set_slots("layer1.0.conv2", w="sign")
    assert caught.value.layer == "layer1.0.conv2"
    with pytest.raises(InputError, match=r"^features\.3: unknown part 'bwm'"):
        layer.set_slots("features.3", w="bwm")


def test_no_such_slot() -> None:
    with pytest.raises(InputError, match="no slot 'weight'; slots: w, b, x, g, gate"):
        bw.nn.Linear(2, 2).set_slots(weight="bwn")


@pytest.mark.parametrize("value", [{"bits": 2}, 7, b"bwn"])
def test_what_is_no_slot_value_is_refused(value: object) -> None:
    with pytest.raises(InputError):
        make_slot(value, "w")


@pytest.mark.parametrize("value", [None, [], ["float"], "float", ["float", "float"], {"part": "float"}])
def test_many_ways_to_leave_a_slot_empty(value: object) -> None:
    assert make_slot(value, "w") is None


@pytest.mark.parametrize("name", [n for n in NAMES if "bits" in options_of(n)])
def test_bits_32_is_nothing_at_all(name: str) -> None:
    slot = bw.parts()[name].slots[0]
    assert make_slot({"part": name, "bits": 32}, slot) is None
    layer, torchs = bw.nn.Linear(4, 3, **{slot: {"part": name, "bits": 32}}), nn.Linear(4, 3)
    assert layer.state_dict().keys() == torchs.state_dict().keys()
    torchs.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4)
    assert torch.equal(layer(x), torchs(x)) and getattr(layer, slot) is None


def test_a_taken_name_is_refused_and_forget_frees_it() -> None:
    with pytest.raises(InputError, match=r"part 'bwn' is taken by bitwright\.parts\.bwn\.Bwn"):
        part("bwn")(nn.Identity)
    part("mine_for_test", "x")(nn.Identity)
    assert bw.parts()["mine_for_test"].slots == ("x",)
    forget("mine_for_test")
    assert "mine_for_test" not in bw.parts()


def test_a_part_for_an_unknown_slot_is_refused() -> None:
    with pytest.raises(InputError, match="no such slot 'weight'"):
        part("mine_for_test", "weight")(nn.Identity)


def test_a_missing_required_option_says_so() -> None:
    @part("needs_for_test", "x")
    class Needs(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = size

        def forward(self, t: Tensor) -> Tensor:
            return t

    try:
        with pytest.raises(InputError, match=r"part needs_for_test: .*size"):
            bw.make_part("needs_for_test")
        assert bw.make_part("needs_for_test", size=3).size == 3
    finally:
        forget("needs_for_test")


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_complete(name: str) -> None:
    info = bw.parts()[name]
    assert info.name == name and info.slots and info.source and info.summary
    assert not info.summary.endswith(".") and "\n" not in info.summary
    assert info.packs == callable(getattr(part_class(name), "encode", None))
    assert not info.packs or info.bits


@pytest.mark.parametrize("name", NAMES)
def test_every_part_accepts_a_layer(name: str) -> None:
    for slot in bw.parts()[name].slots:
        bw.make_part(name, slot=slot, layer=nn.Conv2d(3, 4, 3))


@pytest.mark.parametrize("name", [n for n in NAMES if "w" in bw.parts()[n].slots])
def test_weight_parts_take_the_mask_of_their_chain(name: str) -> None:
    assert inspect.signature(part_class(name).forward).parameters["keep"].default is None


@pytest.mark.parametrize("name", [n for n in NAMES if hasattr(part_class(n), "for_layer")])
def test_for_layer_takes_the_options_of_the_constructor(name: str) -> None:
    cls: Any = part_class(name)
    ours = {k: p.default for k, p in inspect.signature(cls).parameters.items()}
    given = {k: p for k, p in inspect.signature(cls.for_layer).parameters.items() if k != "layer"}
    if any(p.kind is p.VAR_KEYWORD for p in given.values()):
        given.pop("options")  # hands all of them on
        assert all(p.default == ours[k] for k, p in given.items())
        return
    assert ours == {k: p.default for k, p in given.items()}


def test_the_spec_of_a_part_is_what_was_written() -> None:
    assert bw.make_part("dorefa_a", bits=3).spec == {"part": "dorefa_a", "bits": 3}
    assert bw.make_part("uniform", slot="x", bits=3).spec == {"part": "uniform", "bits": 3}
    chain = make_slot(["sign", {"part": "dropout", "p": 0.25}], "x")
    assert chain is not None and chain.spec == [{"part": "sign"}, {"part": "dropout", "p": 0.25}]
