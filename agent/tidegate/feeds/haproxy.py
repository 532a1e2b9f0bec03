# SPDX-License-Identifier: Apache-2.0
"""HAProxy's ``show stat BACKEND 4 -1``: the answers of servers between two samples, as events; pure.

``hrsp_*`` are answers that have come from the server. The 502, 503 and 504 that HAProxy makes by itself are not in
them, and neither is an answer that it throws away to try again (``retry-on 503``), which is in ``wretr`` alone. An
interim answer (100, 103) can't be told from a 101 in ``hrsp_1xx``; both are successes. ``eresp`` counts some
failures more than once. After a reload the old process counts on for itself, unseen. ``addr`` is given to
the levels operator and admin only.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from tidegate.config import units
from tidegate.feeds.answers import Answers, events_of
from tidegate.model.breaker import Event

_SUCCESSES = ("hrsp_1xx", "hrsp_2xx", "hrsp_3xx", "hrsp_4xx", "hrsp_other")
_FAILURES = ("hrsp_5xx",)
_COLUMNS = ("pxname", "svname", "type", "addr", *_SUCCESSES, *_FAILURES, "econ", "eresp", "wretr", "wredis")
_NUMBER = re.compile(r"[0-9]{0,20}")
_SERVER = "2"


class Passed(StrEnum):
    """Why a row is no server's."""

    OTHER = "other"  # a frontend, a backend as a whole, a listener
    NO_ADDRESS = "no_address"  # none yet, a Unix socket, or the level of the socket is too low
    MALFORMED = "malformed"


class Server(NamedTuple):
    """What one server has counted: answers, and attempts without one.

    ``retries`` are tries anew of all kinds, ``redispatches`` requests that went to another server instead.
    """

    endpoint: str
    successes: int
    failures: int
    not_connected: int
    broken: int
    retries: int
    redispatches: int


class Sample(NamedTuple):
    """The servers, by backend and name, and how many rows are none, by reason."""

    servers: Mapping[tuple[str, str], Server]
    passed: Mapping[Passed, int]


def parse(text: str) -> Sample | None:
    """Return what HAProxy has answered; None where that isn't the table with all columns that are needed."""
    try:
        header, *rows = [row for row in csv.reader(io.StringIO(text)) if row]
    except (ValueError, csv.Error):
        return None
    header[0] = header[0].removeprefix("# ")
    if not text.startswith("# ") or not set(_COLUMNS) <= set(header):
        return None
    servers: dict[tuple[str, str], Server] = {}
    passed: Counter[Passed] = Counter(dict.fromkeys(Passed, 0))
    for row in rows:
        values = dict(zip(header, row, strict=False))
        found = _server(values) if len(row) == len(header) else Passed.MALFORMED
        key = values["pxname"], values.get("svname", "")
        if isinstance(found, Passed):
            passed[found] += 1
        elif key in servers:
            passed[Passed.MALFORMED] += 1
        else:
            servers[key] = found
    return Sample(servers, passed)


def _server(values: Mapping[str, str]) -> Server | Passed:
    if values["type"] != _SERVER:
        return Passed.OTHER
    if not all(_NUMBER.fullmatch(values[name]) for name in _COLUMNS[4:]):
        return Passed.MALFORMED
    count = {name: int(values[name] or 0) for name in _COLUMNS[4:]}  # empty in mode tcp
    try:
        endpoint = units.endpoint(values["addr"])
    except ValueError:
        return Passed.NO_ADDRESS
    return Server(
        endpoint=endpoint,
        successes=sum(count[name] for name in _SUCCESSES),
        failures=sum(count[name] for name in _FAILURES),
        not_connected=count["econ"],
        broken=count["eresp"],
        retries=count["wretr"],
        redispatches=count["wredis"],
    )


def changes(before: Sample, after: Sample) -> dict[str, Answers]:
    """Return the answers of each endpoint between two samples.

    Counters that have gone down began at 0 in between, as HAProxy was started again. A server that is new, or has
    another address than before, has no answers yet: what it has counted may be older.
    """
    found: dict[str, Answers] = {}
    for key, now in after.servers.items():
        old = before.servers.get(key)
        if old is None or old.endpoint != now.endpoint:
            continue
        is_anew = any(new < was for new, was in zip(now[1:], old[1:], strict=True))
        since = Server(old.endpoint, 0, 0, 0, 0, 0, 0) if is_anew else old
        answers = Answers(
            now.successes - since.successes,
            now.failures - since.failures,
            now.not_connected - since.not_connected + now.broken - since.broken,
            is_anew,
        )
        found[now.endpoint] = found.get(now.endpoint, Answers()).plus(answers)
    return found


def difference(before: Sample, after: Sample, endpoints: Mapping[str, str]) -> list[Event]:
    """Return the events between two samples, of those ``endpoints`` that have a pool there.

    What had no answer is not among them: the kernel sees it exactly.
    """
    return [
        event
        for endpoint, answers in changes(before, after).items()
        if endpoint in endpoints
        for event in events_of(endpoints[endpoint], endpoint, answers)
    ]
