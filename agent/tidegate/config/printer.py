# SPDX-License-Identifier: Apache-2.0
"""The effective config in its own notation, and the schema of its keys."""

from __future__ import annotations

from typing import Any, get_type_hints

import msgspec
import yaml

from tidegate.config import units
from tidegate.config.keys import ADDRESS, DURATION, Config
from tidegate.config.reader import kind_of


def to_builtins(section: msgspec.Struct) -> dict[str, Any]:
    """Return the keys as a user writes them: durations and addresses as text, what is not set as None."""
    hints = get_type_hints(type(section), include_extras=True)
    return {name: _written(getattr(section, name), hints[name]) for name in section.__struct_fields__}


def to_yaml(config: Config) -> str:
    """Return a file that reads back as the same config."""
    return yaml.safe_dump(to_builtins(config), sort_keys=False, allow_unicode=True)


def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a config file; scalars of an own notation are strings."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_schema_of(Config)}


def _written(value: Any, hint: Any) -> Any:
    _, notation = kind_of(hint)
    if notation == DURATION:
        return units.duration_text(value)
    if notation == ADDRESS:
        return "off" if value is None else str(value)
    return to_builtins(value) if isinstance(value, msgspec.Struct) else value


def _schema_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    properties: dict[str, Any] = {}
    required = []
    for field in msgspec.structs.fields(kind):
        inner, notation = kind_of(hints[field.name])
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            properties[field.name] = _schema_of(inner)
        elif notation is not None:
            properties[field.name] = {"type": "string", "default": _written(field.default, hints[field.name])}
        else:
            properties[field.name] = msgspec.json.schema(hints[field.name])
            if not field.required:
                properties[field.name]["default"] = field.default
        if field.required:
            required.append(field.name)
    result = {"type": ["object", "null"], "properties": properties, "additionalProperties": False}
    return result | ({"required": required} if required else {}) | {"description": kind.__doc__}
