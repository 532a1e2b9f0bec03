# SPDX-License-Identifier: Apache-2.0
"""Whether a part of Tidegate works on this host, why not, and what would mend it."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class State(StrEnum):
    """How far a feature works."""

    OK = "ok"
    DEGRADED = "degraded"
    UNAVAILABLE = "unavailable"


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``tidegate doctor``; ``remedy`` is empty where all is well, and ``reason`` then says no ill."""

    name: str
    state: State
    reason: str = ""
    remedy: str = ""
