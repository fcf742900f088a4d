"""`bw.zoo`: trained nets with their cards. Packed ones are in the package; float ones are files beside it, found by name.

    net = bw.zoo.load("digits-mlp-zero_one")            # packed: runs without the model's code
    card = bw.zoo.card("digits-mlp-zero_one")           # data, recipe, accuracy, bytes, the command that made it
    parent = bw.zoo.load("cifar10-resnet20-float", form="float")

Names are DATA-MODEL-RECIPE. An experiment may say `weights = "zoo:NAME"` or `teacher = "zoo:NAME"`.
"""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.errors import InputError, unknown
from bitwright.zoo import find
from bitwright.zoo.card import Card
from bitwright.zoo.find import PREFIX, is_zoo

if TYPE_CHECKING:
    from torch import nn

    from bitwright.data import Images

__all__ = ["PREFIX", "Card", "card", "data", "is_zoo", "list", "load", "weights"]

_FORMS = ("packed", "float")


def list(form: str | None = None) -> builtins.list[str]:
    """Names in order; `form` "packed" or "float" for those alone.

    >>> "digits-mlp-zero_one" in list("packed")
    True
    """
    cards = find.cards()
    return [name for name in cards if form is None or cards[name].form == form]


def card(name: str) -> Card:
    """What is known of a net. Errors: `InputError` that lists the known names.

    >>> card("digits-mlp-zero_one").data
    'digits'
    """
    cards = find.cards()
    name = name.removeprefix(PREFIX)
    if name not in cards:
        raise unknown(f"zoo {name}: no such net", name, cards, code="zoo-unknown", word="All", remedy="bitwright zoo")
    return cards[name]


def load(name: str, form: str | None = None, root: str | os.PathLike[str] | None = None) -> nn.Module:
    """The net in evaluation mode, its file checked against the card's SHA-256.

    form   "packed" or "float"; a name has one form, so this only says what is expected
    root   folder or URL that holds the files of float nets. [default: BITWRIGHT_ZOO, then the checkout]

    The input is a batch as `bw.data.load(card.data).batches(n, normalize=card.normalize)` gives it.
    Errors: `InputError`, one line: a wrong name lists the names, a damaged file is named.

    >>> import torch
    >>> load("digits-mlp-zero_one")(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    found = _of_form(card(name), form)
    path = find.file(found, root)
    from bitwright.engine.files import load as read

    if found.form == "packed":
        return read(path)
    from bitwright import models

    arguments = {k: v for k, v in found.model.items() if k != "name"}
    channels, size = found.input[0], found.input[-1]
    model = models.create(
        str(found.model["name"]), found.classes, **{"in_channels": channels, "size": size, **arguments}
    )
    return read(path, model).eval()


def weights(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """The file of a float net, to start training from."""
    return find.file(_of_form(card(name), "float"), root)


def _of_form(found: Card, form: str | None) -> Card:
    if form is None or form == found.form:
        return found
    known = ", ".join(list(form)) if form in _FORMS else f"forms are {', '.join(_FORMS)}"
    raise InputError(
        f"zoo {found.name}: is a {found.form} net, not {form}. Possible: {known or 'none'}",
        code="zoo-form",
        given=form,
        possible=known,
    )


def data(card: Card, split: str = "test", root: str | None = None) -> Images:
    """The images that a card speaks of.

    >>> len(data(card("digits-mlp-zero_one")))
    360
    """
    from bitwright.data import load as images

    found = images(card.data, root, split)
    return found.binarized() if card.binarize else found
