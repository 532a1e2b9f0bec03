# SPDX-License-Identifier: Apache-2.0
"""What both ends of the control socket agree on: one JSON object a line."""

from __future__ import annotations

from typing import Any

import msgspec

#: Raised when a line that was valid before would be understood otherwise; new methods and fields don't count.
PROTOCOL = 1
#: Bytes of a request line; a longer one is refused.
MAX_REQUEST = 64 * 1024


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The server's first line."""

    tidegate: str
    protocol: int


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for; ``id`` comes back with each line of the answer."""

    method: str
    id: int | str | None = None
    params: dict[str, Any] = {}


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request was not done, with the exit code of a command that meets it."""

    message: str
    exit_code: int = 1


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an answer: a result (empty where there is none), or an error."""

    id: int | str | None = None
    result: msgspec.Raw = msgspec.Raw()
    error: Failure | None = None
