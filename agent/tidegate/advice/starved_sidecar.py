# SPDX-License-Identifier: Apache-2.0
"""A container at its limits whose sibling in the pod suffers: a sidecar that starves its app, or the reverse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tidegate.advice.containers import more_cpu, more_memory
from tidegate.advice.cpu_throttled import stopped_seconds, wanted
from tidegate.advice.memory_near_limit import used_share
from tidegate.advice.rows import name_of
from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import StarvedSidecar
from tidegate.model.resources import ResourceRow
from tidegate.model.window import ENDPOINTS, KILLS, SERVICE_DISKS, Window

ID = "starved_sidecar"
#: A connection that carries no more requests than this lasts as long as its answer takes.
_ONE_ANSWER = 1.5

#: What a sibling takes away from another: not CPU, of which one that is stopped leaves more to others.
_SHARED = ("memory", "io")

_Evidence = dict[str, float | int | str]


class _Harm(NamedTuple):
    """How one container suffers."""

    row: ResourceRow
    said: str
    evidence: _Evidence
    is_slower: bool


def find(window: Window, limits: StarvedSidecar) -> Iterator[Finding]:
    """Find pods in which one container is at its limits, or writes much, and another one suffers that isn't."""
    pods: dict[str, list[ResourceRow]] = {}
    for row in window.now.resources or ():
        if row.container:
            pods.setdefault(row.service, []).append(row)
    for rows in pods.values():
        starved = [(row, why) for row in rows if (why := _at_limits(window, row, limits))]
        others = [row for row in rows if all(row is not s for s, _ in starved)]
        harmed = [harm for row in others if (harm := _harm(window, row, limits))]
        if starved and harmed:
            worst, why = max(starved, key=lambda found: len(found[1]))
            yield _finding(window, worst, why, max(harmed, key=lambda harm: harm.is_slower))


def _at_limits(window: Window, row: ResourceRow, limits: StarvedSidecar) -> _Evidence:
    """Return by what a container is held back, or holds back others; nothing if by nothing."""
    found: _Evidence = {}
    stopped = stopped_seconds(window, row)
    if stopped is not None and stopped >= limits.throttled * window.seconds:
        found["throttled_seconds"] = round(stopped, 2)
    share = used_share(row)
    if share is not None and share >= limits.memory:
        found["memory_share"] = round(share, 3)
    kills = int(window.added(KILLS, row).oom_kills)
    if kills:
        found["oom_kills"] = kills
    written = _written(window, row)
    if written >= limits.writes:
        found["write_bytes_per_second"] = int(written)
    return found


def _written(window: Window, row: ResourceRow) -> float:
    return (
        sum(
            window.added(SERVICE_DISKS, disk).bytes
            for disk in window.now.service_disks or ()
            if (disk.service, disk.container, disk.operation) == (row.service, row.container, "write")
        )
        / window.seconds
    )


def _harm(window: Window, row: ResourceRow, limits: StarvedSidecar) -> _Harm | None:
    """Tell how a container suffers: what it answers takes longer than before, or it stalls for a resource."""
    ended = seconds = ended_before = seconds_before = 0.0
    for endpoint in window.now.endpoints:
        if (endpoint.service, endpoint.container) != (row.service, row.container):
            continue
        added = window.added(ENDPOINTS, endpoint)
        if added.ended and added.exchanges <= _ONE_ANSWER * added.established:
            ended += added.ended
            seconds += added.lifetimes
            ended_before += endpoint.duration.count - added.ended
            seconds_before += endpoint.duration.sum - added.lifetimes
    if min(ended, ended_before) >= limits.connections and seconds_before > 0:
        now, before = seconds / ended, seconds_before / ended_before
        if now >= limits.slower * before and now - before >= limits.longer:
            evidence: _Evidence = {
                "sibling_latency_seconds": round(now, 5),
                "sibling_latency_seconds_before": round(before, 5),
            }
            return _Harm(row, f"answers in {now * 1e3:.0f} ms, before in {before * 1e3:.0f}", evidence, True)
    for resource in _SHARED:
        pressure = (row.pressure or {}).get(resource)
        if pressure is not None and pressure.some is not None and pressure.some >= limits.pressure:
            share: _Evidence = {f"sibling_{resource}_pressure_share": round(pressure.some, 3)}
            return _Harm(row, f"waits for {resource} {pressure.some:.0%} of the time", share, False)
    return None


def _finding(window: Window, row: ResourceRow, why: _Evidence, harm: _Harm) -> Finding:
    service, sibling = name_of(row), name_of(harm.row)
    return Finding(
        id=ID,
        severity=Severity.CRITICAL,
        subject=f"{service} starves {sibling}",
        summary=f"{service} {_said(why, row)}; {sibling} beside it {harm.said}.",
        evidence={**why, **harm.evidence, "window_seconds": round(window.seconds, 1)},
        confidence=Confidence.HIGH if harm.is_slower and len(why) > 1 else Confidence.MEDIUM,
        refuted_by=f"{sibling} as slow as now while {service} is idle, or a slow upstream of {sibling} itself",
        remedies=tuple(_remedies(window, row, why)),
        runbook=f"docs/runbooks/{ID}.md",
        services=(service, sibling),
    )


def _said(why: _Evidence, row: ResourceRow) -> str:
    said = {
        "throttled_seconds": f"is stopped by its limit of {row.cpu_limit or 0:g} CPUs",
        "memory_share": f"is at its limit of {(row.memory_limit or 0) >> 20} MiB",
        "oom_kills": "was killed for want of memory",
        "write_bytes_per_second": f"writes {float(why.get('write_bytes_per_second', 0)) / 1e6:.0f} MB/s",
    }
    return " and ".join(said[name] for name in why)


def _remedies(window: Window, row: ResourceRow, why: _Evidence) -> Iterator[Remedy]:
    if "throttled_seconds" in why:
        stopped = float(why["throttled_seconds"])
        yield more_cpu(row, wanted(window, row, stopped), "Raise its CPU limit to what it would take.")
    if "memory_share" in why or "oom_kills" in why:
        held = max(row.memory_working_set or 0, row.memory_limit or 0)
        yield more_memory(row, held * 2, "Raise its memory limit.")
    if "write_bytes_per_second" in why:
        yield Remedy(what="Have it write less: sample or drop debug logs, larger batches, another device.")
    yield Remedy(
        what="Don't let the app wait for it: write to it without blocking (a bounded buffer that drops and "
        "counts), or run one such agent for the whole node instead of one in each pod.",
    )
