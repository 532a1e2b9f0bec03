# SPDX-License-Identifier: Apache-2.0
"""What the type of a key asks of a YAML node: keys, a list, or one value and its bounds; pure.

Reader, printer and schema all go by shapes, so that a section is declared once, as a struct:

- a struct is a mapping of its fields; a struct with a ``tag`` is a mapping of the tag alone, over its fields:
  ``{nginx: {include: ...}}``; a union of such structs takes any of their tags;
- ``list[T]``, ``tuple[T, ...]`` and ``dict[str, T]`` are lists and mappings; the keys of a mapping may have a
  notation too;
- ``bool``, ``int``, ``float``, ``str``, ``Literal`` and enums (by value) are scalars, as is whatever has a
  :class:`~tidegate.config.units.Notation`, or the name of one, in ``Meta(extra={"notation": ...})``;
- a union takes at most one of each kind, told apart by the node; ``None`` means that the key may be null.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from tidegate.config.units import NOTATIONS, Notation

_BOUNDS = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
_SCALARS = (bool, int, float, str)


@dataclass
class Shape:
    """What a node may be; what is None or empty is not allowed."""

    struct: type[msgspec.Struct] | None = None
    tagged: dict[str, type[msgspec.Struct]] = field(default_factory=dict)
    item: Any = None
    items: type[list[Any] | tuple[Any, ...]] = list
    value: Any = None
    key: Notation | None = None
    scalar: Any = None
    choices: dict[str, Any] = field(default_factory=dict)
    notation: Notation | None = None
    optional: bool = False
    bounds: dict[str, Any] = field(default_factory=dict)


def shape_of(hint: Any) -> Shape:
    """Return the shape of a type; raises TypeError for one that no node stands for."""
    shape = Shape()
    _add(shape, hint)
    return shape


def tag_of(kind: type[msgspec.Struct]) -> str | None:
    """Return the key that a struct is written under, None for one that is written as its fields."""
    tag = kind.__struct_config__.tag
    return None if tag is None else str(tag)


def _add(shape: Shape, hint: Any) -> None:
    origin = get_origin(hint)
    if origin is Annotated:
        hint, *notes = get_args(hint)
        for meta in (note for note in notes if isinstance(note, Meta)):
            shape.notation = _notation(meta) or shape.notation
            shape.bounds |= {name: getattr(meta, name) for name in _BOUNDS if getattr(meta, name) is not None}
        _add(shape, hint)
    elif origin in (Union, UnionType):
        for member in get_args(hint):
            _add(shape, member)
    elif hint is NoneType:
        shape.optional = True
    elif isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        _add_struct(shape, hint)
    elif origin is list or (origin is tuple and get_args(hint)[1:] == (...,)):
        _only_one(hint, shape.item)
        shape.item, shape.items = get_args(hint)[0], origin
    elif origin is dict and _base(get_args(hint)[0]) is str:
        _only_one(hint, shape.value or shape.struct or shape.tagged)
        key, shape.value = get_args(hint)
        shape.key = next(filter(None, (_notation(meta) for meta in get_args(key)[1:])), None)
    else:
        _add_scalar(shape, hint)


def _notation(meta: Meta) -> Notation | None:
    found: Notation | str | None = (meta.extra or {}).get("notation")
    return NOTATIONS[found] if isinstance(found, str) else found


def _base(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _add_struct(shape: Shape, kind: type[msgspec.Struct]) -> None:
    tag = tag_of(kind)
    _only_one(kind, shape.value or shape.struct or (tag is None and shape.tagged) or tag in shape.tagged)
    if tag is None:
        shape.struct = kind
    else:
        shape.tagged[tag] = kind


def _add_scalar(shape: Shape, hint: Any) -> None:
    _only_one(hint, shape.scalar)
    if get_origin(hint) is Literal:
        shape.choices = {str(choice): choice for choice in get_args(hint)}
    elif isinstance(hint, type) and issubclass(hint, Enum):
        shape.choices = {str(choice.value): choice for choice in hint}
    elif hint not in _SCALARS and shape.notation is None:
        raise TypeError(f"{hint}: no notation for this type; give it one in Meta(extra={{'notation': ...}})")
    shape.scalar = hint


def _only_one(hint: Any, present: object) -> None:
    if present:
        raise TypeError(f"{hint}: a union may hold one scalar, one list and one kind of mapping")
