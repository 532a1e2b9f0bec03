# SPDX-License-Identifier: Apache-2.0
"""Bytes to one tree of YAML nodes with their marks; whatever YAML itself refuses is one complaint."""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Iterator, Sequence

import yaml

from tidegate.errors import ConfigError

MERGE = "tag:yaml.org,2002:merge"
_DEEPEST = 64
_CORE = "tag:yaml.org,2002:"
# The tags that are given to nodes without one, and their explicit twins: the type of a key decides, not the tag.
_TAGS = {"str", "map", "seq", "null", "bool", "int", "float", "timestamp", "value", "merge"}
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # those that the marks of PyYAML count


class _Loader(yaml.SafeLoader):
    """Composes nodes no deeper than any config is, far from Python's recursion limit."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {_DEEPEST} levels", problem_mark=_next_mark(self)
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def compose(text: bytes, name: str) -> tuple[yaml.Node | None, list[tuple[int, int, str]]]:
    """Return the first document (None where there is none) and (line, column, message) if another follows.

    Raises :class:`ConfigError` with one complaint where the text is not YAML in UTF-8.
    """
    with _loading(text, name) as loader:
        node = loader.get_node() if loader.check_node() else None
        if not loader.check_node():
            return node, []
        mark = _next_mark(loader)
        return node, [(mark.line + 1, mark.column + 1, "expected one document, found another")]


def documents(text: bytes, name: str) -> list[yaml.Node]:
    """Return all documents of a text; raises :class:`ConfigError` as :func:`compose` does."""
    found: list[yaml.Node] = []
    with _loading(text, name) as loader:
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                found.append(node)
    return found


def place(node: yaml.Node | None, path: Sequence[str]) -> tuple[int, int]:
    """Return line and column of the key at the end of a path, or of the last on the way that is there."""
    found = (1, 1)
    for name in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        for key, value in pairs:
            if key.value == name:
                found, node = (key.start_mark.line + 1, key.start_mark.column + 1), value
                break
        else:
            break
    return found


@contextlib.contextmanager
def _loading(text: bytes, name: str) -> Iterator[_Loader]:
    loader = _Loader(_decoded(text.removeprefix(codecs.BOM_UTF8), name))
    try:
        yield loader
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark or loader.get_mark()
        raise _not_yaml(name, at, error.problem or error.context) from error
    except (ValueError, OverflowError) as error:
        # PyYAML gives the digits of an escape or of %YAML to chr() and int() as they are.
        raise _not_yaml(name, loader.get_mark(), "number out of range") from error
    finally:
        loader.dispose()


def _not_yaml(name: str, at: yaml.Mark, problem: str | None) -> ConfigError:
    return ConfigError([f"{name}:{at.line + 1}:{at.column + 1}: not YAML: {problem}"])


def foreign_tag(node: yaml.Node) -> str | None:
    """Return the explicit tag of a node that no key has a use for, as in ``!env X``."""
    tag = str(node.tag)
    return None if tag.startswith(_CORE) and tag.removeprefix(_CORE) in _TAGS else tag


def _decoded(text: bytes, name: str) -> str:
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        place = _place(text[: error.start].decode("utf-8"))
        raise ConfigError([f"{name}:{place}: expected UTF-8, found byte {text[error.start]:#04x}"]) from error
    unprintable = yaml.reader.Reader.NON_PRINTABLE.search(decoded)
    if unprintable is not None:
        place = _place(decoded[: unprintable.start()])
        raise ConfigError([f"{name}:{place}: not YAML: character U+{ord(unprintable[0]):04X} is not allowed"])
    return decoded


def _next_mark(loader: _Loader) -> yaml.Mark:
    mark: yaml.Mark = loader.peek_event().start_mark  # type: ignore[no-untyped-call]
    return mark


def _place(before: str) -> str:
    lines = _LINE_BREAK.split(before)
    return f"{len(lines)}:{len(lines[-1]) + 1}"
