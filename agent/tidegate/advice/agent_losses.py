# SPDX-License-Identifier: Apache-2.0
"""What the agent itself could not measure, so that nobody trusts numbers that lack something."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import AgentLosses
from tidegate.model.window import AGENT, Window

ID = "agent_losses"
#: What is counted although the numbers are right, or is no measurement: see docs/architecture.md.
_HARMLESS = ("tcp_late", "tcp_end_unseen", "tcp_retransmits_unseen", "rows_folded")
_NO_MEASUREMENT = "control_"
#: Which key of the config gives more room, by kind of loss, and the map that it sizes.
_KEYS = {
    "tcp_rows_full": ("signals: {{tcp: {{max_rows: {}}}}}", "tcp_rows"),
    "tcp_untracked": ("signals: {{tcp: {{max_sockets: {}}}}}", "tcp_sockets"),
    "tcp_ports_full": ("signals: {{ports: {{max_rows: {}}}}}", "tcp_ports"),
    "ports_full": ("signals: {{ports: {{max_rows: {}}}}}", "tcp_ports"),
    "ports_rows_full": ("services: {{max_rows: {}}}", ""),
    "resources_full": ("services: {{max_rows: {}}}", ""),
}
_FEWEST_TICKS = 2


def find(window: Window, limits: AgentLosses) -> Iterator[Finding]:
    """Find kinds of loss that grow, and ticks that are left out."""
    lost = {
        kind: n
        for kind, n in window.lost().items()
        if kind not in _HARMLESS and not kind.startswith(_NO_MEASUREMENT) and n >= limits.lost
    }
    ticks = window.added(AGENT, window.now)
    due = ticks.ticks + ticks.ticks_skipped
    if ticks.ticks_skipped >= _FEWEST_TICKS and ticks.ticks_skipped / due >= limits.ticks:
        lost |= {"ticks": int(ticks.ticks), "ticks_skipped": int(ticks.ticks_skipped)}
    if lost:
        yield _finding(window, lost)


def _finding(window: Window, lost: dict[str, int]) -> Finding:
    kinds = ", ".join(f"{kind} {n}" for kind, n in lost.items())
    return Finding(
        id=ID,
        severity=Severity.WARNING,
        subject="tidegate",
        summary=f"The agent lost something: {kinds}. Sums stay true where docs/architecture.md says so; "
        "rows may lack it.",
        evidence={**lost, "window_seconds": round(window.seconds, 1)},
        confidence=Confidence.HIGH,
        refuted_by="nothing: these are counts of what was left out",
        remedies=_remedies(window, lost),
        runbook=f"docs/runbooks/{ID}.md",
    )


def _remedies(window: Window, lost: dict[str, int]) -> tuple[Remedy, ...]:
    lines = dict.fromkeys(line for kind in lost if (line := _more(window, kind)) is not None)
    remedies = [
        Remedy(
            what="Give it more room, twice what it is; sizes of tables count from the agent's next start.",
            where="/etc/tidegate/tidegate.yaml",
            lines=(line,),
        )
        for line in lines
    ]
    if "ticks_skipped" in lost:
        remedies.append(
            Remedy(
                what="Give the agent more CPU, or let it measure less often.",
                where="/etc/tidegate/tidegate.yaml",
                lines=(f"signals: {{interval: {max(2 * window.now.interval, 1):.0f}s}}",),
            )
        )
    if not remedies:
        remedies.append(
            Remedy(what="See what each kind of loss means.", where="this node", lines=("tidegate doctor",))
        )
    return tuple(remedies)


def _more(window: Window, kind: str) -> str | None:
    """Return the line that doubles what was too small; None where no key does."""
    if kind not in _KEYS:
        return None
    line, table = _KEYS[kind]
    known = window.now.health.maps.get(table)
    limit = window.now.health.rows_limit if not table else known.limit if known is not None else None
    return None if not limit else line.format(2 * limit)
