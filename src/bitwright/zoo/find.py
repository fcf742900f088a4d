"""Where the files of the zoo lie: small packed nets in the package, the others in a folder or behind a URL."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

from pydantic import ValidationError

from bitwright.download import DownloadError, download
from bitwright.errors import InputError
from bitwright.zoo.card import Card

PREFIX = "zoo:"
NETS = Path(__file__).parent / "nets"
CHECKOUT = Path(__file__).resolve().parents[3] / "zoo"  # of a checkout; elsewhere there is no such folder
VARIABLE = "BITWRIGHT_ZOO"


def is_zoo(source: str) -> bool:
    """Whether an experiment's text names a net of the zoo.

    >>> is_zoo("zoo:cifar10-resnet20-float"), is_zoo("runs/a")
    (True, False)
    """
    return source.startswith(PREFIX)


@functools.cache
def cards() -> dict[str, Card]:
    """All cards by name, in order."""
    found = {}
    for path in sorted(NETS.glob("*.json")):
        try:
            card = Card.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, OSError, UnicodeDecodeError) as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"zoo: the card {path.name} is damaged ({first})", code="zoo-damaged") from None
        found[card.name] = card
    return found


def file(card: Card, root: str | os.PathLike[str] | None = None) -> Path:
    """Path of the net's file, once its SHA-256 matches the card's."""
    given = os.fspath(root) if root is not None else os.environ.get(VARIABLE, "")
    places = [NETS / card.file]
    if "://" not in given:
        # without a name: the checkout that this package runs from, or the one that an installed package is used in
        places += [folder / card.file for folder in ([Path(given)] if given else [CHECKOUT, Path("zoo").absolute()])]
    path = next((place for place in places if place.is_file()), None)
    if path is None and "://" in given:
        return _download(given, card)
    if path is None:
        raise InputError(
            f"zoo {card.name}: its file is not here (looked for {places[-1]}). It lies in the folder zoo/ of the repository: "
            f"set {VARIABLE} to that folder or to a URL that serves it",
            code="zoo-missing",
            given=card.name,
            possible=VARIABLE,
        )
    check_file(path, card)
    return path


def check_file(path: Path, card: Card) -> None:
    """One line for a file that is not the card's."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"zoo {card.name}: {path}: {error.strerror}", code="zoo-damaged") from None
    if digest != card.sha256:
        raise InputError(
            f"zoo {card.name}: {path} is damaged or another net: SHA-256 {digest[:12]}..., its card says "
            f"{card.sha256[:12]}... Install the package again, or fetch the file again",
            code="zoo-damaged",
            given=str(path),
        )


def _download(url: str, card: Card) -> Path:
    """From a URL into the cache, once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitwright" / "zoo"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return download(f"{url.rstrip('/')}/{card.file}", f"sha256:{card.sha256}", cache / card.file)
    except (DownloadError, OSError) as error:
        raise InputError(f"zoo {card.name}: {url}: {str(error)[:200]}", code="zoo-fetch", given=url) from None
