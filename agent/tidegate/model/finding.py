# SPDX-License-Identifier: Apache-2.0
"""What is wrong, how that is known, and what to change."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Severity(StrEnum):
    """How soon someone has to act."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class Confidence(StrEnum):
    """How sure a finding is."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do: ``what`` in a sentence, ``lines`` to put into ``where`` as they stand (may be empty)."""

    what: str
    where: str = ""
    lines: tuple[str, ...] = ()


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One fault with its evidence.

    ``id`` is the kind of finding, and the name of its runbook; with ``subject``, what it is about, it tells
    findings apart. ``evidence`` are the numbers by what they are, the unit in the name. ``refuted_by`` says what
    would show that it is wrong. ``remedies`` are in order of worth. ``services`` (with their container after a
    slash) and ``endpoints`` are what it touches.
    """

    id: str
    severity: Severity
    subject: str
    summary: str
    evidence: dict[str, float | int | str]
    confidence: Confidence
    refuted_by: str
    remedies: tuple[Remedy, ...]
    runbook: str
    services: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
