# SPDX-License-Identifier: Apache-2.0
"""The text of a file of ``server`` statements that an nginx upstream includes: who is out, how to edit it; pure.

An ejection is the parameter ``down`` and a mark behind the statement that tells whose it is::

    server 10.0.0.6:5000 weight=2 down; # [tidegate: ejected] what stood here

Half open it is ``max_conns=N`` with a mark of its own. A mark that would hide other statements ends with a line
break, and says so. Who takes out what marks tell has the bytes that were there before; nothing else is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import NamedTuple

from tidegate.model.driver import Use

#: The tokens as ngx_conf_read_token() has them: a comment and a quote begin only where a token may begin, and
#: ``${`` is no block.
_TOKEN = re.compile(
    rb"""[ \t\r\n]+ | (?P<comment>\#[^\n]*) | (?P<end>[;{}])
    | (?P<word>"(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' | (?!["'])(?:\\.?|\$\{?|[^\\ \t\r\n;{$])+)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(rb"""\\(["'\\trn])""")
_ESCAPES = {b"t": b"\t", b"r": b"\r", b"n": b"\n"}
_MARK = re.compile(
    rb"[ \t]*# \[tidegate: (?:(?P<ejected>ejected)|half open, max_conns=(?P<permits>[0-9]{1,9}))"
    rb"(?:\]|, line split\]\r?\n)"
)
#: What may follow a mark without being hidden by it.
_HIDEABLE = re.compile(rb"[ \t\r]*(?:#|\n|\Z)")

_HEADER = b"# Written by Tidegate, as there was no such file; yours from now on.\n"


class Word(NamedTuple):
    """A token: where it stands, and what it means without its quotes and escapes."""

    start: int
    end: int
    value: bytes


class Statement(NamedTuple):
    """The words before a ``;``, ``{`` or ``}``, which stands at ``end``."""

    words: tuple[Word, ...]
    end: int
    kind: bytes


class Server(NamedTuple):
    """A ``server`` statement; ``endpoint`` is None for what has no address, ``past`` is behind its mark."""

    name: str
    endpoint: str | None
    words: tuple[Word, ...]
    end: int
    past: int
    use: Use
    permits: int | None
    marked: bool


def statements(data: bytes) -> Iterator[Statement]:
    """Yield what nginx would read, up to where it would give up."""
    words: list[Word] = []
    at = 0
    while found := _TOKEN.match(data, at):
        at = found.end()
        if found["end"]:
            yield Statement(tuple(words), found.start(), found["end"])
            words = []
        elif found["word"]:
            words.append(Word(found.start(), at, _meaning(found["word"])))


def servers(data: bytes) -> list[Server]:
    """Return the ``server`` statements that stand outside of blocks."""
    found, depth = [], 0
    for statement in statements(data):
        if statement.kind != b";":
            depth += 1 if statement.kind == b"{" else -1
        elif depth == 0 and len(statement.words) > 1 and statement.words[0].value == b"server":
            found.append(_server(data, statement))
    return found


def endpoint(name: bytes) -> str | None:
    """Return ``ADDRESS:PORT`` for the name of a server, or None for host names and sockets."""
    found = re.fullmatch(rb"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?|([0-9.]+)(?::([0-9]{1,5}))?", name)
    if not found:
        return None
    try:
        address = ip_address((found[1] or found[3]).decode("ascii"))
    except ValueError:
        return None
    port = int(found[2] or found[4] or 80)
    if not 0 < port < 65536 or (address.version == 6) is not bool(found[1]):
        return None
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def uses(data: bytes, endpoints: Iterable[str]) -> dict[str, Use]:
    """Return how nginx uses endpoints once it has read this; the best of several statements of one counts."""
    order = (Use.ACTIVE, Use.TRIAL, Use.EJECTED, Use.HELD)
    found: dict[str | None, Use] = {}
    for server in servers(data):
        if server.endpoint is not None:
            before = found.get(server.endpoint, Use.HELD)
            found[server.endpoint] = min(before, server.use, key=order.index)
    return {name: found.get(endpoint(name.encode()), Use.ABSENT) for name in endpoints}


def statement_text(data: bytes, name: str) -> list[str]:
    """Return the statements of an endpoint as they stand there."""
    wanted = endpoint(name.encode())
    found = [server for server in servers(data) if server.endpoint == wanted]
    return [data[server.words[0].start : server.past].decode(errors="replace") for server in found]


def edit(data: bytes, endpoints: Iterable[str], out: Mapping[str, int]) -> bytes:
    """Have those that are ``out`` be ejected, or half open with so many permits, and no others of ``endpoints``.

    What others have taken out stays so, without marks. What is so already stays as it is written.
    """
    wanted = {endpoint(name.encode()): out.get(name) for name in endpoints}
    parts, done = [], 0
    for server in servers(data):
        if server.endpoint is None or server.endpoint not in wanted:
            continue
        permits = wanted[server.endpoint]
        if _is_so(server, permits):
            continue
        parts += [data[done : server.words[0].start], _edited(data, server, permits)]
        done = server.past
    return b"".join([*parts, data[done:]])


def generate(endpoints: Iterable[str]) -> bytes:
    """Return a new file with a statement for each endpoint."""
    return _HEADER + b"".join(f"server {name};\n".encode() for name in endpoints)


def _meaning(word: bytes) -> bytes:
    inner = word[1:-1] if word[:1] in (b'"', b"'") else word
    return _ESCAPED.sub(lambda found: _ESCAPES.get(found[1], found[1]), inner)


def _server(data: bytes, statement: Statement) -> Server:
    words, end = statement.words, statement.end
    mark = _MARK.match(data, end + 1)
    permits = int(mark["permits"]) if mark and mark["permits"] else None
    downs = sum(word.value == b"down" for word in words[2:])
    if downs > (1 if mark and mark["ejected"] else 0):
        use = Use.HELD
    elif downs:
        use = Use.EJECTED
    elif permits is not None and any(word.value == b"max_conns=%d" % permits for word in words[2:]):
        use = Use.TRIAL
    else:
        use = Use.ACTIVE
    name = words[1].value
    past = mark.end() if mark else end + 1
    return Server(
        name.decode(errors="replace"), endpoint(name), words, end, past, use, permits, marked=mark is not None
    )


def _is_so(server: Server, permits: int | None) -> bool:
    if permits == 0 and server.use is Use.EJECTED:
        return True
    if permits and server.use is Use.TRIAL and server.permits == permits:
        return True
    return not server.marked and (permits is None or server.use is Use.HELD)


def _edited(data: bytes, server: Server, permits: int | None) -> bytes:
    """Return a statement and its mark anew."""
    body, words = data[server.words[0].start : server.end], server.words
    if server.marked:
        ours = b"down" if server.permits is None else b"max_conns=%d" % server.permits
        added = next((word for word in reversed(words[2:]) if word.value == ours), None)
        if added is not None:
            start, end = (at - words[0].start for at in (added.start, added.end))
            start -= body[start - 1 : start] in (b" ", b"\t")
            body = body[:start] + body[end:]
            words = tuple(word for word in words if word is not added)
    if permits is None or server.use is Use.HELD:
        return body + b";"
    if permits and any(word.value.startswith(b"max_conns=") for word in words[2:]):
        return body + b";"  # a limit of its own, which is as good
    split = b"" if _HIDEABLE.match(data, server.past) else b", line split"
    what, parameter = (
        (b"half open, max_conns=%d" % permits, b"max_conns=%d" % permits)
        if permits
        else (
            b"ejected",
            b"down",
        )
    )
    return b"%b %b; # [tidegate: %b%b]%b" % (body, parameter, what, split, b"\n" if split else b"")
