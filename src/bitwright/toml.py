"""A TOML writer for the small grammar of recipes: text, numbers, booleans, lists, inline tables."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bitwright.errors import InputError


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
