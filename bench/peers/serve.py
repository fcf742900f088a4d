"""Timing on request, inside another program's environment: one line of JSON in, one out. Standard library only.

The driver (`bench/binary_peers.py`) asks in turn, so that whatever else the machine does hits every program alike.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Call = Callable[[], object]


class Missing(Exception):
    """What a program does not have; the text is the reason in its row."""


def serve(build: Callable[[dict[str, Any]], dict[str, Call]], versions: Callable[[], dict[str, str]]) -> None:
    """build: the calls of a case, by the name of the variant. Requests:

    {"versions": 1}                          what is installed
    {"case": {...}}                          builds; answers the names of the variants
    {"slice": NAME, "calls": n}              one call that is not timed, then n: CPU seconds per call; n = 0: how many fill 6 ms
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the program prints goes to stderr, not between the answers
    calls: dict[str, Call] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "versions" in asked:
                answer: Any = versions()
            elif "case" in asked:
                calls = build(asked["case"])
                answer = list(calls)
            else:
                answer = _slice(calls[asked["slice"]], asked["calls"])
        except Missing as error:
            answer = {"error": str(error)}
        except Exception as error:
            first = next(iter(str(error).splitlines()), "")
            answer = {"error": f"{type(error).__name__}: {first[:200]}"}
        print(json.dumps(answer), file=out, flush=True)


def _slice(call: Call, calls: int, seconds: float = 0.006) -> float:
    call()
    start = time.process_time()
    if calls:
        for _ in range(calls):
            call()
        return (time.process_time() - start) / calls
    while time.process_time() - start < seconds:
        call()
        calls += 1
    return calls
