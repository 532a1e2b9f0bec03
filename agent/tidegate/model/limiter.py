# SPDX-License-Identifier: Apache-2.0
"""What the outputs show of the limiter; client addresses only as privacy lets them be shown."""

from __future__ import annotations

import msgspec


class InterfaceRow(msgspec.Struct, frozen=True, kw_only=True):
    """The limiter at one interface.

    ``attached`` is native or generic; None where it isn't, and ``reason`` says why. ``packets`` and ``bytes``
    are by (verdict, reason) since the program was first attached. ``mode`` is 0 off, 1 monitor, 2 enforce, as it
    acts now: without the agent's lease, enforcement is monitoring. ``sources`` are those in the tables of all
    interfaces, ``requesting`` of them in that of connection requests.
    """

    interface: str
    attached: str | None
    reason: str
    mode: int
    sources: int | None
    requesting: int | None
    packets: dict[tuple[str, str], int]
    bytes: dict[tuple[str, str], int]


class Limiter(msgspec.Struct, frozen=True, kw_only=True):
    """The limiter of this node; ``rolls_back_in`` is None where the mode stays.

    ``guarded`` are packets of sources for which the tables had no place, judged by the sketch instead;
    ``contended`` passed uncounted.
    """

    mode: str
    rolls_back_in: float | None
    interfaces: tuple[InterfaceRow, ...]
    bans: int
    allowed: int
    denied: int
    guarded: int
    contended: int


class SourceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One source of much traffic: ``handle`` stands for it in commands, ``source`` is what may be shown.

    Counts are since the source is known; ``refused`` are those that were too many, dropped or not.
    """

    handle: str
    source: str
    policy: str
    packets: int
    packet_rate: float | None
    refused: int
    refused_rate: float | None
