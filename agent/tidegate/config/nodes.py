# SPDX-License-Identifier: Apache-2.0
"""Bytes to one tree of YAML nodes with their marks; whatever YAML itself refuses is one complaint."""

from __future__ import annotations

import codecs
import re

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
    loader = _Loader(_decoded(text.removeprefix(codecs.BOM_UTF8), name))
    try:
        node = loader.get_node() if loader.check_node() else None
        if not loader.check_node():
            return node, []
        mark = _next_mark(loader)
        return node, [(mark.line + 1, mark.column + 1, "expected one document, found another")]
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark or loader.get_mark()
        problem = error.problem or error.context
    except (ValueError, OverflowError):
        # PyYAML gives the digits of an escape or of %YAML to chr() and int() as they are.
        at, problem = loader.get_mark(), "number out of range"
    finally:
        loader.dispose()
    raise ConfigError([f"{name}:{at.line + 1}:{at.column + 1}: not YAML: {problem}"])


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
