# SPDX-License-Identifier: Apache-2.0
"""A table of tracked connections that is nearly full: then the first packet of each new one is dropped."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.model.finding import Confidence, Finding, Remedy, Severity
from tidegate.model.limits import ConntrackNearLimit
from tidegate.model.ports import NamespaceRow
from tidegate.model.window import Window

ID = "conntrack_near_limit"
_FULL = 0.95
#: What an entry takes in the kernel, with its two hash entries and extensions.
_ENTRY_BYTES = 400


def find(window: Window, limits: ConntrackNearLimit) -> Iterator[Finding]:
    """Find network namespaces whose table is full to a share."""
    for row in window.now.namespaces or ():
        entries, limit = row.conntrack_entries, row.conntrack_limit
        if entries is not None and limit and entries >= limits.used * limit:
            yield _finding(row, entries, limit)


def _finding(row: NamespaceRow, entries: int, limit: int) -> Finding:
    used = entries / limit
    more = 2 * limit
    where = f"network namespace {row.netns}" + (f" ({', '.join(row.services)})" if row.services else "")
    return Finding(
        id=ID,
        severity=Severity.CRITICAL if used >= _FULL else Severity.WARNING,
        subject=f"netns {row.netns}",
        summary=f"The connection tracking table of {where} is {used:.0%} full: {entries} of {limit}; "
        "when it is full, new connections are dropped.",
        evidence={"entries": entries, "limit": limit, "used_share": round(used, 3)},
        confidence=Confidence.HIGH,
        refuted_by="entries that fall by themselves: a burst of short connections, kept for 120 s after their end",
        remedies=(
            Remedy(
                what="Don't track what needs neither NAT nor stateful rules, as the traffic to a busy port.",
                where="nftables, a table with chains at hook prerouting and output, priority raw",
                lines=("tcp dport 443 notrack", "tcp sport 443 notrack"),
            ),
            Remedy(
                what="Forget connections that have ended, or are idle, sooner.",
                where="/etc/sysctl.d/60-tidegate.conf",
                lines=(
                    "net.netfilter.nf_conntrack_tcp_timeout_time_wait = 30",
                    "net.netfilter.nf_conntrack_tcp_timeout_established = 3600",
                ),
            ),
            Remedy(
                what=f"Make it larger: some {more * _ENTRY_BYTES >> 20} MiB of kernel memory when full. The limit "
                "is one for all namespaces.",
                where="/etc/sysctl.d/60-tidegate.conf",
                lines=(f"net.netfilter.nf_conntrack_max = {more}",),
            ),
        ),
        runbook=f"docs/runbooks/{ID}.md",
        services=row.services,
    )
