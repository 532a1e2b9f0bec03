# SPDX-License-Identifier: Apache-2.0
"""Reads a YAML file into typed keys, with every complaint at its line and column.

msgspec stops at the first error and knows no lines, so the tree of YAML nodes is walked along the types; msgspec
converts each scalar on its own. A scalar is read by the type that is expected, from its text: ``off`` is a word
where a word is expected, and YAML 1.1's booleans and sexagesimal numbers don't exist.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml

from tidegate.config import units
from tidegate.config.keys import ADDRESS, DURATION, Config
from tidegate.errors import ConfigError

_BOOLEANS = {"true": True, "false": False}
_NULLS = ("", "~", "null")


def load(path: Path | None) -> Config:
    """Read a config file; without one, all defaults. Raises :class:`ConfigError` with every complaint."""
    if path is None:
        return Config()
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}: can't be read: {error.strerror}"]) from error
    return parse(text, str(path))


def parse(text: bytes, name: str) -> Config:
    """Read the text of a config file called ``name``."""
    try:
        documents = list(yaml.compose_all(text.decode("utf-8"), Loader=yaml.SafeLoader))
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        column = error.start - (text.rfind(b"\n", 0, error.start) + 1) + 1
        raise ConfigError(
            [f"{name}:{line}:{column}: expected UTF-8, found byte {text[error.start]:#04x}"]
        ) from error
    except yaml.reader.ReaderError as error:
        raise ConfigError(
            [f"{name}:1:1: character {error.character!r} at {error.position}: {error.reason}"]
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        raise ConfigError([f"{name}:{place}: not YAML: {error.problem or error.context}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{name}:1:1: nested too deeply"]) from error
    if len(documents) > 1:
        mark = documents[1].start_mark
        raise ConfigError([f"{name}:{mark.line + 1}:{mark.column + 1}: expected one document, found another"])
    if not documents:
        return Config()
    reader = _Reader(name)
    config = reader.read(documents[0], Config, "")
    if reader.complaints:
        raise ConfigError([text for _, text in sorted(reader.complaints)])
    return config if isinstance(config, Config) else Config()


class _Reader:
    """One walk over a tree of nodes; collects complaints as ((line, column), text)."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.complaints: list[tuple[tuple[int, int], str]] = []

    def read(self, node: yaml.Node, hint: Any, path: str) -> Any:
        """Convert a node to the type ``hint``; what is returned after a complaint is never used."""
        kind, notation = kind_of(hint)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self._struct(node, kind, path)
        if not isinstance(node, yaml.ScalarNode):
            return self._complain(node, path, f"expected one value, found {_found(node)}")
        try:
            return _scalar(node.value, hint, kind, notation)
        except ValueError as error:  # msgspec.ValidationError is one
            return self._complain(node, path, _message(error, node.value))

    def _struct(self, node: yaml.Node, kind: type[msgspec.Struct], path: str) -> Any:
        pairs = [] if _is_null(node) else node.value
        if pairs and not isinstance(node, yaml.MappingNode):
            return self._complain(node, path, f"expected keys with values, found {_found(node)}")
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        hints = get_type_hints(kind, include_extras=True)
        values: dict[str, Any] = {}
        before = len(self.complaints)
        for key, value in pairs:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if name not in fields:
                self._complain(key, _join(path, name), _unknown(name, list(fields)))
            elif name in values:
                self._complain(key, _join(path, name), "given twice")
            elif _is_null(value) and not fields[name].required:
                values[name] = fields[name].default
            else:
                values[name] = self.read(value, hints[name], _join(path, name))
        for name, field in fields.items():
            if field.required and name not in values:
                self._complain(node, _join(path, name), "missing")
        return None if len(self.complaints) > before else kind(**values)

    def _complain(self, node: yaml.Node, path: str, message: str) -> None:
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        where = f"{path}: " if path else ""
        self.complaints.append(((line, column), f"{self._name}:{line}:{column}: {where}{message}"))


def kind_of(hint: Any) -> tuple[Any, str | None]:
    """Return the type behind Annotated and Optional, with the notation of its scalar if it has one."""
    notation = None
    if get_origin(hint) is Annotated:
        hint, *annotations = get_args(hint)
        notation = next((m.extra["notation"] for m in annotations if m.extra and "notation" in m.extra), None)
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    return hint, notation


def _scalar(text: str, hint: Any, kind: Any, notation: str | None) -> Any:
    """Convert the text of a scalar; raises ValueError."""
    value: Any = text
    if notation == ADDRESS:
        return units.listen(text)
    if notation == DURATION:
        value = units.duration(text)
    elif kind is int:
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
            raise ValueError(f"expected a whole number, found {text!r}")
        value = int(text)
    elif kind is bool:
        if text not in _BOOLEANS:
            raise ValueError(f"expected true or false, found {text!r}")
        value = _BOOLEANS[text]
    elif get_origin(kind) is Literal and text not in get_args(kind):
        raise ValueError(f"expected one of {', '.join(get_args(kind))}, found {text!r}")
    return msgspec.convert(value, hint)


def _message(error: ValueError, text: str) -> str:
    message = str(error)
    if isinstance(error, msgspec.ValidationError):
        return f"{message[0].lower()}{message[1:]}, found {text!r}"
    return message


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown key; did you mean {close[0]}?" if close else f"unknown key; known here: {', '.join(known)}"


def _found(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "keys with values"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return repr(node.value)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULLS


def _join(path: str, name: str) -> str:
    name = name if name.isprintable() else ascii(name)
    return f"{path}.{name}" if path else name
