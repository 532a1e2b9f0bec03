# SPDX-License-Identifier: Apache-2.0
"""What the engine would do with recorded events, one JSON object a line, in virtual time; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from tidegate.breaker.engine import Engine
from tidegate.errors import UsageError
from tidegate.model.breaker import Decision, Event, Kind
from tidegate.model.outliers import Freeze, Member


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """One line; a tick and a fault of this node's own need neither pool nor endpoint."""

    t: float
    event: Kind
    pool: str = ""
    endpoint: str = ""
    code: int | None = None
    started: float | None = None
    attempt: int | None = None
    seconds: float | None = None
    count: int = 1


_DECODER = msgspec.json.Decoder(_Line)


def simulate(
    pools: Mapping[str, Member], lines: Iterable[bytes | str], freeze: Freeze | None = None, seed: int = 0
) -> Iterator[Decision]:
    """Yield what ``enforce`` would do, whatever the mode; intervals run from t = 0.

    Raises UsageError at a line that isn't an event, goes back in time, or names what the pools don't have.
    """
    engine = Engine(freeze, seed=seed)
    for name, member in pools.items():
        engine.set_pool(name, msgspec.structs.replace(member.policy, mode="enforce"), member.endpoints, 0.0)
    last = 0.0
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        line = _read(text, number)
        if line.t < last:
            raise UsageError(f"line {number}: expected events in the order of t, found {line.t:g} after {last:g}")
        last = line.t
        while engine.next_sweep <= line.t:
            # Of a long time in which nothing happens, one sweep is enough.
            yield from engine.sweep(line.t if engine.at_rest else engine.next_sweep)
        if line.event is not Kind.TICK and (line.event is not Kind.LOCAL_FAULT or line.endpoint):
            yield from engine.observe(_event(line, number, pools), line.t)


def action(decision: Decision) -> dict[str, Any]:
    """Return a decision as a line of output has it: who, what, why, until when, and the numbers."""
    return {
        "t": decision.t,
        "pool": decision.pool or None,
        "endpoint": decision.endpoint or None,
        "action": str(decision.action),
        "reason": decision.reason,
        "until": decision.until,
        "ejections": decision.ejections,
        "enforced": decision.enforced,
        "evidence": decision.evidence,
    }


def _read(text: bytes | str, number: int) -> _Line:
    try:
        line = _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"line {number}: expected an event as a JSON object: {error}") from error
    if line.t < 0 or line.count < 1:
        raise UsageError(f"line {number}: expected t of at least 0 and a count of at least 1")
    if line.event is Kind.HTTP and line.code is None:
        raise UsageError(f"line {number}: expected a code with the event http, found none")
    return line


def _event(line: _Line, number: int, pools: Mapping[str, Member]) -> Event:
    if line.pool not in pools:
        raise UsageError(f"line {number}: expected one of the pools ({', '.join(pools)}), found {line.pool!r}")
    if line.endpoint not in pools[line.pool].endpoints:
        known = ", ".join(pools[line.pool].endpoints)
        raise UsageError(f"line {number}: expected an endpoint of {line.pool} ({known}), found {line.endpoint!r}")
    return Event(
        pool=line.pool,
        endpoint=line.endpoint,
        kind=line.event,
        code=line.code,
        started=line.started,
        attempt=line.attempt,
        seconds=line.seconds,
        count=line.count,
    )
