# SPDX-License-Identifier: Apache-2.0
"""What the outputs show of the limiter; client addresses only as privacy lets them be shown."""

from __future__ import annotations

import msgspec


class VerdictCount(msgspec.Struct, frozen=True, kw_only=True):
    """Packets that had one verdict for one reason, since the program was first attached."""

    verdict: str
    reason: str
    packets: int
    bytes: int


class InterfaceRow(msgspec.Struct, frozen=True, kw_only=True):
    """The limiter at one interface.

    ``attached`` is native or generic; None where it isn't, and ``reason`` says why. ``mode`` is 0 off, 1 monitor,
    2 enforce. ``sources`` are those in the tables of all interfaces, ``requesting`` those among them that ask
    for connections.
    """

    interface: str
    attached: str | None
    reason: str
    mode: int
    sources: int | None
    requesting: int | None
    counts: tuple[VerdictCount, ...]

    @property
    def packets(self) -> dict[tuple[str, str], int]:
        """Packets by verdict and reason."""
        return {(count.verdict, count.reason): count.packets for count in self.counts}

    @property
    def bytes(self) -> dict[tuple[str, str], int]:
        """Bytes by verdict and reason."""
        return {(count.verdict, count.reason): count.bytes for count in self.counts}


class FeedRow(msgspec.Struct, frozen=True, kw_only=True):
    """What came from a proxy's log, and what it led to, since the agent started.

    ``lines`` counts by what a line was, ``bans`` by what became of what it told. ``dropped`` are lines that found
    no room in a UDP socket, ``full`` how often a Unix socket's queue may have been full, so that lines were lost;
    None for the other kind. ``complaint`` says what to set.
    """

    feed: str
    listen: str
    lines: dict[str, int]
    bans: dict[str, int]
    dropped: int | None
    full: int | None
    complaint: str | None


class Limiter(msgspec.Struct, frozen=True, kw_only=True):
    """The limiter of this node; ``rolls_back_in`` is None where the mode stays.

    ``guarded`` are packets of sources for which the tables had no place, judged by the sketch instead;
    ``contended`` passed uncounted. ``complaints`` say what is wrong with lists, pins and the audit trail.
    """

    mode: str
    rolls_back_in: float | None
    interfaces: tuple[InterfaceRow, ...]
    bans: int
    allowed: int
    denied: int
    guarded: int
    contended: int
    feed: FeedRow | None = None
    complaints: tuple[str, ...] = ()


class SourceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One source of much traffic: ``handle`` stands for it in commands, ``source`` is what may be shown.

    Counts are since the source is known; ``refused`` are those that were too many, dropped or not. Rates are per
    second between the last two samples, which are the rarer the more sources there are.
    """

    handle: str
    source: str
    packets: int
    packet_rate: float | None
    refused: int
    refused_rate: float | None
