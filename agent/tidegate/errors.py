# SPDX-License-Identifier: Apache-2.0
"""The one exception tree; every message names the thing, what was expected, what was found and the remedy.

TidegateError               exit 1: could not be done
├── UsageError              exit 2: wrong usage
│   └── ConfigError         every complaint about a config file, all at once
└── UnavailableError        exit 3: a privilege, a kernel feature or a resource of the host is missing
    └── KernelError         libbpf or the kernel refused; quotes the verifier's last lines
"""

from __future__ import annotations

import os


class TidegateError(Exception):
    """Something that was asked for could not be done."""

    exit_code = 1


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
