# SPDX-License-Identifier: Apache-2.0
"""The text of a YAML or JSON file and the tree in it; keys of the tree are set in the text, and no others; pure.

A YAML text keeps its layout and its comments: only the words that change are written. Each text that comes of
edits is read again and compared with the tree that was meant: no layout, however odd, has anything else change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: With all aliases written out; far above any file of endpoints.
_LARGEST = 2_000_000
_STR, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
#: Keys and numbers that lead from the top to a mapping.
Path = tuple[str | int, ...]


class Word(NamedTuple):
    """A scalar of YAML: its type, as YAML guesses it or the file says, and its text."""

    tag: str
    text: str


class Edit(NamedTuple):
    """Have a key of the mapping at ``path`` be this word; None takes it away."""

    path: Path
    key: str
    value: str | None


#: What stands for a key that was taken away, where taking it away isn't the reverse of adding it: the default.
UNSET = "UNKNOWN"


def text_of(scalar: Any) -> str | None:
    """Return a scalar of either kind of tree as text; None where it is none, or null."""
    if isinstance(scalar, Word):
        return None if scalar.tag == _NULL else scalar.text
    if isinstance(scalar, str):
        return scalar
    return str(scalar) if isinstance(scalar, int) and not isinstance(scalar, bool) else None


def is_null(value: Any) -> bool:
    """Tell whether a value of either kind of tree is null."""
    return value is None or (isinstance(value, Word) and value.tag == _NULL)


def is_json(name: str) -> bool:
    """Tell how Envoy reads a file, which goes by its name alone; raises ValueError for what has no text."""
    ending = name.rpartition(".")[2]
    if ending not in ("yaml", "yml", "json"):
        raise ValueError("expected a file .yaml, .yml or .json")
    return ending == "json"


def parse(text: bytes, *, as_json: bool) -> Any:
    """Return the tree: dicts, lists, and scalars for :func:`text_of`; raises ValueError where there is none."""
    try:
        return _json(text) if as_json else _plain(_compose(_decoded(text)))
    except RecursionError:
        raise ValueError("nested too deep") from None


def edited(text: bytes, edits: list[Edit], *, as_json: bool) -> tuple[bytes, Any]:
    """Return a text in which these are so, and all else as it was, and its tree; raises ValueError."""
    try:
        return _edited_json(text, edits) if as_json else _edited_yaml(text, edits)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _json(text: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is given twice")
        return found

    return json.loads(text.decode("utf-8"), object_pairs_hook=unique)


def _edited_json(text: bytes, edits: list[Edit]) -> tuple[bytes, Any]:
    tree = _json(text)
    for edit in edits:
        tree = _with(tree, edit.path, edit.key, edit.value)
    made = (json.dumps(tree, indent=2, allow_nan=False) + "\n").encode("ascii")
    if _json(made) != tree:
        raise ValueError("a number or a text in it can't be written as it is")
    return made, tree


def _with(tree: Any, path: Path, key: str, value: Any) -> Any:
    """Return a tree with another value; what it shares with the old one isn't changed."""
    if path:
        copy = tree.copy()
        copy[path[0]] = _with(tree[path[0]], path[1:], key, value)
        return copy
    if value is None:
        return {name: below for name, below in tree.items() if name != key}
    return {**tree, key: value}


def _decoded(text: bytes) -> str:
    decoded = text.decode("utf-8")
    if decoded.startswith("\ufeff"):
        raise ValueError("expected UTF-8 without a byte order mark")
    return decoded


def _compose(text: str) -> yaml.Node:
    loader = _LOADER(text)
    try:
        node = loader.get_node() if loader.check_node() else None
        if loader.check_node():
            raise ValueError("expected one document, found another")
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    finally:
        loader.dispose()
    if node is None:
        raise ValueError("expected keys with values, found nothing")
    if "*" in text and _size(node, {}) > _LARGEST:
        raise ValueError("expected fewer endpoints, found aliases of aliases")
    return node


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many nodes there are with all aliases written out."""
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("an alias stands for what it is a part of")
        return known[id(node)]
    known[id(node)] = 0
    below = sum(_size(each, known) for each in _below(node))
    known[id(node)] = below + 1
    return below + 1


def _below(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _plain(node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        found = {key.value: _plain(value) for key, value in _pairs(node)}
        if len(found) != len(node.value):
            raise ValueError(f"line {node.start_mark.line + 1}: a key is given twice")
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    return Word(node.tag, node.value)


def _pairs(node: yaml.MappingNode) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"line {key.start_mark.line + 1}: expected a key that is a word")
    return node.value  # type: ignore[no-any-return]


def _edited_yaml(text: bytes, edits: list[Edit]) -> tuple[bytes, Any]:
    source = _decoded(text)
    node = _compose(source)
    meant = _meant(node, edits)
    made = _spliced(source, node, edits)
    if made is not None and _says(made, meant):
        return made.encode(), meant
    # Aliases, or a layout that these edits don't know: written anew, without comments.
    source = yaml.serialize(_unshared(node), allow_unicode=True, width=1 << 20)
    made = _spliced(source, _compose(source), edits)
    if made is not None and _says(made, meant):
        return made.encode(), meant
    raise ValueError("its layout is one in which health_status can't be set; write it in block style")


def _meant(node: yaml.Node, edits: Iterable[Edit]) -> Any:
    """Return the tree that :func:`_spliced` is to make."""
    tree = _plain(node)
    for edit in edits:
        keys = [key.value for key, _ in _pairs(_at(node, edit.path))]
        is_removed = edit.value is None and len(keys) > 1 and keys[0] == edit.key
        word = None if is_removed else Word(_STR, edit.value or UNSET)
        tree = _with(tree, edit.path, edit.key, word)
    return tree


def _at(node: yaml.Node, path: Path) -> yaml.MappingNode:
    for step in path:
        if isinstance(node, yaml.MappingNode):
            node = next(value for key, value in _pairs(node) if key.value == step)
        else:
            node = node.value[step]
    assert isinstance(node, yaml.MappingNode)
    return node


def _spliced(source: str, node: yaml.Node, edits: Iterable[Edit]) -> str | None:
    """Change the text itself; None where two edits are of one place."""
    spans = sorted((_span(source, _at(node, edit.path), edit) for edit in edits), reverse=True)
    if any(later[0] < earlier[1] or later[:2] == earlier[:2] for later, earlier in pairwise(spans)):
        return None
    for begin, end, words in spans:
        source = source[:begin] + words + source[end:]
    return source


def _span(source: str, node: yaml.MappingNode, edit: Edit) -> tuple[int, int, str]:
    pairs = _pairs(node)
    first = pairs[0][0].start_mark if pairs else node.start_mark
    for number, (key, value) in enumerate(pairs):
        if key.value != edit.key:
            continue
        if edit.value is None and number == 0 and len(pairs) > 1:
            return first.index, pairs[1][0].start_mark.index, ""
        begin, end = value.start_mark.index, value.end_mark.index
        return begin, end, (" " if begin == end else "") + (edit.value or UNSET)
    if node.flow_style:
        quote = '"' if source[first.index] == '"' else ""
        return first.index, first.index, f"{quote}{edit.key}{quote}: {quote}{edit.value}{quote}, "
    return first.index, first.index, f"{edit.key}: {edit.value}\n{' ' * first.column}"


def _says(text: str, meant: Any) -> bool:
    try:
        return bool(_plain(_compose(text)) == meant)
    except ValueError:
        return False


def _unshared(node: yaml.Node) -> yaml.Node:
    """Copy a tree, with all aliases written out."""
    if isinstance(node, yaml.MappingNode):
        pairs = [(_unshared(key), _unshared(value)) for key, value in node.value]
        return yaml.MappingNode(node.tag, pairs, flow_style=node.flow_style)
    if isinstance(node, yaml.SequenceNode):
        items = [_unshared(item) for item in node.value]
        return yaml.SequenceNode(node.tag, items, flow_style=node.flow_style)
    assert isinstance(node, yaml.ScalarNode)
    return yaml.ScalarNode(node.tag, node.value, style=node.style)
