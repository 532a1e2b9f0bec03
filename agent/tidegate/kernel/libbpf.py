# SPDX-License-Identifier: Apache-2.0
"""Calls into libbpf with its failures turned into exceptions."""

from __future__ import annotations

from typing import Any

from tidegate.errors import KernelError
from tidegate.kernel import _libbpf

lib: Any = _libbpf.lib
ffi: Any = _libbpf.ffi

_QUOTED_LINES = 12
_NOISE = (
    "-- BEGIN PROG LOAD LOG --",
    "-- END PROG LOAD LOG --",
    "processed ",
    "verification time",
    "stack depth",
)


def start_log() -> None:
    """Forget libbpf's earlier messages, so that an error quotes only what belongs to it."""
    lib.tidegate_log_start()


def log_lines() -> list[str]:
    """Return the last messages of libbpf and of the verifier, oldest first."""
    text = ffi.string(lib.tidegate_log()).decode(errors="backslashreplace")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(_NOISE)]
    return lines[-_QUOTED_LINES:]


def check(result: int, what: str) -> int:
    """Return ``result`` of a libbpf call, or raise :class:`KernelError` where it is negative."""
    if result < 0:
        raise KernelError(what, _errno_of(result), log_lines())
    return result


def check_pointer(pointer: Any, what: str) -> Any:
    """Return ``pointer`` of a libbpf call, or raise :class:`KernelError` where it is NULL."""
    if pointer == ffi.NULL:
        raise KernelError(what, ffi.errno, log_lines())
    return pointer


def _errno_of(result: int) -> int:
    # Low-level calls return -1 with errno before libbpf 1.0 and -errno since; -1 itself is EPERM in both.
    return int(ffi.errno) if result == -1 and ffi.errno else -result
