# SPDX-License-Identifier: Apache-2.0
"""The effective config in its own notation, and the schema of its keys."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import yaml

from tidegate.config.keys import Config
from tidegate.config.scalars import written
from tidegate.config.shapes import Shape, shape_of, tag_of

_SCALARS = {bool: "boolean", int: "integer", float: "number", str: "string"}
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_LENGTHS = {"min_length": "min", "max_length": "max"}


class _Dumper(yaml.SafeDumper):
    """Escapes what does not print: PyYAML's single quotes turn U+0085 into a space on the way back."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Return the node of a text."""
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def to_builtins(section: msgspec.Struct) -> dict[str, Any]:
    """Return the keys as a user writes them: durations and addresses as text, what is not set as None."""
    fields = msgspec.structs.fields(type(section))
    return {field.encode_name: _written(getattr(section, field.name), field.type) for field in fields}


def to_yaml(config: msgspec.Struct) -> str:
    """Return a file that reads back as the same config."""
    return yaml.dump(to_builtins(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=sys.maxsize)


def schema(kind: type[msgspec.Struct] = Config) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a config file; scalars of an own notation are strings."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tidegate",
        **_or_null(_schema_of_struct(kind)),
    }


def _written(value: Any, hint: Any) -> Any:
    shape = shape_of(hint)
    if isinstance(value, msgspec.Struct):
        tag = tag_of(type(value))
        return to_builtins(value) if tag is None else {tag: to_builtins(value)}
    if shape.item is not None and isinstance(value, list | tuple) and shape.notation is None:
        return [_written(item, shape.item) for item in value]
    if shape.value is not None and isinstance(value, dict):
        return {name: _written(item, shape.value) for name, item in value.items()}
    return written(value, shape)


def _schema_of_struct(kind: type[msgspec.Struct]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required = []
    for field in msgspec.structs.fields(kind):
        inner = _schema_of(shape_of(field.type))
        if field.required:
            required.append(field.encode_name)
        elif field.default is not msgspec.NODEFAULT:
            inner = _or_null(inner)
            if not isinstance(field.default, msgspec.Struct):
                inner["default"] = _written(field.default, field.type)
        else:
            inner = _or_null(inner)
            inner["default"] = _written(field.default_factory(), field.type)
        properties[field.encode_name] = inner
    result: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if kind.__doc__:
        result["description"] = kind.__doc__
    return result | ({"required": required} if required else {})


def _schema_of(shape: Shape) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = []
    if shape.scalar is not None:
        kinds.append(_schema_of_scalar(shape))
    if shape.item is not None:
        items: dict[str, Any] = {"type": "array", "items": _schema_of(shape_of(shape.item))}
        kinds.append(items | _lengths(shape, "Items"))
    if shape.struct is not None:
        kinds.append(_schema_of_struct(shape.struct))
    if shape.value is not None:
        values: dict[str, Any] = {"type": "object", "additionalProperties": _schema_of(shape_of(shape.value))}
        kinds.append(values | _lengths(shape, "Properties"))
    if shape.tagged:
        properties = {tag: _or_null(_schema_of_struct(kind)) for tag, kind in shape.tagged.items()}
        one: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
        kinds.append(one | {"minProperties": 1, "maxProperties": 1})
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _schema_of_scalar(shape: Shape) -> dict[str, Any]:
    if shape.notation is not None:
        pattern = {} if shape.notation.pattern is None else {"pattern": shape.notation.pattern}
        return {"type": ["string", "integer"] if shape.notation.plain_numbers else "string", **pattern}
    if shape.choices:
        return {"enum": [written(choice, shape) for choice in shape.choices.values()]}
    bounds = {_BOUNDS[name]: bound for name, bound in shape.bounds.items() if name in _BOUNDS}
    pattern = {"pattern": shape.bounds["pattern"]} if "pattern" in shape.bounds else {}
    return {"type": _SCALARS[shape.scalar]} | bounds | pattern | _lengths(shape, "Length")


def _lengths(shape: Shape, what: str) -> dict[str, int]:
    return {f"{word}{what}": shape.bounds[name] for name, word in _LENGTHS.items() if name in shape.bounds}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "enum" in schema:
        return schema | {"enum": [*schema["enum"], None]}
    if "anyOf" in schema:
        return {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return schema | {"type": [*kinds, "null"]}
