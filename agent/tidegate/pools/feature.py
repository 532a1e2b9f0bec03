# SPDX-License-Identifier: Apache-2.0
"""How the drivers of a running agent stand to their proxies, as the doctor says it; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tidegate.model.driver import DriverRow, Result, Standing
from tidegate.model.feature import Feature, State

_ITSELF = "what it says; the agent tries again by itself"


def of_drivers(rows: Iterable[DriverRow]) -> list[Feature]:
    """Judge each driver: whether its proxy says what is wanted, and what was lost on the way there."""
    return [feature for row in rows if row.driver != "null" for feature in _of(row)]


def _of(row: DriverRow) -> Iterator[Feature]:
    name = f"pool:{row.pool}:{row.driver}"
    counts = {updates.result: updates.count for updates in row.updates}
    failed = counts.get(Result.FAILED, 0) + counts.get(Result.UNVERIFIED, 0)
    happened = [f"{failed} updates failed and were tried again" if failed else ""]
    happened.append(f"{row.replays} times it had forgotten and was told again" if row.replays else "")
    past = ", ".join(part for part in happened if part)
    if row.standing in (Standing.AWAY, Standing.BEHIND):
        reason, _, remedy = row.error.rpartition("; ")
        yield Feature(
            name=name,
            state=State.DEGRADED,
            reason=(reason or remedy) + (f" ({past} since the start)" if past else ""),
            remedy=remedy if reason else _ITSELF,
        )
    elif row.warnings:
        for warning in row.warnings:
            reason, _, remedy = warning.rpartition("; ")
            yield Feature(
                name=name, state=State.DEGRADED, reason=reason or remedy, remedy=remedy if reason else ""
            )
    else:
        yield Feature(name=name, state=State.OK, reason=f"{past} since the start" if past else "")
