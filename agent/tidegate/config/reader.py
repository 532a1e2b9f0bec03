# SPDX-License-Identifier: Apache-2.0
"""Reads a YAML file into typed keys, with every complaint at its line and column.

msgspec stops at the first error and knows no lines, so the tree of YAML nodes is walked along the types. A scalar
is read by the type that is expected, from its text: ``off`` is a word where a word is expected, and YAML 1.1's
booleans, octal and sexagesimal numbers don't exist.
"""

from __future__ import annotations

import difflib
import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from tidegate.config import scalars, units
from tidegate.config.keys import Config
from tidegate.config.nodes import MERGE, compose, foreign_tag
from tidegate.config.shapes import Shape, shape_of
from tidegate.errors import ConfigError

S = TypeVar("S", bound=msgspec.Struct)
_LARGEST = 16 << 20
_NULLS = ("", "~", "null", "Null", "NULL")
_Pairs = dict[str, tuple[yaml.Node, yaml.Node]]


def load(path: Path | None, *, check_files: bool = True) -> Config:
    """Read a config file; without one, all defaults. Raises :class:`ConfigError` with every complaint.

    ``check_files=False`` leaves out whether the files that it names are there, for a config of another host.
    """
    if path is None:
        return Config()
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError([f"{path}: can't be read: {error.strerror}"]) from error
    if len(text) > _LARGEST:
        raise ConfigError([f"{path}: expected at most {units.size_text(_LARGEST)}, found more"])
    return parse(text, str(path), check_files=check_files)


def parse(text: bytes, name: str, *, check_files: bool = True) -> Config:
    """Read the text of a config file called ``name``."""
    return parse_as(Config, text, name, check_files=check_files)


def parse_as(kind: type[S], text: bytes, name: str, *, check_files: bool = True) -> S:
    """Read a text whose top level is ``kind``, a struct without required keys."""
    node, problems = compose(text, name)
    reader = _Reader(check_files)
    reader.complaints += [(line, column, "", message) for line, column, message in problems]
    result: S = kind() if node is None else reader.read(node, kind, "")
    if reader.complaints:
        raise ConfigError(
            [
                f"{name}:{line}:{column}: {path}{': ' if path else ''}{message}"
                for line, column, path, message in sorted(set(reader.complaints))
            ]
        )
    return result


class _Reader:
    """One walk over a tree of nodes; collects complaints as (line, column, path, message)."""

    def __init__(self, check_files: bool) -> None:
        self._check_files = check_files
        self._flat: dict[int, _Pairs | None] = {}
        self.complaints: list[tuple[int, int, str, str]] = []

    def read(self, node: yaml.Node, hint: Any, path: str) -> Any:
        """Convert a node to the type ``hint``; what is returned after a complaint is never used."""
        shape = shape_of(hint)
        tag = foreign_tag(node)
        if tag is not None:
            return self._complain(node, path, f"expected no tag, found {units.quoted(tag)}")
        null, mapping = _is_null(node), isinstance(node, yaml.MappingNode)
        if null and shape.optional and (shape.notation is None or shape.notation.none is None):
            return None
        if (null and shape.struct) or (mapping and (shape.struct or shape.value or shape.tagged)):
            return self._mapping(node, shape, path)
        if isinstance(node, yaml.SequenceNode) and shape.item is not None:
            return self._list(node, shape, path)
        if isinstance(node, yaml.ScalarNode) and shape.scalar is not None:
            return self._scalar(node, shape, path)
        return self._complain(node, path, f"expected {_expected(shape)}, found {_found(node)}")

    def _scalar(self, node: yaml.ScalarNode, shape: Shape, path: str) -> Any:
        value = self._check(node, path, scalars.read, node.value, shape)
        if self._check_files and shape.notation is units.FILE and value is not None:
            self._check(node, path, check_file, value)
        return value

    def _list(self, node: yaml.SequenceNode, shape: Shape, path: str) -> Any:
        items = [self.read(item, shape.item, f"{path}[{i}]") for i, item in enumerate(node.value)]
        self._check(node, path, scalars.check_length, items, shape)
        return shape.items(items)

    def _mapping(self, node: yaml.Node, shape: Shape, path: str) -> Any:
        pairs = self._pairs(node, path) if isinstance(node, yaml.MappingNode) else {}
        if shape.struct is not None:
            return self._struct(node, pairs, shape.struct, path)
        if shape.tagged:
            return self._tagged(node, pairs, shape.tagged, path)
        result = {}
        for name, (key, value) in pairs.items():
            read = shape.key.read if shape.key is not None else units.plain_text
            written = self._check(key, path, read, name)
            if written in result and written is not None:
                self._complain(key, _join(path, name), f"given twice, first as another form of {written}")
            result[written] = self.read(value, shape.value, _join(path, name))
        self._check(node, path, scalars.check_length, result, shape)
        return result

    def _tagged(self, node: yaml.Node, pairs: _Pairs, kinds: dict[str, type[msgspec.Struct]], path: str) -> Any:
        if len(pairs) != 1:
            return self._complain(node, path, f"expected one of {', '.join(kinds)}, found {len(pairs)} keys")
        ((name, (key, value)),) = pairs.items()
        if name not in kinds:
            return self._complain(key, _join(path, name), _unknown("unknown key", name, list(kinds)))
        below = _join(path, name)
        if _is_null(value):
            return self._struct(value, {}, kinds[name], below)
        if not isinstance(value, yaml.MappingNode):
            return self._complain(value, below, f"expected keys with values, found {_found(value)}")
        return self._struct(value, self._pairs(value, below), kinds[name], below)

    def _struct(self, node: yaml.Node, pairs: _Pairs, kind: type[msgspec.Struct], path: str) -> Any:
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        unknown = "unknown key" if path else "not known to this version"
        before = len(self.complaints)
        values: dict[str, Any] = {}
        for name, (key, value) in pairs.items():
            field = fields.get(name)
            if field is None:
                self._complain(key, _join(path, name), _unknown(unknown, name, list(fields)))
            elif not _is_null(value) or (field.required and shape_of(field.type).struct is not None):
                values[field.name] = self.read(value, field.type, _join(path, name))
            elif field.required:
                self._complain(key, _join(path, name), "expected a value, found none")
        for name, field in fields.items():
            if field.required and name not in pairs:
                self._complain(node, _join(path, name), "missing")
        if len(self.complaints) > before:
            return None
        return self._check(node, path, functools.partial(kind, **values))

    def _pairs(self, node: yaml.MappingNode, path: str) -> _Pairs:
        """Return the keys of a mapping with those that it merges; its own come first, then the earlier source."""
        done = self._flat.get(id(node))
        if done is not None:
            return done
        self._flat[id(node)] = None  # under way
        own: _Pairs = {}
        merged: _Pairs = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._complain(key, path, f"expected a key, found {_found(key)}")
            elif key.tag == MERGE:
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    merged = self._merged(key, source, path) | merged
            elif foreign_tag(key) is not None:
                self._complain(key, _join(path, key.value), f"expected no tag, found {units.quoted(key.tag)}")
            elif key.value in own:
                first = own[key.value][0].start_mark
                message = f"given twice, first at {first.line + 1}:{first.column + 1}"
                self._complain(key, _join(path, key.value), message)
            else:
                own[key.value] = (key, value)
        result = self._flat[id(node)] = own | {name: merged[name] for name in merged if name not in own}
        return result

    def _merged(self, key: yaml.Node, source: yaml.Node, path: str) -> _Pairs:
        if not isinstance(source, yaml.MappingNode):
            self._complain(source, _join(path, "<<"), f"expected keys with values, found {_found(source)}")
        elif id(source) in self._flat and self._flat[id(source)] is None:
            self._complain(key, _join(path, "<<"), "merges itself")
        else:
            return self._pairs(source, path)
        return {}

    def _check(self, node: yaml.Node, path: str, convert: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return convert(*arguments)
        except ValueError as error:
            return self._complain(node, path, str(error))

    def _complain(self, node: yaml.Node, path: str, message: str) -> None:
        self.complaints.append((node.start_mark.line + 1, node.start_mark.column + 1, path, message))


def check_file(path: str) -> None:
    """Raise ValueError where there is no file; one that this user may not look for is left to who opens it."""
    try:
        directory = stat.S_ISDIR(os.stat(path).st_mode)
    except PermissionError:
        return
    except OSError as error:
        raise ValueError(f"expected a file, found none at {units.quoted(path)}: {error.strerror}") from error
    if directory:
        raise ValueError(f"expected a file, found a directory at {units.quoted(path)}")


def _unknown(what: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"{what}; did you mean {close[0]}?" if close else f"{what}; known here: {', '.join(known)}"


def _expected(shape: Shape) -> str:
    kinds = [
        "one value" if shape.scalar is not None else None,
        "a list" if shape.item is not None else None,
        f"one of {', '.join(shape.tagged)} over its keys" if shape.tagged else None,
        "keys with values" if shape.struct is not None or shape.value is not None else None,
    ]
    return " or ".join(kind for kind in kinds if kind)


def _found(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "keys with values"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "nothing" if _is_null(node) else units.quoted(node.value)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULLS


def _join(path: str, name: str) -> str:
    name = name if name and name.isprintable() else ascii(name)
    return f"{path}.{name}" if path else name
