"""Errors a user can act on: one line that says what was called, what was given and what is possible."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Wrong use or wrong input: exit code 2 on the command line.

    The text is one complete line; the keyword fields repeat its pieces for `--json`.

    >>> InputError("recipe xnorr: no such recipe", code="recipe-unknown", given="xnorr").code
    'recipe-unknown'
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "input",
        layer: str | None = None,
        given: str | None = None,
        possible: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.layer, self.given, self.possible, self.remedy = code, layer, given, possible, remedy

    def reworded(self, message: str, layer: str | None = None) -> InputError:
        """The same error with a fuller text, for the caller that knows where it happened.

        >>> InputError("unknown part", code="part-unknown").reworded("rule 0: unknown part", layer="conv1").code
        'part-unknown'
        """
        return type(self)(
            message,
            code=self.code,
            layer=layer or self.layer,
            given=self.given,
            possible=self.possible,
            remedy=self.remedy,
        )

    def to_dict(self) -> dict[str, str | None]:
        """The `error` object of `--json`."""
        return {
            "code": self.code,
            "message": str(self),
            "layer": self.layer,
            "given": self.given,
            "possible": self.possible,
            "try": self.remedy,
        }


class Negative(InputError):
    """The question was understood and the answer is no (REFUSE, NaN, limit missed): exit code 1."""


class BitwrightWarning(UserWarning):
    """Something a user should know but that does not stop the work; filter by this class."""


def nearest(word: str, known: Iterable[str]) -> str:
    """` Nearest: x.` when a known word is close, else nothing; goes between two sentences of a message.

    >>> nearest("xnorr", ["xnor", "bwn"])
    ' Nearest: xnor.'
    >>> nearest("zzz", ["xnor"])
    ''
    """
    close = difflib.get_close_matches(word, list(known), 1)
    return f" Nearest: {close[0]}." if close else ""


def unknown(
    said: str,
    given: str,
    known: Iterable[str],
    *,
    code: str,
    word: str = "Known",
    more: str = "",
    remedy: str | None = None,
) -> InputError:
    """The error for a name that does not exist: what was said of it, the nearest name, all names.

    >>> print(unknown("unknown part 'xnorr'", "xnorr", ["xnor", "bwn"], code="part-unknown"))
    unknown part 'xnorr'. Nearest: xnor. Known: xnor, bwn
    """
    names = ", ".join(known)
    text = f"{said}.{nearest(given, names.split(', '))} {word}: {names}{more}"
    return InputError(text, code=code, given=given, possible=names, remedy=remedy)
