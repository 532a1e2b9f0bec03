# SPDX-License-Identifier: Apache-2.0
"""The one exception tree; every message names the thing, what was expected, what was found and the remedy.

TidegateError               exit 1: could not be done
├── DriverError             a proxy is away, or doesn't do what it was told
├── UsageError              exit 2: wrong usage
│   └── ConfigError         every complaint about a config file, all at once
└── UnavailableError        exit 3: a privilege, a kernel feature or a resource of the host is missing
    └── KernelError         libbpf or the kernel refused; quotes the verifier's last lines
"""

from __future__ import annotations

import os
from collections.abc import Sequence

#: Of a text from another program so many characters are shown at its beginning, and at its end.
_HEAD, _TAIL = 1500, 400


def shown(text: str) -> str:
    """Return a text that another program may have had a part in as one line for a log or a terminal.

    What a terminal would obey is escaped, and of a long text the middle is left out.
    """
    if len(text) > _HEAD + _TAIL:
        text = f"{text[:_HEAD]} ... {text[-_TAIL:]}"
    if text.isprintable():
        return text
    line = " ".join(part for part in text.splitlines() if part.strip())
    return "".join(
        each if each.isprintable() else " " if each == "\t" else each.encode("unicode_escape").decode()
        for each in line
    )


class TidegateError(Exception):
    """Something that was asked for could not be done."""

    exit_code = 1


class DriverError(TidegateError):
    """A proxy could not be read or changed; ``away`` where nobody answered, so that its state isn't known.

    ``exchanges`` are the commands that led to it, each with what came back. The message may quote a proxy.
    """

    def __init__(self, message: str, *, away: bool = False, exchanges: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(shown(message))
        self.away, self.exchanges = away, tuple(exchanges)


class UsageError(TidegateError):
    """The command or its input is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """A config file is wrong; ``complaints`` holds each one as ``FILE:LINE:COL: path: message``."""

    def __init__(self, complaints: list[str]) -> None:
        super().__init__("\n".join(complaints))
        self.complaints = complaints


class UnavailableError(TidegateError):
    """The host lacks a privilege, a kernel feature or a resource that this needs."""

    exit_code = 3


class KernelError(UnavailableError):
    """The kernel or libbpf refused an operation on ``what``; ``errno`` is positive, ``log`` the last lines."""

    def __init__(self, what: str, errno: int, log: list[str] | None = None) -> None:
        lines = [f"{what}: {os.strerror(errno)} (errno {errno})", *(log or [])]
        super().__init__("\n    ".join(lines))
        self.errno = errno
        self.log = log or []
