# SPDX-License-Identifier: Apache-2.0
"""What the config of nginx says that matters to a driver: its pid file, who includes a file, how reloads end."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tidegate.pools import files
from tidegate.pools.nginx_servers import statements

_FILES, _DEPTH = 1000, 20


class Settings(NamedTuple):
    """What was found: ``upstreams`` include the file, as ``("http", "inventory")`` each.

    ``elsewhere`` are the innermost blocks that include it too and are no upstream. ``missing`` are files that
    aren't there.
    """

    pid: str | None
    upstreams: tuple[tuple[str, str], ...]
    elsewhere: tuple[str, ...]
    has_keepalive_min_timeout: bool
    has_worker_shutdown_timeout: bool
    missing: tuple[str, ...]


def settings(config: Path, include: Path) -> Settings:
    """Read a config with its includes, as nginx does, but for ``include``; what is broken is passed over."""
    walk = _Walk(config.parent, os.path.realpath(include))
    pid, has_minimum, has_shutdown = None, False, False
    for blocks, words in walk.directives(config, (), 0):
        if words[0] == "pid" and not blocks and len(words) > 1:
            pid = words[1]
        has_minimum |= words[0] == "keepalive_min_timeout" and words[1:] not in (["0"], ["0s"])
        has_shutdown |= words[0] == "worker_shutdown_timeout"
    upstreams = tuple((blocks[0][0], blocks[-1][-1]) for blocks in walk.included if _is_upstream(blocks))
    elsewhere = tuple(blocks[-1][0] if blocks else "main" for blocks in walk.included if not _is_upstream(blocks))
    return Settings(pid, upstreams, elsewhere, has_minimum, has_shutdown, tuple(walk.missing))


_Blocks = tuple[list[str], ...]


def _is_upstream(blocks: _Blocks) -> bool:
    return len(blocks) == 2 and blocks[-1][0] == "upstream"


class _Walk:
    """Follows includes until there are too many."""

    def __init__(self, directory: Path, include: str) -> None:
        self._directory, self._include, self._files = directory, include, 0
        self.included: list[_Blocks] = []
        self.missing: list[str] = []

    def directives(self, path: Path, around: _Blocks, depth: int) -> Iterator[tuple[_Blocks, list[str]]]:
        """Yield each directive with the blocks around it."""
        self._files += 1
        if os.path.realpath(path) == self._include:
            self.included.append(around)
            return
        if self._files > _FILES or depth > _DEPTH:
            return
        try:
            data = files.read(path)
        except FileNotFoundError:
            self.missing.append(str(path))
            return
        blocks = around
        for statement in statements(data):
            words = [word.value.decode(errors="replace") for word in statement.words]
            if statement.kind == b"}":
                blocks = blocks[:-1] if len(blocks) > len(around) else blocks
            elif words and statement.kind == b"{":
                blocks = (*blocks, words)
            elif len(words) == 2 and words[0] == "include":
                for found in self._found(words[1]):
                    yield from self.directives(Path(found), blocks, depth + 1)
            elif words:
                yield blocks, words

    def _found(self, name: str) -> list[str]:
        pattern = str(self._directory / name)
        return sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
