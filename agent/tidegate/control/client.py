# SPDX-License-Identifier: Apache-2.0
"""A command's end of the control socket."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from tidegate.control.protocol import PROTOCOL, Hello, Reply, Request
from tidegate.errors import TidegateError, UnavailableError, UsageError
from tidegate.model.snapshot import View

T = TypeVar("T")
_WATCH_TIMEOUT = 90.0  # the longest interval is 60 s


class NoAgentError(UnavailableError):
    """No agent listens at the path."""


class ControlClient:
    """One connection to the running agent; a context manager.

    Raises :class:`NoAgentError` where no agent runs, UnavailableError where it may not be asked or speaks another
    protocol, TidegateError where it ends meanwhile.
    """

    def __init__(self, path: Path, timeout: float = 5.0) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(os.fspath(path))
        except PermissionError as error:
            raise UnavailableError(f"control socket {path}: permission denied; run as root") from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NoAgentError(
                f"control socket {path}: no agent listens there; start one: tidegate run"
            ) from error
        except OSError as error:
            raise UnavailableError(f"control socket {path}: {error.strerror or error}") from error
        self._lines = self._socket.makefile("rb")
        hello = self._decode(self._line(), Hello)
        if hello.protocol != PROTOCOL:
            raise UnavailableError(
                f"control socket {path}: this program speaks protocol {PROTOCOL}, the agent (version "
                f"{hello.tidegate}) {hello.protocol}; use the program of the agent's version"
            )

    def request(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """Return the result of one method."""
        return msgspec.json.decode(self._ask(method, params or {}))

    def watch(self) -> Iterator[View]:
        """Yield each view that the agent takes, the present one first; waits for the longest interval."""
        self._socket.settimeout(_WATCH_TIMEOUT)
        yield msgspec.json.decode(self._ask("watch", {}), type=View)
        while True:
            yield msgspec.json.decode(self._result(), type=View)

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: str, params: Mapping[str, Any]) -> bytes:
        request = Request(id=1, method=method, params=dict(params))
        with contextlib.suppress(OSError):  # where the agent has closed, what it said before is still to be read
            self._socket.sendall(msgspec.json.encode(request) + b"\n")
        return self._result()

    def _result(self) -> bytes:
        reply = self._decode(self._line(), Reply)
        if reply.error is not None:
            kinds: dict[int, type[TidegateError]] = {2: UsageError, 3: UnavailableError}
            raise kinds.get(reply.error.exit_code, TidegateError)(reply.error.message)
        return bytes(reply.result)

    def _line(self) -> bytes:
        try:
            line = self._lines.readline()
        except TimeoutError as error:
            raise TidegateError(
                f"control socket {self._path}: no answer from the agent in {self._socket.gettimeout():g} s; "
                "is its interval longer, or does it hang?"
            ) from error
        except OSError as error:
            raise TidegateError(f"control socket {self._path}: {error.strerror or error}") from error
        if not line.endswith(b"\n"):
            raise TidegateError(f"control socket {self._path}: the agent has closed the connection")
        return line

    def _decode(self, line: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(line, type=kind)
        except msgspec.DecodeError as error:
            raise TidegateError(f"control socket {self._path}: not a Tidegate agent: {error}") from error
