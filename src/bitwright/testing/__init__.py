"""Floor 7: the laws every part obeys, from the installed package; needs neither pytest nor hypothesis.

bw.testing.laws("my_part")        every law on a part of your own; `LawError` names law, part and case
for law in LAWS: law(case)        the same, one at a time, to parametrize a test
"""

from __future__ import annotations

from typing import Any

from bitwright.errors import InputError
from bitwright.parts.registry import part_class, parts
from bitwright.testing import codes, compilers, docs, gradients, state, steps, training, values  # noqa: F401
from bitwright.testing.case import Case
from bitwright.testing.law import LAWS, Law, LawError

__all__ = ["LAWS", "Case", "Law", "LawError", "cases", "laws"]


def cases(part_name: str, *, slot: str | None = None, **options: Any) -> list[Case]:
    """One case per slot that the part serves with these options.

    >>> [str(c) for c in cases("uniform", bits=2)]
    ['uniform[w] bits=2', 'uniform[x] bits=2']
    """
    part_class(part_name)  # an unknown name fails here, with its nearest neighbor
    slots = parts()[part_name].slots if slot is None else (slot,)
    found: list[Case] = []
    refusal: InputError | None = None
    for one in slots:
        case = Case(part_name, one, options)
        try:
            case.build()
        except InputError as error:  # an option may serve one slot only
            refusal = error
        else:
            found.append(case)
    if not found and refusal is not None:
        raise refusal
    return found


def laws(part_name: str, *, slot: str | None = None, **options: Any) -> list[str]:
    """Checks the laws on a part, in every slot it serves with these options; returns the names of those laws.

    Errors: `LawError` at the first broken law; `InputError` for an unknown part or option.

    >>> "encode" in laws("sign"), "encode" in laws("dropout")
    (True, False)
    """
    checked: dict[str, None] = {}
    for case in cases(part_name, slot=slot, **options):
        for law in LAWS:
            if law.applies(case):
                law(case)
                checked[law.name] = None
    return list(checked)
