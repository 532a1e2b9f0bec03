# SPDX-License-Identifier: Apache-2.0
"""A terminal that shows one frame after another in place."""

from __future__ import annotations

import shutil
import sys
from typing import Self

from tidegate.model.snapshot import View
from tidegate.top.plain import Options, frame

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


class Screen:
    """The terminal's alternate screen; a context manager that gives the old one back."""

    def __init__(self, options: Options | None = None) -> None:
        self._options = options or Options()

    def __enter__(self) -> Self:
        sys.stdout.write(_ENTER)
        sys.stdout.flush()
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()

    def show(self, view: View) -> None:
        """Draw a view over the one before, in the terminal's present size."""
        size = shutil.get_terminal_size()
        lines = frame(view, self._options, size.columns, size.lines)[: size.lines]
        text = f"{_END_OF_LINE}\r\n".join(lines)
        sys.stdout.write(f"{_HOME}{text}{_END_OF_LINE}{_END_OF_SCREEN}")
        sys.stdout.flush()
