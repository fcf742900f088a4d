"""TOML of recipes and experiments: a reader with bounds, for untrusted files, and a writer for their small grammar."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitwright.errors import InputError

LARGEST = 1 << 20  # characters of a file
DEEPEST = 32  # tables and lists inside one another, and parts of a dotted key
_PART = r"""(?:"[^"\n]*+"|'[^'\n]*+'|[\w-]++)[ \t]*+"""
_LONG_KEY = re.compile(rf"(?<![\w-]){_PART}(?:\.[ \t]*+{_PART}){{{DEEPEST}}}")


def read_toml(text: str) -> dict[str, Any]:
    """What `tomllib` reads, within bounds that no recipe comes near: 1 MB, 32 levels, whole numbers of 64 bits.

    Errors: `tomllib.TOMLDecodeError`, for a text beyond them too: no other exception, and no long run.

    >>> read_toml("a = [1, 2]")
    {'a': [1, 2]}
    >>> read_toml(f"a = {'[' * 5000}")
    Traceback (most recent call last):
    tomllib.TOMLDecodeError: tables or lists more than 32 levels deep
    """
    deep = f"tables or lists more than {DEEPEST} levels deep"
    if len(text) > LARGEST:
        raise tomllib.TOMLDecodeError(f"{len(text):,} characters; possible: at most {LARGEST:,}")
    if _LONG_KEY.search(text):  # a key of n parts costs the parser n * n steps
        raise tomllib.TOMLDecodeError(f"a key of more than {DEEPEST} parts")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise tomllib.TOMLDecodeError(deep) from None
    except ValueError as error:  # Python's own bound on the digits of a number, or a date that is none
        raise tomllib.TOMLDecodeError(" ".join(str(error).split())[:120]) from None
    level: list[Any] = [data]
    for _ in range(DEEPEST):
        level = [item for value in level for item in _inside(value)]
        if any(isinstance(v, int) and not -(2**63) <= v < 2**63 for v in level):
            raise tomllib.TOMLDecodeError("a whole number of more than 64 bits")
    if any(isinstance(value, (dict, list)) for value in level):
        raise tomllib.TOMLDecodeError(deep)
    return data


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def toml_text(path: Path) -> str:
    """The text of a file, byte order mark or not. Errors: `tomllib.TOMLDecodeError` for what is too large or not UTF-8."""
    with path.open("rb") as f:
        content = f.read(4 * LARGEST + 1)  # never more than a text within the bounds can have
    if len(content) > 4 * LARGEST:
        raise tomllib.TOMLDecodeError(f"more than {LARGEST:,} characters")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise tomllib.TOMLDecodeError("not UTF-8 text") from None


def toml_value(value: Any) -> str:
    """One TOML value, on one line.

    >>> toml_value({"part": "dorefa_a", "bits": 4}), toml_value(["norm", "sign"]), toml_value(True)
    ('{ part = "dorefa_a", bits = 4 }', '["norm", "sign"]', 'true')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return "nan"
        return str(value) if math.isfinite(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, str):
        # JSON escapes are TOML escapes, but for DEL, which TOML wants escaped too
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        items = [f"{_key(str(k))} = {toml_value(v)}" for k, v in value.items() if v is not None]
        return "{ " + ", ".join(items) + " }" if items else "{}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    raise InputError(f"recipe: TOML cannot hold {value!r} ({type(value).__name__})", code="recipe-toml")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)
