# SPDX-License-Identifier: Apache-2.0
"""What a reader of a foreign YAML file needs: values at their places, and a note on each part that isn't taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import yaml

from tidegate.config import units

T = TypeVar("T")
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_NULLS = ("", "~", "null", "Null", "NULL")
_LARGEST = 2**32 - 1


class Note(NamedTuple):
    """What is to be said of one place of a file."""

    line: int
    column: int
    path: str
    message: str

    def of(self, name: str) -> str:
        """Return it as a line, the way of all complaints."""
        return f"{name}:{self.line}:{self.column}: {self.path}{': ' if self.path else ''}{self.message}"


class Source:
    """Collects what is wrong in a file, so that all of it can be said at once."""

    def __init__(self) -> None:
        self.complaints: list[Note] = []

    def complain(self, node: yaml.Node, path: str, message: str) -> None:
        """Note an error."""
        self.complaints.append(note(node, path, message))


class Part:
    """One node with its path; whoever asks it for a kind of value that it isn't gets a complaint and nothing."""

    def __init__(self, source: Source, node: yaml.Node | None, path: str, key: yaml.Node | None = None) -> None:
        self._source, self._node = source, None if is_null(node) else node
        self.path, self._key = path, key or node

    def __bool__(self) -> bool:
        return self._node is not None

    def note(self, message: str) -> Note:
        """Say something of this place."""
        return Note(1, 1, self.path, message) if self._key is None else note(self._key, self.path, message)

    def complain(self, message: str) -> None:
        """Say what is wrong here."""
        if self._key is not None:
            self._source.complain(self._node or self._key, self.path, message)

    def items(self) -> Iterator[tuple[str, Part]]:
        """Yield the keys of a mapping."""
        if isinstance(self._node, yaml.MappingNode):
            for key, value in self._node.value:
                name = str(key.value)
                yield name, Part(self._source, value, f"{self.path}.{name}" if self.path else name, key)
        elif self._node is not None:
            self.complain(f"expected keys with values, found {_found(self._node)}")

    def get(self, name: str) -> Part:
        """Return the value of a key; one that isn't there is false."""
        for known, part in self.items():
            if known == name:
                return part
        return Part(self._source, None, f"{self.path}.{name}" if self.path else name)

    def list(self) -> list[Part]:
        """Return the entries of a list."""
        if isinstance(self._node, yaml.SequenceNode):
            return [Part(self._source, each, f"{self.path}[{i}]") for i, each in enumerate(self._node.value)]
        if self._node is not None:
            self.complain(f"expected a list, found {_found(self._node)}")
        return []

    def text(self) -> str | None:
        """Return a text."""
        return self._read(str)

    def number(self, most: int = _LARGEST) -> int | None:
        """Return a whole number."""
        return self._read(lambda text: _number(text, most))

    def boolean(self) -> bool:
        """Return true or false; false where there is nothing."""
        return self._read(_boolean) or False

    def duration(self) -> float | None:
        """Return seconds."""
        return self._read(_duration)

    def _read(self, convert: Callable[[str], T]) -> T | None:
        if self._node is None:
            return None
        if not isinstance(self._node, yaml.ScalarNode):
            self.complain(f"expected one value, found {_found(self._node)}")
            return None
        try:
            return convert(self._node.value)
        except ValueError as error:
            self.complain(str(error))
            return None


def note(node: yaml.Node, path: str, message: str) -> Note:
    """Say something of the place where a node begins."""
    return Note(node.start_mark.line + 1, node.start_mark.column + 1, path, message)


def is_null(node: yaml.Node | None) -> bool:
    """Whether there is nothing."""
    return node is None or (isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULLS)


def _found(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return units.quoted(node.value)
    return "keys with values" if isinstance(node, yaml.MappingNode) else "a list"


def _number(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18 or int(text) > most:
        raise ValueError(f"expected a whole number of at most {most}, found {units.quoted(text)}")
    return int(text)


def _boolean(text: str) -> bool:
    if text not in (*_TRUE, *_FALSE):
        raise ValueError(f"expected true or false, found {units.quoted(text)}")
    return text in _TRUE


def _duration(text: str) -> float:
    seconds = units.duration(text)
    if not 0.001 <= seconds <= 31_536_000:
        raise ValueError(f"expected 1ms to 365d, found {units.quoted(text)}")
    return seconds
