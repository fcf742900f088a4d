"""What a law is: a name, a sentence, a check; and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bitwright.testing.case import Case


class LawError(AssertionError):
    """A part breaks a law; the text names the law, the part and the case."""


class Broken(Exception):
    """Raised inside a check; becomes a LawError that says where."""


@dataclass(frozen=True)
class Law:
    """One law. `applies` asks for the optional moments it is about, never for names of parts.

    slow   compiles or trains: a fast suite asks it of fewer options
    """

    name: str
    text: str
    check: Callable[[Case], None]
    applies: Callable[[Case], bool]
    slow: bool = False

    def __call__(self, case: Case) -> None:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            try:
                self.check(case)
            except Exception as error:
                kind = "" if isinstance(error, Broken) else f"{type(error).__name__}: "
                raise LawError(f"law {self.name} ({self.text}), part {case}: {kind}{error}") from error

    def __str__(self) -> str:
        return self.name


LAWS: list[Law] = []


def law(
    text: str, applies: Callable[[Case], bool] = lambda case: True, *, slow: bool = False
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Enters a check as a law named like the function."""

    def register(check: Callable[[Case], None]) -> Callable[[Case], None]:
        LAWS.append(Law(check.__name__, text, check, applies, slow))
        return check

    return register


def require(holds: bool, text: str) -> None:
    """The assert of the laws: also there under `python -O`."""
    if not holds:
        raise Broken(text)


def finite(t: torch.Tensor) -> bool:
    return bool(torch.isfinite(t).all())
