# SPDX-License-Identifier: Apache-2.0
"""One value from its text, by the type that is expected, within its bounds; pure."""

from __future__ import annotations

import re
from collections.abc import Sized
from enum import Enum
from typing import Any

from tidegate.config.shapes import Shape
from tidegate.config.units import plain_text, quoted

_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_FLOAT = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,30})?([eE][-+]?[0-9]{1,2})?")


def read(text: str, shape: Shape) -> Any:
    """Convert the text of a scalar to the scalar type of a shape; raises ValueError with what was expected."""
    notation = shape.notation
    if notation is not None and notation.none is not None and text == notation.none:
        return None
    if notation is None and (shape.choices or shape.scalar is bool):
        return _chosen(text, shape)
    value: Any = notation.read(text) if notation is not None else _plain(text, shape.scalar)
    if isinstance(value, str):
        check_length(value, shape)
        pattern = shape.bounds.get("pattern")
        if pattern is not None and not re.search(pattern, value):
            raise ValueError(f"expected text that matches {pattern}, found {quoted(text)}")
    else:
        _check_range(value, text, shape)
    return value


def check_length(value: Sized, shape: Shape) -> None:
    """Raise ValueError where a text, a list or a mapping is shorter or longer than its bounds."""
    least, most = shape.bounds.get("min_length", 0), shape.bounds.get("max_length")
    if len(value) < least or (most is not None and len(value) > most):
        what = "characters" if isinstance(value, str) else "entries"
        wanted = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"expected {wanted} {what}, found {len(value)}")


def written(value: Any, shape: Shape) -> Any:
    """Return what a user writes for a scalar, None for what is not set."""
    if value is None:
        return None if shape.notation is None else shape.notation.none
    if shape.notation is not None:
        return shape.notation.write(value)
    return value.value if isinstance(value, Enum) else value


def _chosen(text: str, shape: Shape) -> Any:
    choices = shape.choices or _BOOLEANS
    if text not in choices:
        wanted = f"one of {', '.join(choices)}" if shape.choices else "true or false"
        raise ValueError(f"expected {wanted}, found {quoted(text)}")
    return choices[text]


def _plain(text: str, kind: type) -> Any:
    if kind is int:
        return int(_matched(_WHOLE, text, "a whole number"))
    if kind is float:
        return float(_matched(_FLOAT, text, "a number"))
    return plain_text(text)


def _matched(pattern: re.Pattern[str], text: str, what: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"expected {what}, found {quoted(text)}")
    return text


def _check_range(value: Any, text: str, shape: Shape) -> None:
    bounds = shape.bounds
    within = (
        ("ge" not in bounds or value >= bounds["ge"])
        and ("gt" not in bounds or value > bounds["gt"])
        and ("le" not in bounds or value <= bounds["le"])
        and ("lt" not in bounds or value < bounds["lt"])
    )
    if within:
        return
    said = {name: written(bounds[name], shape) for name in ("ge", "gt", "le", "lt") if name in bounds}
    if said.keys() == {"ge", "le"}:
        wanted = f"{said['ge']} to {said['le']}"
    else:
        words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
        wanted = " and ".join(f"{words[name]} {bound}" for name, bound in said.items())
    raise ValueError(f"expected {wanted}, found {quoted(text)}")
