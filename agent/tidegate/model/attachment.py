# SPDX-License-Identifier: Apache-2.0
"""How the limiter is attached to an interface."""

from __future__ import annotations

import msgspec


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """An interface that the config asks for.

    ``mode`` is "native" or "generic", None where the limiter is not attached; ``reason`` says why it isn't native.
    """

    interface: str
    mode: str | None
    reason: str = ""
